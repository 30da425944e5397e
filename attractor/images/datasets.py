"""The data sets, by name: embedded, made, read by torchvision, or from a file of one's own."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from attractor.images.arrays import npz
from attractor.images.downloads import fetch
from attractor.images.splits import DataError, ImageSplits, Loader, fixed_order, hold_out


def to_pixels(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (...) to pixels in [0, 1], p = v / 255."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}, expected torch.uint8 with values 0 to 255")
    return images.to(dtype) / 255


def pixel_mean(images: Tensor) -> Tensor:
    """Mean image (C, H, W), float32 pixels in [0, 1], of uint8 (P, C, H, W); summed in integers."""
    return (images.sum(0, dtype=torch.int64).double() / (255 * len(images))).float()


def check_images(images: Tensor, *, channels: int, side: int) -> None:
    """Raise DataError unless `images` are finite pixels (B, channels, side, side) in [0, 1]."""
    expected = f"expected pixels in [0, 1] of shape (B, {channels}, {side}, {side})"
    if images.shape[1:] != (channels, side, side) or not len(images):
        raise DataError(f"images have shape {tuple(images.shape)}, {expected}")
    if not images.is_floating_point():
        raise DataError(f"images are {images.dtype}, {expected}; divide 8-bit images by 255")
    if broken := int((~images.isfinite()).sum()):
        raise DataError(f"images hold {broken} non-finite values, {expected}")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise DataError(f"images have values from {low:g} to {high:g}, {expected}")


def load(
    name: str, *, root: str | Path, validation: int | None = None, download: bool = False
) -> ImageSplits:
    """The data set `name` of `DATASETS`; `root` is the folder of the torchvision ones, the file of npz.

    Raises ValueError for an unknown name or an impossible number of validation images, DataError
    for data that is missing or damaged.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; use one of {', '.join(sorted(DATASETS))}")
    return DATASETS[name](root=root, validation=validation, download=download)


