"""The classical Hopfield network: +-1 spins, Hebb's matrix without its diagonal, iterated to rest.

    J = (1/N) sum_mu x^mu x^mu^T, J_ii = 0;      s_i <- sign(sum_j J_ij s_j), one random spin at a time

Its matrix is the memory of `fast_weights` with values equal to keys. A sum of zero leaves a spin as it is.
J is symmetric without a negative diagonal, so the energy -s . J s / 2 falls with every spin that moves, and
every state comes to rest; updated all at once it may end in a cycle of two.

With P = alpha N random patterns and N to infinity, there are states of rest with an overlap of 0.967 or
more with a pattern up to alpha_c = 0.138, and none beyond. At finite N the change is gradual.

Sources: Hopfield 1982; Amit, Gutfreund & Sompolinsky 1985 (alpha_c).
"""

from itertools import count

import torch
from torch import Generator, Tensor

from attractor.theory.fast_weights import FastWeights

CRITICAL_LOAD = 0.138  # alpha_c, of Amit, Gutfreund & Sompolinsky


class SignNetwork:
    """N spins that remember patterns."""

    def __init__(self, patterns: Tensor) -> None:
        """`patterns` (P, N) of +1 and -1, in a floating-point type; ValueError for others, and for none."""
        if patterns.dim() != 2 or len(patterns) < 1 or patterns.shape[1] < 2:
            raise ValueError(
                f"patterns are {tuple(patterns.shape)}, expected (P, N) with P >= 1 and N >= 2"
            )
        _check_spins(patterns)
        neurons = patterns.shape[1]
        memory = FastWeights(neurons, neurons).store(patterns[None], patterns[None]).memory[0]
        self._counts = memory.fill_diagonal_(0)  # N J: integers, exact in floating point

    @property
    def couplings(self) -> Tensor:
        """J (N, N)."""
        return self._counts / len(self._counts)

    def energy(self, states: Tensor) -> Tensor:
        """-s . J s / 2 for states (Q, N); (Q,)."""
        return -((states @ self.couplings) * states).sum(-1) / 2

    def settle(self, states: Tensor, *, generator: Generator, moves: int | None = None) -> Tensor:
        """The states (Q, N) at rest.

        In each move of a state one of the spins that disagree with their field, drawn at random, is turned:
        what random sequential updates do, less the updates that change nothing. Raises ValueError if a
        state is not at rest after `moves` of them; without a number they go on until it is.
        """
        if states.dim() != 2 or states.shape[1] != len(self._counts):
            raise ValueError(
                f"states are {tuple(states.shape)}, expected (Q, N) with N = {len(self._counts)}"
            )
        _check_spins(states)
        rest, spins, fields = states.clone(), states.clone(), states @ self._counts
        place = torch.arange(len(states), device=states.device)  # in `rest`, of the states that still move
        for move in count():
            wrong = (spins * fields < 0).cumsum(1, dtype=torch.int32)  # (Q', N), counted along the spins
            moving = wrong[:, -1] > 0
            if not moving.all():
                rest[place[~moving]] = spins[~moving]
                place, spins, fields, wrong = (each[moving] for each in (place, spins, fields, wrong))
            if not len(place):
                break
            if move == moves:
                raise ValueError(f"{len(place)} states still moved after {moves} moves; allow more")
            uniform = torch.rand(len(place), 1, generator=generator, device=states.device)
            drawn = torch.minimum((uniform * wrong[:, -1:]).int() + 1, wrong[:, -1:])  # 1 to their number
            chosen = torch.searchsorted(wrong, drawn)  # (Q', 1); torch.multinomial takes 50 times longer
            turned = -spins.gather(1, chosen)
            spins.scatter_(1, chosen, turned)
            fields.addcmul_(2 * turned, self._counts[chosen.squeeze(1)])
        return rest


def overlap(states: Tensor, patterns: Tensor) -> Tensor:
    """m = (1/N) sum_i s_i x_i of states with patterns, both (Q, N); (Q,)."""
    return (states * patterns).mean(-1)


def random_patterns(
    patterns: int, neurons: int, *, generator: Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`patterns` of independent fair signs, (P, N)."""
    coins = torch.randint(0, 2, (patterns, neurons), generator=generator, device=generator.device)
    return (2 * coins - 1).to(dtype)


def _check_spins(states: Tensor) -> None:
    if not states.is_floating_point() or not (states.abs() == 1).all():
        raise ValueError(f"spins must be +1 or -1 in a floating-point type, got {states.dtype}")
