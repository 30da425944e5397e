"""Theorem 1, and what it leaves out: moments, shapes, and the growth of what is not Gaussian."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torch import Generator, Tensor

from attractor.theory.log_normaliser import Discrete, attention_update, normal, shared_mixture
from attractor.theory.renormalisation import (
    Renormalisation,
    cumulant_growth,
    gaussian_quantiles,
    standardised_cumulants,
    wasserstein,
)

MEAN = torch.tensor([0.3, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.8]], dtype=torch.float64)


def draw(count: int, dim: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=Generator().manual_seed(seed), dtype=torch.float64)


def test_it_restores_mean_and_covariance() -> None:
    """Exactly, of any sample; with Sigma^(1/2) and S^(-1/2) swapped only the trace would nearly fit."""
    x = draw(50).exp() @ torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=torch.float64)
    y = Renormalisation(MEAN, COVARIANCE)(x)
    torch.testing.assert_close(y.mean(0), MEAN, rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.cov(y.mT, correction=0), COVARIANCE, rtol=0, atol=1e-13)


def test_the_roots_are_the_symmetric_ones() -> None:
    """scipy's sqrtm: a Cholesky factor would restore the moments as well, and rotate the population."""
    x = draw(50).exp()
    spread = np.cov(x.T.numpy(), bias=True)
    matrix = linalg.sqrtm(COVARIANCE.numpy()) @ linalg.inv(linalg.sqrtm(spread))
    expected = MEAN + (x - x.mean(0)) @ torch.from_numpy(matrix).mT
    torch.testing.assert_close(Renormalisation(MEAN, COVARIANCE)(x), expected, rtol=0, atol=1e-12)


def test_theorem_1_every_point_of_the_equilibrium_stays() -> None:
    """N(mu, Sigma) by its exact update and R, on a sample that has exactly these moments: the identity.

    Since Sigma and I + Sigma commute, R undoes the stretch point by point. 1e-12: two roots in float64.
    """
    x = Renormalisation(MEAN, COVARIANCE)(draw(200))  # its moments are mu and Sigma to rounding
    y = Renormalisation(MEAN, COVARIANCE)(attention_update(normal(MEAN, COVARIANCE), x))
    torch.testing.assert_close(y, x, rtol=0, atol=1e-12)


def test_theorem_1_whatever_the_sample() -> None:
    """A sample with moments of its own is mapped affinely, which keeps its Mahalanobis radii."""
    x = MEAN + draw(400).exp()
    y = Renormalisation(MEAN, COVARIANCE)(attention_update(normal(MEAN, COVARIANCE), x))
    radii = []
    for sample in (x, y):
        gap = sample - sample.mean(0)
        radii.append(((gap @ torch.linalg.inv(torch.cov(gap.mT))) * gap).sum(1))
    torch.testing.assert_close(radii[1], radii[0], rtol=1e-10, atol=0)


def test_softmax_attention_of_a_large_sample_is_nearly_stationary() -> None:
    """By softmax attention over the sample, where exp(eta^T Sigma eta) << n: it moves by 1/sqrt(n)."""
    moved = []
    for count in (500, 8000):
        restore = Renormalisation(0 * MEAN, 0.1 * COVARIANCE)
        x = restore(draw(count))
        y = restore(attention_update(Discrete(x), x))
        moved.append(float((y - x).square().mean().sqrt()))
    assert moved[1] < 0.01
    assert moved[0] / moved[1] == pytest.approx(4, rel=0.6)  # sqrt(16), one draw of each


def _cumulants_after(order: int, offset: float, variance: float) -> tuple[float, float]:
    """Cumulant of order 3 or 4 of a slightly two-humped population, before and after one exact iteration.

    By Gauss-Hermite quadrature over its components, with no sample.
    """
    share = torch.tensor([0.5, 0.5] if order == 4 else [0.2, 0.8], dtype=torch.float64)
    places = torch.tensor([[-offset], [offset]], dtype=torch.float64)
    places = places - share @ places
    within = variance - float(share @ places.square())
    population = shared_mixture(places, torch.tensor([[within]], dtype=torch.float64), weights=share)
    nodes, mass = np.polynomial.hermite_e.hermegauss(60)
    nodes, mass = torch.from_numpy(nodes), torch.from_numpy(mass / math.sqrt(2 * math.pi))
    x = places + math.sqrt(within) * nodes  # (2, nodes)
    weight = share[:, None] * mass
    found = []
    for values in (x, attention_update(population, x.reshape(-1, 1)).reshape(x.shape)):
        z = values - (weight * values).sum()
        z = z / (weight * z**2).sum().sqrt()
        found.append(float((weight * z**order).sum()) - (3 if order == 4 else 0))
    return found[0], found[1]


