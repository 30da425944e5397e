"""The spectrum of a covariance, and what is made of it: whitening, pseudo-inverse, powers.

    G = V Lambda V^T,      L = V (Lambda + ridge)^(-1/2)  (D, r)

    L^T (G + ridge I) L = I,      L L^T = (G + ridge I)^+

x -> L^T x whitens tokens of covariance G. r is the rank: with a ridge above rounding it is D, without one
directions in which G is zero to rounding are left out, so that L L^T is the pseudo-inverse.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """The r eigenvalues (descending, ridge included) and eigenvectors of G + ridge I that are kept."""

    values: Tensor  # (r,), positive
    vectors: Tensor  # (D, r), orthonormal columns

    @property
    def rank(self) -> int:
        return len(self.values)

    @cached_property
    def whitening(self) -> Tensor:
        """L (D, r)."""
        return self.vectors * self.values.rsqrt()

    def power(self, exponent: float) -> Tensor:
        """V (Lambda + ridge)^exponent V^T (D, D), symmetric: -1 the (pseudo-)inverse, 1/2 the root."""
        return (self.vectors * self.values**exponent) @ self.vectors.T


def second_moments(x: Tensor) -> Tensor:
    """<x x^T> (..., D, D), the mean over n samples x (..., n, D): the covariance, where x is centred."""
    return x.mT @ x / x.shape[-2]


def spectrum(gram: Tensor, *, ridge: float = 0.0, singular: bool = True) -> Spectrum:
    """The `Spectrum` of G + ridge I, for a symmetric positive semi-definite G (D, D), in its own type.

    Eigenvalues up to D eps times the largest are rounding, and left out; with singular=False they are
    refused. Raises ValueError for those, for what is no covariance, and for a negative ridge.
    """
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or not gram.is_floating_point():
        raise ValueError(f"a covariance is (D, D) of a floating-point type, got {_given(gram)}")
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge is {ridge}; it must be 0 or more, and finite")
    if not torch.isfinite(gram).all():
        raise ValueError(f"the covariance {_given(gram)} holds values that are not finite")
    rounding = len(gram) * torch.finfo(gram.dtype).eps
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    scale = float(values.abs().max()) if len(gram) else 0.0
    if len(gram) and (float((gram - gram.mT).abs().max()) > 1e3 * rounding * scale):
        raise ValueError(f"a covariance is symmetric, and the matrix {_given(gram)} is not")
    if len(gram) and float(values[0]) < -1e3 * rounding * scale:
        raise ValueError(f"a covariance has no negative eigenvalue, this one has {float(values[0]):.3g}")
    values, vectors = values.flip(0).clamp_min(0) + ridge, vectors.flip(1)
    kept = values > rounding * scale
    if not kept.all() and not singular:
        raise ValueError(
            f"the covariance is singular: its rank is {int(kept.sum())} of {len(gram)}; use a positive "
            "ridge, or singular=True for the pseudo-inverse"
        )
    if not kept.any():
        raise ValueError(f"the covariance {_given(gram)} is zero, and has no inverse; use a positive ridge")
    return Spectrum(values[kept], vectors[:, kept])


def _given(matrix: Tensor) -> str:
    return f"{tuple(matrix.shape)} of {matrix.dtype}"
