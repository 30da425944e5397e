"""Learning rules: how couplings follow from tokens, without a backward pass through layers or time.

    exact (PseudoLikelihood)   dJ_ij = eta lambda <(alpha_ij x_i - beta_ij grad psi(lambda J_ij x_j)) x_j^T>
    the paper's (EnergyDescent) dJ_ij = eta <alpha_ij x_i x_j^T>, the norm of each row J[i] held, or decay
    one shot (Hebb)            J_ij  = eta lambda / S <x_i x_j^T>
    closed form (Ridge)        A_i   = P <x_i x_o^T> (<x_o x_o^T> + ridge)^-1 / lambda, o = the others

The first two are local: the change of J_ij needs x_i, x_j, J_ij and two scalars held by token i. They are
driven step by step (`IterativeRule`); the others see all images once (`OneShotRule`).

Source: D'Amico & Negri 2024, arXiv 2409.16112 (energy descent; the row norm and the decay are two ways to
bound an energy that is unbounded below); D'Amico et al. 2025, arXiv 2507.05147 (pseudo-likelihood).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Generator, Tensor

from attractor.physics.couplings import Couplings, Hopfield, Pairwise
from attractor.physics.energies import LocalEnergy
from attractor.physics.measures import Gaussian
from attractor.physics.optimisers import Optimiser


class NonFiniteError(ArithmeticError):
    """Couplings, states or losses that are not finite."""


class IterativeRule(ABC):
    """A rule that is applied batch after batch. objective: the name of what it climbs."""

    objective: str

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser = optimiser
        self._gradient: dict[str, Tensor] | None = None

    def start(self, energy: LocalEnergy) -> None:
        """Prepare or refuse the couplings before the first step (ValueError). Changes nothing here."""

    @torch.inference_mode()
    def step(self, energy: LocalEnergy, x: Tensor, *, rate: float) -> float:
        """Apply the rule once to tokens x (B, N, D), with learning rate `rate`.

        Returns the mean of what the rule climbs, before the step: log p(x_i | x_others) in nats per token,
        or -e_i. Raises NonFiniteError, naming the row, if the gradient (then the couplings are untouched)
        or the new couplings are not finite.
        """
        if self._gradient is None:
            self._gradient = energy.zero_gradient()
        for gradient in self._gradient.values():
            gradient.zero_()
        objective = self._direction(energy, x, self._gradient)
        for name, gradient in self._gradient.items():
            refuse_non_finite(gradient, f"the gradient of the {name}")
        self.optimiser.ascend(energy.couplings.weights, self._gradient, rate=rate)
        self._constrain(energy.couplings)
        for name, weight in energy.couplings.weights.items():
            refuse_non_finite(weight, name)
        return float(objective.mean())

    @abstractmethod
    def _direction(self, energy: LocalEnergy, x: Tensor, gradient: dict[str, Tensor]) -> Tensor:
        """Write the direction of learning into `gradient`; return the objective (B, N)."""

    def _constrain(self, couplings: Couplings) -> None:
        """Restore what the rule holds fixed."""


class PseudoLikelihood(IterativeRule):
    """The exact rule: ascent of mean_B sum_i log p(x_i | x_others) - decay |J|^2/2.

    What token i is, minus what source j expected it to be, gated by attention, times the presynaptic
    token. At J = 0 it is Hebb's rule. `decay` is the ridge of a Gaussian prior on the couplings.
    """

    objective = "log_pseudo_likelihood"

    def __init__(self, optimiser: Optimiser, *, decay: float = 0.0) -> None:
        if decay < 0:
            raise ValueError(f"decay must not be negative, got {decay}")
        super().__init__(optimiser)
        self.decay = decay

    def _direction(self, energy: LocalEnergy, x: Tensor, gradient: dict[str, Tensor]) -> Tensor:
        logarithm = energy.accumulate_gradient(x, gradient)
        _decay(gradient, energy.couplings, self.decay)
        return logarithm


class EnergyDescent(IterativeRule):
    """The paper's rule: the positive phase alone, descent of mean_B sum_i e_i.

    The energy falls without bound as J grows, so either the Frobenius norm of every row J[i] is held at
    its starting value (`decay=None`), or every weight decays at the rate `decay`. J = 0 is a saddle where
    all sources look alike, so it is refused: start with `random_start`.
    """

    objective = "negative_energy"

    def __init__(self, optimiser: Optimiser, *, decay: float | None = None) -> None:
        if decay is not None and decay <= 0:
            raise ValueError(f"decay must be positive, or None to hold the norm of each row, got {decay}")
        super().__init__(optimiser)
        self.decay = decay
        self._norms: dict[str, Tensor] | None = None

    def start(self, energy: LocalEnergy) -> None:
        norms = {name: _row_norms(weight) for name, weight in energy.couplings.weights.items()}
        for name, norm in norms.items():
            if not norm.all():
                row = int((norm.flatten() == 0).nonzero()[0])
                raise ValueError(
                    f"energy descent cannot start from zero couplings, and row {row} of the {name} is "
                    "zero; draw a small random start with random_start(couplings, scale, generator=...)"
                )
        self._norms = norms

    def _direction(self, energy: LocalEnergy, x: Tensor, gradient: dict[str, Tensor]) -> Tensor:
        if self._norms is None:
            self.start(energy)
        objective = -energy.accumulate_positive_phase(x, gradient)
        _decay(gradient, energy.couplings, self.decay or 0.0)
        return objective

    def _constrain(self, couplings: Couplings) -> None:
        if self.decay is None and self._norms is not None:
            for name, weight in couplings.weights.items():
                weight *= self._norms[name] / _row_norms(weight)


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

    S is the number of sources of a token: N - 1 for `Pairwise`, 1 for `Hopfield`.
    """

    def __init__(self, *, rate: float = 1.0) -> None:
        if rate <= 0:
            raise ValueError(f"rate must be positive, got {rate}")
        self.rate = rate

    def start(self, energy: LocalEnergy) -> None:
        _pair_couplings(energy, "Hebb")

    def solve(self, energy: LocalEnergy, batches: Iterable[Tensor]) -> None:
        couplings = _pair_couplings(energy, "Hebb")
        sources = couplings.tokens - 1 if isinstance(couplings, Pairwise) else 1
        moments = _second_moments(energy, batches)
        for i in range(couplings.tokens):
            moments[i, i] = 0
        scale = self.rate * energy.inverse_temperature / sources
        couplings.couplings = (scale * moments).to(couplings.couplings.dtype)


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
        couplings.couplings = (precision @ solution / energy.inverse_temperature).to(
            couplings.couplings.dtype
        )


