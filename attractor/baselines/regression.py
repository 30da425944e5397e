"""Linear regression: the best linear prediction of the clean pixels from the corrupted ones.

Masked pixels m given visible ones v, under a Gaussian with the training mean mu and covariance C:

    x_m = mu_m + C_mv (C_vv + ridge I)^-1 (y_v - mu_v)
        = mu_m - L_mm^-1 L_mv (y_v - mu_v),    L = (C + ridge I)^-1

The second form solves for the masked pixels, which are fewer. Clean pixels x given noisy ones y, by
ordinary least squares over noise drawn on the training images:

    x = <x> + W^T (y - <y>),    W = Cov(y, y)^-1 Cov(y, x)
"""

import math
from collections.abc import Iterable, Iterator
from functools import cached_property

import torch
from torch import Generator, Tensor

from attractor.images import Corrupted, Denoise, to_pixels

# Noise is free: a small training set is seen under many draws, or least squares would fit the noise.
_NOISY_IMAGES = 50_000
_CHUNK = 4096  # training images turned into float64 at a time: 25 MB for MNIST


class LinearRegression:
    """Gaussian conditional where there is a mask; without one, least squares from noisy to clean.

    Each is fitted when first needed, in float64 on the device of `train`.
    """

    def __init__(
        self, train: Tensor, *, denoise: Denoise | None = None, ridge: float = 1e-3, seed: int = 0
    ) -> None:
        """`train` is uint8 (P, C, H, W); `ridge` is in squared pixel units.

        `denoise` says what noise to expect, the task's default unless given; `seed` draws it, once
        for each training image. Raises ValueError unless the ridge is positive.
        """
        if not ridge > 0:
            raise ValueError(f"ridge is {ridge}; constant pixels need a positive one")
        self.train = train
        self.denoise = Denoise() if denoise is None else denoise
        self.ridge = ridge
        self.seed = seed

    def reconstruct(self, corrupted: Corrupted) -> Iterator[Tensor]:
        """See `images.Reconstructor`; one shot. Visible pixels stay as they are."""
        seen = corrupted.corrupted
        pixels = seen.to(self.train.device, torch.float64).flatten(1)  # (B, P)
        if corrupted.pixel_mask is None:
            weight, intercept = self.least_squares
            predicted = pixels @ weight + intercept
        else:
            hidden = corrupted.pixel_mask.to(pixels.device).expand_as(seen).flatten(1)
            predicted = self._fill(pixels, hidden)
        yield predicted.to(seen).reshape(seen.shape)

    @cached_property
    def gaussian(self) -> tuple[Tensor, Tensor]:
        """Mean mu (P,) and L = (C + ridge I)^-1 (P, P), for P pixels of all channels."""
        mean, _, covariance = _covariance((pixels, pixels) for pixels in self._chunks())
        covariance.diagonal().add_(self.ridge)
        return mean, torch.cholesky_inverse(torch.linalg.cholesky(covariance))

    @cached_property
    def least_squares(self) -> tuple[Tensor, Tensor]:
        """W (P, P) and intercept (P,): x = y W + intercept; the shortest W if there are many."""
        noisy, both, covariance = _covariance(self._noisy_chunks())
        pixels = len(noisy)
        inverse = torch.linalg.pinv(covariance[:, :pixels], hermitian=True)
        weight = inverse @ covariance[:, pixels:]
        return weight, both[pixels:] - noisy @ weight

    def _fill(self, pixels: Tensor, hidden: Tensor) -> Tensor:
        """`pixels` (B, P) with the conditional mean where `hidden` (B, P)."""
        mean, precision = self.gaussian
        known = (pixels - mean).masked_fill_(hidden, 0)
        pull = known @ precision  # its masked part is L_mv (y_v - mu_v)
        filled = pixels.clone()
        for image, where in enumerate(hidden):
            index = where.nonzero().squeeze(1)
            factor = torch.linalg.cholesky(precision[index[:, None], index])
            shift = torch.cholesky_solve(pull[image, index, None], factor).squeeze(1)
            filled[image, index] = mean[index] - shift
        return filled

    def _chunks(self) -> Iterator[Tensor]:
        for images in self.train.split(_CHUNK):
            yield to_pixels(images, torch.float64).flatten(1)

    def _noisy_chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """y, and y beside x, so that one product gives Cov(y, y) and Cov(y, x)."""
        generator = Generator().manual_seed(self.seed)
        draws = max(1, math.ceil(_NOISY_IMAGES / len(self.train)))
        for clean in (clean for _ in range(draws) for clean in self._chunks()):
            noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32)
            noisy = self.denoise.add_noise(clean, noise.to(clean))
            yield noisy, torch.cat((noisy, clean), 1)


def _covariance(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Means (P,), (Q,) and Cov(a, b) (P, Q) over all rows of the chunks a (., P), b (., Q)."""
    count, total_a, total_b, product = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for a, b in pairs:
        count += len(a)
        total_a, total_b, product = total_a + a.sum(0), total_b + b.sum(0), product + a.T @ b
    mean_a, mean_b = total_a / count, total_b / count
    return mean_a, mean_b, product / count - torch.outer(mean_a, mean_b)
