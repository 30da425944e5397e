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


@pytest.mark.parametrize("case", CASES)
def test_rows_drawn_are_torch_on_each_row_alone(case: str) -> None:
    """Every row is torch.optim run on that row alone, stepped when the row is drawn and only then.

    One counter for all rows would correct the bias of a row that is seen for the first time as if its
    averages had been filled for long: a first step many times too small.
    """
    make, reference = CASES[case]
    ours, optimiser = {"w": _normal(*SHAPE)}, make()
    theirs = [row.clone().requires_grad_() for row in ours["w"]]
    references = [reference([row], 0.1) for row in theirs]
    for step, rows in enumerate([[1, 2], [4], [0, 2, 4], [2], [1, 2, 3, 4], None, [3]]):
        gradient = 10.0**-step * _normal(*SHAPE, seed=step)
        before = ours["w"].clone()
        optimiser.ascend(ours, {"w": gradient}, rate=0.1, rows=rows)
        for i, (row, torchs) in enumerate(zip(theirs, references, strict=True)):
            if rows is None or i in rows:
                row.grad = gradient[i].clone()
                torchs.step()
                torch.testing.assert_close(ours["w"][i], row.detach(), rtol=1e-12, atol=1e-12)
            else:
                assert torch.equal(ours["w"][i], before[i])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_has_the_same_bits_whichever_rows_come_with_it(case: str, dtype, monkeypatch) -> None:
    """All rows at once, in blocks, one by one, or held by another optimiser: the same weights and state.

    Otherwise results would depend on the number of processes, or on what else was drawn.
    """
    make, _ = CASES[case]
    shape = (7, 5, 3, 3)  # 45 numbers a row: no multiple of a vector register
    start = _normal(*shape).to(dtype)
    row_bytes = start[0].numel() * start.element_size()
    everything, one_by_one, part = ({"w": w} for w in (start.clone(), start.clone(), start[4:].clone()))
    first, second, third = make(), make(), make()
    for step in range(4):
        gradient = _normal(*shape, seed=step).to(dtype)
        monkeypatch.setattr(optimisers, "_BLOCK_BYTES", 3 * row_bytes)
        first.ascend(everything, {"w": gradient}, rate=0.1)
        for row in range(7):
            second.ascend(one_by_one, {"w": gradient}, rate=0.1, rows=[row])
        monkeypatch.setattr(optimisers, "_BLOCK_BYTES", 256_000)
        third.ascend(part, {"w": gradient[4:]}, rate=0.1)
    assert torch.equal(everything["w"], one_by_one["w"])
    assert torch.equal(everything["w"][4:], part["w"])
    assert first.state.keys() == second.state.keys()
    for name, state in first.state.items():
        assert torch.equal(state, second.state[name])
        assert torch.equal(state[4:], third.state[name])


@pytest.mark.parametrize("case", CASES)
def test_rows_not_drawn_keep_their_state(case: str) -> None:
    """Averages, velocity and counter of the other rows stay bit for bit, whatever gradient they have."""
    make, _ = CASES[case]
    weights, optimiser = {"w": _normal(*SHAPE)}, make()
    optimiser.ascend(weights, {"w": _normal(*SHAPE, seed=1)}, rate=0.1)
    before = {name: state.clone() for name, state in optimiser.state.items()}
    gradient = _normal(*SHAPE, seed=2)
    gradient[[0, 2, 4]] = float("nan")
    optimiser.ascend(weights, {"w": gradient}, rate=0.1, rows=[1, 3])
    for name, state in optimiser.state.items():
        assert torch.equal(state[[0, 2, 4]], before[name][[0, 2, 4]])
        assert not torch.equal(state[[1, 3]], before[name][[1, 3]])
    if case.startswith("adam"):
        assert optimiser.state["w.steps"].tolist() == [1, 2, 1, 2, 1]


@pytest.mark.parametrize("case", CASES)
def test_state_is_all_there_is_to_continue(case: str) -> None:
    """A fresh optimiser with a copy of the state goes on bit for bit, from inside inference mode too."""
    make, _ = CASES[case]
    weights, optimiser = {"w": _normal(*SHAPE)}, make()
    with torch.inference_mode():
        for step, rows in enumerate([None, [0, 3], [3]]):
            optimiser.ascend(weights, {"w": _normal(*SHAPE, seed=step)}, rate=0.1, rows=rows)
    assert not any(state.is_inference() for state in optimiser.state.values())
    copies, continued = {"w": weights["w"].clone()}, make()
    continued.state = {name: state.clone() for name, state in optimiser.state.items()}
    for chosen, target in ((optimiser, weights), (continued, copies)):
        chosen.ascend(target, {"w": _normal(*SHAPE, seed=9)}, rate=0.1)
    assert torch.equal(weights["w"], copies["w"])


def test_gradient_is_left_alone() -> None:
    """The rule owns the gradient buffer; an optimiser that scales it in place changes what is reported."""
    for make, _ in CASES.values():
        weights, gradient = {"w": _normal(*SHAPE)}, {"w": _normal(*SHAPE, seed=1)}
        optimiser = make()
        for _ in range(2):
            optimiser.ascend(weights, gradient, rate=0.1)
        assert torch.equal(gradient["w"], _normal(*SHAPE, seed=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fused", "torch"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("place", [None, 0, 700, 1088])
def test_tells_whether_the_weights_are_finite(case: str, dtype: torch.dtype, place: int | None) -> None:
    """The rule asks nothing else after a step: an infinity in the last weights would train on unseen."""
    weights = {"w": _normal(33, 33).to(dtype), "v": _normal(3, 5).to(dtype)}
    gradient = {name: torch.ones_like(w) for name, w in weights.items()}
    if place is not None:
        weights["w"].view(-1)[place] = torch.inf
    assert CASES[case][0]().ascend(weights, gradient, rate=0.1) == (place is None)


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
