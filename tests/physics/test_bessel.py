"""The log-normaliser of the sphere. Oracles: scipy, power series, quadrature, Monte Carlo, autograd."""

import math

import numpy as np
import pytest
import scipy.special
import torch

from attractor.physics.bessel import log_normaliser_and_gain
from attractor.physics.measures import Sphere

DIMS = [2, 3, 4, 5, 7, 8, 9, 12, 16, 25, 26, 32, 33, 50, 64, 98, 100, 127, 128]
RADII = np.concatenate(([0.0], np.logspace(-6, 5, 400)))


def _hypergeometric_minus_one(c: float, z: np.ndarray) -> np.ndarray:
    """0F1(c; z) - 1 for z >= 0: all terms are positive, so that it is exact to rounding."""
    total, term = np.zeros_like(z), np.ones_like(z)
    for m in range(1, 400):
        term = term * z / (m * (c + m - 1))
        total = total + term
    return total


def _reference(dim: int, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """psi and I_{D/2}/I_{D/2-1}: the power series below k = 20, where `ive` may underflow, else `ive`."""
    order = dim / 2 - 1
    low = np.minimum(k, 20.0) ** 2 / 4
    below = _hypergeometric_minus_one(order + 1, low)
    above = _hypergeometric_minus_one(order + 2, low)
    high = np.maximum(k, 20.0)
    scaled = scipy.special.ive(order, high)
    psi_high = scipy.special.loggamma(order + 1) + order * np.log(2 / high) + np.log(scaled) + high
    psi = np.where(k < 20, np.log1p(below), psi_high)
    ratio_low = k / dim * (1 + above) / (1 + below)
    ratio = np.where(k < 20, ratio_low, scipy.special.ive(order + 1, high) / scaled)
    return psi, ratio


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_psi_and_mean_agree_with_scipy(dim: int, dtype: torch.dtype, tolerance: float) -> None:
    """psi = log[Gamma(nu+1) (2/k)^nu I_nu(k)], |mean| = I_{nu+1}/I_nu, within the documented error.

    A wrong psi would still train: pseudo-likelihoods would be of no normalised density at all. The
    reference itself is good to about 1e-11 (1 + |psi|): k and log I_nu cancel at k = 1e5.
    """
    k = torch.tensor(RADII, dtype=dtype)
    exact_k = k.double().numpy()
    psi, mean = _reference(dim, exact_k)
    h = torch.zeros(len(k), dim, dtype=dtype)
    h[:, dim // 2] = k
    sphere = Sphere(dim)
    error = np.abs(sphere.log_normaliser(h).double().numpy() - psi)
    assert (error <= tolerance * (1 + np.abs(psi))).all(), (dim, exact_k[error.argmax()], error.max())
    error = np.abs(sphere.mean(h)[:, dim // 2].double().numpy() - mean)
    assert (error <= tolerance * (1 + np.abs(psi))).all(), (dim, exact_k[error.argmax()], error.max())
    # the mean is at most 1, so that it deserves a bound of its own, free of |psi|
    assert error.max() <= tolerance, (dim, exact_k[error.argmax()], error.max())


@pytest.mark.parametrize("dim", DIMS)
def test_mean_at_large_radius_is_a_unit_vector_minus_the_known_gap(dim: int) -> None:
    """1 - |mean| -> (D-1)/(2k): a gain without its last digits would freeze confident tokens early."""
    k = torch.tensor([1e5], dtype=torch.float64)
    gap = 1 - k * log_normaliser_and_gain(k * k, dim)[1]
    # the next term of the expansion is (D-1)(D-3)/(8 k^2): 2e-7 at D = 128
    assert gap.item() == pytest.approx((dim - 1) / 2e5, rel=1e-3)


@pytest.mark.parametrize("dim", [2, 3, 8])
@pytest.mark.parametrize("k", [0.0, 0.3, 2.0, 11.0, 40.0])
def test_psi_is_the_defining_integral(dim: int, k: float) -> None:
    """psi = log of the mean of exp(x.h) over the sphere, by quadrature over the polar angle.

    Holds psi against its definition, not against a Bessel identity that the code may share. 20,000
    midpoints leave an error near 1e-9.
    """
    theta = (np.arange(20_000) + 0.5) * math.pi / 20_000
    weight = np.sin(theta) ** (dim - 2)
    weight /= weight.sum()
    boltzmann = weight * np.exp(k * (np.cos(theta) - 1))
    psi = math.log(boltzmann.sum()) + k
    mean = (boltzmann * np.cos(theta)).sum() / boltzmann.sum()
    h = torch.zeros(dim, dtype=torch.float64)
    h[0] = k
    assert Sphere(dim).log_normaliser(h).item() == pytest.approx(psi, abs=1e-6)
    assert Sphere(dim).mean(h)[0].item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("dim", [2, 5, 16])
def test_psi_against_monte_carlo(dim: int) -> None:
    """exp psi is the average of exp(x.h) over uniform spins: the measure is normalised, psi(0) = 0."""
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(100_000, dim, generator=g, dtype=torch.float64), dim=-1)
    h = torch.randn(dim, generator=g, dtype=torch.float64)
    values = torch.exp(x @ h)
    error = values.std() / math.sqrt(len(values))
    # 4 standard errors
    assert (values.mean() - Sphere(dim).log_normaliser(h).exp()).abs() < 4 * error


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_overflow_and_growth(dim: int, dtype: torch.dtype) -> None:
    """psi is finite, increasing and below k; the gain positive and decreasing, from 1/D, up to k = 1e5.

    Overflow of exp(k) or of Gamma would show as NaN couplings only after hours of training.
    """
    k = torch.linspace(0, 1e5, 20_001, dtype=dtype)
    psi, gain = log_normaliser_and_gain(k * k, dim)
    assert torch.isfinite(psi).all()
    assert torch.isfinite(gain).all()
    assert (psi[1:] > psi[:-1]).all()
    assert (psi[1:] < k[1:]).all()
    assert (gain > 0).all()
    assert (gain[1:] < gain[:-1]).all()
    # float32: s - a and the logarithm of 1 leave some roundings of a few, 1e-7 each
    small, error = (5e-6, 2e-5) if dtype == torch.float32 else (1e-12, 1e-11)
    assert psi[0].abs().item() < small
    assert gain[0].item() == pytest.approx(1 / dim, rel=error)


@pytest.mark.parametrize("dim", DIMS)
def test_smooth_at_zero(dim: int) -> None:
    """grad psi(0) = 0 and the Hessian at 0 is I/D, by autograd: k = |h| has a kink there, k^2 has none.

    A NaN from sqrt at 0 would kill the start from J = 0, and masked tokens, which are zero vectors.
    """
    h = torch.zeros(dim, dtype=torch.float64, requires_grad=True)
    psi = Sphere(dim).log_normaliser(h)
    (gradient,) = torch.autograd.grad(psi, h, create_graph=True)
    assert psi.abs().item() < 1e-12
    assert torch.equal(gradient.detach(), torch.zeros(dim, dtype=torch.float64))
    (second,) = torch.autograd.grad(gradient[0], h)
    expected = torch.zeros(dim, dtype=torch.float64)
    expected[0] = 1 / dim
    torch.testing.assert_close(second, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_gain_is_the_derivative_of_psi(dim: int, dtype: torch.dtype, tolerance: float) -> None:
    """gain(k) k = psi'(k) by autograd: the rule subtracts the gain, the likelihood uses psi.

    If the two drift apart the rule climbs something else than the likelihood it reports.
    """
    h = torch.zeros(300, dim, dtype=dtype)
    h[:, 0] = torch.logspace(-4, 5, 300, dtype=dtype)
    h.requires_grad_()
    sphere = Sphere(dim)
    (gradient,) = torch.autograd.grad(sphere.log_normaliser(h).sum(), h)
    torch.testing.assert_close(sphere.mean(h.detach()), gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dim", [2, 8, 25, 128])
def test_single_and_double_precision_agree(dim: int) -> None:
    """Two unrelated algorithms, one function: 2e-5 is the sum of their documented errors."""
    k = torch.logspace(-3, 5, 500, dtype=torch.float64)
    psi64, gain64 = log_normaliser_and_gain(k * k, dim)
    psi32, gain32 = log_normaliser_and_gain((k * k).float(), dim)
    assert ((psi32.double() - psi64).abs() <= 2e-5 * (1 + psi64)).all()
    assert ((gain32.double() - gain64).abs() * k <= 2e-5).all()
