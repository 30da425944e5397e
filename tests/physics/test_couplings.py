"""Couplings: fields, their adjoint, and what may be written to them. Oracle: einsum over (N, N, D, D)."""

import pytest
import torch
from torch import Tensor

from attractor.physics import Gaussian, Hopfield, LocalEnergy, Pairwise, Sphere, random_start

N, D, B = 4, 3, 5
KINDS = [Pairwise, Hopfield]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _values(seed: int = 1) -> Tensor:
    values = _normal(N, N, D, D, seed=seed)
    for i in range(N):
        values[i, i] = 0
    return values


def _filled(kind: type):
    couplings = kind(N, D, dtype=torch.float64)
    couplings.couplings = _values()
    return couplings


def _fields(kind: type, values: Tensor, x: Tensor) -> Tensor:
    """(N, S, D, B), from x (B, N, D)."""
    if kind is Pairwise:
        return torch.einsum("ijac,bjc->ijab", values, x)
    return torch.einsum("ijac,bjc->iab", values, x).unsqueeze(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [range(N), range(1, 3), range(3, 4)])
def test_fields_are_couplings_times_tokens(kind: type, rows: range) -> None:
    """u_ij = J_ij x_j and u_i = sum_j A_ij x_j, J not symmetric: J^T would learn, but another network."""
    x = _normal(B, N, D)
    fields = _filled(kind).fields(x.permute(1, 2, 0).contiguous(), rows)
    torch.testing.assert_close(fields, _fields(kind, _values(), x)[rows.start : rows.stop])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [range(N), range(1, 3), range(3, 4)])
def test_accumulate_is_the_adjoint_of_fields(kind: type, rows: range) -> None:
    """<G, u(J)> has gradient G x^T by J (autograd), added to what is there, on the rows asked for only.

    Overwriting instead of adding would learn from the last block of images alone.
    """
    x = _normal(B, N, D)
    couplings = _filled(kind)
    field_gradient = _normal(len(rows), couplings.sources, D, B, seed=7)
    if kind is Pairwise:  # the engine gives weight 0 to the source that does not exist
        for r, i in enumerate(rows):
            field_gradient[r, i] = 0
    values = _values().requires_grad_()
    ours = _fields(kind, values, x)[rows.start : rows.stop]
    (expected,) = torch.autograd.grad((ours * field_gradient).sum(), values)
    for i in range(N):
        expected[i, i] = 0
    start = _values(seed=8)
    gradient = {"couplings": torch.zeros_like(couplings.couplings).copy_(start)}
    presynaptic = x.transpose(0, 1).contiguous()
    couplings.accumulate(gradient, field_gradient, presynaptic, rows=rows)
    torch.testing.assert_close(gradient["couplings"], start + expected)


def test_exclude_marks_the_own_source_of_each_row() -> None:
    """Row i of a block has no source i: an offset lost in the block would let a token see itself."""
    for rows in (range(N), range(1, 3), range(3, 4)):
        scores = torch.zeros(len(rows), N, B)
        Pairwise(N, D).exclude(scores, rows)
        for r, i in enumerate(rows):
            assert (scores[r, i] == -torch.inf).all()
            assert scores[r].isinf().sum() == B
        scores = torch.zeros(len(rows), 1, B)
        Hopfield(N, D).exclude(scores, rows)
        assert not scores.any()


@pytest.mark.parametrize("kind", KINDS)
def test_setter_stores_a_copy_in_the_public_shape(kind: type) -> None:
    """What is set is read back, as (N, N, D, D); later changes of the source do not leak in."""
    couplings, values = kind(N, D, dtype=torch.float64), _values()
    assert not couplings.couplings.any()
    assert couplings.couplings.shape == (N, N, D, D)
    couplings.couplings = values
    values += 1
    assert torch.equal(couplings.couplings, _values())
    assert couplings.weights["couplings"] is couplings.couplings
    assert not couplings.couplings.requires_grad
    assert couplings.parameters == N * (N - 1) * D * D
    assert couplings.sources == (N if kind is Pairwise else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_setter_refuses(kind: type) -> None:
    """A diagonal block would let a token predict itself: perfect likelihood, useless network."""
    couplings = kind(N, D, dtype=torch.float64)
    bad = _values()
    bad[2, 2, 0, 1] = -1e-9
    with pytest.raises(ValueError, match=r"couplings\[2, 2\] is not zero"):
        couplings.couplings = bad
    with pytest.raises(ValueError, match=r"\(4, 4, 3\), expected \(N, N, D, D\) = \(4, 4, 3, 3\)"):
        couplings.couplings = bad[..., 0]
    with pytest.raises(ValueError, match="int64"):
        couplings.couplings = torch.zeros(N, N, D, D, dtype=torch.int64)
    bad[2, 2, 0, 1] = float("nan")
    with pytest.raises(ValueError, match="not zero"):
        couplings.couplings = bad
    assert not couplings.couplings.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "dim"), [(1, 3), (4, 0)])
def test_constructor_refuses(kind: type, tokens: int, dim: int) -> None:
    """One token has no others to be predicted from."""
    with pytest.raises(ValueError, match=f"got {tokens} and {dim}"):
        kind(tokens, dim)


@pytest.mark.parametrize("kind", KINDS)
def test_random_start_draws_all_but_the_diagonal(kind: type) -> None:
    """N(0, scale^2) off the diagonal, zero on it, a function of the generator alone."""
    couplings, again = kind(10, 8), kind(10, 8)
    random_start(couplings, 0.03, generator=torch.Generator().manual_seed(4))
    random_start(again, 0.03, generator=torch.Generator().manual_seed(4))
    values = couplings.couplings
    assert torch.equal(values, again.couplings)
    assert not values.diagonal(dim1=0, dim2=1).any()
    drawn = values[~torch.eye(10, dtype=torch.bool)]
    # 5,760 draws: the standard deviation is known to 1 %, the mean to 0.0004
    assert abs(drawn.std().item() - 0.03) < 0.0015
    assert abs(drawn.mean().item()) < 0.002
    with pytest.raises(ValueError, match="got -1"):
        random_start(couplings, -1, generator=torch.Generator())


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_can_use_the_couplings_after_inference_mode(kind: type) -> None:
    """Weights written inside inference mode stay ordinary tensors, for analyses that differentiate."""
    couplings = _filled(kind)
    with torch.inference_mode():
        random_start(couplings, 0.1, generator=torch.Generator().manual_seed(0))
    assert not couplings.couplings.is_inference()
    assert not couplings.couplings.requires_grad
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((couplings.couplings * scale).square().sum(), scale)
    assert slope > 0


def test_energy_refuses_what_does_not_fit() -> None:
    """Shapes and temperatures are refused before any work, with both numbers."""
    with pytest.raises(ValueError, match="couplings have dim 3, the measure has 4"):
        LocalEnergy(Pairwise(N, 3), Sphere(4))
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"got {bad}"):
            LocalEnergy(Hopfield(N, 3), Gaussian(3), inverse_temperature=bad)
