"""Data sets of square images, held in memory as uint8 and split once and for all.

The splits do not depend on the seed of an experiment: every run of every model is validated on the
same images, and larger validation sets contain the smaller ones.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Generator, Tensor

_SPLIT_SEED = 0


class DataError(ValueError):
    """Data that is missing, damaged, non-finite or of the wrong size."""


@dataclass(frozen=True)
class ImageSplits:
    """Training, validation and test images, each uint8 (P, C, H, W) with H = W.

    Raises DataError if a split is empty, of another type, not square or unlike the others.
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        for split in ("train", "validation", "test"):
            images: Tensor = getattr(self, split)
            given = f"{self.name}: {split} images are {images.dtype} {tuple(images.shape)}"
            if broken := int((~images.isfinite()).sum()) if images.is_floating_point() else 0:
                raise DataError(f"{given} and hold {broken} non-finite values")
            if images.dtype != torch.uint8 or images.dim() != 4:
                raise DataError(f"{given}, expected torch.uint8 (P, C, H, W)")
            if images.shape[-1] != images.shape[-2]:
                raise DataError(f"{given}; images must be square, H = W")
            if not images.numel():
                raise DataError(f"{given}; every split needs at least one image")
            if images.shape[1:] != self.train.shape[1:]:
                raise DataError(f"{given}, but the training images are {tuple(self.train.shape)}")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images and their order."""
        digest = hashlib.sha256()
        for images in (self.train, self.validation, self.test):
            digest.update(f"{tuple(images.shape)}".encode())
            digest.update(images.contiguous().numpy().data)
        return digest.hexdigest()

    def fewer(self, count: int) -> "ImageSplits":
        """With `count` training images: the first in a fixed random order, so larger sets hold smaller."""
        order = fixed_order(len(self.train))
        return replace(self, train=self.train[order[:count].sort().values])

    @property
    def channels(self) -> int:
        return self.train.shape[1]

    @property
    def side(self) -> int:
        return self.train.shape[-1]


class Loader(Protocol):
    """One data set. `validation` counts the images held out of training; None: the usual number."""

    def __call__(
        self, *, root: str | Path, validation: int | None = None, download: bool = False
    ) -> ImageSplits: ...


def fixed_order(count: int) -> Tensor:
    """The permutation of `count` images by which some of them are held out: always the same."""
    return torch.randperm(count, generator=Generator().manual_seed(_SPLIT_SEED))


def hold_out(name: str, images: Tensor, *, test: Tensor, validation: int) -> ImageSplits:
    """Hold `validation` of the training `images` out, by a fixed permutation.

    Raises ValueError unless that leaves images to train on.
    """
    if not 0 < validation < len(images):
        raise ValueError(
            f"{name}: {validation} validation images cannot be held out of {len(images)} training"
            f" images; use data.validation=1 to {len(images) - 1}"
        )
    order = fixed_order(len(images))
    return ImageSplits(name, images[order[validation:].sort().values], images[order[:validation]], test)
