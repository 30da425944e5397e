"""Log-normalisers against autograd, quadrature, Monte Carlo, scikit-learn and torch's own attention."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Generator, Tensor
from torch.nn.functional import scaled_dot_product_attention

from attractor.physics import Circles, Gaussian, Sphere
from attractor.theory.log_normaliser import (
    Discrete,
    GaussianMixture,
    Population,
    Sum,
    attention_update,
    normal,
    sampling_error,
    shared_mixture,
)

# float64: a sum of some ten terms of order 10 keeps 1e-12 of each
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def covariances(count: int, dim: int, seed: int = 5) -> Tensor:
    root = draw(count, dim, dim, seed=seed)
    return root @ root.mT / dim + 0.2 * torch.eye(dim, dtype=torch.float64)


def weights(count: int) -> Tensor:
    return draw(count, seed=9).exp()


def populations(dim: int) -> dict[str, Population]:
    means = draw(4, dim, seed=1)
    each = covariances(4, dim)
    return {
        "discrete": Discrete(draw(6, dim), weights=weights(6)),
        "normal": normal(draw(dim, seed=2), each[0]),
        "shared": shared_mixture(means, each[1], weights=weights(4)),
        "different": GaussianMixture(means, each, weights=weights(4)),
        "sphere": Sphere(dim),
        "circles": Circles(dim // 2),
    }


@pytest.mark.parametrize("name", list(populations(2)))
@pytest.mark.parametrize("dim", [2, 4])
def test_the_mean_is_the_gradient(name: str, dim: int) -> None:
    """mean = grad log Z by autograd: with a factor lost it would be attention to other weights."""
    population = populations(dim)[name]
    eta = draw(7, dim, seed=3).requires_grad_()
    population.log_normaliser(eta).sum().backward()
    torch.testing.assert_close(population.mean(eta.detach()), eta.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", list(populations(2)))
def test_it_is_normalised(name: str) -> None:
    """log Z(0) = 0 for every population, so that log-normalisers can be compared and mixed."""
    value = populations(4)[name].log_normaliser(torch.zeros(4, dtype=torch.float64))
    assert abs(float(value)) < 1e-12


def test_a_discrete_population_is_softmax_attention() -> None:
    """Equal weights: torch's attention at scale 1 with the points as keys and values."""
    points, eta = draw(9, 5), draw(6, 5, seed=4)
    expected = scaled_dot_product_attention(eta[None], points[None], points[None], scale=1.0)[0]
    torch.testing.assert_close(Discrete(points).mean(eta), expected, **EXACT)


def test_weights_count_points() -> None:
    """An integer weight is a point that is there so often; a weight of 0 one that is not there."""
    points, eta = draw(3, 2), draw(5, 2, seed=4)
    weighted = Discrete(points, weights=torch.tensor([2.0, 0.0, 1.0]))
    repeated = Discrete(points[[0, 0, 2]])
    torch.testing.assert_close(weighted.log_normaliser(eta), repeated.log_normaliser(eta), **EXACT)
    torch.testing.assert_close(weighted.mean(eta), repeated.mean(eta), **EXACT)


def _mixture_density(x: np.ndarray, means: Tensor, each: Tensor, share: Tensor) -> float:
    total = 0.0
    for mean, covariance, weight in zip(means.numpy(), each.numpy(), share.numpy(), strict=True):
        gap = x - mean
        quadratic = gap @ np.linalg.solve(covariance, gap) / 2
        total += weight * math.exp(-quadratic) / math.sqrt(np.linalg.det(2 * np.pi * covariance))
    return total


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_mixtures_against_quadrature(dim: int, shared: bool) -> None:
    """log of the integral of the density times exp(x . eta), by scipy: no closed form is used twice."""
    means, share = draw(2, dim, seed=1), torch.tensor([0.3, 0.7], dtype=torch.float64)
    each = covariances(2, dim)
    if shared:
        each = each[:1].expand(2, dim, dim)
    population: Population = (
        shared_mixture(means, each[0], weights=share)
        if shared
        else GaussianMixture(means, each, weights=share)
    )
    eta = draw(dim, seed=8)

    def integrand(*x: float) -> float:
        point = np.array(x)
        return _mixture_density(point, means, each, share) * math.exp(point @ eta.numpy())

    limits = [(-14.0, 14.0)] * dim
    options = {"epsabs": 1e-9, "epsrel": 1e-9, "limit": 200}
    value, _ = integrate.nquad(integrand, limits, opts=options)
    assert float(population.log_normaliser(eta)) == pytest.approx(math.log(value), abs=1e-7)


