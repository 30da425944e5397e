"""The classical Hopfield network: +-1 spins, Hebb's matrix without its diagonal, iterated to rest.

    J = (1/N) sum_mu x^mu x^mu^T, J_ii = 0;      s_i <- sign(sum_j J_ij s_j), spin by spin

Its matrix is the memory of `fast_weights` with values equal to keys. A sum of zero leaves a spin as it is.
Spins are updated one after the other: J is symmetric and has no negative diagonal, so the energy
-s . J s / 2 never rises and every state comes to rest; updated all at once they may end in a cycle of two.

With P = alpha N random patterns and N to infinity, there are states of rest with an overlap of 0.967 or
more with a pattern up to alpha_c = 0.138, and none beyond. At finite N the change is gradual.

Sources: Hopfield 1982; Amit, Gutfreund & Sompolinsky 1985 (alpha_c).
"""

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
        self.couplings = memory.fill_diagonal_(0) / neurons  # (N, N)

    def energy(self, states: Tensor) -> Tensor:
        """-s . J s / 2 for states (Q, N); (Q,)."""
        return -((states @ self.couplings) * states).sum(-1) / 2

    def settle(self, states: Tensor, *, generator: Generator, sweeps: int = 1000) -> tuple[Tensor, int]:
        """States (Q, N) at rest, and the number of sweeps over all spins until none of them moved.

        Each sweep takes the spins in a new random order, the same for all states. Raises ValueError if
        `sweeps` were not enough.
        """
        if states.dim() != 2 or states.shape[1] != len(self.couplings):
            raise ValueError(
                f"states are {tuple(states.shape)}, expected (Q, N) with N = {len(self.couplings)}"
            )
        _check_spins(states)
        spins = states.T.clone(memory_format=torch.contiguous_format)  # (N, Q): a spin is one row
        for sweep in range(sweeps):
            before = spins.clone()
            for i in torch.randperm(len(spins), generator=generator).tolist():
                field = self.couplings[i] @ spins
                spins[i] = torch.where(field == 0, spins[i], field.sign())
            if torch.equal(spins, before):
                return spins.T, sweep + 1
        raise ValueError(f"states still moved after {sweeps} sweeps; allow more")


def overlap(states: Tensor, patterns: Tensor) -> Tensor:
    """m = (1/N) sum_i s_i x_i of states with patterns, both (Q, N); (Q,)."""
    return (states * patterns).mean(-1)


def random_patterns(
    count: int, neurons: int, *, generator: Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`count` patterns of independent fair signs, (P, N)."""
    coins = torch.randint(0, 2, (count, neurons), generator=generator, device=generator.device)
    return (2 * coins - 1).to(dtype)


def _check_spins(states: Tensor) -> None:
    if not states.is_floating_point() or not (states.abs() == 1).all():
        raise ValueError(f"spins must be +1 or -1 in a floating-point type, got {states.dtype}")
