"""Feature maps. Oracles: the kernel that each stands for, the full tensor power, Monte Carlo rates."""

import math

import pytest
import torch
from torch import Tensor

from attractor.theory.feature_maps import (
    MOST_FEATURES,
    EluPlusOne,
    FeatureMap,
    Identity,
    Polynomial,
    PositiveRandomFeatures,
    UnitNorm,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _unit(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(_normal(*shape, seed=seed), dim=-1)


MAPS: dict[str, FeatureMap] = {
    "identity": Identity(),
    "elu": EluPlusOne(),
    "polynomial 1": Polynomial(1),
    "polynomial 2": Polynomial(2),
    "polynomial 5": Polynomial(5),
    "random": PositiveRandomFeatures.draw(7, 4, generator=_generator()),
    "unit elu": UnitNorm(EluPlusOne()),
    "unit polynomial": UnitNorm(Polynomial(3)),
}


@pytest.mark.parametrize("name", MAPS)
def test_features_are_as_many_as_said_and_positive_where_said(name: str) -> None:
    """`positive` is what a normaliser relies on: one negative feature there, and it divides by zero."""
    phi = MAPS[name]
    features = phi(3 * _normal(50, 2, 4))
    assert features.shape == (50, 2, phi.features(4))
    assert bool((features > 0).all()) == phi.positive


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 6])
def test_polynomial_features_are_the_kernel(degree: int) -> None:
    """phi(q) . phi(k) = (q . k)^n. Without the multinomial weights mixed products count once only."""
    q, k = _normal(20, 5, seed=1), _normal(30, 5, seed=2)
    phi = Polynomial(degree)
    kernel = (q @ k.T) ** degree
    # rounding of a sum of F products, relative to its largest terms
    torch.testing.assert_close(
        phi(q) @ phi(k).T, kernel, rtol=1e-12, atol=1e-12 * float(kernel.abs().max())
    )


def test_polynomial_features_are_the_tensor_power_with_equal_products_joined() -> None:
    """The squares of features are the sums of squares of equal entries of x (x) x (x) x."""
    x = _normal(3, seed=3)
    power = torch.einsum("a,b,c->abc", x, x, x)
    places = torch.cartesian_prod(*[torch.arange(3)] * 3).sort(1).values
    joined = {}
    for place, entry in zip(places.tolist(), power.flatten().tolist(), strict=True):
        joined[tuple(place)] = joined.get(tuple(place), 0.0) + entry**2
    expected = torch.tensor([joined[place] for place in sorted(joined)], dtype=torch.float64)
    torch.testing.assert_close(Polynomial(3)(x) ** 2, expected, rtol=1e-12, atol=0)


def test_elu_plus_one_is_torchs_and_stays_positive() -> None:
    """Computed as elu(x) + 1 it rounds to exactly 0 below -37, and Z . phi(q) with it."""
    x = torch.linspace(-30, 5, 101, dtype=torch.float64)
    # torch subtracts 1 and we do not: rounding of 1
    for scale in (1.0, 0.5):
        expected = torch.nn.functional.elu(scale * x) + 1
        torch.testing.assert_close(EluPlusOne(scale=scale)(x), expected, rtol=0, atol=4e-16)
    assert float(EluPlusOne()(torch.tensor(-300.0, dtype=torch.float64))) == pytest.approx(math.exp(-300))
    assert torch.isfinite(EluPlusOne()(torch.tensor([900.0]))).all()


def test_random_features_are_unbiased_with_the_stated_variance() -> None:
    """E phi(q) . phi(k) = exp(beta q . k), relative variance (exp(beta |q + k|^2) - 1) / F.

    A wrong norm term biases every weight of the softmax that they stand for.
    """
    q, k = _unit(4, seed=4), _unit(4, seed=5)
    beta, features, draws = 0.5, 16, 20_000
    phi = PositiveRandomFeatures.draw(
        features * draws, 4, generator=_generator(6), inverse_temperature=beta
    )
    products = (phi(q) * phi(k)).view(draws, features) * features * draws  # F values of one feature each
    kernels = products.mean(1) / math.exp(beta * float(q @ k))
    variance = (math.exp(beta * float((q + k).square().sum())) - 1) / features
    assert float(kernels.mean()) == pytest.approx(1, abs=4 * math.sqrt(variance / draws))
    assert float(kernels.var()) == pytest.approx(variance, rel=0.1)  # heavy tails: no closed error


def test_unit_norm_is_the_cosine() -> None:
    """UnitNorm keeps directions, and its features have length 1: what exact overwriting rests on."""
    q, k = _normal(6, 4, seed=7), _normal(8, 4, seed=8)
    phi = UnitNorm(Polynomial(2))
    cosine = torch.nn.functional.cosine_similarity(q[:, None], k, dim=-1)
    torch.testing.assert_close(phi(q) @ phi(k).T, cosine**2, rtol=1e-12, atol=1e-14)


def test_what_has_no_features_is_refused() -> None:
    """Clear errors in place of a process that runs out of memory or a product that fails inside torch."""
    with pytest.raises(ValueError, match="degree of 1 or more, got 0"):
        Polynomial(0)
    assert Polynomial(3).features(32) == 5984
    with pytest.raises(ValueError, match=rf"100 components have .* degree 4, more than {MOST_FEATURES:,}"):
        Polynomial(4)(torch.zeros(2, 100))
    with pytest.raises(ValueError, match=r"projections are \(7, 4\).*these have 5"):
        MAPS["random"](torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"projections are \(3,\)"):
        PositiveRandomFeatures(torch.zeros(3))
    with pytest.raises(ValueError, match="scale must be positive, got -1"):
        EluPlusOne(scale=-1)
    with pytest.raises(ValueError, match="inverse_temperature must be positive, got 0"):
        PositiveRandomFeatures(torch.zeros(3, 4), inverse_temperature=0)
