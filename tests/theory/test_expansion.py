"""Expansion of a cloud of tokens by maps whose effect is known."""

import math

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from attractor.theory.expansion import covariance, deviations, expansion, explained, linear_response
from attractor.theory.log_normaliser import attention_update, normal


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def test_the_covariance_is_within_images() -> None:
    """A token added to a whole image, as a bright image is, does not count."""
    x = draw(5, 7, 3)
    cloud = deviations(x + 9 * draw(5, 1, 3, seed=1))
    torch.testing.assert_close(covariance(cloud), covariance(deviations(x)))
    one = torch.cov(x[0].mT, correction=0)
    torch.testing.assert_close(covariance(deviations(x[:1])), one)


def test_the_update_of_a_gaussian_expands_by_one_plus_the_eigenvalue() -> None:
    """The prediction itself: gain_a = 1 + lambda_a along every eigenvector, and det(I + C) of volume."""
    x = draw(6, 10, 3) @ torch.diag(torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64))
    spread = covariance(deviations(x))
    found = expansion(x, attention_update(normal(x.mean((0, 1)), spread), x))
    torch.testing.assert_close(found.gains, 1 + found.eigenvalues)
    torch.testing.assert_close(found.slopes, 1 + found.eigenvalues)
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(spread).flip(0))
    volume = torch.logdet(torch.eye(3, dtype=torch.float64) + spread) / 3
    assert found.log_volume == pytest.approx(float(volume), abs=1e-12)
    assert found.variance == pytest.approx(
        float((found.eigenvalues * found.gains**2).sum() / spread.trace())
    )


def test_a_dilation() -> None:
    """Twice as large: variance 4, distance 2, volume log 2 a direction, at full rank or not."""
    x = draw(4, 8, 3) @ draw(3, 5, seed=1)  # rank 3 of 5
    found = expansion(x, 2 * x + 1)
    assert len(found.gains) == 3
    assert (found.variance, found.distance) == (pytest.approx(4), pytest.approx(2))
    assert found.log_volume == pytest.approx(math.log(2))


def test_what_is_added_has_no_slope() -> None:
    """Independent noise of the size of x: gain sqrt(2), slope 1, to the errors of 8,000 tokens."""
    x = draw(1000, 8, 2)
    found = expansion(x, x + draw(1000, 8, 2, seed=1))
    torch.testing.assert_close(found.gains, torch.full_like(found.gains, 2**0.5), rtol=0.05, atol=0)
    torch.testing.assert_close(found.slopes, torch.ones_like(found.slopes), rtol=0.05, atol=0)
    turned = expansion(x, -2 * x)
    torch.testing.assert_close(turned.slopes, torch.full_like(turned.slopes, -2))


def test_a_direction_that_is_removed() -> None:
    """Layer normalisation removes one direction: gain 0 there if it is an eigenvector, no log of 0."""
    x = draw(30, 8, 3)
    x[..., 2] = -x[..., 0] - x[..., 1]
    wide = x + 3 * draw(30, 8, 1, seed=1)  # the direction (1, 1, 1), on its own
    found = expansion(wide, layer_norm(wide, (3,)))
    assert math.isfinite(found.log_volume)
    assert float(found.gains[0]) < 0.2 < float(found.gains[1:].min())


def test_linear_response_is_attention_to_first_order() -> None:
    """Softmax attention to small queries: the error falls with the square, so that its slope is right."""
    q, k, v = draw(2, 6, 3), draw(2, 6, 3, seed=1), draw(2, 6, 4, seed=2)
    errors = []
    for scale in (1e-2, 1e-3):
        exact = scaled_dot_product_attention(scale * q, k, v, scale=1.0)
        errors.append(float((linear_response(scale * q, k, v) - exact).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)


def test_linear_response_to_itself_is_the_gaussian_update() -> None:
    """Keys that are the values: mu + Sigma eta of `normal` with their moments."""
    x, eta = draw(50, 3), draw(6, 3, seed=1)
    expected = normal(x.mean(0), torch.cov(x.mT, correction=0)).mean(eta)
    torch.testing.assert_close(linear_response(eta, x, x), expected)


def test_explained() -> None:
    """1 for the same, 0 for the mean over tokens, and what a half leaves."""
    x = draw(3, 5, 2)
    mean = x.mean(-2, keepdim=True)
    assert explained(x, x) == 1
    assert explained(x, mean.expand_as(x)) == pytest.approx(0)
    assert explained(x, (x + mean) / 2) == pytest.approx(0.75)


def test_what_cannot_be_is_refused() -> None:
    """One token is no cloud; shapes are said."""
    with pytest.raises(ValueError, match=r"tokens are \(2, 1, 3\)"):
        deviations(draw(2, 1, 3))
    with pytest.raises(ValueError, match=r"\(2, 4, 3\) before and \(2, 4, 2\) after"):
        expansion(draw(2, 4, 3), draw(2, 4, 2))
    with pytest.raises(ValueError, match=r"\(4, 3\), \(5, 2\), \(5, 3\)"):
        linear_response(draw(4, 3), draw(5, 2), draw(5, 3))