def test_a_normal_is_the_gaussian_measure_and_a_shift() -> None:
    """mu + Sigma eta, and `physics.Gaussian` at mu = 0: there is one quadratic form in the code."""
    covariance, mean, eta = covariances(1, 3)[0], draw(3, seed=2), draw(5, 3, seed=4)
    centred = Gaussian(3, precision=torch.linalg.inv(covariance))
    torch.testing.assert_close(normal(mean, covariance).mean(eta), mean + eta @ covariance, **EXACT)
    torch.testing.assert_close(
        normal(0 * mean, covariance).log_normaliser(eta), centred.log_normaliser(eta), **EXACT
    )


def test_proposition_2_is_regression_plus_attention() -> None:
    """grad log Z - Sigma eta is torch's attention to the means, whatever the shared Sigma is."""
    means, covariance, eta = draw(5, 3, seed=1), covariances(1, 3)[0], draw(6, 3, seed=4)
    attended = scaled_dot_product_attention(eta[None], means[None], means[None], scale=1.0)[0]
    mean = shared_mixture(means, covariance).mean(eta)
    torch.testing.assert_close(mean - eta @ covariance, attended, **EXACT)


def test_responsibilities_are_those_of_scikit_learn() -> None:
    """One covariance S: attention of eta = S^-1 x is Bayes' posterior p(k | x), by scikit-learn.

    The weights are w_k exp(-mu_k^T S^-1 mu_k/2), what is left of the density of x beside mu_k . S^-1 x.
    """
    means, covariance, x = draw(4, 3, seed=1), covariances(1, 3)[0], draw(8, 3, seed=4)
    precision = torch.linalg.inv(covariance)
    model = SklearnMixture(4, covariance_type="tied")
    model.weights_ = np.full(4, 0.25)
    model.means_, model.covariances_ = means.numpy(), covariance.numpy()
    model.precisions_cholesky_ = np.linalg.cholesky(precision.numpy())
    tilt = (-((means @ precision) * means).sum(1) / 2).exp()
    points = Discrete(means, weights=tilt)
    mixture = GaussianMixture(means, covariance.expand(4, 3, 3), weights=tilt)
    expected = torch.from_numpy(model.predict_proba(x.numpy()))
    torch.testing.assert_close(points.attention(x @ precision), expected, **EXACT)
    torch.testing.assert_close(mixture.responsibilities(x @ precision), expected, rtol=1e-9, atol=1e-10)


def test_one_covariance_is_the_shared_mixture() -> None:
    """Different covariances that are equal: the exact form and its bound are proposition 2."""
    means, covariance, eta = draw(4, 3, seed=1), covariances(1, 3)[0], draw(6, 3, seed=4)
    mixture = GaussianMixture(means, covariance.expand(4, 3, 3), weights=weights(4))
    shared = shared_mixture(means, covariance, weights=weights(4))
    torch.testing.assert_close(mixture.log_normaliser(eta), shared.log_normaliser(eta), **EXACT)
    torch.testing.assert_close(mixture.mean(eta), shared.mean(eta), **EXACT)
    torch.testing.assert_close(mixture.lower_bound(eta), shared.log_normaliser(eta), **EXACT)


def test_the_lower_bound_bounds() -> None:
    """Below log Z everywhere, strictly in general; tight at eta = 0 and where attention has chosen.

    The gap is the Kullback-Leibler-like log E_a[exp q] - E_a[q] >= 0: with the responsibilities in place of
    attention the same formula is an upper bound, which the last line sees.
    """
    mixture = GaussianMixture(3 * draw(4, 3, seed=1), covariances(4, 3), weights=weights(4))
    eta = draw(500, 3, seed=4)
    gap = mixture.log_normaliser(eta) - mixture.lower_bound(eta)
    assert float(gap.min()) >= -1e-12
    assert float(gap.median()) > 1e-3
    zero = torch.zeros(3, dtype=torch.float64)
    assert abs(float(mixture.lower_bound(zero) - mixture.log_normaliser(zero))) < 1e-12
    apart = GaussianMixture(torch.diag(torch.full((3,), 90.0)).double(), covariances(3, 3))
    one = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(apart.lower_bound(one), apart.log_normaliser(one), **EXACT)
    above = mixture.points.log_normaliser(eta) + (
        mixture.responsibilities(eta) * mixture._quadratics(eta)
    ).sum(-1)
    assert float((above - mixture.log_normaliser(eta)).min()) >= -1e-12


