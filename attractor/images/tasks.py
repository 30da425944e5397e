"""Corruptions of images, the same for every model, and the error of a prediction.

The draw of an image depends on (seed, task, index of the image) alone: not on the batch it comes in
nor on the model, so errors of two models can be compared image by image.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor

from attractor.images.patches import grid_side, token_mask_to_pixels


@dataclass(frozen=True)
class Corrupted:
    """A batch of images and what a model may see of them, in pixels.

    `mask` (B, N) and `pixel_mask` (B, 1, H, W) are true where a token is masked, and None if the
    task masks nothing. Masked pixels of `corrupted` are 0, as visible black ones are: a model has
    to look at the mask.
    """

    task: str
    original: Tensor
    corrupted: Tensor
    mask: Tensor | None = None
    pixel_mask: Tensor | None = None

    def squared_error(self, prediction: Tensor) -> Tensor:
        """Mean of (clip(prediction, 0, 1) - original)^2 over the masked pixels, or all if no mask.

        (B,), float64, in squared pixels. Raises ValueError for a prediction that is not shaped like
        the images; a NaN among the scored pixels gives a NaN.
        """
        if prediction.shape != self.original.shape:
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)}, the images have"
                f" {tuple(self.original.shape)}"
            )
        error = (prediction.double().clamp(0, 1) - self.original.double()) ** 2
        if self.pixel_mask is None:
            return error.mean((1, 2, 3))
        scored = self.pixel_mask.sum((1, 2, 3)) * error.shape[1]
        return torch.where(self.pixel_mask, error, 0).sum((1, 2, 3)) / scored


class Task(Protocol):
    """A corruption. `name` keys results and random draws."""

    @property
    def name(self) -> str: ...

    def corrupt(self, images: Tensor, indices: Sequence[int], *, seed: int) -> Corrupted:
        """Corrupt pixels (B, C, H, W); `indices` (B) are their places in the data set."""
        ...


class Reconstructor(Protocol):
    """Any model, trained or not: it sees `corrupted`, `mask` and `pixel_mask`, never `original`."""

    def reconstruct(self, corrupted: Corrupted) -> Iterator[Tensor]:
        """Predicted pixels (B, C, H, W) after iterations t = 1, 2, ...; one-shot models yield once.

        Where a mask is given, only the masked pixels count.
        """
        ...


@dataclass(frozen=True)
class Masked:
    """Hide round(fraction N) tokens of `patch` x `patch` pixels, drawn without replacement."""

    fraction: float = 0.3
    patch: int = field(kw_only=True)
    name: ClassVar[str] = "masked"

    def masked_tokens(self, side: int) -> int:
        """How many tokens are hidden. Raises ValueError if none would be, or none stay visible."""
        tokens = grid_side(side, patch=self.patch) ** 2
        masked = round(self.fraction * tokens) if math.isfinite(self.fraction) else 0
        if not 0 < masked < tokens:
            raise ValueError(
                f"masking a fraction {self.fraction:g} of {tokens} tokens masks {masked} of them;"
                f" at least one masked and one visible token are needed, from {1 / tokens:.3g} to"
                f" {1 - 1 / tokens:.3g}"
            )
        return masked

    def corrupt(self, images: Tensor, indices: Sequence[int], *, seed: int) -> Corrupted:
        """See `Task`. Raises ValueError like `masked_tokens`."""
        _check(images, indices)
        masked = self.masked_tokens(images.shape[-1])
        mask = torch.zeros(len(images), grid_side(images.shape[-1], patch=self.patch) ** 2)
        for row, index in zip(mask, indices, strict=True):
            order = torch.randperm(len(row), generator=_generator(seed, self.name, index=index))
            row[order[:masked]] = 1
        mask = mask.bool().to(images.device)
        pixel_mask = token_mask_to_pixels(mask, patch=self.patch)
        return Corrupted(self.name, images, images.masked_fill(pixel_mask, 0), mask, pixel_mask)


@dataclass(frozen=True)
class Denoise:
    """Add Gaussian noise of `variance`, in squared pixels, and clip to [0, 1]."""

    variance: float = 0.7
    name: ClassVar[str] = "denoise"

    def __post_init__(self) -> None:
        if not 0 < self.variance < math.inf:
            raise ValueError(f"noise variance is {self.variance}; it must be positive and finite")

    def add_noise(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """clip(pixels + sqrt(variance) noise, 0, 1) for standard normal noise."""
        return (pixels + math.sqrt(self.variance) * noise).clamp_(0, 1)

    def corrupt(self, images: Tensor, indices: Sequence[int], *, seed: int) -> Corrupted:
        """See `Task`. The noise is drawn as float32 on the CPU, whatever the images are."""
        _check(images, indices)
        noise = torch.empty(images.shape, dtype=torch.float32)
        for row, index in zip(noise, indices, strict=True):
            row.normal_(generator=_generator(seed, self.name, index=index))
        return Corrupted(self.name, images, self.add_noise(images, noise.to(images)))


def _check(images: Tensor, indices: Sequence[int]) -> None:
    if images.dim() != 4 or not images.is_floating_point() or len(images) != len(indices):
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)} with {len(indices)} indices, expected"
            " floating-point pixels (B, C, H, W) and B indices"
        )


def _generator(seed: int, task: str, *, index: int) -> Generator:
    key = hashlib.blake2b(f"{seed}/{task}/{int(index)}".encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(key, "big"))
