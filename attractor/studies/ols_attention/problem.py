"""The regression of the study `ols_attention`: hidden pixels of real images from the visible ones."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d

from attractor.images import ImageSplits, to_pixels
from attractor.lab.errors import ConfigError, configuring
from attractor.physics.spectrum import Spectrum, second_moments, spectrum

Pair = tuple[Tensor, Tensor]  # visible pixels (n, d) and hidden pixels (n, m), both centred


@dataclass(frozen=True)
class Problem:
    """Two contexts of n training images, and images to predict, all less the pixel means of the first.

    Contexts are divided by sqrt(n mu), mu the mean eigenvalue of X^T X / n that is not zero: their Gram
    matrix is then of order 1 for any n, which a descent needs, and the coefficients are the same. Images
    to predict are in pixels.
    """

    context: Pair
    other: Pair
    validation: Pair
    test: Pair
    hidden_mean: Tensor  # (m,)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of the Gram matrix G = X^T X of the context; mean eigenvalue 1."""
        return spectrum(self.context[0].T @ self.context[0])

    @cached_property
    def least_squares(self) -> Tensor:
        """G^+ X^T Y (d, m)."""
        x, y = self.context
        return self.spectrum.power(-1) @ (x.T @ y)

    @cached_property
    def rows(self) -> Pair:
        """r rows that stand for the n of the context: U^T X and U^T Y, where X = U Lambda^(1/2) V^T.

        G and X^T Y are the same, and |U^T X M - U^T Y|^2 is |X M - Y|^2 less its least value, for every M:
        the gap to least squares, without a difference of large numbers.
        """
        x, y = self.context
        found = self.spectrum
        return found.values.sqrt()[:, None] * found.vectors.T, found.whitening.T @ (x.T @ y)

    def squared_error(self, prediction: Tensor, images: Pair) -> float:
        """Mean over hidden pixels of (clip(prediction) - pixel)^2, in squared pixels."""
        pixels = images[1] + self.hidden_mean
        return ((prediction + self.hidden_mean).clamp(0, 1) - pixels).square().mean().item()


def build_problem(
    splits: ImageSplits, *, images: int, side: int, fraction: float, test_images: int | None, seed: int
) -> Problem:
    """Hide round(fraction P) of the P pixels, the same of all images; these and the contexts are drawn.

    Raises ConfigError where there are too few training images, or none or all of the pixels are hidden, or
    the visible ones do not vary.
    """
    if len(splits.train) < 2 * images:
        raise ConfigError(
            f"theory.images={images} needs {2 * images} training images for two contexts, and "
            f"{splits.name} has {len(splits.train)}"
        )
    generator = Generator().manual_seed(seed)
    drawn = splits.train[torch.randperm(len(splits.train), generator=generator)[: 2 * images]]
    train, validation, test = (
        _pixels(part, side) for part in (drawn, splits.validation, splits.test[:test_images])
    )
    pixels = train.shape[1]
    hidden = round(fraction * pixels)
    if not 0 < hidden < pixels:
        raise ConfigError(f"task.mask_fraction={fraction} hides {hidden} of {pixels} pixels")
    order = torch.randperm(pixels, generator=generator)
    unseen, seen = order[:hidden].sort().values, order[hidden:].sort().values
    mean = train[:images].mean(0)
    (x, y), validated, tested = (
        ((part - mean)[:, seen], (part - mean)[:, unseen]) for part in (train, validation, test)
    )
    with configuring():
        scale = (images * spectrum(second_moments(x[:images])).values.mean()).rsqrt()
    return Problem(
        context=(scale * x[:images], scale * y[:images]),
        other=(scale * x[images:], scale * y[images:]),
        validation=validated,
        test=tested,
        hidden_mean=mean[unseen],
    )


def _pixels(images: Tensor, side: int) -> Tensor:
    """(P, C H W) in float64, averaged over the smallest squares that leave at most `side` pixels."""
    given = images.shape[-1]
    factor = next(f for f in range(1, given + 1) if given % f == 0 and given // f <= side)
    return avg_pool2d(to_pixels(images, torch.float64), factor).flatten(1)
