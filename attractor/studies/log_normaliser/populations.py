"""Populations under attention: the part of the study `log_normaliser` that needs no network."""

import math

import torch
from torch import Generator, Tensor

from attractor.studies.config import LogNormaliserConfig
from attractor.studies.study import SEEDS, Results
from attractor.theory.log_normaliser import (
    Discrete,
    GaussianMixture,
    attention_update,
    normal,
    sampling_error,
    shared_mixture,
)
from attractor.theory.renormalisation import (
    Renormalisation,
    cumulant_growth,
    gaussian_quantiles,
    standardised_cumulants,
    wasserstein,
)

STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)  # sqrt(eta^T Sigma eta): how many deviations away the query looks
VARIANCES = (0.25, 1.0)  # of a population in each of its two directions
SHAPES = ("Gaussian", "uniform", "bimodal", "Laplace", "exponential")


def sampling(dim: int, strength: float, theory: LogNormaliserConfig, *, seed: int) -> Results:
    """sqrt(<|softmax attention - (mu + Sigma eta)|^2>), in deviations of the tokens: measured, predicted.

    Sigma_ab = 2^-|a-b|, mu = 0.5 (1 .. 1), eta along (1 .. 1) with eta^T Sigma eta = strength^2.
    """
    place = torch.arange(dim, dtype=torch.float64)
    covariance = 0.5 ** (place[:, None] - place).abs()
    mean = torch.full((dim,), 0.5, dtype=torch.float64)
    eta = torch.ones(dim, dtype=torch.float64)
    eta = eta * strength / (eta @ covariance @ eta).sqrt()
    exact = normal(mean, covariance).mean(eta)
    root = torch.linalg.cholesky(covariance)
    generator = Generator().manual_seed(seed)
    found: Results = {"dim": dim, "strength": strength, "draws": theory.draws, "error": []}
    found |= {"standard_error": [], "predicted": []}
    for draws in theory.draws:
        squared = torch.empty(theory.repetitions, dtype=torch.float64)
        for repetition in range(theory.repetitions):
            noise = torch.randn(draws, dim, generator=generator, dtype=torch.float64)
            attended = Discrete(mean + noise @ root.mT).mean(eta)
            squared[repetition] = (attended - exact).square().sum()
        error = squared.mean().sqrt()
        bias, spread = sampling_error(covariance, eta, draws=draws)
        found["error"].append(float(error))
        found["standard_error"].append(float(squared.std() / theory.repetitions**0.5 / (2 * error)))
        found["predicted"].append(float((spread.trace() + bias.square().sum()).sqrt()))
    return found


def trajectories(shape: str, variance: float, theory: LogNormaliserConfig, *, seed: int) -> Results:
    """A population of independent x and y under update and renormalisation, seed by seed (seeds, T + 1).

    The update is softmax attention over the population itself; of "equilibrium", a Gaussian sample, it is
    the exact mu + Sigma eta. Distances are Wasserstein's, in standard deviations, averaged over eight
    directions, and so is the excess kurtosis.
    """
    covariance = variance * torch.eye(2, dtype=torch.float64)
    restore = Renormalisation(torch.zeros(2, dtype=torch.float64), covariance)
    exact = normal(restore.mean, covariance)
    angles = torch.arange(8, dtype=torch.float64) * torch.pi / 8
    directions = torch.stack([angles.cos(), angles.sin()]) / variance**0.5
    gaussian = gaussian_quantiles(theory.particles, like=directions)[:, None].expand(-1, 8)
    found: Results = {"shape": shape, "variance": variance, "gaussian": [], "start": [], "kurtosis": []}
    for offset in range(theory.seeds):
        x = restore(_sample(shape, theory.particles, Generator().manual_seed(SEEDS * seed + offset)))
        start = x @ directions
        rows: dict[str, list[float]] = {"gaussian": [], "start": [], "kurtosis": []}
        for t in range(theory.iterations + 1):
            if t:
                x = restore(attention_update(exact if shape == "equilibrium" else Discrete(x), x))
            seen = x @ directions
            rows["gaussian"].append(float(wasserstein(seen, gaussian).mean()))
            rows["start"].append(float(wasserstein(seen, start).mean()))
            rows["kurtosis"].append(float(standardised_cumulants(seen)[1].mean()))
        for name, row in rows.items():
            found[name].append(row)
    return found


