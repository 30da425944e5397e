"""Couplings that are sparse or held in part. Oracles: the dense ones, formulas with a mask, autograd."""

import re

import pytest
import torch
from torch import Tensor

from attractor.physics import (
    SGD,
    Adam,
    EnergyDescent,
    Evidence,
    Gaussian,
    Hebb,
    Hopfield,
    LocalEnergy,
    Pairwise,
    PseudoLikelihood,
    Ranks,
    Ridge,
    Sphere,
    neighbourhood,
    random_start,
)
from attractor.physics.kernels.blocks import ROW_GRID

SIDE, D, B = 3, 4, 5
N = SIDE * SIDE
LAMBDA = 1.7


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _near(side: int, radius: int) -> Tensor:
    """(N, N), true where j is a source of i: written with loops over the grid."""
    near = torch.zeros(side**2, side**2, dtype=torch.bool)
    places = [(row, column) for row in range(side) for column in range(side)]
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            near[i, j] = max(abs(row - other_row), abs(column - other_column)) <= radius and i != j
    return near


def _values(near: Tensor, seed: int = 1) -> Tensor:
    """Random couplings (N, N, D, D), zero outside `near`."""
    return _normal(N, N, D, D, seed=seed) * near[:, :, None, None]


def _sparse(radius: int, **options: object) -> Pairwise:
    return Pairwise(N, D, neighbours=neighbourhood(SIDE, radius), dtype=torch.float64, **options)


def _to_tokens(neighbours: Tensor, by_slot: Tensor, dim: int) -> Tensor:
    """An array over slots S at axis `dim`, after the axis of i, as one over tokens N; zero elsewhere."""
    by_slot = by_slot.movedim((dim - 1, dim), (0, 1))  # (N, S, ...)
    full = by_slot.new_zeros(N, N, *by_slot.shape[2:])
    for i, row in enumerate(neighbours.tolist()):
        for s, j in enumerate(row):
            if j >= 0:
                full[i, j] = by_slot[i, s]
    return full.movedim((0, 1), (dim - 1, dim))


@pytest.fixture
def measure(measure_name: str, make_system):
    return make_system("Pairwise", measure_name, dim=D).energy.measure


@pytest.fixture
def x(measure) -> Tensor:
    return measure.project(_normal(B, N, D, seed=2))


# --- the table ---


@pytest.mark.parametrize("side", [2, 3, 5])
@pytest.mark.parametrize("radius", [1, 2, 4, 9])
def test_neighbourhood_is_a_square_cut_by_the_border(side: int, radius: int) -> None:
    """Row i lists, ascending, the tokens within `radius` rows and columns, then -1; and no token itself.

    A table that wraps around the border would couple the left edge of an image to its right edge.
    """
    table = neighbourhood(side, radius)
    for row, near in zip(table.tolist(), _near(side, radius), strict=True):
        there = [j for j in row if j >= 0]
        assert there == near.nonzero().flatten().tolist()
        assert row == there + [-1] * (len(row) - len(there))
    assert table.shape[1] == _near(side, radius).sum(1).max()


@pytest.mark.parametrize(("side", "radius"), [(1, 1), (4, 0), (4, -1)])
def test_neighbourhood_refuses(side: int, radius: int) -> None:
    """Radius 0 would leave no token anything to listen to."""
    with pytest.raises(ValueError, match=f"got {side} and {radius}"):
        neighbourhood(side, radius)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[1], [0]], r"\(2, 1\) of torch.int64, expected \(N, S\) = \(3, S\)"),
        ([[1.0], [0.0], [0.0]], "torch.float32"),
        ([[1], [0], [3]], "from 0 to 2, or -1"),
        ([[1], [-2], [0]], "from 0 to 2, or -1"),
        ([[1], [-1], [0]], r"token 1 must listen to other tokens.*got \[\]"),
        ([[1], [1], [0]], r"token 1 must listen to other tokens.*got \[1\]"),
        ([[1, 2], [0, -1], [0, 0]], r"token 2 must .* each once; got \[0, 0\]"),
    ],
)
def test_pairwise_refuses_tables_that_are_none(table: list[list[int]], message: str) -> None:
    """A token that listens to itself predicts itself; a source twice would count twice in the softmax."""
    with pytest.raises(ValueError, match=message):
        Pairwise(3, 2, neighbours=torch.tensor(table))


