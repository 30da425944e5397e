"""One's own square images, from a NumPy file: np.savez_compressed("mine.npz", x=images).

The file holds `train` and `test`, and `validation` if one likes; or one array `x` (or `images`), of which a
fifth is held out to test, by a fixed permutation. Other arrays in it, such as labels, are not looked at.

An array is uint8, levels 0 to 255, or floating-point pixels p in [0, 1], which become the levels
round(255 p). Its layout is (P, H, W), (P, C, H, W) or (P, H, W, C) with H = W and C = 1 or 3. The shape
says which: channels are the axis of length 1 or 3 that leaves a square. 3x3 images of 3 channels, where
either end could be that axis, are refused.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attractor.images.splits import DataError, ImageSplits, fixed_order, hold_out

_WHOLE = ("x", "images")  # one array for all splits
_KEYS = "`train` and `test` (and `validation`), or one array `x` or `images`"
_LAYOUTS = "(P, H, W), (P, C, H, W) or (P, H, W, C) with H = W and C = 1 or 3"
_CHANNELS = (1, 3)


def npz(*, root: str | Path, validation: int | None = None, download: bool = False) -> ImageSplits:
    """The images in the file `root`, under the name of that file without .npz; nothing is downloaded.

    validation: how many images are held out of training; a tenth, at most 1,000, unless given. Where the
    file has validation images of its own, the first so many of them; all, unless given. Raises DataError
    for a file that is not as this module says, and ValueError for an impossible number of them.
    """
    path = Path(root).expanduser().absolute()
    arrays = _read(path)
    if "train" in arrays:
        train, test = (_images(path, key, arrays[key]) for key in ("train", "test"))
    else:
        [(key, array)] = arrays.items()
        images = _images(path, key, array)
        order, count = fixed_order(len(images)), max(1, len(images) // 5)
        train, test = images[order[count:].sort().values], images[order[:count]]
    if "validation" in arrays:
        own = _images(path, "validation", arrays["validation"])
        return ImageSplits(path.stem, train, _first(path, own, validation), test)
    if len(train) < 2:
        raise DataError(
            f"{path} leaves {len(train)} to train on of {len(train) + len(test)} images; at least 2, one of"
            " them to validate, and 1 to test are needed: store more of them"
        )
    tenth = min(1000, max(1, len(train) // 10))
    return hold_out(path.stem, train, test=test, validation=tenth if validation is None else validation)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Key -> array: train, test and perhaps validation, or the single one."""
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a .npz file; set data.root=FILE to the file itself")
    if not path.is_file():
        raise DataError(
            f"{path} is not there; set data.root=FILE to a .npz file that holds {_KEYS}, as"
            " np.savez_compressed(FILE, x=images) writes it"
        )
    try:
        with path.open("rb") as handle:  # np.load would not close a damaged one
            # nothing in the file is executed: pickled objects are refused
            stored = np.load(handle, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise DataError(
                    f"{path} is a single .npy array, expected a .npz file; write one with"
                    " np.savez_compressed(FILE, x=images)"
                )
            return {key: stored[key] for key in _chosen(path, stored.files)}
    except DataError:
        raise
    except Exception as error:  # OSError, ValueError, EOFError, BadZipFile, zlib.error, UnpicklingError
        failure = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{path} could not be read as a .npz file of numbers ({failure}); write it with"
            " np.savez_compressed(FILE, x=images), images being a uint8 array"
        ) from error


def _chosen(path: Path, files: list[str]) -> list[str]:
    """The keys of the images. DataError where there are none, or more than one way to read them."""
    parts: list[str] = [key for key in ("train", "test", "validation") if key in files]
    whole = [key for key in _WHOLE if key in files]
    if (parts[:2] == ["train", "test"] and not whole) or (len(whole) == 1 and not parts):
        return parts or whole
    given = ", ".join(files) if files else "nothing"
    raise DataError(f"{path} holds {given}; expected {_KEYS}, and not both: rename or remove arrays")


def _images(path: Path, key: str, array: np.ndarray) -> Tensor:
    """uint8 (P, C, H, W), contiguous."""
    given = f"{path}: {key} is {array.dtype} {array.shape}"
    if not array.size:
        raise DataError(f"{given} and holds no images; store at least one, or leave the array out")
    first = _channels_first(given, array.shape)
    levels = torch.from_numpy(_levels(given, array))
    images = levels.unsqueeze(1) if levels.dim() == 3 else levels
    return (images if first else images.movedim(-1, 1)).contiguous()


def _channels_first(given: str, shape: tuple[int, ...]) -> bool:
    """Whether channels, if there are any, come before the square. DataError if that cannot be told."""
    if len(shape) == 3 and shape[1] == shape[2]:
        return True
    if len(shape) == 4:
        first = shape[1] in _CHANNELS and shape[2] == shape[3]
        last = shape[3] in _CHANNELS and shape[1] == shape[2]
        if first and last and shape[1] != 1:  # one pixel of one channel is the same either way
            raise DataError(
                f"{given}, which may have its channels first or last; store 3x3 images one channel at a"
                " time, (P, 3, 3), or with a border"
            )
        if first or last:
            return first
    raise DataError(f"{given}, expected {_LAYOUTS}; crop or pad the images to squares, and turn the axes")


def _levels(given: str, array: np.ndarray) -> np.ndarray:
    """uint8 of the same shape, in the machine's byte order."""
    if array.dtype == np.uint8:
        if array.max() == 1:
            raise DataError(f"{given} and holds 0 and 1 alone, of levels 0 to 255; multiply it by 255")
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"{given}, expected uint8 levels 0 to 255 or floating-point pixels in [0, 1]; convert it, as"
            " array.astype('uint8') does for integers from 0 to 255"
        )
    if broken := int((~np.isfinite(array)).sum()):
        raise DataError(f"{given} and holds {broken} non-finite values; store pixels in [0, 1] alone")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise DataError(
            f"{given} with values from {low:g} to {high:g}, expected pixels in [0, 1]; scale them to it, or"
            " store uint8 levels 0 to 255"
        )
    return np.round(array.astype(np.float64) * 255).astype(np.uint8)


def _first(path: Path, images: Tensor, count: int | None) -> Tensor:
    if count is not None and not 0 < count <= len(images):
        raise ValueError(
            f"{path.stem}: {count} validation images are asked for, and the file has {len(images)}; use"
            f" data.validation=1 to {len(images)}, or null for all"
        )
    return images[:count]