def digits(*, root: str | Path = ".", validation: int | None = None, download: bool = False) -> ImageSplits:
    """The 1,797 digits of 8x8 pixels that come with scikit-learn; `root`, `download` are not used.

    360 test, 180 validation and 1,257 training images. Levels v of 16 become round(255 v / 16).
    """
    # scikit-learn takes seconds to import, and most runs do without.
    from sklearn.datasets import load_digits

    levels = torch.from_numpy(load_digits().images)
    images = (levels * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    order = fixed_order(len(images))
    test, rest = images[order[:360]], images[order[360:].sort().values]
    return hold_out("digits", rest, test=test, validation=180 if validation is None else validation)


def synthetic(
    *,
    root: str | Path = ".",
    validation: int | None = None,
    download: bool = False,
    side: int = 8,
    channels: int = 1,
    train: int = 512,
    test: int = 128,
    seed: int = 0,
) -> ImageSplits:
    """Smooth random images, made and not read: coarse Gaussian noise, interpolated and squashed.

    Neighbouring pixels and the channels of a pixel are correlated. `train` counts the 64 validation
    images that are held out of it. `root` and `download` are not needed.
    """
    generator = Generator().manual_seed(seed)
    coarse = torch.randn(train + test, channels, 4, 4, generator=generator)
    shade = torch.randn(train + test, 1, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(
        shade + coarse / 2, size=(side, side), mode="bilinear", align_corners=True
    )
    images = (torch.sigmoid(3 * smooth) * 255).round().to(torch.uint8)
    held_out = 64 if validation is None else validation
    return hold_out("synthetic", images[:train], test=images[train:], validation=held_out)


@dataclass(frozen=True)
class _Torchvision:
    """A data set that torchvision reads from files below `root`; images `shape` = (C, H, W).

    The test set keeps its own order; 1,000 validation images, unless another number is asked for,
    are held out of the training images.
    """

    name: str
    dataset: str
    shape: tuple[int, int, int]
    files: tuple[str, ...]
    digests: dict[str, tuple[int, str]] = field(default_factory=dict)  # file -> bytes, SHA-256

    def __call__(
        self, *, root: str | Path, validation: int | None = None, download: bool = False
    ) -> ImageSplits:
        # torchvision takes seconds to import, and the digits do without.
        import torchvision.datasets

        folder = Path(root).expanduser().absolute()
        dataset = getattr(torchvision.datasets, self.dataset)
        missing = [file for file in self.files if not (folder / file).is_file()]
        if missing and not download:
            raise DataError(
                f"{self.name} is not in {folder}: expected {', '.join(missing)}; set data.root=DIR"
                " to the folder that holds them, or get them with data.download=true"
            )
        if missing:
            self._download(dataset, folder)
        self._check(folder)
        train = self._read(dataset, folder, train=True)
        test = self._read(dataset, folder, train=False)
        held_out = 1000 if validation is None else validation
        return hold_out(self.name, train, test=test, validation=held_out)

    def _download(self, dataset: Callable[..., Any], folder: Path) -> None:
        """All files or none; torchvision compares what it gets with the checksums that it knows."""
        try:
            fetch(folder, self.files, lambda part: dataset(str(part), train=True, download=True))
        except Exception as error:  # OSError, RuntimeError for a wrong checksum, URLError
            failure = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(
                f"{self.name} could not be downloaded to {folder} ({failure}); nothing was left behind."
                " A download needs the network and a folder that can be written; or set data.root=DIR to a"
                " folder that holds the data"
            ) from error

    def _check(self, folder: Path) -> None:
        """A file of the size of the original is the original, or damaged (DataError)."""
        for file, (size, digest) in self.digests.items():
            path = folder / file
            if path.stat().st_size != size:
                continue
            with path.open("rb") as handle:
                found = hashlib.file_digest(handle, "sha256").hexdigest()
            if found != digest:
                raise DataError(
                    f"{self.name}: {path} is damaged: its SHA-256 is {found[:12]}..., not {digest[:12]}...;"
                    " delete it and get it again with data.download=true"
                )

    def _read(self, dataset: Callable[..., Any], folder: Path, *, train: bool) -> Tensor:
        """uint8 (P, C, H, W); every way in which torchvision fails becomes a DataError."""
        split = "training" if train else "test"
        try:
            stored = dataset(str(folder), train=train, download=False)
        except Exception as error:  # OSError, ValueError, EOFError, UnpicklingError, AssertionError
            failure = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(
                f"{self.name}: the {split} images in {folder} could not be read ({failure});"
                " delete damaged files and get them again with data.download=true, which needs the"
                " network and a folder that can be written, or set data.root=DIR"
            ) from error
        images = torch.as_tensor(stored.data)
        # MNIST comes as (P, H, W), CIFAR as (P, H, W, C)
        images = images.unsqueeze(1) if images.dim() == 3 else images.movedim(-1, 1)
        if images.shape[1:] != self.shape or len(images) != len(stored.targets):
            raise DataError(
                f"{self.name}: {folder} holds {split} images of shape {tuple(images.shape)} and"
                f" {len(stored.targets)} labels, expected images (P, C, H, W) with"
                f" (C, H, W) = {self.shape} and P labels"
            )
        return images.contiguous()


def _idx(folder: str) -> tuple[str, ...]:
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(f"{folder}/raw/{kind}-ubyte" for kind in kinds)


# torchvision knows the checksums of the compressed files, which are not kept
_MNIST_DIGESTS = dict(
    zip(
        _idx("MNIST"),
        (
            (47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
            (60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
            (7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
            (10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
        ),
        strict=True,
    )
)
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")

DATASETS: dict[str, Loader] = {
    "digits": digits,
    "synthetic": synthetic,
    "npz": npz,
    "mnist": _Torchvision("mnist", "MNIST", (1, 28, 28), _idx("MNIST"), _MNIST_DIGESTS),
    "fashion_mnist": _Torchvision("fashion_mnist", "FashionMNIST", (1, 28, 28), _idx("FashionMNIST")),
    "cifar10": _Torchvision(
        "cifar10", "CIFAR10", (3, 32, 32), tuple(f"cifar-10-batches-py/{f}" for f in _BATCHES)
    ),
}