# --- the energy ---


@pytest.mark.parametrize("with_evidence", [False, True])
def test_a_radius_that_covers_the_grid_is_the_dense_network(measure, x: Tensor, with_evidence) -> None:
    """Everything equals the dense network's, to rounding: only the order of the sums differs."""
    values = _values(_near(SIDE, SIDE))
    dense, sparse = Pairwise(N, D, dtype=torch.float64), _sparse(SIDE)
    dense.couplings = sparse.couplings = values
    assert sparse.sources == N - 1
    full, ours = (LocalEnergy(c, measure, inverse_temperature=LAMBDA) for c in (dense, sparse))
    evidence = Evidence(_normal(B, N, D, seed=3)) if with_evidence else None
    close = {"rtol": 1e-12, "atol": 1e-12}
    for name in ("energy", "force", "conditional_mean", "log_conditional"):
        theirs = getattr(full, name)(x, evidence=evidence)
        torch.testing.assert_close(getattr(ours, name)(x, evidence=evidence), theirs, **close)
    table = sparse.neighbours
    torch.testing.assert_close(_to_tokens(table, ours.attention(x), 2), full.attention(x), **close)
    prior = ours.prior_attention(x, evidence=evidence)
    torch.testing.assert_close(
        _to_tokens(table, prior, 2), full.prior_attention(x, evidence=evidence), **close
    )
    gradient = _to_tokens(table, ours.coupling_gradient(x)["couplings"], 1)
    torch.testing.assert_close(gradient, full.coupling_gradient(x)["couplings"], **close)


@pytest.mark.parametrize("radius", [1, 2])
def test_a_smaller_radius_is_the_formula_with_sources_masked(measure, x: Tensor, naive, radius) -> None:
    """Sources outside the neighbourhood have weight 0 in every sum; derivatives by autograd.

    A missing source with field 0 that stays in the sum would pass for a uniform one: it has to be
    excluded, not zero.
    """
    near, couplings = _near(SIDE, radius), _sparse(radius)
    values = _values(near).requires_grad_()
    couplings.couplings = values
    energy = LocalEnergy(couplings, measure, inverse_temperature=LAMBDA)
    own = x.clone().requires_grad_()
    natural = naive.natural(energy, values, x)
    scores = torch.einsum("bia,bija->bij", own, natural).masked_fill(~near, -torch.inf)
    psi = measure.log_normaliser(natural).masked_fill(~near, -torch.inf)
    energies = -scores.logsumexp(2) / LAMBDA
    torch.testing.assert_close(energy.energy(x), energies.detach())
    (slope,) = torch.autograd.grad(energies.sum(), own, retain_graph=True)
    torch.testing.assert_close(energy.force(x), -slope)
    beta = torch.softmax(psi, 2)
    mean = (beta.unsqueeze(3) * measure.mean(natural)).sum(2)
    torch.testing.assert_close(energy.conditional_mean(x), mean.detach())
    log = scores.logsumexp(2) - psi.logsumexp(2)
    torch.testing.assert_close(energy.log_conditional(x), log.detach())
    table = couplings.neighbours
    attention = torch.softmax(scores, 2).detach()
    torch.testing.assert_close(_to_tokens(table, energy.attention(x), 2), attention)
    torch.testing.assert_close(_to_tokens(table, energy.prior_attention(x), 2), beta.detach())
    (expected,) = torch.autograd.grad(log.sum(1).mean(), values)
    gradient = energy.coupling_gradient(x)["couplings"]
    torch.testing.assert_close(_to_tokens(table, gradient, 1), expected)
    assert not gradient[table < 0].any(), "a source that does not exist is not learned"


# --- what is stored ---


def test_setter_and_getter_are_inverse() -> None:
    """(N, N, D, D) in, the same out, although only the neighbours are stored; a copy."""
    values, couplings = _values(_near(SIDE, 1)), _sparse(1)
    assert not couplings.couplings.any()
    couplings.couplings = values
    values += 1
    assert torch.equal(couplings.couplings, _values(_near(SIDE, 1)))
    stored = couplings.weights["couplings"]
    assert stored.shape == (N, 8, D, D)
    assert not stored[couplings.neighbours < 0].any()
    # 4 corners with 3 neighbours, 4 edges with 5, the centre with 8
    assert couplings.parameters == (4 * 3 + 4 * 5 + 8) * D * D


