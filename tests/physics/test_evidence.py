"""What is known of single pixels, against scipy and the exact posterior by quadrature."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from attractor.physics import PixelEvidence, noisy, seen

SIGMA = math.sqrt(0.7)


def test_the_parabola_passes_through_the_exact_likelihood() -> None:
    """At x = 0, 1/2, 1 the parabola is log Phi(-x/sigma), up to the constant at 0; mirrored at 1.

    A wrong curvature would weigh clipped pixels, most of an image, against the others.
    """
    evidence = noisy(torch.tensor([[0.0, 1.0]], dtype=torch.float64), variance=0.7)
    for x in (0.0, 0.5, 1.0):
        value = evidence.field * x - evidence.precision * x * x / 2
        low = norm.logcdf(-x / SIGMA) - norm.logcdf(0)
        assert float(value[0, 0]) == pytest.approx(low, abs=1e-12)
        high = norm.logcdf((x - 1) / SIGMA) - norm.logcdf(-1 / SIGMA)
        assert float(value[0, 1]) == pytest.approx(high, abs=1e-12)
    # the numbers of DESIGN.md 6.1
    assert float(evidence.precision[0, 0]) == pytest.approx(1.063, abs=5e-4)
    assert evidence.observed[0].tolist() == pytest.approx([-0.875, 1.875], abs=5e-4)


@pytest.mark.parametrize(("mean", "deviation"), [(0.1, 0.3), (0.5, 0.4), (0.9, 0.2)])
@pytest.mark.parametrize("y", [0.0, 0.3, 1.0])
def test_the_posterior_of_one_pixel(y: float, mean: float, deviation: float) -> None:
    """Under a Gaussian prior the posterior mean is that of quadrature over the exact likelihood.

    Exact inside; where the pixel was clipped, within 0.004 of it for priors as wide as pixels are.
    """

    def likelihood(x: float) -> float:
        if y == 0:
            return float(norm.cdf(-x / SIGMA))
        return float(norm.cdf((x - 1) / SIGMA) if y == 1 else norm.pdf((y - x) / SIGMA))

    def moment(k: int) -> float:
        return float(quad(lambda x: x**k * likelihood(x) * norm.pdf(x, mean, deviation), -4, 5)[0])

    exact = moment(1) / moment(0)
    evidence = noisy(torch.tensor([[y]], dtype=torch.float64), variance=0.7)
    precision = 1 / deviation**2
    found = (float(evidence.field) + precision * mean) / (float(evidence.precision) + precision)
    assert found == pytest.approx(exact, abs=1e-9 if 0 < y < 1 else 4e-3)


def test_seen_and_unclipped() -> None:
    """Visible pixels have their value, hidden ones say nothing; without clipping all are Gaussian."""
    pixels = torch.tensor([[0.0, 0.4, 1.0]])
    visible = torch.tensor([[True, False, True]])
    evidence = seen(pixels, visible, variance=1e-3)
    torch.testing.assert_close(evidence.precision, torch.tensor([[1e3, 0.0, 1e3]]))
    torch.testing.assert_close(evidence.observed, torch.tensor([[0.0, 0.0, 1.0]]))
    free = noisy(pixels, variance=0.5, clipped=False)
    torch.testing.assert_close(free.observed, pixels)
    x = torch.rand(1, 3)
    exact = -((pixels - x) ** 2 - pixels**2).sum(-1) / (2 * 0.5)
    torch.testing.assert_close(free.log_likelihood(x), exact)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: PixelEvidence(p, p[:, :1]), r"shapes \(1, 2\) and \(1, 1\)"),
        (lambda p: PixelEvidence(p, -p), "must not be negative"),
        (lambda p: PixelEvidence(p, 0 * p), "a field without a precision"),
        (lambda p: PixelEvidence(p / 0, p), "non-finite"),
        (lambda p: noisy(p, variance=0.0), "must be positive"),
        (lambda p: seen(p, p > 0, variance=-1.0), "must be positive"),
    ],
)
def test_refusals(make, words: str) -> None:  # type: ignore[no-untyped-def]
    """What is no evidence is refused with what was given."""
    with pytest.raises(ValueError, match=words):
        make(torch.tensor([[0.5, 1.0]]))
