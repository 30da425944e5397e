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


def test_states_come_to_rest_and_energy_falls() -> None:
    """Spin by spin the energy is a Lyapunov function; at rest every spin agrees with its field."""
    network = SignNetwork(random_patterns(20, 60, generator=_generator(1), dtype=torch.float64))
    states = random_patterns(30, 60, generator=_generator(2), dtype=torch.float64)
    rest = network.settle(states, generator=_generator(3))
    assert (rest * (rest @ network.couplings) > -1e-12).all()
    assert (network.energy(rest) < network.energy(states)).all()
    assert torch.equal(network.settle(rest, generator=_generator(4), moves=0), rest)
    with pytest.raises(ValueError, match="30 states still moved after 1 moves"):
        network.settle(states, generator=_generator(3), moves=1)


def test_moves_are_random_sequential_updates() -> None:
    """Where a state ends, and how often: the exact chain of updates of one random spin, 2^N states.

    From a state between patterns it may end in several; always turning the first spin would give one.
    """
    neurons = 6
    network = SignNetwork(random_patterns(3, neurons, generator=_generator(5), dtype=torch.float64))
    couplings = network.couplings
    everything = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * neurons)
    weights = 2 ** torch.arange(neurons - 1, -1, -1)
    chain = torch.zeros(2**neurons, 2**neurons, dtype=torch.float64)
    for number, state in enumerate(everything):
        for i in range(neurons):
            field = float(couplings[i] @ state)
            after = state.clone()
            after[i] = state[i] if abs(field) < 1e-12 else (1.0 if field > 0 else -1.0)
            chain[number, int(((after + 1) / 2 * weights).sum())] += 1 / neurons
    ends = torch.linalg.matrix_power(chain, 4096)
    start = int((ends > 0.05).sum(1).argmax())
    assert int((ends[start] > 0.05).sum()) >= 3
    copies = 20_000
    rest = network.settle(everything[start].expand(copies, -1), generator=_generator(6))
    numbers = ((rest + 1) / 2 * weights).sum(1).long()
    frequencies = torch.bincount(numbers, minlength=2**neurons) / copies
    # four standard errors of a frequency are at most 2 / sqrt(copies)
    torch.testing.assert_close(frequencies.double(), ends[start], rtol=0, atol=2 / copies**0.5)


def test_one_pattern_is_an_attractor_of_everything_near() -> None:
    """P = 1: a state that overlaps with the pattern flows into it, the others into its mirror."""
    pattern = random_patterns(1, 51, generator=_generator(8))
    states = random_patterns(40, 51, generator=_generator(9))
    rest = SignNetwork(pattern).settle(states, generator=_generator(10))
    start = overlap(states, pattern.expand_as(states))
    clear = start.abs() > 3 / 51  # the missing diagonal takes 1/N from the field
    assert int(clear.sum()) > 10
    torch.testing.assert_close(overlap(rest, pattern.expand_as(rest))[clear], start.sign()[clear])


@pytest.mark.parametrize(("load", "least", "most"), [(0.75, 0.95, 1.0), (1.4, 0.0, 0.3)])
def test_the_critical_load_is_where_patterns_are_lost(load: float, least: float, most: float) -> None:
    """`CRITICAL_LOAD` is between loads where nearly all of N = 1,000 are kept, and where few are.

    A constant 1.3 times too large or too small would fail; without J_ii = 0 all would be kept at any load.
    """
    patterns = random_patterns(round(load * CRITICAL_LOAD * 1000), 1000, generator=_generator(11))
    asked = patterns[:60]
    rest = SignNetwork(patterns).settle(asked, generator=_generator(12))
    assert least <= float((overlap(rest, asked) > 0.95).float().mean()) <= most


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
