"""The sign network. Oracles: Hebb's matrix by hand, the energy, a loop over spins, limits of the load."""

import pytest
import torch

from attractor.theory.sign_network import CRITICAL_LOAD, SignNetwork, overlap, random_patterns


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_couplings_are_hebbs_without_a_diagonal() -> None:
    """J_ij = sum_mu x_i x_j / N, J_ii = 0. A diagonal of alpha would freeze the spins at any load."""
    patterns = random_patterns(5, 7, generator=_generator(), dtype=torch.float64)
    couplings = SignNetwork(patterns).couplings
    for i in range(7):
        for j in range(7):
            expected = 0.0 if i == j else float((patterns[:, i] * patterns[:, j]).sum()) / 7
            assert float(couplings[i, j]) == pytest.approx(expected, abs=1e-15)


def test_states_come_to_rest_and_energy_never_rises() -> None:
    """Spin by spin the energy is a Lyapunov function; at rest every spin agrees with its field."""
    network = SignNetwork(random_patterns(20, 60, generator=_generator(1), dtype=torch.float64))
    states = random_patterns(30, 60, generator=_generator(2), dtype=torch.float64)
    rest, sweeps = network.settle(states, generator=_generator(3))
    with pytest.raises(ValueError, match="still moved after 1 sweeps"):
        network.settle(states, generator=_generator(3), sweeps=1)
    assert sweeps > 2
    assert (rest * (rest @ network.couplings) >= 0).all()
    assert (network.energy(rest) < network.energy(states)).all()
    again, once = network.settle(rest, generator=_generator(4))
    assert once == 1
    assert torch.equal(again, rest)


def test_a_sweep_is_the_loop_over_spins() -> None:
    """Against one state and one spin at a time, in the same order: each sees the spins already updated."""
    patterns = random_patterns(4, 15, generator=_generator(5), dtype=torch.float64)
    network = SignNetwork(patterns)
    states = random_patterns(6, 15, generator=_generator(6), dtype=torch.float64)
    rest, sweeps = network.settle(states, generator=_generator(7))
    generator = _generator(7)
    expected = states.clone()
    for _ in range(sweeps):
        for i in torch.randperm(15, generator=generator).tolist():
            for state in expected:
                field = sum(float(network.couplings[i, j]) * float(state[j]) for j in range(15))
                if abs(field) > 1e-12:
                    state[i] = 1.0 if field > 0 else -1.0
    torch.testing.assert_close(rest, expected, rtol=0, atol=0)


def test_one_pattern_is_an_attractor_of_everything_near() -> None:
    """P = 1: a state that overlaps with the pattern flows into it, the others into its mirror."""
    pattern = random_patterns(1, 51, generator=_generator(8))
    states = random_patterns(40, 51, generator=_generator(9))
    rest, _ = SignNetwork(pattern).settle(states, generator=_generator(10))
    start = overlap(states, pattern.expand_as(states))
    clear = start.abs() > 3 / 51  # the missing diagonal takes 1/N from the field
    assert int(clear.sum()) > 10
    torch.testing.assert_close(overlap(rest, pattern.expand_as(rest))[clear], start.sign()[clear])


def test_patterns_are_stable_well_below_the_critical_load_and_lost_well_above() -> None:
    """alpha_c = 0.138: at 0.05 N patterns all are kept, at 0.3 N none. Without J_ii = 0 all would be."""
    kept = {}
    for load in (0.05, 0.3):
        patterns = random_patterns(int(load * 400), 400, generator=_generator(11))
        rest, _ = SignNetwork(patterns).settle(patterns, generator=_generator(12))
        kept[load] = float((overlap(rest, patterns) > 0.95).float().mean())
    assert 0.05 < CRITICAL_LOAD < 0.3
    assert kept == {0.05: 1.0, 0.3: 0.0}


def test_what_are_no_patterns_is_refused() -> None:
    """An empty memory, 0/1 patterns and states of another size would settle into something all the same."""
    with pytest.raises(ValueError, match=r"patterns are \(0, 9\)"):
        SignNetwork(torch.ones(0, 9))
    with pytest.raises(ValueError, match=r"\+1 or -1"):
        SignNetwork(torch.tensor([[0.0, 1.0]]))
    network = SignNetwork(torch.ones(1, 9))
    with pytest.raises(ValueError, match=r"states are \(2, 8\), expected \(Q, N\) with N = 9"):
        network.settle(torch.ones(2, 8), generator=_generator())
    with pytest.raises(ValueError, match=r"\+1 or -1"):
        network.settle(torch.zeros(2, 9), generator=_generator())
