"""Expansion of a cloud of tokens by maps whose effect is known."""

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from attractor.physics.spectrum import spectrum
from attractor.theory.expansion import (
    covariance,
    deviations,
    expansion,
    explained,
    gaussian_surrogate,
    linear_response,
)
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
    """The prediction itself: gain_a = 1 + lambda_a along every eigenvector."""
    x = draw(6, 10, 3) @ torch.diag(torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64))
    spread = covariance(deviations(x))
    found = expansion(x, attention_update(normal(x.mean((0, 1)), spread), x))
    torch.testing.assert_close(found.gains, 1 + found.eigenvalues)
    torch.testing.assert_close(found.slopes, 1 + found.eigenvalues)
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(spread).flip(0))
    assert found.variance == pytest.approx(
        float((found.eigenvalues * found.gains**2).sum() / spread.trace())
    )


def test_a_dilation() -> None:
    """Twice as large: variance 4, distance 2, gain 2 in each direction there is, at full rank or not."""
    x = draw(4, 8, 3) @ draw(3, 5, seed=1)  # rank 3 of 5
    found = expansion(x, 2 * x + 1)
    torch.testing.assert_close(found.gains, torch.full((3,), 2.0, dtype=torch.float64))
    assert (found.variance, found.distance) == (pytest.approx(4), pytest.approx(2))


def test_what_is_added_has_no_slope() -> None:
    """Independent noise of the size of x: gain sqrt(2), slope 1, to the errors of 8,000 tokens."""
    x = draw(1000, 8, 2)
    found = expansion(x, x + draw(1000, 8, 2, seed=1))
    torch.testing.assert_close(found.gains, torch.full_like(found.gains, 2**0.5), rtol=0.05, atol=0)
    torch.testing.assert_close(found.slopes, torch.ones_like(found.slopes), rtol=0.05, atol=0)
    turned = expansion(x, -2 * x)
    torch.testing.assert_close(turned.slopes, torch.full_like(turned.slopes, -2))


def test_a_direction_that_is_removed() -> None:
    """Gain and slope 0 there and 1 elsewhere, however large it was; so does layer normalisation."""
    for scale in (10.0, 1e-2):
        cloud = draw(30, 8, 3)
        cloud[..., 0] *= scale
        basis = spectrum(covariance(deviations(cloud))).vectors
        lost = int((basis[0].abs()).argmax())
        found = expansion(cloud, cloud - (cloud @ basis[:, lost, None]) @ basis[:, lost, None].mT)
        expected = torch.ones(3, dtype=torch.float64)
        expected[lost] = 0
        torch.testing.assert_close(found.gains, expected, rtol=0, atol=1e-7)  # a root of rounding
        torch.testing.assert_close(found.slopes, expected, rtol=0, atol=1e-12)
    x = draw(30, 8, 3)
    x[..., 2] = -x[..., 0] - x[..., 1]
    wide = x + 3 * draw(30, 8, 1, seed=1)  # the direction (1, 1, 1), on its own
    found = expansion(wide, layer_norm(wide, (3,)))
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


def test_the_surrogate_has_the_moments_of_what_it_stands_for() -> None:
    """The mean of each image, and the joint covariance of keys and values within images, at any rank.

    4,000 images of 6 tokens, far from normal: standard errors of 1 to 4 %. Without the factor N/(N - 1) the
    covariance of the draws would be 5/6 of it, and attention over them too near to linear.
    """
    keys, values = draw(4000, 6, 4).sign(), draw(4000, 6, 3, seed=1)
    values[..., 0] = keys[..., 0]
    place = 100 * draw(4000, 1, 4, seed=2)
    drawn = torch.cat(gaussian_surrogate(keys + place, values, generator=Generator().manual_seed(0)), -1)
    both = torch.cat([keys, values], -1)
    drawn[..., :4] -= place
    expected = covariance(deviations(both))
    torch.testing.assert_close(covariance(deviations(drawn)), expected, rtol=0, atol=0.04)
    torch.testing.assert_close(drawn.mean(1), both.mean(1), rtol=0, atol=2.5)  # of 6 draws of deviation 1
    centred = deviations(drawn)
    torch.testing.assert_close(centred[..., 4], centred[..., 0])  # a value that is a key stays one
    first, second = (drawn[:, token] - both.mean(1) for token in (0, 1))
    between = first.mT @ second / len(drawn)  # of one token with another
    torch.testing.assert_close(between, torch.zeros_like(between), rtol=0, atol=0.08)
    fourth = float(((first[:, 0] / first[:, 0].std()) ** 4).mean())
    assert fourth == pytest.approx(3, abs=0.4)  # normal; of the signs it is 1


def test_few_gaussian_tokens_are_not_their_moments() -> None:
    """The share that a linear response explains of attention over jointly Gaussian keys and values.

    With queries of norm 2 it is .44, .46 and .85 for N = 16, 49, 2,000 in d = 24: a share of one half says
    nothing of attention that is not Gaussian. The surrogate of such a population has its share; that of
    one which is two clumps, of which softmax chooses one, more than the population.
    """
    shares = {}
    for count, images in ((16, 60), (49, 60), (2000, 1)):
        queries = draw(images, count, 24)
        queries = 2 * queries / queries.norm(dim=-1, keepdim=True)
        keys = draw(images, count, 24, seed=1)
        values = keys + draw(images, count, 24, seed=2)
        drawn = gaussian_surrogate(keys, values, generator=Generator().manual_seed(3))
        shares[count] = [_share(queries, *pair) for pair in ((keys, values), drawn)]
    assert shares[16][0] < shares[49][0] < shares[2000][0]
    assert 0.3 < shares[16][0] < 0.6
    for one, other in shares.values():
        assert one == pytest.approx(other, abs=0.05)
    clumps = 3 * draw(60, 2, 24, seed=4).repeat_interleave(8, 1) / 24**0.5
    queries = 0.3 * clumps  # each looks for its own
    drawn = gaussian_surrogate(clumps, clumps, generator=Generator().manual_seed(3))
    assert _share(queries, clumps, clumps) < _share(queries, *drawn) - 0.1


def _share(queries: Tensor, keys: Tensor, values: Tensor) -> float:
    exact = scaled_dot_product_attention(queries, keys, values, scale=1.0)
    return explained(exact, linear_response(queries, keys, values))


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
    with pytest.raises(ValueError, match=r"keys and values are \(1, 5, 2\) and \(1, 4, 3\)"):
        gaussian_surrogate(draw(1, 5, 2), draw(1, 4, 3), generator=Generator())
