"""Evidence: what is known of the tokens beside their conditionals."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """An external field h_i, added to lambda u_is of every source.

    field (B, N, D): a natural parameter, y_i/sigma^2 for an observation y_i with noise variance sigma^2.
    precision: 1/sigma^2, a number or one for each token (N,); every density gains a factor
    exp(-precision |x_i|^2/2). Where the norm of a token is fixed that is a constant, and is left out.
    """

    field: Tensor
    precision: Tensor | float = 0.0

    def of(self, images: Tensor) -> "Evidence":
        """That of some of the images, by their places."""
        return replace(self, field=self.field[images])


@dataclass(frozen=True)
class PixelEvidence:
    """What is known of every pixel by itself: a log-likelihood, kept to second order.

        l_p(x) = field_p x - precision_p x^2 / 2,     field, precision (B, P), both 0 where nothing is known

    A pixel seen with Gaussian noise of variance v has precision 1/v and field y/v. Raises ValueError for
    shapes that differ, values that are not finite, negative precisions, and a field without a precision.
    """

    field: Tensor
    precision: Tensor

    def __post_init__(self) -> None:
        if self.field.dim() != 2 or self.field.shape != self.precision.shape:
            shapes = f"{tuple(self.field.shape)} and {tuple(self.precision.shape)}"
            raise ValueError(
                f"field and precision of the evidence have shapes {shapes}, expected (B, P) each"
            )
        for name, values in (("field", self.field), ("precision", self.precision)):
            if broken := int((~values.isfinite()).sum()):
                raise ValueError(f"the {name} of the evidence holds {broken} non-finite values")
        if bool((self.precision < 0).any()):
            lowest = float(self.precision.min())
            raise ValueError(
                f"the precision of the evidence is {lowest:g} somewhere; it must not be negative"
            )

        if bool(((self.precision == 0) & (self.field != 0)).any()):
            raise ValueError(
                "the evidence has a field without a precision; where nothing is known both are 0"
            )

    def __len__(self) -> int:
        return len(self.field)

    def of(self, images: Tensor) -> "PixelEvidence":
        """That of some of the images, by their places."""
        return PixelEvidence(self.field[images], self.precision[images])

    @property
    def observed(self) -> Tensor:
        """The x at which l_p is largest, field / precision, (B, P); 0 where nothing is known."""
        return torch.where(self.precision > 0, self.field / self.precision, 0)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """sum_p l_p(x), for x (B, P); (B,)."""
        return (self.field * x - self.precision * x * x / 2).sum(-1)


def seen(pixels: Tensor, visible: Tensor, *, variance: float) -> PixelEvidence:
    """Visible pixels (B, P), known up to a small `variance`, the ridge; of hidden ones nothing is known."""
    if not 0 < variance < math.inf:
        raise ValueError(f"the variance of visible pixels is {variance}; it must be positive and finite")
    precision = visible.to(pixels) / variance
    return PixelEvidence(torch.where(visible, pixels, 0) / variance, precision)


def noisy(pixels: Tensor, *, variance: float, clipped: bool = True) -> PixelEvidence:
    """Pixels (B, P) of a clean x in [0, 1] under Gaussian noise, clipped to [0, 1] afterwards or not.

    Inside, l(x) = -(y - x)^2 / 2 variance. A pixel that was clipped at 0 says log Phi(-x / sigma); at 1 it
    is log Phi((x - 1) / sigma), the mirror image. Both are kept as the parabola through their values at
    x = 0, 1/2 and 1, so that they stay a field and a precision.
    """
    if not 0 < variance < math.inf:
        raise ValueError(f"noise variance is {variance}; it must be positive and finite")
    precision = torch.full_like(pixels, 1 / variance)
    field = pixels / variance
    if not clipped:
        return PixelEvidence(field, precision)
    curvature, slope = _clipped_parabola(variance)
    low, high = pixels <= 0, pixels >= 1
    precision = torch.where(low | high, curvature, precision)
    field = torch.where(low, slope, torch.where(high, curvature - slope, field))
    return PixelEvidence(field, precision)


def _clipped_parabola(variance: float) -> tuple[float, float]:
    """Precision and field of the parabola through log Phi(-x / sigma) at x = 0, 1/2, 1."""
    x = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    at_0, at_half, at_1 = torch.special.log_ndtr(-x / math.sqrt(variance)).tolist()
    curvature = -4 * (at_0 - 2 * at_half + at_1)
    return curvature, at_1 - at_0 + curvature / 2
