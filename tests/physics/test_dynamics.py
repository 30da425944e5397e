"""Dynamics. Oracles: loops by hand, fixed points and cycles known in advance, the concavity of e_i."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attractor.physics import (
    Attention,
    Circles,
    Dynamics,
    Evidence,
    Gaussian,
    Gibbs,
    Hopfield,
    LocalEnergy,
    MeanField,
    Pairwise,
    Sequential,
    Sphere,
    Stop,
    Synchronous,
    iterate,
    run,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


MAPS = {
    "attention": Attention,
    "mean": MeanField,
    "projected mean": lambda: MeanField(projected=True),
    "gibbs": lambda: Gibbs(generator=_generator(5)),
}
ORDERS = {
    "synchronous": Synchronous,
    "sequential": Sequential,
    "shuffled": lambda: Sequential(generator=_generator(6)),
}


def _two(first: Tensor, second: Tensor, measure, *, dtype: torch.dtype = torch.float64) -> LocalEnergy:
    """N = 2: u_1 = first x_2, u_2 = second x_1."""
    couplings = Hopfield(2, measure.dim, dtype=dtype)
    values = torch.zeros(2, 2, measure.dim, measure.dim, dtype=dtype)
    values[0, 1], values[1, 0] = first, second
    couplings.couplings = values
    return LocalEnergy(couplings, measure)


# --- one step ---


@pytest.mark.parametrize("inertia", [0.0, 0.8])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_attention_step_formula(system, inertia: float, damping: float) -> None:
    """x <- project((1 - damping)(f + gamma x) + damping x), all at once: the paper's eq. 6.

    Projecting before the inertia is added is another dynamics, and 1 - damping for damping nearly passes.
    """
    energy, x = system.energy, system.x
    dynamics = Dynamics(Attention(), inertia=inertia, damping=damping)
    moved = energy.force(x, evidence=system.evidence) + inertia * x
    if not energy.measure.fixed_norm:
        moved = moved / (1 + inertia)  # no projection restores the length
    expected = energy.measure.project((1 - damping) * moved + damping * x)
    torch.testing.assert_close(dynamics.step(energy, x, evidence=system.evidence), expected)


@pytest.mark.parametrize("inertia", [0.0, 0.8])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_mean_field_step_formula(system, inertia: float, damping: float) -> None:
    """Unprojected, inertia averages: (mean + gamma x)/(1 + gamma), so that lengths keep their meaning.

    Projected, it is the attention formula with the mean in place of the force.
    """
    energy, x = system.energy, system.x
    mean = energy.conditional_mean(x)
    averaged = (mean + inertia * x) / (1 + inertia)
    expected = (1 - damping) * averaged + damping * x
    free = Dynamics(MeanField(), inertia=inertia, damping=damping)
    torch.testing.assert_close(free.step(energy, x), expected)
    if inertia == damping == 0:
        assert torch.equal(free.step(energy, x), mean)
    held = Dynamics(MeanField(projected=True), inertia=inertia, damping=damping)
    weight = 1.0 if energy.measure.fixed_norm else 1 / (1 + inertia)
    expected = energy.measure.project((1 - damping) * weight * (mean + inertia * x) + damping * x)
    torch.testing.assert_close(held.step(energy, x), expected)


@pytest.mark.parametrize("map_name", ["attention", "mean", "projected mean"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_sequential_is_a_loop_over_tokens(system, map_name: str, shuffled: bool) -> None:
    """Each token sees the new state of those before it: the loop by hand, in the generator's order.

    Seeing the old state is the synchronous dynamics, with the same fixed points and other basins.
    """
    energy, evidence = system.energy, system.evidence
    order = torch.randperm(5, generator=_generator(6)).tolist() if shuffled else list(range(5))
    state = system.x.clone()
    for i in order:
        if map_name == "attention":
            new = energy.force(state, evidence=evidence)[:, i]
        else:
            new = energy.conditional_mean(state, evidence=evidence)[:, i]
        new = new + 0.4 * state[:, i]
        if not energy.measure.fixed_norm:
            state[:, i] = energy.measure.project(0.8 * new / 1.4 + 0.2 * state[:, i])
        elif map_name == "mean":
            state[:, i] = 0.8 * new / 1.4 + 0.2 * state[:, i]
        else:
            state[:, i] = energy.measure.project(0.8 * new + 0.2 * state[:, i])
    chosen = Sequential(generator=_generator(6) if shuffled else None)
    dynamics = Dynamics(MAPS[map_name](), chosen, inertia=0.4, damping=0.2)
    torch.testing.assert_close(dynamics.step(energy, system.x, evidence=evidence), state)


@pytest.mark.parametrize("map_name", MAPS)
@pytest.mark.parametrize("order", ORDERS)
def test_clamped_tokens_never_move(system, map_name: str, order: str) -> None:
    """Clamped tokens are bit for bit what they were, per image; the others move; the input is not written.

    A visible token that is projected once more is off by a rounding: masked prediction would drift.
    """
    energy, x = system.energy, system.x + 0.0
    clamped = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    before = x.clone()
    dynamics = Dynamics(MAPS[map_name](), ORDERS[order](), inertia=0.3, damping=0.1)
    y = dynamics.step(energy, x, clamped=clamped, evidence=system.evidence)
    assert torch.equal(x, before)
    assert torch.equal(y[clamped], x[clamped])
    assert ((y - x).abs().amax(-1)[~clamped] > 0).all()
    end = run(energy, x, 3, map=MAPS[map_name](), order=ORDERS[order](), clamped=clamped).state
    assert torch.equal(end[clamped], x[clamped])
    assert torch.equal(x, before)


def test_clamped_tokens_still_speak(make_system) -> None:
    """A clamped token is a source for the others: the free one goes where the naive force says."""
    system = make_system("Pairwise", "Sphere")
    clamped = torch.ones(3, 5, dtype=torch.bool)
    clamped[:, 2] = False
    x = system.x.clone()
    x[:, 2] = 0  # a masked token starts at the zero vector
    y = Dynamics(Attention()).step(system.energy, x, clamped=clamped)
    expected = Sphere(4).project(system.energy.force(x)[:, 2])
    torch.testing.assert_close(y[:, 2], expected)


def test_retrieval_has_its_own_temperature(system) -> None:
    """inverse_temperature replaces that of the energy for the step, and leaves the energy as it is."""
    energy, x = system.energy, system.x
    cold = Dynamics(MeanField(), inverse_temperature=0.3)
    expected = energy.at(0.3).conditional_mean(x, evidence=system.evidence)
    torch.testing.assert_close(cold.step(energy, x, evidence=system.evidence), expected)
    assert energy.inverse_temperature == 1.7
    warm = run(
        energy,
        x,
        1,
        map=MeanField(),
        order=Synchronous(),
        inverse_temperature=0.3,
        evidence=system.evidence,
    )
    torch.testing.assert_close(warm.state, expected)


@pytest.mark.parametrize("measure", [Sphere(4), Circles(2)], ids=["Sphere", "Circles"])
@given(
    seed=st.integers(0, 10_000),
    log_temperature=st.floats(-2, 2),
    inertia=st.floats(0, 5),
    damping=st.floats(0, 0.95),
)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_one_token_never_climbs_its_own_energy(
    measure, seed: int, log_temperature: float, inertia: float, damping: float
) -> None:
    """e_i is concave in x_i, so moving x_i alone to project(f_i + gamma x_i) cannot raise e_i.

    It holds for the own energy of the token that moves; sum_i e_i may rise. Tolerance: rounding of e_i.
    """
    couplings = Pairwise(4, 4, dtype=torch.float64)
    values = _normal(4, 4, 4, 4, seed=seed)
    for i in range(4):
        values[i, i] = 0
    couplings.couplings = values
    energy = LocalEnergy(couplings, measure, inverse_temperature=10**log_temperature)
    x = measure.project(_normal(6, 4, 4, seed=seed + 1))
    dynamics = Dynamics(Attention(), Sequential(), inertia=inertia, damping=damping)
    for i in range(4):
        free = torch.ones(6, 4, dtype=torch.bool)
        free[:, i] = False
        y = dynamics.step(energy, x, clamped=free)
        rows = range(i, i + 1)
        assert (energy.energy(y, rows=rows) <= energy.energy(x, rows=rows) + 1e-12).all()
        x = y


@pytest.mark.slow
def test_gibbs_draws_from_the_conditional(make_system, couplings_name, measure_name) -> None:
    """One free token, many copies of one image: the mean of the draws is the conditional mean."""
    n = 20_000
    system = make_system(couplings_name, measure_name, images=1)
    clamped = torch.ones(n, 5, dtype=torch.bool)
    clamped[:, 3] = False
    for order in (Synchronous(), Sequential()):
        end = run(
            system.energy, system.x.expand(n, -1, -1), 1,
            map=Gibbs(generator=_generator(3)), order=order, clamped=clamped,
        ).state  # fmt: skip
        drawn = end[:, 3]
        mean = system.energy.conditional_mean(system.x)[0, 3]
        assert ((drawn.mean(0) - mean).abs() < 5 * drawn.std(0) / math.sqrt(n)).all()


def test_sequential_gibbs_samples_the_joint_law() -> None:
    """Two Gaussian tokens with symmetric A: the chain's covariance is that of exp(x_1.A x_2) dN dN.

    That law has precision [[1, -a], [-a, 1]]; a synchronous sweep would forget the correlation.
    """
    a = 0.6
    energy = _two(torch.tensor([[a]]), torch.tensor([[a]]), Gaussian(1))
    x = torch.zeros(20_000, 2, 1, dtype=torch.float64)
    end = run(energy, x, 25, map=Gibbs(generator=_generator(9)), order=Sequential()).state
    exact = torch.linalg.inv(torch.tensor([[1, -a], [-a, 1]], dtype=torch.float64))
    # 20,000 draws know a variance of 1.6 to 0.016; memory falls as a^(2t)
    assert (end[..., 0].T.cov() - exact).abs().max() < 0.06


# --- runs ---


def test_stops_at_a_fixed_point() -> None:
    """u_i = x_other, both tokens alike: a fixed point, found after one step that changes nothing."""
    energy = _two(torch.eye(3), torch.eye(3), Sphere(3))
    x = Sphere(3).project(_normal(2, 1, 3)).expand(2, 2, 3)
    end = run(energy, x, 50)
    assert (end.stop, end.steps) == (Stop.CONVERGED, 1)
    torch.testing.assert_close(end.state, x)


def test_converges_in_a_contraction() -> None:
    """Gaussian mean field with A = 1/2: x_t = 2^-t x_0, done when the change is small enough."""
    energy = _two(torch.eye(1) / 2, torch.eye(1) / 2, Gaussian(1))
    x = torch.ones(1, 2, 1, dtype=torch.float64)
    end = run(energy, x, 500, map=MeanField(), order=Synchronous(), tolerance=1e-3)
    # the change at t is 2^-t, first at most 1e-3 at t = 10
    assert (end.stop, end.steps) == (Stop.CONVERGED, 10)
    torch.testing.assert_close(end.state, x / 2**10)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_stops_in_a_cycle_of_two(sign: float) -> None:
    """(x_1, x_2) -> +-(x_2, x_1) comes back every second step; taken for no end, it would run for ever.

    Token by token the same couplings converge: cycles of two belong to the synchronous order.
    """
    energy = _two(sign * torch.eye(3), sign * torch.eye(3), Sphere(3))
    x = Sphere(3).project(_normal(2, 2, 3))
    end = run(energy, x, 50)
    assert (end.stop, end.steps) == (Stop.CYCLE, 2)
    torch.testing.assert_close(end.state, x)
    end = run(energy, x, 50, order=Sequential())
    assert (end.stop, end.steps) == (Stop.CONVERGED, 2)


def test_stops_at_the_limit() -> None:
    """(x_1, x_2) -> (x_2, -x_1) has period four: neither a fixed point nor a cycle of two."""
    energy = _two(torch.eye(3), -torch.eye(3), Sphere(3))
    x = Sphere(3).project(_normal(2, 2, 3))
    end = run(energy, x, 7)
    assert (end.stop, end.steps) == (Stop.STEP_LIMIT, 7)
    torch.testing.assert_close(end.state, torch.stack((-x[:, 1], x[:, 0]), 1))


def test_one_image_that_moves_keeps_the_batch_going() -> None:
    """The largest change over all images decides: a mean would stop with one image unfinished."""
    energy = _two(torch.eye(3), -torch.eye(3), Sphere(3))
    x = torch.zeros(1000, 2, 3, dtype=torch.float64)
    x[7, 0, 0] = 1e-5
    x[7, 1, 0] = 1.0
    assert run(energy, x, 9, tolerance=0.5).stop is Stop.STEP_LIMIT


def test_stops_when_the_state_overflows() -> None:
    """Gaussian mean field beyond its spectral radius grows until it overflows, and says so."""
    big = torch.full((1, 1), 1e15)
    energy = _two(big, big, Gaussian(1), dtype=torch.float32)
    end = run(energy, torch.ones(2, 2, 1), 50, map=MeanField(), order=Synchronous())
    # 1e15, 1e30, and then beyond 3e38; psi, the square, may overflow one step before
    assert end.stop is Stop.NON_FINITE
    assert end.steps in (2, 3)


def test_gibbs_stops_when_the_state_overflows() -> None:
    """The same with draws: the run ends with a Trajectory that says why, not with an error of torch."""
    big = torch.full((1, 1), 1e15)
    energy = _two(big, big, Gaussian(1), dtype=torch.float32)
    assert run(energy, torch.ones(2, 2, 1), 50, map=MAPS["gibbs"]()).stop is Stop.NON_FINITE


def test_maps_that_draw_are_never_done() -> None:
    """A draw may repeat by chance, or as all is clamped: that is no fixed point of the chain."""
    energy = _two(torch.eye(3), torch.eye(3), Sphere(3))
    x = Sphere(3).project(_normal(2, 2, 3))
    clamped = torch.ones(2, 2, dtype=torch.bool)
    end = run(energy, x, 6, map=Gibbs(generator=_generator()), clamped=clamped)
    assert (end.stop, end.steps) == (Stop.STEP_LIMIT, 6)
    assert run(energy, x, 6, clamped=clamped).stop is Stop.CONVERGED


def test_records_from_the_start(system) -> None:
    """record(t, x) is called for t = 0, 1, ..., the last step too, with the states of `iterate`.

    An off-by-one here shifts every curve of the results by an iteration.
    """
    energy, x = system.energy, system.x
    end = run(
        energy,
        x,
        4,
        map=MeanField(),
        order=Synchronous(),
        inertia=0.5,
        record=lambda t, y: (t, y.clone()),
        tolerance=0,
    )
    times, states = zip(*end.records, strict=True)
    assert times == (0, 1, 2, 3, 4)
    assert end.steps == 4
    assert torch.equal(states[0], x)
    assert torch.equal(states[-1], end.state)
    dynamics = Dynamics(MeanField(), inertia=0.5)
    steps = iterate(energy, x, dynamics)
    y = x
    for t in range(1, 5):
        y = dynamics.step(energy, y)
        assert torch.equal(next(steps), y)
        assert torch.equal(states[t], y)
    assert run(energy, x, 2).records == []


def test_the_map_is_attention_unless_given(system) -> None:
    """run() without a map is the paper's dynamics, synchronous, with no inertia.

    A Gaussian, whose force is unbounded, gets its conditional mean token by token: on images all at once
    is a block Jacobi iteration that diverges.
    """
    if system.energy.measure.fixed_norm:
        force = system.energy.force(system.x, evidence=system.evidence)
        expected = system.energy.measure.project(force)
    else:
        dynamics = Dynamics(MeanField(), Sequential())
        expected = dynamics.step(system.energy, system.x, evidence=system.evidence)
    end = run(system.energy, system.x, 1, evidence=system.evidence)
    torch.testing.assert_close(end.state, expected)


def test_images_that_arrived_rest_while_the_others_run() -> None:
    """Every image ends where it ends alone, with its own clamps and evidence, though others stop before it.

    An index lost when the arrived images are left out would hand one image the evidence of another.
    """
    energy = _two(torch.eye(3) / 2, torch.eye(3) / 2, Gaussian(3))
    x = _normal(4, 2, 3)
    x[0] = 0  # at the fixed point from the start, but for its evidence
    x[2] *= 1e-3
    clamped = torch.tensor([[0, 0], [1, 0], [0, 0], [0, 1]], dtype=torch.bool)
    evidence = Evidence(torch.tensor([0.0, 1.0, 0.0, -2.0]).double()[:, None, None] * torch.ones(4, 2, 3))
    options = {"map": MeanField(), "tolerance": 1e-4}
    states = run(
        energy, x, 60, clamped=clamped, evidence=evidence, record=lambda t, y: y.clone(), **options
    ).records  # fmt: skip
    lengths = set()
    for b in range(4):
        one = slice(b, b + 1)
        alone = run(
            energy, x[one], 60, clamped=clamped[one], evidence=Evidence(evidence.field[one]), **options
        )  # fmt: skip
        assert alone.stop is Stop.CONVERGED
        assert torch.equal(states[alone.steps][one], alone.state)
        assert torch.equal(states[-1][one], alone.state)
        lengths.add(alone.steps)
    assert len(lengths) >= 3


def test_iterate_goes_on_after_all_have_arrived() -> None:
    """Asked for more, it yields the same state again: no error from a batch of no images."""
    for kind in (Hopfield, Pairwise):
        couplings = kind(2, 3, dtype=torch.float64)
        steps = iterate(
            LocalEnergy(couplings, Sphere(3)), torch.zeros(2, 2, 3).double(), Dynamics(Attention())
        )
        for _ in range(3):
            assert not next(steps).any()


def test_draws_go_on_whatever_the_tolerance(make_system) -> None:
    """A chain that moved little has not arrived: resting would end the sampling in silence."""
    system = make_system("Pairwise", "Sphere")
    chain = Dynamics(Gibbs(generator=_generator(1)))
    steps = iterate(system.energy, system.x, chain, tolerance=10.0)
    states = [next(steps) for _ in range(3)]
    assert all((a - b).abs().amax((1, 2)).min() > 0 for a, b in itertools.pairwise(states))


def test_run_is_a_function_of_its_generators(make_system) -> None:
    """Same generators, same trajectory, and the global generator is not touched."""
    system = make_system("Pairwise", "Sphere")
    before = torch.get_rng_state()
    ends = [
        run(
            system.energy, system.x, 4,
            map=Gibbs(generator=_generator(1)), order=Sequential(generator=_generator(seed)),
        ).state
        for seed in (2, 2, 3)
    ]  # fmt: skip
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert torch.equal(before, torch.get_rng_state())


def test_shuffled_orders_visit_every_token_once() -> None:
    """Every sweep is a permutation, and another one the next time."""
    order = Sequential(generator=_generator(4))
    sweeps = [[i for rows in order.sweep(9) for i in rows] for _ in range(3)]
    assert all(sorted(sweep) == list(range(9)) for sweep in sweeps)
    assert sweeps[0] != sweeps[1]
    assert list(Sequential().sweep(3)) == [range(0, 1), range(1, 2), range(2, 3)]
    assert list(Synchronous().sweep(3)) == [range(3)]


def test_strong_evidence_wins(make_system) -> None:
    """field -> infinity pins every map to the observation, whatever the couplings want."""
    system = make_system("Pairwise", "Sphere")
    y = Sphere(4).project(_normal(3, 5, 4, seed=8))
    evidence = Evidence(1e6 * y)
    for map_name in ("attention", "mean", "projected mean"):
        end = run(system.energy, system.x, 1, map=MAPS[map_name](), evidence=evidence)
        # couplings of norm 4 against a field of 1e6
        assert (end.state - y).abs().max() < 1e-4


def test_refuses_with_the_numbers_given(make_system) -> None:
    """Nonsense is refused before the first iteration."""
    system = make_system("Pairwise", "Sphere")
    energy, x = system.energy, system.x
    calls = []
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        run(energy, x, 0, record=lambda t, _: calls.append(t))
    with pytest.raises(ValueError, match=r"clamped is \(3, 4\).*expected \(B, N\) = \(3, 5\) of bool"):
        run(energy, x, 3, clamped=torch.ones(3, 4, dtype=torch.bool), record=lambda t, _: calls.append(t))
    with pytest.raises(ValueError, match=r"torch.float32, expected"):
        run(energy, x, 3, clamped=torch.ones(3, 5), record=lambda t, _: calls.append(t))
    with pytest.raises(ValueError, match=r"inertia must not be negative, got -0.1"):
        run(energy, x, 3, inertia=-0.1, record=lambda t, _: calls.append(t))
    for bad in (1.0, -0.2):
        with pytest.raises(ValueError, match=rf"damping must be in \[0, 1\), got {bad}"):
            run(energy, x, 3, damping=bad, record=lambda t, _: calls.append(t))
    with pytest.raises(ValueError, match="inverse_temperature must be positive, got -2"):
        run(energy, x, 3, inverse_temperature=-2)
    assert calls == []


def test_no_graph_is_built(make_system) -> None:
    """iterate and run take every step in inference mode, and leave the mode of the caller alone."""
    system = make_system("Hopfield", "Sphere")
    x = system.x.clone().requires_grad_()
    assert not run(system.energy, x, 2).state.requires_grad
    steps = iterate(system.energy, x, Dynamics(Attention()))
    assert not next(steps).requires_grad
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