def test_setter_refuses_couplings_outside_the_neighbours() -> None:
    """Dropped silently, they would make another network than the one that was given."""
    couplings = _sparse(1)
    bad = _values(_near(SIDE, 1))
    bad[4, 4, 0, 0] = 1.0
    with pytest.raises(ValueError, match=re.escape("couplings[4, 4] is not zero")):
        couplings.couplings = bad
    bad[4, 4, 0, 0] = 0.0
    bad[3, 2, 1, 1] = 1e-9  # right of the left edge and one row up, two columns away
    with pytest.raises(ValueError, match=r"couplings\[3\] is not zero outside the neighbours of token 3"):
        couplings.couplings = bad
    assert not couplings.couplings.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: PseudoLikelihood(Adam(), decay=0.3),
        lambda: PseudoLikelihood(SGD(momentum=0.5), rows_per_step=4, generator=_generator()),
        lambda: EnergyDescent(SGD()),
        lambda: EnergyDescent(Adam(), decay=0.1),
    ],
)
def test_slots_without_a_source_stay_zero(make, x: Tensor) -> None:
    """Random start, decay, both optimisers and held norms: what is no coupling never becomes one.

    It would count in the norm of its row, and come to life when the table of another run is longer.
    """
    couplings = _sparse(1)
    random_start(couplings, 0.1, generator=_generator())
    missing = couplings.neighbours < 0
    stored = couplings.weights["couplings"]
    assert (stored != 0).flatten(2).all(2).equal(~missing)
    energy, rule = LocalEnergy(couplings, Sphere(D)), make()
    spins = Sphere(D).project(x)
    rule.start(energy)
    for _ in range(12):
        rule.step(energy, spins, rate=0.1)
    assert not stored[missing].any()
    assert stored[~missing].all()


# --- rows held by several processes ---


