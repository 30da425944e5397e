"""Renormalisation: the contraction that holds an attending population in place.

    R(x) = mu + Sigma^(1/2) S^(-1/2) (x - m),      m, S the mean and covariance of the x themselves

The attention update of N(mu, Sigma) is affine, x + mu + Sigma x, so it stays Gaussian, stretched by
I + Sigma, and R takes it back (theorem 1). Since Sigma commutes with I + Sigma, with the moments of the
whole population not only the distribution is stationary but every x. What R restores of other shapes are
two moments, no more.

The equilibrium repels. Let the z-scores of one direction, of variance v, have a small cumulant c_m of order
m >= 3 beside those of the Gaussian. It adds c_m v^(m-1) eta^(m-1) / (m-1)! to grad log Z, in units of the
z-scores, which after R is

    c_m <- c_m (1 + m v^(m-1) / (1 + v))        to first order in c_m

(the cumulant of order m of z + b He_{m-1}(z) is m! b) where c_m is the only one. z^{m-1} also holds lower
Hermite polynomials, by which higher cumulants of the same parity feed c_m, to first order too:

    c_m <- c_m + m/(1 + v) sum_k v^(m+2k-1) c_{m+2k} / (2^k k!),      k = 0, 1, ...

This map is triangular, with the growth of a pure c_m on its diagonal: these are the rates of growth. So
skewness (m = 3) and excess kurtosis (m = 4) grow at every iteration, by 1 + 3 v^2/(1 + v) and
1 + 4 v^3/(1 + v), where they are not fed; to a population of v << 1 little happens.

D + 1 points in general position are an equilibrium too, whatever their weights, but for a rotation: every
map of so few points is affine, and R undoes the rest of it.

Source: Shim 2021, arXiv 2205.01080 (the operator, theorem 1). Growth and the other equilibria are ours.
"""

import torch
from torch import Tensor

from attractor.physics.spectrum import second_moments, spectrum


class Renormalisation:
    """R to the mean mu (D,) and covariance Sigma (D, D), symmetric positive definite, of the population."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        """Raises ValueError for shapes that do not match and for what is no covariance, or is singular."""
        if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)):
            given = f"mean {tuple(mean.shape)} and covariance {tuple(covariance.shape)}"
            raise ValueError(f"got {given}, expected (D,) and (D, D)")
        self.mean = mean
        self.root = spectrum(covariance, singular=False).power(0.5)  # Sigma^(1/2)

    def __call__(self, x: Tensor) -> Tensor:
        """R(x) (n, D): the roots are the symmetric ones. Raises ValueError where S is singular."""
        if x.dim() != 2 or x.shape[1:] != self.mean.shape or not len(x):
            raise ValueError(f"x is {tuple(x.shape)}, expected (n, D) = (n, {len(self.mean)}), n over 0")
        deviations = x - x.mean(0)
        try:
            found = spectrum(second_moments(deviations), singular=False)
        except ValueError as error:
            raise ValueError(
                f"the {len(x)} points x of dim {x.shape[1]} cannot be renormalised: {error}"
            ) from error
        return self.mean + deviations @ found.power(-0.5) @ self.root


def cumulant_growth(order: int, variance: Tensor) -> Tensor:
    """1 + m v^(m-1)/(1 + v), for a variance of any shape: growth of a small c_m, m >= 3, alone."""
    if order < 3:
        raise ValueError(f"order is {order}; renormalisation restores the cumulants of order 1 and 2")
    return 1 + order * variance ** (order - 1) / (1 + variance)


def standardised_cumulants(z: Tensor) -> tuple[Tensor, Tensor]:
    """Skewness and excess kurtosis of each column of z (n, D), both (D,); 0 for a Gaussian."""
    z = (z - z.mean(0)) / z.std(0, correction=0)
    return (z**3).mean(0), (z**4).mean(0) - 3


def wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """The 1-Wasserstein distance of two samples of n numbers, column by column: (n, K), (n, K) to (K,)."""
    if x.shape != y.shape:
        raise ValueError(
            f"samples are {tuple(x.shape)} and {tuple(y.shape)}, expected the same shape (n, K)"
        )
    return (x.sort(0).values - y.sort(0).values).abs().mean(0)


def gaussian_quantiles(count: int, *, like: Tensor) -> Tensor:
    """(n,) quantiles of N(0, 1) at (i + 1/2)/n, the sample that is nearest to it."""
    levels = (torch.arange(count).to(like) + 0.5) / count
    quantiles: Tensor = torch.special.ndtri(levels)
    return quantiles