def limit(shape: str, variance: float, theory: LogNormaliserConfig, *, seed: int) -> Results:
    """Where a population goes: how many points are left after many iterations, and the share of each.

    A third of the particles, eight times the iterations. Particles that are less than a tenth of a
    deviation apart count as one point.
    """
    restore = Renormalisation(
        torch.zeros(2, dtype=torch.float64), variance * torch.eye(2, dtype=torch.float64)
    )
    x = restore(_sample(shape, max(10, theory.particles // 3), Generator().manual_seed(seed)))
    for _ in range(8 * theory.iterations):
        x = restore(attention_update(Discrete(x), x))
    left, shares = x / variance**0.5, []
    while len(left):
        near = (left - left[0]).norm(dim=1) < 0.1
        shares.append(float(near.sum()) / len(x))
        left = left[~near]
    return {"shape": shape, "variance": variance, "shares": sorted(shares, reverse=True)}


def _sample(shape: str, count: int, generator: Generator) -> Tensor:
    """Two independent columns (n, 2), which renormalisation centres and scales."""
    uniform = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    normals = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    side = (uniform - 0.5).sign()
    shapes: dict[str, Tensor] = {
        "uniform": uniform,
        "bimodal": 0.9 * side + 0.19**0.5 * normals,  # humps 0.9 deviations from the middle, 0.44 wide
        "Laplace": -side * torch.log1p(-2 * (uniform - 0.5).abs()),
        "exponential": -torch.log1p(-uniform),
    }
    return shapes.get(shape, normals)


def growth(points: int) -> Results:
    """Growth of a small skewness and excess kurtosis in one iteration of softmax attention in D = 1.

    Over Gaussian quantiles z, and over the same plus b He_{m-1}(z), b = 0.001: the ratio of what that adds
    to the cumulant, after and before.
    """
    z = gaussian_quantiles(points, like=torch.zeros((), dtype=torch.float64))[:, None]
    starts = (z, z + 1e-3 * (z**2 - 1), z + 1e-3 * (z**3 - 3 * z))
    variances = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4], dtype=torch.float64)
    ratios: dict[int, list[float]] = {3: [], 4: []}
    for variance in variances:
        restore = Renormalisation(torch.zeros_like(z[0]), variance.reshape(1, 1))
        cumulants = []  # (2,) before and after, of each start and order
        for start in starts:
            x = restore(start)
            seen = (x, restore(attention_update(Discrete(x), x)))
            cumulants.append(torch.cat([torch.stack(standardised_cumulants(v)) for v in seen], 1))
        for order in ratios:
            before, after = (cumulants[order - 2] - cumulants[0])[order - 3]
            ratios[order].append(float(after / before))
    return {"variances": variances.tolist()} | {
        str(order): {"measured": measured, "predicted": cumulant_growth(order, variances).tolist()}
        for order, measured in ratios.items()
    }


def bound(*, seed: int) -> Results:
    """Log Z and its bound of three Gaussians in D = 2 along a ray, and their gap over 200 such mixtures."""
    generator = Generator().manual_seed(seed)
    smallest, gaps = math.inf, []
    for _ in range(200):
        mixture = _mixture(generator)
        eta = 2 * torch.randn(100, 2, generator=generator, dtype=torch.float64)
        gap = mixture.log_normaliser(eta) - mixture.lower_bound(eta)
        smallest = min(smallest, float(gap.min()))
        gaps.append(gap / mixture.log_normaliser(eta).abs())
    means = torch.tensor([[-1.0, 0.5], [0.5, 1.0], [0.8, -1.0]], dtype=torch.float64)
    wide = torch.diag_embed(torch.tensor([[0.2, 0.2], [1.5, 0.3], [0.3, 0.8]], dtype=torch.float64))
    mixture = GaussianMixture(means, wide)
    lengths = torch.linspace(-4, 4, 81, dtype=torch.float64)
    eta = lengths[:, None] * torch.tensor([0.8, 0.6], dtype=torch.float64)
    return {
        "smallest_gap": smallest,
        "relative_gap": float(torch.cat(gaps).median()),
        "eta": lengths.tolist(),
        "exact": mixture.log_normaliser(eta).tolist(),
        "lower_bound": mixture.lower_bound(eta).tolist(),
        "shared": shared_mixture(means, wide.mean(0)).log_normaliser(eta).tolist(),
        "means": mixture.points.log_normaliser(eta).tolist(),
    }


def _mixture(generator: Generator) -> GaussianMixture:
    root = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    covariances = root @ root.mT / 2 + 0.05 * torch.eye(2, dtype=torch.float64)
    return GaussianMixture(torch.randn(3, 2, generator=generator, dtype=torch.float64), covariances)
