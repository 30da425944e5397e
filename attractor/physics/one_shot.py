"""Rules that see all images once and then set the couplings, in closed form.

    Hebb     J_ij = eta lambda / S <x_i x_j^T>
    Ridge    A_i  = P <x_i x_o^T> (<x_o x_o^T> + ridge)^-1 / lambda, o = the others

Both are written down for all rows; of couplings that hold a range of rows, those are set.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from attractor.physics.couplings import Hopfield, Pairwise
from attractor.physics.energies import LocalEnergy
from attractor.physics.measures import Gaussian


class OneShotRule(ABC):
    """A rule that sees all images once and then sets the couplings."""

    @abstractmethod
    def start(self, energy: LocalEnergy) -> None:
        """Refuse an energy that the rule is not defined for (ValueError). Changes nothing."""

    @abstractmethod
    def solve(self, energy: LocalEnergy, batches: Iterable[Tensor]) -> None:
        """Set the couplings of `energy` from batches of tokens (B, N, D)."""


class Hebb(OneShotRule):
    """J_ij = rate lambda / S <x_i x_j^T>: one step of the exact rule from J = 0, over all images.

    S is the number of sources of a token: its neighbours for `Pairwise` (N - 1 unless given), the only ones
    that have a J_ij; 1 for `Hopfield`.
    """

    def __init__(self, *, rate: float = 1.0) -> None:
        if rate <= 0:
            raise ValueError(f"rate must be positive, got {rate}")
        self.rate = rate

    def start(self, energy: LocalEnergy) -> None:
        _pair_couplings(energy, "Hebb")

    def solve(self, energy: LocalEnergy, batches: Iterable[Tensor]) -> None:
        couplings = _pair_couplings(energy, "Hebb")
        moments = _second_moments(energy, batches)
        for i, row in enumerate(moments):
            if isinstance(couplings, Pairwise):
                sources = couplings.neighbours[i][couplings.neighbours[i] >= 0]
                kept = row[sources] / len(sources)
                row.zero_()[sources] = kept
            else:
                row[i] = 0
        scale = self.rate * energy.inverse_temperature
        couplings.couplings = (scale * moments).to(couplings.weights["couplings"])


class Ridge(OneShotRule):
    """The pseudo-likelihood optimum of `Hopfield` with a Gaussian measure: ridge regression.

        A_i = P C_io (C_oo + ridge I)^-1 / lambda,     C = <x x^T>, o = the other tokens

    All i at once from K = (C + ridge I)^-1: C_io (C_oo + ridge)^-1 = -(K_ii)^-1 K_io. It is where
    `PseudoLikelihood` with decay = lambda^2 ridge converges to, for P = I.
    """

    def __init__(self, *, ridge: float = 1e-3) -> None:
        if ridge < 0:
            raise ValueError(f"ridge must not be negative, got {ridge}")
        self.ridge = ridge

    def start(self, energy: LocalEnergy) -> None:
        couplings = _pair_couplings(energy, "Ridge")
        if not isinstance(couplings, Hopfield) or not isinstance(energy.measure, Gaussian):
            raise ValueError(
                "the closed form is known for Hopfield couplings with a Gaussian measure, not for "
                f"{type(couplings).__name__} with {type(energy.measure).__name__}; use PseudoLikelihood"
            )

    def solve(self, energy: LocalEnergy, batches: Iterable[Tensor]) -> None:
        self.start(energy)
        couplings = _pair_couplings(energy, "Ridge")
        assert isinstance(energy.measure, Gaussian)
        n, d = couplings.tokens, couplings.dim
        moments = _second_moments(energy, batches).transpose(1, 2).reshape(n * d, n * d)
        moments.diagonal().add_(self.ridge)
        factor, info = torch.linalg.cholesky_ex(moments)
        if info:
            raise ValueError("the covariance of the tokens is singular; use a positive ridge")
        inverse = torch.cholesky_inverse(factor).view(n, d, n, d).transpose(1, 2)  # (N, N, D, D)
        diagonal = inverse.diagonal(dim1=0, dim2=1).movedim(-1, 0)  # (N, D, D)
        solution = -torch.linalg.solve(diagonal.unsqueeze(1), inverse)
        for i in range(n):
            solution[i, i] = 0
        precision = energy.measure.precision.to(solution)
        couplings.couplings = (precision @ solution / energy.inverse_temperature).to(couplings.couplings)


def _pair_couplings(energy: LocalEnergy, rule: str) -> Pairwise | Hopfield:
    if not isinstance(energy.couplings, Pairwise | Hopfield):
        raise ValueError(f"{rule} needs Pairwise or Hopfield couplings, not {energy.couplings!r}")
    return energy.couplings


def _second_moments(energy: LocalEnergy, batches: Iterable[Tensor]) -> Tensor:
    """<x_i x_j^T> (N, N, D, D), accumulated in float64."""
    n, d = energy.couplings.tokens, energy.couplings.dim
    device = next(iter(energy.couplings.weights.values())).device
    total, images = torch.zeros(n * d, n * d, dtype=torch.float64, device=device), 0
    for batch in batches:
        flat = batch.flatten(1).double()
        total.addmm_(flat.T, flat)
        images += len(batch)
    if not images:
        raise ValueError("there are no images to learn from")
    return (total / images).view(n, d, n, d).transpose(1, 2)
