"""How alike a query and a stored key are: sim(K, q) of the universal Hopfield network.

The more alike, the larger the score; q (B, P) are queries, k (M, P) keys, scores (B, M).

    dot           q . k                                    cosine       q . k / (|q| |k|)
    euclidean     -|q - k|^2 / 2                           manhattan    -sum_p |q_p - k_p|
    mahalanobis   -(q - k)^T (Sigma + ridge I)^-1 (q - k) / 2,  Sigma the covariance of the keys
    inverse_euclidean     2 / |q - k|^2                inverse_manhattan     1 / sum_p |q_p - k_p|

Source: Millidge et al. 2022, arXiv 2202.04557, and its code. Departures: they score a distance by its
inverse, 1 / sum_p (q_p - k_p)^2 and 1 / sum_p |q_p - k_p|, and divide the scores of a query by their sum.
Here a distance is scored by its negative, so that softmax(beta sim) is the posterior of Gaussian noise of
variance 1/beta (`euclidean`) and of Laplace noise of scale 1/beta (`manhattan`), and equals softmax of
beta q . k where all keys have the same norm. Inverses, `Inverse` of any distance, stay
positive, which identity and polynomial need; the 2 falls out where weights are divided by their sum.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attractor.physics.spectrum import Spectrum, second_moments, spectrum

_FLOOR = 1e-6  # of a distance that is inverted: what float32 leaves of the distance of an image to itself


class Similarity(ABC):
    """Scores of queries (B, P) and keys (M, P), larger where they are more alike."""

    def fitted(self, keys: Tensor) -> "Similarity":
        """The similarity that goes with these keys; most do not depend on them."""
        return self

    @abstractmethod
    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """sim(K, q) for every pair, (B, M)."""


class Dot(Similarity):
    """q . k, the similarity of the classical and of the modern Hopfield network, and of attention."""

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        return queries @ keys.T


class Cosine(Similarity):
    """q . k / (|q| |k|); 0 for a query or a key of zeros, which has no direction.

    Departure: their code divides by the norm of the whole matrix K, not of each key.
    """

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        normalise = torch.nn.functional.normalize
        return Dot().scores(normalise(queries, dim=-1), normalise(keys, dim=-1))


class Euclidean(Similarity):
    """-|q - k|^2 / 2."""

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.relative(queries, keys).sub_(queries.square().sum(-1, keepdim=True) / 2)

    def relative(
        self, queries: Tensor, keys: Tensor, *, visible: Tensor | None = None, scratch: Tensor | None = None
    ) -> Tensor:
        """-|q - k|^2/2 + |q|^2/2 = q . k - |k|^2/2, all that softmax and max need of it, (B, M).

        With `visible` (B, P), of zeros and ones, only those components count; the others of the query must
        be 0. keys^2 is written to `scratch` if given, which may be the keys themselves.
        """
        visible = torch.ones_like(queries) if visible is None else visible
        product = queries @ keys.T  # before the keys may be overwritten
        return product.addmm_(visible, torch.square(keys, out=scratch).T, alpha=-0.5)


class Manhattan(Similarity):
    """-sum_p |q_p - k_p|, without a (B, M, P) tensor. Unlike the others it changes under rotations."""

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        return torch.cdist(queries, keys, p=1).neg_()


@dataclass(frozen=True)
class Mahalanobis(Similarity):
    """-(q - k)^T (Sigma + ridge I)^-1 (q - k) / 2, for the covariance Sigma of the keys (about their mean).

    ridge, in the units of Sigma: squared pixels. With M <= P keys Sigma is singular, and with ridge 0 that
    is a ValueError, or (singular=True) the pseudo-inverse: what lies outside the span of the keys is not
    seen, and M <= P independent keys all get the same distance from each other.
    """

    ridge: float = 0.0
    singular: bool = False

    def fitted(self, keys: Tensor) -> "Whitened":
        centred = keys.double() - keys.double().mean(0)
        return Whitened(spectrum(second_moments(centred), ridge=self.ridge, singular=self.singular))

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.fitted(keys).scores(queries, keys)


@dataclass(frozen=True)
class Whitened(Similarity):
    """The Euclidean similarity of L^T q and L^T k, whose covariance is the identity."""

    spectrum: Spectrum

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        whitening = self.spectrum.whitening.to(keys)
        return Euclidean().scores(queries @ whitening, keys @ whitening)


@dataclass(frozen=True)
class Inverse(Similarity):
    """1 / distance, where `negative` scores -distance; at most 1e6, where they coincide."""

    negative: Similarity

    def fitted(self, keys: Tensor) -> "Inverse":
        return Inverse(self.negative.fitted(keys))

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.negative.scores(queries, keys).neg_().clamp_min_(_FLOOR).reciprocal_()


SIMILARITIES: dict[str, Callable[..., Similarity]] = {
    "dot": Dot,
    "cosine": Cosine,
    "euclidean": Euclidean,
    "manhattan": Manhattan,
    "mahalanobis": Mahalanobis,
    "inverse_euclidean": partial(Inverse, Euclidean()),
    "inverse_manhattan": partial(Inverse, Manhattan()),
}
