"""Spin measures. Oracles: scipy, closed forms, autograd, moments and cumulative distributions of draws."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from attractor.physics import Circles, Gaussian, Sphere


def _precision(dim: int) -> Tensor:
    root = torch.randn(dim, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return root @ root.T / dim + 0.5 * torch.eye(dim, dtype=torch.float64)


MEASURES = [Sphere(3), Sphere(8), Circles(1), Circles(3), Gaussian(4), Gaussian(4, precision=_precision(4))]
NAMES = ["Sphere3", "Sphere8", "Circles1", "Circles3", "Gaussian", "GaussianP"]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_mean_is_the_gradient_of_psi(measure) -> None:
    """mean(h) = grad psi(h) by autograd. Otherwise the fixed point of learning is not moment matching."""
    h = (3 * _normal(50, measure.dim)).requires_grad_()
    (gradient,) = torch.autograd.grad(measure.log_normaliser(h).sum(), h)
    # 1e-9 is the documented error of psi in float64
    torch.testing.assert_close(measure.mean(h.detach()), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_psi_of_zero_is_zero_and_flat(measure) -> None:
    """psi(0) = 0 (a probability measure) and mean(0) = 0, differentiably: the start J = 0 is here."""
    h = torch.zeros(measure.dim, dtype=torch.float64, requires_grad=True)
    psi = measure.log_normaliser(h)
    (gradient,) = torch.autograd.grad(psi, h)
    assert psi.abs().item() < 1e-12
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert torch.equal(measure.mean(h.detach()), torch.zeros_like(gradient))


@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_any_axis_can_hold_the_components(measure, dim: int) -> None:
    """The same numbers along any axis, bit for bit or to rounding: the engine keeps features in axis 2."""
    h = _normal(5, 6, measure.dim)
    moved = h.movedim(-1, dim)
    torch.testing.assert_close(measure.log_normaliser(moved, dim=dim), measure.log_normaliser(h))
    torch.testing.assert_close(measure.mean(moved, dim=dim), measure.mean(h).movedim(-1, dim))
    weight = _normal(5, 6, seed=4)
    gain = measure.log_normaliser_and_gain(moved, dim=dim)[1]
    weighted = measure.apply_gain(moved, gain, weight, dim=dim)
    expected = (weight.unsqueeze(-1) * measure.mean(h)).movedim(-1, dim)
    torch.testing.assert_close(weighted, expected)


@pytest.mark.parametrize("circles", [1, 2, 8])
def test_circles_psi_is_a_sum_of_log_bessel(circles: int) -> None:
    """psi = sum_k log I_0(|h_k|/sqrt K) and the mean I_1/I_0, against scipy.

    A forgotten sqrt K would give circles of the wrong radius, with a likelihood that still rises.
    """
    for scale in (1e-3, 1.0, 30.0, 1e4):
        h = scale * _normal(20, 2 * circles)
        pairs = h.view(20, circles, 2).numpy()
        length = np.linalg.norm(pairs, axis=-1)
        k = length / math.sqrt(circles)
        psi = (np.log(scipy.special.i0e(k)) + k).sum(-1)
        ratio = scipy.special.i1e(k) / scipy.special.i0e(k) / math.sqrt(circles)
        mean = (pairs / length[..., None] * ratio[..., None]).reshape(20, -1)
        measure = Circles(circles)
        torch.testing.assert_close(measure.log_normaliser(h), torch.tensor(psi), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(measure.mean(h), torch.tensor(mean), rtol=1e-9, atol=1e-9)
        single = measure.log_normaliser(h.float()).double()
        assert ((single - torch.tensor(psi)).abs() <= 1e-5 * circles * (1 + torch.tensor(psi))).all()


def test_circles_of_one_is_the_sphere_of_two() -> None:
    """K = 1 is Sphere(2): the two code paths share no bookkeeping of axes."""
    h = 3 * _normal(7, 2)
    torch.testing.assert_close(Circles(1).log_normaliser(h), Sphere(2).log_normaliser(h))
    torch.testing.assert_close(Circles(1).mean(h), Sphere(2).mean(h))


@pytest.mark.parametrize("precision", [0.0, 0.7])
def test_gaussian_closed_form(precision: float) -> None:
    """psi = h^T (P + p I)^-1 h / 2 and mean = (P + p I)^-1 h, by a direct solve.

    The code works in the eigenbasis of P; a transposed basis would pass every test with P = I.
    """
    p = _precision(5)
    h = _normal(30, 5)
    solved = torch.linalg.solve(p + precision * torch.eye(5, dtype=torch.float64), h.T).T
    measure = Gaussian(5, precision=p)
    psi, gain = measure.log_normaliser_and_gain(h, precision=precision)
    observed = p + precision * torch.eye(5, dtype=torch.float64)
    shrinkage = torch.linalg.slogdet(observed).logabsdet - torch.linalg.slogdet(p).logabsdet
    torch.testing.assert_close(psi, ((h * solved).sum(-1) - shrinkage) / 2)
    mean = measure.apply_gain(h, gain, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(mean, solved)
    if not precision:
        torch.testing.assert_close(measure.log_normaliser(h), psi)
        torch.testing.assert_close(measure.mean(h), mean)


def test_gaussian_precision_for_each_token() -> None:
    """A tensor of observation precisions broadcasts over tokens, each with its own (P + p_i I)^-1."""
    p, h = _precision(3), _normal(4, 2, 3)
    strengths = torch.tensor([0.0, 0.3, 2.0, 50.0], dtype=torch.float64)
    measure = Gaussian(3, precision=p)
    psi, gain = measure.log_normaliser_and_gain(h, precision=strengths[:, None])
    mean = measure.apply_gain(h, gain, torch.ones(4, 2, dtype=torch.float64))
    for i, strength in enumerate(strengths):
        solved = torch.linalg.solve(p + strength * torch.eye(3, dtype=torch.float64), h[i].T).T
        torch.testing.assert_close(mean[i], solved)
        observed = p + strength * torch.eye(3, dtype=torch.float64)
        shrinkage = torch.linalg.slogdet(observed).logabsdet - torch.linalg.slogdet(p).logabsdet
        torch.testing.assert_close(psi[i], ((h[i] * solved).sum(-1) - shrinkage) / 2)


@pytest.mark.parametrize("measure", MEASURES[:4], ids=NAMES[:4])
def test_precision_of_an_observation_drops_out_where_norms_are_fixed(measure) -> None:
    """|x| is fixed, so that -p|x|^2/2 is a constant: it must not move psi."""
    h = _normal(6, measure.dim)
    psi, gain = measure.log_normaliser_and_gain(h, precision=3.0)
    assert torch.equal(psi, measure.log_normaliser(h))
    assert torch.equal(gain, measure.log_normaliser_and_gain(h)[1])


@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_project_is_the_nearest_point(measure) -> None:
    """Idempotent, of norm 1 on the bounded measures, and the maximiser of x.y over the manifold."""
    y = 5 * _normal(40, measure.dim)
    x = measure.project(y)
    torch.testing.assert_close(measure.project(x), x)
    if isinstance(measure, Gaussian):
        assert torch.equal(x, y)
        return
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(40, dtype=torch.float64))
    others = measure.project(_normal(500, measure.dim, seed=1))
    assert (others @ y.T <= (x * y).sum(-1) + 1e-12).all()
    zero = torch.zeros(measure.dim, dtype=torch.float64)
    assert torch.equal(measure.project(zero), zero)
    # a tiny field still has a direction
    torch.testing.assert_close(measure.project(1e-30 * y), x)


def test_project_circles_keeps_every_circle() -> None:
    """Each 2-vector has length 1/sqrt K: projecting the token as a whole would leave the torus."""
    x = Circles(4).project(_normal(10, 8))
    torch.testing.assert_close(x.view(10, 4, 2).norm(dim=-1), torch.full((10, 4), 0.5, dtype=torch.float64))


def _polar_cdf(dim: int, k: float, theta: np.ndarray) -> np.ndarray:
    """P(angle <= theta) for the density sin^(D-2) exp(k cos), by cumulative quadrature."""
    top = math.pi if k < 20 else min(math.pi, 12 / math.sqrt(k) * math.sqrt(dim))
    grid = np.linspace(0, top, 20_001)
    density = np.sin(grid) ** (dim - 2) * np.exp(-2 * k * np.sin(grid / 2) ** 2)
    cdf = scipy.integrate.cumulative_trapezoid(density, grid, initial=0)
    return np.interp(theta, grid, cdf / cdf[-1])


@pytest.mark.parametrize("dim", [2, 3, 8])
@pytest.mark.parametrize("k", [0.0, 0.5, 10.0, 1e4])
def test_sphere_sample_has_the_angle_of_von_mises_fisher(dim: int, k: float) -> None:
    """Kolmogorov-Smirnov on the angle to h, against quadrature; then mean, second moment and tangent.

    A wrong envelope or acceptance constant keeps draws on the sphere and roughly around h, so that
    only the law itself shows it. The seed is fixed: the p-value is a number, not a gamble.
    """
    n = 20_000
    axis = torch.nn.functional.normalize(_normal(dim, seed=8), dim=0)
    h = (k * axis).expand(n, dim)
    x = Sphere(dim).sample(h, generator=_generator(17))
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(n, dtype=torch.float64))
    # 2 asin(|x - axis|/2) keeps the digits that arccos loses near 0
    theta = 2 * torch.asin(((x - axis).norm(dim=-1) / 2).clamp(max=1)).numpy()
    assert scipy.stats.kstest(theta, lambda t: _polar_cdf(dim, k, t)).pvalue > 1e-3
    error = x.std(0) / math.sqrt(n)
    # 4.5 standard errors, for 12 cases with up to 8 components
    assert ((x.mean(0) - Sphere(dim).mean(h[0])).abs() <= 4.5 * error + 1e-12).all()
    cosine = x @ axis
    ratio = (Sphere(dim).mean(h[0]) * axis).sum()
    exact = 1 - (dim - 1) * (ratio / k if k else torch.tensor(1 / dim, dtype=torch.float64))
    assert abs((cosine**2).mean() - exact) <= 4.5 * (cosine**2).std() / math.sqrt(n) + 1e-12
    tangent = x - cosine[:, None] * axis
    spread = tangent.T @ tangent / tangent.square().sum() * (dim - 1)
    isotropic = torch.eye(dim, dtype=torch.float64) - torch.outer(axis, axis)
    assert (spread - isotropic).abs().max() < 0.05


def test_sphere_samples_each_row_from_its_own_h() -> None:
    """A batch of different h: the rejection loop must put accepted draws back where they belong."""
    h = torch.cat((torch.zeros(1, 3), 30 * torch.eye(3), -200 * torch.eye(3))).double()
    x = Sphere(3).sample(h.repeat(4000, 1, 1), generator=_generator(2))
    assert (x.mean(0) - Sphere(3).mean(h)).abs().max() < 0.04


@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_sample_has_the_mean_and_covariance_of_psi(measure) -> None:
    """E[x] = grad psi(h) and Cov[x] = Hessian of psi(h), by autograd, within 5 standard errors."""
    n, h = 40_000, 2 * _normal(measure.dim, seed=5)
    x = measure.sample(h.expand(n, -1), generator=_generator(6))
    assert ((x.mean(0) - measure.mean(h)).abs() < 5 * x.std(0) / math.sqrt(n)).all()
    hessian = torch.autograd.functional.hessian(measure.log_normaliser, h)
    centred = x - measure.mean(h)
    products = centred.unsqueeze(2) * centred.unsqueeze(1)
    assert ((products.mean(0) - hessian).abs() < 5 * products.std(0) / math.sqrt(n)).all()


@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_is_a_function_of_its_generator(measure, dtype: torch.dtype) -> None:
    """Same generator, same draw; another, another; the global generator is not touched."""
    h = _normal(9, measure.dim).to(dtype)
    before = torch.get_rng_state()
    x = measure.sample(h, generator=_generator(1))
    assert torch.equal(x, measure.sample(h, generator=_generator(1)))
    assert not torch.equal(x, measure.sample(h, generator=_generator(2)))
    assert torch.equal(before, torch.get_rng_state())
    assert x.dtype == dtype
    assert x.shape == h.shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sphere(1), "got 1"),
        (lambda: Circles(0), "got 0"),
        (lambda: Gaussian(0), "got 0"),
        (lambda: Gaussian(3, precision=torch.eye(2)), r"\(2, 2\), expected \(3, 3\)"),
        (lambda: Gaussian(2, precision=torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "not symmetric"),
        (lambda: Gaussian(2, precision=-torch.eye(2)), "eigenvalue -1"),
    ],
)
def test_refuses_with_the_numbers_given(make, message: str) -> None:
    """An error without the number given costs a debugging session."""
    with pytest.raises(ValueError, match=message):
        make()