@pytest.mark.parametrize("variance", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("order", [3, 4])
def test_small_cumulants_grow_as_predicted(order: int, variance: float) -> None:
    """The equilibrium repels: skewness and excess kurtosis by 1 + m v^(m-1)/(1 + v), to first order."""
    before, after = _cumulants_after(order, 0.05, variance)
    predicted = float(cumulant_growth(order, torch.tensor(variance)))
    assert after / before == pytest.approx(predicted, rel=0.02)  # the next order is offset^2
    assert abs(before) > 1e-6


def test_higher_cumulants_feed_lower_ones() -> None:
    """c_5 alone makes m/(1 + v) v^(m+1)/2 of it skewness (m = 3), and c_6 as much kurtosis (m = 4).

    By the nodes and weights of Gauss-Hermite quadrature as a population, so that nothing is sampled. The
    formula for a pure c_m says that they stay 0.
    """
    nodes, mass = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(40))
    mass, variance, small = mass / mass.sum(), 0.3, 1e-6
    for order, hermite in ((3, nodes**4 - 6 * nodes**2 + 3), (4, nodes**5 - 10 * nodes**3 + 15 * nodes)):
        found = []
        for added in (0.0, small):
            x = variance**0.5 * (nodes + added * hermite)[:, None]
            z = attention_update(Discrete(x, weights=mass), x)[:, 0]
            z = z - mass @ z
            z = z / (mass @ z**2).sqrt()
            found.append(float(mass @ z**order))
        predicted = order * variance ** (order + 1) / 2 / (1 + variance) * math.factorial(order + 2) * small
        assert found[1] - found[0] == pytest.approx(predicted, rel=0.01)  # the next order is `small`


def test_two_points_are_stationary_too() -> None:
    """x + tanh x keeps +-1 where they are: the Gaussian is not the only equilibrium."""
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat(3, 1)
    one = torch.ones(1, 1, dtype=torch.float64)
    y = Renormalisation(torch.zeros(1, dtype=torch.float64), one)(attention_update(Discrete(x), x))
    torch.testing.assert_close(y, x, rtol=0, atol=1e-14)


def test_as_many_points_as_span_the_space_are_stationary() -> None:
    """D + 1 points keep their Mahalanobis distances, to the point and to each other; D + 2 do not."""
    moved = []
    for count in (3, 4):
        points = Renormalisation(MEAN, COVARIANCE)(draw(count)).repeat_interleave(
            torch.arange(1, count + 1), 0
        )
        x = Renormalisation(MEAN, COVARIANCE)(points)
        y = Renormalisation(MEAN, COVARIANCE)(attention_update(Discrete(x), x))
        whiten = torch.linalg.inv(COVARIANCE)
        first, second = ((z - MEAN) @ whiten @ (z - MEAN).mT for z in (x, y))
        moved.append(float((first - second).abs().max()))
    assert moved[0] < 1e-12
    assert moved[1] > 1e-3


def test_cumulants_and_distances_are_those_of_scipy() -> None:
    """Skewness, excess kurtosis and the Wasserstein distance, column by column."""
    x, y = draw(60).exp(), draw(60, seed=1)
    skewness, kurtosis = standardised_cumulants(x)
    np.testing.assert_allclose(skewness, stats.skew(x.numpy()), rtol=1e-12)
    np.testing.assert_allclose(kurtosis, stats.kurtosis(x.numpy()), rtol=1e-12)
    expected = [stats.wasserstein_distance(x[:, k].numpy(), y[:, k].numpy()) for k in range(2)]
    np.testing.assert_allclose(wasserstein(x, y), expected, rtol=1e-12)
    levels = (np.arange(5) + 0.5) / 5
    np.testing.assert_allclose(gaussian_quantiles(5, like=x), stats.norm.ppf(levels), atol=1e-12)


def test_what_cannot_be_is_refused() -> None:
    """Few points span no volume; a singular target would flatten the population."""
    restore = Renormalisation(MEAN, COVARIANCE)
    with pytest.raises(
        ValueError, match=r"the 2 points x of dim 2 cannot be renormalised: .*rank is 1 of 2"
    ):
        restore(draw(2))
    with pytest.raises(ValueError, match=r"x is \(4, 3\), expected \(n, D\) = \(n, 2\)"):
        restore(draw(4, 3))
    with pytest.raises(ValueError, match="singular"):
        Renormalisation(MEAN, torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"mean \(2,\) and covariance \(3, 3\)"):
        Renormalisation(MEAN, torch.eye(3))
    with pytest.raises(ValueError, match="order is 2"):
        cumulant_growth(2, MEAN)
    with pytest.raises(ValueError, match="the same shape"):
        wasserstein(draw(3), draw(4))
