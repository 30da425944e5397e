"""Steps on a few rows drawn at random. Oracles: the full step, averages over all draws, one process."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attractor.physics import (
    SGD,
    Adam,
    EnergyDescent,
    IterativeRule,
    LocalEnergy,
    NonFiniteError,
    Pairwise,
    PseudoLikelihood,
    Ranks,
    Sphere,
)

Rule = Callable[..., IterativeRule]

RULES: dict[str, Rule] = {
    "exact": lambda **rows: PseudoLikelihood(SGD(), **rows),
    "exact-decay": lambda **rows: PseudoLikelihood(SGD(), decay=0.3, **rows),
    "energy-decay": lambda **rows: EnergyDescent(SGD(), decay=0.3, **rows),
}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _moved(before: Tensor, after: Tensor) -> tuple[int, ...]:
    return tuple((before != after).flatten(1).any(1).nonzero().flatten().tolist())


def _step(
    make: Rule, energy: LocalEnergy, x: Tensor, start: Tensor, **rows: object
) -> tuple[Tensor, float]:
    """The couplings after one step from `start`, and what the step returns."""
    energy.couplings.couplings = start
    rule = make(**rows)
    rule.start(energy)
    value = rule.step(energy, x, rate=0.1)
    return energy.couplings.couplings.clone(), value


@pytest.mark.parametrize("case", RULES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_mean_over_all_draws_is_the_full_step(make_system, couplings_name, case, count: int) -> None:
    """Each of the C(N, R) sets of rows once: the mean update, and the mean objective, are the full step's.

    Without the factor N/R the steps would be too small, with it on the decay left out the optimum moves.
    """
    make, system = RULES[case], make_system(couplings_name, "Sphere")
    energy, x, start = system.energy, system.x, system.energy.couplings.couplings.clone()
    full, objective = _step(make, energy, x, start)
    found: dict[tuple[int, ...], tuple[Tensor, float]] = {}
    wanted = set(itertools.combinations(range(5), count))
    for seed in range(400):
        after, value = _step(make, energy, x, start, rows_per_step=count, generator=_generator(seed))
        found[_moved(start, after)] = (after, value)
        if len(found) == len(wanted):
            break
    assert found.keys() == wanted
    updates, values = zip(*found.values(), strict=True)
    torch.testing.assert_close(torch.stack(updates).mean(0), full, rtol=1e-12, atol=1e-14)
    assert sum(values) / len(values) == pytest.approx(objective, rel=1e-12)


def test_rows_are_drawn_uniformly(make_system) -> None:
    """1,000 draws of 2 of 5 rows: each row in 400, to five standard deviations of 15."""
    system = make_system("Pairwise", "Sphere", dim=2, images=1)
    rule = PseudoLikelihood(SGD(), rows_per_step=2, generator=_generator(3))
    counts = [0] * 5
    for _ in range(1000):
        before = system.energy.couplings.couplings.clone()
        rule.step(system.energy, system.x, rate=1e-3)
        for row in _moved(before, system.energy.couplings.couplings):
            counts[row] += 1
    assert sum(counts) == 2000
    assert max(abs(count - 400) for count in counts) < 78


def test_draws_are_those_of_the_generator(system) -> None:
    """The same seed gives the same run, bit for bit, another one another; every step draws anew."""
    start = system.energy.couplings.couplings.clone()
    ends, drawn = [], []
    for seed in (1, 1, 2):
        system.energy.couplings.couplings = start
        rule = PseudoLikelihood(Adam(), rows_per_step=2, generator=_generator(seed))
        history = []
        for _ in range(6):
            before = system.energy.couplings.couplings.clone()
            rule.step(system.energy, system.x, rate=0.05)
            history.append(_moved(before, system.energy.couplings.couplings))
        ends.append(system.energy.couplings.couplings.clone())
        drawn.append(history)
    assert torch.equal(ends[0], ends[1])
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert len(set(drawn[0])) > 1


def test_all_rows_is_the_full_step(system) -> None:
    """R = N draws everything, in ascending order: bit for bit the step without draws."""
    start = system.energy.couplings.couplings.clone()
    for make in (*RULES.values(), lambda **rows: EnergyDescent(SGD(momentum=0.5), **rows)):
        full = _step(make, system.energy, system.x, start)
        drawn = _step(make, system.energy, system.x, start, rows_per_step=5, generator=_generator())
        assert torch.equal(full[0], drawn[0])
        assert full[1] == drawn[1]


def test_a_row_of_energy_descent_keeps_its_norm(system) -> None:
    """A drawn row is that of a full step with the rate times N/R, rescaled; the others do not move."""
    energy, start = system.energy, system.energy.couplings.couplings.clone()
    after, _ = _step(
        lambda **rows: EnergyDescent(SGD(), **rows),
        energy,
        system.x,
        start,
        rows_per_step=2,
        generator=_generator(),
    )
    drawn = list(_moved(start, after))
    assert len(drawn) == 2
    energy.couplings.couplings = start
    rule = EnergyDescent(SGD())
    rule.start(energy)
    rule.step(energy, system.x, rate=0.1 * 5 / 2)
    torch.testing.assert_close(after[drawn], energy.couplings.couplings[drawn])
    torch.testing.assert_close(after.flatten(1).norm(dim=1), start.flatten(1).norm(dim=1))


@pytest.mark.parametrize("decay", [None, 0.2])
@pytest.mark.parametrize("optimiser", [SGD, lambda: SGD(momentum=0.5), Adam])
def test_a_step_neither_reads_nor_writes_the_other_rows(system, optimiser, decay) -> None:
    """Rows that were not drawn may hold anything, NaN too: they keep it, their gradient and their state.

    This is what makes the cost of a step that of the rows drawn.
    """
    energy, x = system.energy, system.x
    rows = {"rows_per_step": 2, "generator": _generator(5)}
    for make in (
        lambda: PseudoLikelihood(optimiser(), decay=decay or 0.0, **rows),
        lambda: EnergyDescent(optimiser(), decay=decay, **rows),
    ):
        rule, couplings = make(), energy.couplings.couplings
        rule.start(energy)
        rule.step(energy, x, rate=0.1)
        state = {name: value.clone() for name, value in rule.optimiser.state.items()}
        # what the next draw will be
        ahead = _generator()
        ahead.set_state(rows["generator"].get_state())
        drawn = torch.randperm(5, generator=ahead)[:2].tolist()
        others = [i for i in range(5) if i not in drawn]
        kept = couplings[others].clone()
        couplings[others] = float("nan")
        with torch.inference_mode():
            rule._gradient["couplings"][others] = float("nan")
        assert math.isfinite(rule.step(energy, x, rate=0.1))
        assert couplings[others].isnan().all()
        assert rule._gradient["couplings"][others].isnan().all()
        assert couplings[drawn].isfinite().all()
        couplings[others] = kept
        for name, value in rule.optimiser.state.items():
            assert torch.equal(value[others], state[name][others])


@pytest.mark.parametrize("make", [PseudoLikelihood, EnergyDescent])
@pytest.mark.parametrize("rows_per_step", [None, 2])
def test_processes_together_are_one_process(make, rows_per_step: int | None) -> None:
    """Each rank steps with a generator of the same seed: its rows are those of one process, bit for bit.

    A rank that holds none of the rows drawn says NaN and draws on; otherwise the ranks would part ways.
    """
    tokens, dim = 9, 3
    start = torch.randn(tokens, tokens, dim, dim, generator=_generator(1))
    start[range(tokens), range(tokens)] = 0
    batches = [Sphere(dim).project(torch.randn(6, tokens, dim, generator=_generator(s))) for s in range(8)]

    def trained(ranks: Ranks | None) -> tuple[Tensor, list[float]]:
        rows = range(tokens) if ranks is None else ranks.rows(tokens)
        energy = LocalEnergy(Pairwise(tokens, dim, rows=rows), Sphere(dim), ranks=ranks)
        energy.couplings.couplings = start
        generator = None if rows_per_step is None else _generator(7)
        rule = make(Adam(), rows_per_step=rows_per_step, generator=generator)
        rule.start(energy)
        values = [rule.step(energy, x, rate=0.05) for x in batches]
        return energy.couplings.couplings, values

    whole, _ = trained(None)
    parts = [trained(Ranks(rank, 3)) for rank in range(3)]
    assert torch.equal(torch.cat([couplings for couplings, _ in parts]), whole)
    idle = [math.isnan(value) for _, values in parts for value in values]
    assert any(idle) == (rows_per_step is not None)


@pytest.mark.parametrize("rows_per_step", [None, 5])
def test_errors_name_the_row_among_all_rows(rows_per_step: int | None) -> None:
    """Row 6 of 9 is row 2 of the process that holds 4 to 8: the user knows it as 6."""
    ranks = Ranks(1, 2)
    couplings = Pairwise(9, 3, rows=ranks.rows(9))
    values = torch.randn(9, 9, 3, 3, generator=_generator())
    values[range(9), range(9)] = 0
    values[6, 1] = float("nan")
    couplings.couplings = values
    x = Sphere(3).project(torch.randn(4, 9, 3, generator=_generator()))
    energy = LocalEnergy(couplings, Sphere(3), ranks=ranks)
    generator = None if rows_per_step is None else _generator()
    rule = PseudoLikelihood(SGD(), rows_per_step=rows_per_step, generator=generator)

    def until_drawn() -> None:
        for _ in range(20):
            rule.step(energy, x, rate=0.1)

    with pytest.raises(NonFiniteError, match="gradient of the couplings became non-finite in row 6"):
        until_drawn()
    values[6] = 0
    couplings.couplings = values
    with pytest.raises(ValueError, match="row 6 of the couplings is zero"):
        EnergyDescent(SGD()).start(energy)
    couplings.weights["couplings"][:] = 3e38
    with pytest.raises(NonFiniteError, match=r"in row [4-8];"):
        until_drawn()


@pytest.mark.parametrize("make", [PseudoLikelihood, EnergyDescent])
def test_refuses_draws_that_cannot_be_made(make, make_system) -> None:
    """No rows, more rows than there are, or no generator: before any step, with the number given."""
    system = make_system("Pairwise", "Sphere")
    with pytest.raises(ValueError, match="at least 1, or None for all rows, got 0"):
        make(SGD(), rows_per_step=0, generator=_generator())
    with pytest.raises(ValueError, match="needs generator="):
        make(SGD(), rows_per_step=1)
    rule = make(SGD(), rows_per_step=6, generator=_generator())
    for begin in (lambda: rule.start(system.energy), lambda: rule.step(system.energy, system.x, rate=0.1)):
        with pytest.raises(ValueError, match="rows_per_step is 6, but there are 5 rows; use 1 to 5"):
            begin()