def test_softmax_attention_tends_to_the_regression() -> None:
    """Monte Carlo: over n draws its mean and covariance are those of the delta method.

    16,000 repetitions at n = 200, g = e^0.6: the next order is about g^2/n of the first, 2 %, and the error
    of an entry of the covariance at most sqrt(2/16000) = 1.1 % of the largest, taken five times.
    """
    mean, covariance = draw(2, seed=2), covariances(1, 2)[0]
    eta = draw(2, seed=4)
    eta = eta * math.sqrt(0.6 / float(eta @ covariance @ eta))
    population = normal(mean, covariance)
    generator = Generator().manual_seed(0)
    root = torch.linalg.cholesky(covariance)
    noise = torch.randn(16_000, 200, 2, generator=generator, dtype=torch.float64)
    found = torch.stack([Discrete(sample).mean(eta) for sample in mean + noise @ root.mT])
    bias, spread = sampling_error(covariance, eta, draws=200)
    error = found - population.mean(eta)
    tolerance = 5 * 0.011 * float(spread.diagonal().max())
    torch.testing.assert_close(torch.cov(error.mT), spread, rtol=0, atol=tolerance)
    standard_error = (spread.diagonal() / 16_000).sqrt()
    assert ((error.mean(0) - bias).abs() < 5 * standard_error).all()
    # the test must be able to see the bias
    assert (bias.abs() > 5 * standard_error).any()


def test_the_residual_update_of_a_normal_is_affine() -> None:
    """eta + grad log Z = mu + (I + Sigma) eta."""
    covariance, mean, eta = covariances(1, 3)[0], draw(3, seed=2), draw(5, 3, seed=4)
    expected = mean + eta @ (torch.eye(3, dtype=torch.float64) + covariance)
    torch.testing.assert_close(attention_update(normal(mean, covariance), eta), expected, **EXACT)


def test_sums_are_of_independent_variables() -> None:
    """log Z of x + y: all pairs of points, with the products of their weights."""
    a, b, eta = draw(3, 2), draw(4, 2, seed=1), draw(5, 2, seed=4)
    pairs = (a[:, None] + b).reshape(-1, 2)
    both = (weights(3)[:, None] * weights(4)).reshape(-1)
    summed = Sum(Discrete(a, weights=weights(3)), Discrete(b, weights=weights(4)))
    joint = Discrete(pairs, weights=both)
    torch.testing.assert_close(summed.log_normaliser(eta), joint.log_normaliser(eta), **EXACT)
    torch.testing.assert_close(summed.mean(eta), joint.mean(eta), **EXACT)


EYE = torch.eye(2, dtype=torch.float64)
TWO = torch.zeros(2, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Discrete(torch.zeros(0, 3)), r"\(0, 3\).*expected \(N, D\)"),
        (lambda: Discrete(torch.zeros(3)), r"\(3,\) of torch.float32"),
        (lambda: Discrete(torch.zeros(2, 3, dtype=torch.int64)), "floating-point"),
        (lambda: Discrete(torch.full((2, 3), torch.nan)), "not finite"),
        (lambda: Discrete(TWO, weights=torch.ones(3)), r"weights are \(3,\) for points \(2, 2\)"),
        (lambda: Discrete(TWO, weights=torch.tensor([1.0, -1.0])), "0 or more"),
        (lambda: Discrete(TWO, weights=torch.zeros(2)), "one of them over 0"),
        (
            lambda: Discrete(TWO).mean(torch.zeros(5, 3)),
            r"eta is \(5, 3\), expected \(..., 2\)|= \(\.\.\., 2\)",
        ),
        (lambda: attention_update(Sphere(3), torch.zeros(5, 2)), r"eta is \(5, 2\)"),
        (lambda: Sum(Sphere(3), Sphere(2)), r"dim \[2, 3\] cannot be added"),
        (lambda: Sum(), "at least one"),
        (lambda: normal(TWO, EYE), r"the mean is \(2, 2\)"),
        (lambda: normal(torch.zeros(3).double(), EYE), r"covariance is \(2, 2\).*\(3, 3\)"),
        (
            lambda: normal(torch.zeros(2).double(), torch.ones(2, 2).double()),
            "singular: its rank is 1 of 2",
        ),
        (lambda: shared_mixture(TWO, torch.tensor([[1.0, 0.5], [0.0, 1.0]]).double()), "symmetric"),
        (lambda: shared_mixture(TWO, -EYE), "negative eigenvalue"),
        (lambda: GaussianMixture(TWO, EYE), r"covariances are \(2, 2\) for means \(2, 2\)"),
        (lambda: GaussianMixture(TWO, EYE.expand(3, 2, 2)), r"expected \(K, D, D\) = \(2, 2, 2\)"),
        (lambda: sampling_error(EYE, torch.zeros(3), draws=1), r"eta \(3,\)"),
        (lambda: sampling_error(EYE, torch.zeros(2), draws=0), "draws 0"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    """What was given, and what was expected, before a product of matrices fails somewhere."""
    with pytest.raises(ValueError, match=message):
        make()
