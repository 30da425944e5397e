"""How scores of memories become weights: sep of the universal Hopfield network.

    identity     s                       classical Hopfield network, linear attention
    polynomial   s^n                     dense associative memory (Krotov & Hopfield 2016)
    softmax      exp(s) / sum exp(s)     modern Hopfield network, attention
    max          1 for the largest s     nearest neighbour

s = beta sim (B, M). Softmax and max sum to 1. Identity and polynomial do so if they are `normalised`, and
only then is a mean of stored images an image: without it V K^T q grows with the number of memories. Then
beta cancels, n alone sharpens, and s^n / sum s^n = softmax(n log s).

Source: Millidge et al. 2022, arXiv 2202.04557, whose code divides by the sum too.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

# exp(-80) adds nothing; subnormal numbers, a little below, multiply 25 times slower
_LEAST = -80


class Separation(ABC):
    """Weights of the memories from their scores, up to a factor for each query if `normalised`."""

    normalised: bool

    @abstractmethod
    def weights(self, scores: Tensor) -> Tensor:
        """(B, M); where `normalised` is true they are still to be divided by their sum."""


@dataclass(frozen=True)
class Polynomial(Separation):
    """s^n. Raises ValueError for n that is not positive, and for negative scores that it would misread.

    Of a negative score an even power loses the sign, so that the least similar memory would win, and a
    power that is no integer does not exist; weights of both signs have no mean. Scores that are all 0, of
    which none says anything, give all memories the same weight if normalised.
    """

    power: float
    normalised: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.power < float("inf"):
            raise ValueError(f"the power of a polynomial separation is {self.power}; it must be positive")

    def weights(self, scores: Tensor) -> Tensor:
        if (self.normalised or self.power % 2 != 1) and bool((scores < 0).any()):
            kind = "normalised " * self.normalised + f"power {self.power:g}"
            raise ValueError(
                f"scores go down to {float(scores.min()):.3g}, and a {kind} needs scores of 0 or more; use"
                " an odd power without normalisation, the inverse of a distance, softmax or max"
            )
        if not self.normalised:
            return scores**self.power
        largest = scores.amax(-1, keepdim=True)  # divided by, so that no power overflows
        return torch.where(largest > 0, scores / largest, 1) ** self.power


@dataclass(frozen=True)
class Identity(Polynomial):
    """s."""

    power: float = field(default=1.0, init=False)


class Softmax(Separation):
    """exp(s), to be divided by its sum."""

    normalised = True

    def weights(self, scores: Tensor) -> Tensor:
        return self.exponentials(scores - scores.amax(-1, keepdim=True))

    def exponentials(self, shifted: Tensor, *, beta: float = 1.0, out: Tensor | None = None) -> Tensor:
        """exp(beta s) of scores less their maximum over the memories; at least exp(-80)."""
        return torch.mul(shifted, beta, out=out).clamp_min_(_LEAST).exp_()


class Max(Separation):
    """1 for the largest score, the first of them if there are several, 0 for the others."""

    normalised = True

    def weights(self, scores: Tensor) -> Tensor:
        return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1)


SEPARATIONS: dict[str, Callable[..., Separation]] = {
    "identity": Identity,
    "polynomial": Polynomial,
    "softmax": Softmax,
    "max": Max,
}
