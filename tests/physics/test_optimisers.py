"""Optimisers. Oracle: torch.optim with maximize=True."""

import pytest
import torch
from torch import Tensor

from attractor.physics import SGD, Adam, Hopfield, optimisers

SHAPE = (5, 5, 3, 3)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CASES = {
    "sgd": (lambda: SGD(), lambda w, rate: torch.optim.SGD(w, lr=rate, maximize=True)),
    "momentum": (
        lambda: SGD(momentum=0.8),
        lambda w, rate: torch.optim.SGD(w, lr=rate, momentum=0.8, maximize=True),
    ),
    "adam": (lambda: Adam(), lambda w, rate: torch.optim.Adam(w, lr=rate, maximize=True)),
    "adam-betas": (
        lambda: Adam(beta1=0.6, beta2=0.9, epsilon=1e-2),
        lambda w, rate: torch.optim.Adam(w, lr=rate, betas=(0.6, 0.9), eps=1e-2, maximize=True),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block_bytes", [1, 256_000])
def test_agrees_with_torch(case: str, block_bytes: int, monkeypatch) -> None:
    """Ten steps on two weights, with a falling rate, equal torch.optim's ascent to rounding.

    A lost bias correction only shows in the first steps; a lost sign descends the likelihood.
    """
    monkeypatch.setattr(optimisers, "_BLOCK_BYTES", block_bytes)
    make, reference = CASES[case]
    ours = {"first": _normal(*SHAPE), "second": _normal(4, 2, seed=1)}
    theirs = [w.clone().requires_grad_() for w in ours.values()]
    optimiser, torchs = make(), reference(theirs, 0.1)
    for step in range(10):
        rate = 0.1 / (1 + step)
        gradient = {
            name: 10.0**-step * _normal(*w.shape, seed=100 + 7 * step + i)
            for i, (name, w) in enumerate(ours.items())
        }
        optimiser.ascend(ours, gradient, rate=rate)
        torchs.param_groups[0]["lr"] = rate
        for w, g in zip(theirs, gradient.values(), strict=True):
            w.grad = g.clone()
        torchs.step()
        for w, v in zip(ours.values(), theirs, strict=True):
            torch.testing.assert_close(w, v.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_updates_any_memory_layout_in_place(case: str) -> None:
    """Hopfield weights are stored transposed: a step is the same numbers, written to the same tensor."""
    make, _ = CASES[case]
    couplings = Hopfield(5, 3, dtype=torch.float64)
    plain = {"couplings": torch.zeros(SHAPE, dtype=torch.float64)}
    stored, first, second = couplings.weights["couplings"], make(), make()
    for step in range(3):
        gradient = {"couplings": _normal(*SHAPE, seed=step)}
        first.ascend(couplings.weights, gradient, rate=0.1)
        second.ascend(plain, gradient, rate=0.1)
    assert couplings.couplings is stored
    torch.testing.assert_close(stored, plain["couplings"], rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("case", CASES)
def test_a_weight_sees_its_own_gradient_alone(case: str) -> None:
    """Changing the gradient of one weight leaves every other weight as it was, bit for bit.

    A global norm, or a clipping by it, would make the rule nonlocal.
    """
    make, _ = CASES[case]
    results = []
    for change in (0.0, 100.0):
        weights, optimiser = {"w": _normal(*SHAPE)}, make()
        for step in range(3):
            gradient = _normal(*SHAPE, seed=5 + step)
            gradient[2, 1, 0, 1] += change
            optimiser.ascend(weights, {"w": gradient}, rate=0.1)
        results.append(weights["w"])
    assert results[0][2, 1, 0, 1] != results[1][2, 1, 0, 1]
    results[0][2, 1, 0, 1] = results[1][2, 1, 0, 1]
    assert torch.equal(*results)


def test_gradient_is_left_alone() -> None:
    """The rule owns the gradient buffer; an optimiser that scales it in place changes what is reported."""
    for make, _ in CASES.values():
        weights, gradient = {"w": _normal(*SHAPE)}, {"w": _normal(*SHAPE, seed=1)}
        optimiser = make()
        for _ in range(2):
            optimiser.ascend(weights, gradient, rate=0.1)
        assert torch.equal(gradient["w"], _normal(*SHAPE, seed=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(momentum=1.0), "momentum must be in .*got 1.0"),
        (lambda: SGD(momentum=-0.1), "got -0.1"),
        (lambda: Adam(beta1=1.0), "beta1 must be in .*got 1.0"),
        (lambda: Adam(beta2=-0.5), "beta2 must be in .*got -0.5"),
        (lambda: Adam(epsilon=0.0), "epsilon must be positive, got 0.0"),
    ],
)
def test_refuses_with_the_numbers_given(make, message: str) -> None:
    """beta = 1 divides by zero at the first step."""
    with pytest.raises(ValueError, match=message):
        make()