@pytest.mark.parametrize("tokens", [2, 4, 5, 16, 49, 196])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 49])
def test_ranks_share_out_whole_cells(tokens: int, count: int) -> None:
    """Contiguous, in order, every row once, nobody idle, and cut on the row grid of the kernels alone.

    A cut inside a cell would change the bits of its rows with the number of processes.
    """
    cells = -(-tokens // ROW_GRID)
    if count > cells:
        with pytest.raises(
            ValueError, match=f"{count} processes cannot share {tokens} rows.*at most {cells}"
        ):
            Ranks(0, count).rows(tokens)
        return
    parts = [Ranks(rank, count).rows(tokens) for rank in range(count)]
    assert [row for part in parts for row in part] == list(range(tokens))
    assert all(parts)
    assert all(part.start % ROW_GRID == 0 for part in parts)
    sizes = [-(-len(part) // ROW_GRID) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert parts == [Ranks(0, count).rows(tokens, rank) for rank in range(count)]


def _network(kind: str, rows: range | None, dtype: torch.dtype) -> Pairwise | Hopfield:
    if kind == "Hopfield":
        return Hopfield(N, D, rows=rows, dtype=dtype)
    neighbours = neighbourhood(SIDE, 1) if kind == "sparse" else None
    return Pairwise(N, D, neighbours=neighbours, rows=rows, dtype=dtype)


KINDS = ["dense", "sparse", "Hopfield"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 3])
def test_a_process_computes_its_rows_to_the_same_bits(kind: str, dtype: torch.dtype, count: int) -> None:
    """Couplings, gradient of both phases and log p of the rows held are slices of the full ones.

    Bit for bit: otherwise a run would depend on the number of its processes.
    """
    values = _values(_near(SIDE, 1 if kind == "sparse" else SIDE)).to(dtype)
    spins = Sphere(D).project(_normal(B, N, D)).to(dtype)
    whole = LocalEnergy(_network(kind, None, dtype), Sphere(D), inverse_temperature=LAMBDA)
    whole.couplings.couplings = values
    for rank in range(count):
        ranks = Ranks(rank, count)
        own = ranks.rows(N)
        here = slice(own.start, own.stop)
        part = LocalEnergy(_network(kind, own, dtype), Sphere(D), inverse_temperature=LAMBDA, ranks=ranks)
        part.couplings.couplings = values
        assert torch.equal(part.couplings.couplings, values[here])
        assert part.couplings.parameters == whole.couplings.parameters
        for name in ("write_gradient", "write_positive_phase"):
            expected, ours = whole.zero_gradient(), part.zero_gradient()
            objective = getattr(whole, name)(spins, expected)[:, here]
            assert torch.equal(getattr(part, name)(spins, ours), objective)
            assert torch.equal(ours["couplings"], expected["couplings"][here])
            assert ours["couplings"].any()


def test_rows_have_to_be_those_of_the_process() -> None:
    """Rows that nobody holds, or that two hold, are refused before anything is learned."""
    for rows in (range(0, 9, 2), range(4, 4), range(-1, 3), range(5, 10)):
        with pytest.raises(ValueError, match="expected a range of step 1 within range"):
            Pairwise(N, D, rows=rows)
    with pytest.raises(ValueError, match=r"hold range\(0, 9\), this process has range\(4, 9\)"):
        LocalEnergy(Pairwise(N, D), Sphere(D), ranks=Ranks(1, 2))
    with pytest.raises(ValueError, match=r"hold range\(4, 9\), this process has range\(0, 9\)"):
        LocalEnergy(Pairwise(N, D, rows=range(4, 9)), Sphere(D))


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_start_does_not_depend_on_who_holds_a_row(kind: str) -> None:
    """Each row is the same draw, bit for bit, in one process and in several."""
    whole = _network(kind, None, torch.float32)
    random_start(whole, 0.1, generator=_generator(4))
    for rank in range(3):
        own = Ranks(rank, 3).rows(N)
        part = _network(kind, own, torch.float32)
        random_start(part, 0.1, generator=_generator(4))
        assert torch.equal(part.couplings, whole.couplings[own.start : own.stop])
    absent = ~_near(SIDE, 1 if kind == "sparse" else SIDE)
    assert not whole.couplings[absent].any()
    assert whole.couplings[~absent].all()


# --- one-shot rules ---


def test_hebb_is_a_step_of_the_exact_rule_on_sparse_couplings(measure, x: Tensor) -> None:
    """J_ij = rate lambda/S_i <x_i x_j^T> for the S_i neighbours of i, of which a corner has the fewest."""
    shot, stepped = (LocalEnergy(_sparse(1), measure, inverse_temperature=LAMBDA) for _ in range(2))
    Hebb(rate=0.4).solve(shot, [x[:2], x[2:]])
    PseudoLikelihood(SGD()).step(stepped, x, rate=0.4)
    torch.testing.assert_close(shot.couplings.couplings, stepped.couplings.couplings)
    assert not shot.couplings.weights["couplings"][shot.couplings.neighbours < 0].any()
    corner = 0.4 * LAMBDA / 3 * torch.einsum("ba,bc->ac", x[:, 0], x[:, 4]) / B
    torch.testing.assert_close(shot.couplings.couplings[0, 4], corner)


@pytest.mark.parametrize("kind", KINDS)
def test_one_shot_rules_set_the_rows_held(kind: str) -> None:
    """Hebb for all couplings, Ridge for Hopfield's: slices of what one process finds."""
    x = _normal(60, N, D) + _normal(60, 1, D, seed=1)
    rules = [Hebb(rate=0.3)] + [Ridge(ridge=0.1)] * (kind == "Hopfield")
    for rule in rules:
        whole = LocalEnergy(_network(kind, None, torch.float64), Gaussian(D))
        rule.solve(whole, [x])
        for rank in range(3):
            own = Ranks(rank, 3).rows(N)
            part = LocalEnergy(_network(kind, own, torch.float64), Gaussian(D), ranks=Ranks(rank, 3))
            rule.solve(part, [x])
            assert torch.equal(part.couplings.couplings, whole.couplings.couplings[own.start : own.stop])


def test_ridge_refuses_sparse_couplings() -> None:
    """The closed form regresses on all others; on some of them it would be another one."""
    energy = LocalEnergy(_sparse(1), Gaussian(D))
    with pytest.raises(ValueError, match="not for Pairwise with Gaussian; use PseudoLikelihood"):
        Ridge().start(energy)
