"""Attention is the gradient of a log-normaliser.

    log Z(eta) = log integral dmu(x) exp(x . eta),        eta <- eta + grad log Z(eta)

A population mu of tokens, seen from a query eta. grad log Z(eta) is its mean under exp(x . eta) dmu(x):

    points x_n, weights w_n    sum_n softmax_n(log w_n + x_n . eta) x_n            softmax attention
    a spin measure             grad psi(eta): see `physics.measures`
    Gaussian N(mu, Sigma)      mu + Sigma eta                                      linear regression
    mixture, one Sigma         Sigma eta + sum_k softmax_k(log w_k + mu_k . eta) mu_k   both

The log-normalisers of independent x and y add in x + y, and a Gaussian mixture with one covariance is a
choice of points plus Gaussian noise (proposition 2); N(mu, Sigma) is the mixture of one point. Bare
self-attention is of the first row: tests/theory/test_four_sides.py. As an energy the mixture would be the
couplings `HopfieldAttention` of the design, which `physics` does not have.

Source: Shim 2021, "A probabilistic interpretation of transformers", arXiv 2205.01080. The weights w_n sum
to 1 here, so that log Z(0) = 0 like psi(0); the paper's sum over tokens has w_n = 1.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from attractor.physics import Gaussian
from attractor.physics.spectrum import spectrum


class Population(Protocol):
    """What has a log-normaliser; every `physics.Measure` is one. Shapes: eta (..., D)."""

    dim: int

    def log_normaliser(self, eta: Tensor, /) -> Tensor:
        """log Z(eta) (...), nats."""
        ...

    def mean(self, eta: Tensor, /) -> Tensor:
        """grad log Z(eta) (..., D)."""
        ...


class Discrete:
    """Points x_n (N, D) with weights w_n: log Z = log sum_n w_n exp(x_n . eta)."""

    def __init__(self, points: Tensor, *, weights: Tensor | None = None) -> None:
        """`weights` (N,) are normalised to a sum of 1; equal unless given. Raises ValueError."""
        if points.dim() != 2 or not points.is_floating_point() or not points.numel():
            given = f"{tuple(points.shape)} of {points.dtype}"
            raise ValueError(
                f"points are {given}, expected (N, D) of a floating-point type, N and D over 0"
            )
        if not torch.isfinite(points).all():
            raise ValueError(f"the points {tuple(points.shape)} hold values that are not finite")
        weights = points.new_ones(len(points)) if weights is None else weights.to(points)
        if weights.shape != points.shape[:1]:
            raise ValueError(
                f"weights are {tuple(weights.shape)} for points {tuple(points.shape)}; one each"
            )
        if not torch.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
            raise ValueError("weights must be finite and 0 or more, one of them over 0")
        self.dim = points.shape[1]
        self.points = points
        self.log_weights = (weights / weights.sum()).log()

    def scores(self, eta: Tensor) -> Tensor:
        """log w_n + x_n . eta (..., N)."""
        if eta.shape[-1:] != (self.dim,):
            raise ValueError(f"eta is {tuple(eta.shape)}, expected (..., D) = (..., {self.dim})")
        return eta @ self.points.mT + self.log_weights

    def log_normaliser(self, eta: Tensor, /) -> Tensor:
        return self.scores(eta).logsumexp(-1)

    def attention(self, eta: Tensor) -> Tensor:
        """softmax_n of the scores (..., N): dot-product attention at scale 1, if weights are equal."""
        return self.scores(eta).softmax(-1)

    def mean(self, eta: Tensor, /) -> Tensor:
        return self.attention(eta) @ self.points


class Sum:
    """x + y + ... of independent populations of one dimension: log-normalisers and means add."""

    def __init__(self, *parts: Population) -> None:
        dims = {part.dim for part in parts}
        if len(dims) != 1:
            raise ValueError(
                f"populations of dim {sorted(dims)} cannot be added; give one dim, and at least one"
            )
        self.dim = dims.pop()
        self.parts = parts

    def log_normaliser(self, eta: Tensor, /) -> Tensor:
        return torch.stack([part.log_normaliser(eta) for part in self.parts]).sum(0)

    def mean(self, eta: Tensor, /) -> Tensor:
        return torch.stack([part.mean(eta) for part in self.parts]).sum(0)


def normal(mean: Tensor, covariance: Tensor) -> Sum:
    """N(mean (D,), covariance (D, D)): log Z = mean . eta + eta^T covariance eta / 2."""
    if mean.dim() != 1:
        raise ValueError(f"the mean is {tuple(mean.shape)}, expected (D,)")
    return shared_mixture(mean[None], covariance)


def shared_mixture(means: Tensor, covariance: Tensor, *, weights: Tensor | None = None) -> Sum:
    """sum_k w_k N(means[k], covariance), means (K, D): regression plus attention (proposition 2).

    Raises ValueError for what `Discrete` refuses in the means, and for a covariance that is none of dim D,
    or is singular.
    """
    points = Discrete(means, weights=weights)
    return Sum(points, _centred(covariance, points.dim))


class GaussianMixture:
    """sum_k w_k N(mu_k, Sigma_k), each component with a covariance of its own.

        log Z(eta)      = log sum_k w_k exp(mu_k . eta + q_k),    q_k = eta^T Sigma_k eta / 2
        grad log Z(eta) = sum_k r_k (mu_k + Sigma_k eta),        r_k = softmax_k(log w_k + mu_k . eta + q_k)

    This is not regression plus attention: the q_k sit inside the softmax. `lower_bound` takes them out.
    """

    def __init__(self, means: Tensor, covariances: Tensor, *, weights: Tensor | None = None) -> None:
        """means (K, D), covariances (K, D, D), weights (K,). Raises ValueError as `shared_mixture` does."""
        self.points = Discrete(means, weights=weights)
        self.dim = self.points.dim
        if covariances.dim() != 3 or len(covariances) != len(means):
            given = f"{tuple(covariances.shape)} for means {tuple(means.shape)}"
            raise ValueError(f"covariances are {given}, expected (K, D, D) = {(*means.shape, self.dim)}")
        self.spreads = [_centred(covariance, self.dim) for covariance in covariances]

    def _quadratics(self, eta: Tensor) -> Tensor:
        """q_k (..., K)."""
        return torch.stack([spread.log_normaliser(eta) for spread in self.spreads], -1)

    def responsibilities(self, eta: Tensor) -> Tensor:
        """r_k (..., K): attention that sees the covariances too."""
        return (self.points.scores(eta) + self._quadratics(eta)).softmax(-1)

    def log_normaliser(self, eta: Tensor, /) -> Tensor:
        return (self.points.scores(eta) + self._quadratics(eta)).logsumexp(-1)

    def mean(self, eta: Tensor, /) -> Tensor:
        shifts = torch.stack([spread.mean(eta) for spread in self.spreads], -2)  # (..., K, D)
        return (self.responsibilities(eta).unsqueeze(-1) * (self.points.points + shifts)).sum(-2)

    def lower_bound(self, eta: Tensor) -> Tensor:
        """log Z >= log sum_k w_k exp(mu_k . eta) + sum_k a_k q_k,  a_k = softmax_k(log w_k + mu_k . eta).

        The log-normaliser of the means alone, plus a regression whose covariance is sum_k a_k Sigma_k,
        chosen by attention to the means. Proof: log Z - log sum_k w_k exp(mu_k . eta) =
        log sum_k a_k exp(q_k), and Jensen for the convex exp. Equal where the q_k of all attended
        components are: for one covariance, at eta = 0, and where attention has chosen one component.
        In place of the paper's proposition 3, whose text we could not consult: the bound is ours.
        """
        return self.points.log_normaliser(eta) + (self.points.attention(eta) * self._quadratics(eta)).sum(
            -1
        )


def attention_update(population: Population, eta: Tensor) -> Tensor:
    """eta + grad log Z(eta) (..., D): self-attention and the residual, without weights."""
    if eta.shape[-1:] != (population.dim,):
        raise ValueError(f"eta is {tuple(eta.shape)}, expected (..., D) = (..., {population.dim})")
    return eta + population.mean(eta)


def sampling_error(covariance: Tensor, eta: Tensor, *, draws: int) -> tuple[Tensor, Tensor]:
    """Bias (D,) and covariance (D, D) of softmax attention over n draws, for mu + Sigma eta.

        covariance = g/n (Sigma + Sigma eta (Sigma eta)^T),    bias = -g/n Sigma eta
        g = exp(eta^T Sigma eta)

    to first order in 1/n (the delta method for a ratio of means, with weights exp(x . eta)): the effective
    number of draws is n/g, with g = Z(2 eta)/Z(eta)^2, and the draws that weigh are those of
    N(mu + 2 Sigma eta, Sigma), whose deviations from mu + Sigma eta have mean Sigma eta. Where g > n a
    single draw takes all the weight, and the expansion says nothing. Raises ValueError for shapes.
    """
    if draws < 1 or covariance.shape != (*eta.shape, *eta.shape) or eta.dim() != 1:
        given = f"covariance {tuple(covariance.shape)}, eta {tuple(eta.shape)}, draws {draws}"
        raise ValueError(f"got {given}; expected (D, D), (D,) and at least 1")
    shift = covariance @ eta
    per_draw = math.exp(float(eta @ shift)) / draws
    return -per_draw * shift, per_draw * (covariance + torch.outer(shift, shift))


def _centred(covariance: Tensor, dim: int) -> Gaussian:
    """N(0, covariance) as a spin measure."""
    if covariance.shape != (dim, dim):
        raise ValueError(f"the covariance is {tuple(covariance.shape)}, expected (D, D) = {(dim, dim)}")
    return Gaussian(dim, precision=spectrum(covariance, singular=False).power(-1))