def random_start(couplings: Couplings, scale: float, *, generator: Generator) -> None:
    """Draw every weight from N(0, scale^2), but for those that are zero by definition."""
    if scale <= 0:
        raise ValueError(f"the scale of a random start must be positive, got {scale}")
    for weight in couplings.weights.values():
        weight.normal_(0, scale, generator=generator)
        if isinstance(couplings, Pairwise | Hopfield):
            for i in range(couplings.tokens):
                weight[i, i] = 0


def refuse_non_finite(values: Tensor, name: str) -> None:
    """Raise NonFiniteError if a value is not finite, naming the first such row (the first axis)."""
    if not torch.isfinite(values.sum()):
        finite = torch.isfinite(values).flatten(1).all(1)
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise NonFiniteError(f"{name} became non-finite in row {row}; a smaller rate may help")


def _decay(gradient: dict[str, Tensor], couplings: Couplings, decay: float) -> None:
    if decay:
        for name, weight in couplings.weights.items():
            gradient[name].sub_(weight, alpha=decay)


def _row_norms(weight: Tensor) -> Tensor:
    """Frobenius norm of every row J[i], shaped to broadcast over the row."""
    return weight.square().sum(tuple(range(1, weight.dim())), keepdim=True).sqrt()


def _pair_couplings(energy: LocalEnergy, rule: str) -> Pairwise | Hopfield:
    if not isinstance(energy.couplings, Pairwise | Hopfield):
        raise ValueError(f"{rule} needs Pairwise or Hopfield couplings, not {energy.couplings!r}")
    return energy.couplings


def _second_moments(energy: LocalEnergy, batches: Iterable[Tensor]) -> Tensor:
    """<x_i x_j^T> (N, N, D, D), accumulated in float64."""
    n, d = energy.couplings.tokens, energy.couplings.dim
    total, images = torch.zeros(n * d, n * d, dtype=torch.float64), 0
    for batch in batches:
        flat = batch.flatten(1).double()
        total.addmm_(flat.T, flat)
        images += len(batch)
    if not images:
        raise ValueError("there are no images to learn from")
    return (total / images).view(n, d, n, d).transpose(1, 2)
