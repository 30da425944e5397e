"""Symmetric copies of stored images: shifted, turned, scaled, slanted, mirrored.

A symmetry takes uint8 (M, C, H, W), H = W, and returns as much of the same type: pixel (x, y) of a copy,
x to the right and y down from the centre, is the pixel at A (x, y) of the image. Between pixels it is
interpolated linearly and rounded; shifts and flips move pixels and change none. What would come from
outside the frame is the nearest pixel of its edge: black around digits, no black corner in a photograph.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_CHUNK = 2**18  # pixels that are interpolated at once, 1 MB of float32: they stay in cache
_LARGEST = 10.0  # scaling and slant; a larger one leaves a pixel or two of an image
_KINDS = (
    "'shift 1', 'shift 1 diagonal', 'rotate 5 10', 'scale 0.9 1.1', 'shear 0.1', 'flip' or 'flip vertical'"
)


class Symmetry(Protocol):
    """What makes a copy of each image. Raises ValueError unless these are uint8 (M, C, H, W), H = W."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Identity:
    """The images themselves."""

    name: str = "identity"

    def __call__(self, images: Tensor) -> Tensor:
        return _checked(images)


@dataclass(frozen=True)
class Shift:
    """By whole pixels, `right` and `down`, fewer than the side; negative: to the left and up."""

    right: int
    down: int

    @property
    def name(self) -> str:
        return f"shift {self.right:+d} {self.down:+d}"

    def __call__(self, images: Tensor) -> Tensor:
        return _moved(_moved(_checked(images), self.right, dim=-1), self.down, dim=-2)


@dataclass(frozen=True)
class Flip:
    """Left and right change places, or with `vertical` top and bottom."""

    vertical: bool = False

    @property
    def name(self) -> str:
        return "flip vertical" if self.vertical else "flip"

    def __call__(self, images: Tensor) -> Tensor:
        return _checked(images).flip(-2 if self.vertical else -1)


@dataclass(frozen=True)
class Linear:
    """The pixels of a copy are those at A (x, y); `matrix` is A, row by row: see the module."""

    name: str
    matrix: tuple[float, float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        count, channels, side, _ = _checked(images).shape
        theta = torch.tensor([[*self.matrix[:2], 0.0], [*self.matrix[2:], 0.0]], dtype=torch.float64)
        shape = [1, 1, side, side]
        grid = torch.nn.functional.affine_grid(theta[None], shape, align_corners=False)
        grid = grid.to(images.device, torch.float32)
        copies = torch.empty_like(images, memory_format=torch.contiguous_format)
        planes, copied = images.reshape(-1, side, side), copies.view(-1, side, side)
        step = max(1, _CHUNK // side**2)
        for start in range(0, count * channels, step):
            # all planes as channels of one image: where to look is worked out once
            chunk = planes[start : start + step].float().unsqueeze(0)
            found = torch.nn.functional.grid_sample(chunk, grid, padding_mode="border", align_corners=False)
            copied[start : start + step] = found[0].round_().to(torch.uint8)
        return copies


def rotation(degrees: float) -> Linear:
    """About the centre, counter-clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return Linear(f"rotate {degrees:+g}", (cos, -sin, sin, cos))


def scaling(factor: float) -> Linear:
    """About the centre; a factor above 1 enlarges."""
    return Linear(f"scale {factor:g}", (1 / factor, 0.0, 0.0, 1 / factor))


def shear(slant: float) -> Linear:
    """A row moves to the right by `slant` times its height above the centre, as in italics."""
    return Linear(f"shear {slant:+g}", (1.0, slant, 0.0, 1.0))


def copies(descriptions: Sequence[str], *, side: int) -> list[Symmetry]:
    """The symmetries that are described, after the identity, for images of `side` pixels.

    "shift 1" is the 4 along the axes by one pixel, "shift 1 diagonal" the 8 around; "rotate 5 10" +-5 and
    +-10 degrees; "scale 0.9 1.1" these two; "shear 0.1" both signs; "flip" left and right, "flip vertical".
    Raises ValueError for what is none of these, amounts that are out of range, and copies of which there
    would be two.
    """
    found: dict[str, Symmetry] = {"identity": Identity()}
    for text in descriptions:
        word, *rest = text.split() or [""]
        if word not in _WORDS:
            raise ValueError(f"{text!r} is no symmetry; use {_KINDS}")
        for symmetry in _WORDS[word](text, rest, side):
            if symmetry.name in found:
                raise ValueError(
                    f"{text!r} makes the copy {symmetry.name!r} a second time; leave it out once"
                )
            found[symmetry.name] = symmetry
    return list(found.values())


def _shifts(text: str, rest: list[str], side: int) -> list[Symmetry]:
    diagonal = rest[-1:] == ["diagonal"]
    found: list[Symmetry] = []
    for amount in _amounts(text, rest[:-1] if diagonal else rest, most=side - 1):
        by = int(amount)
        if by != amount:
            raise ValueError(f"{text!r} has {amount:g}; shifts are by whole pixels, 1 to {side - 1}")
        around = [(right, down) for down in (-by, 0, by) for right in (-by, 0, by) if right or down]
        found += [Shift(right, down) for right, down in around if diagonal or not (right and down)]
    return found


def _rotations(text: str, rest: list[str], side: int) -> list[Symmetry]:
    found = [rotation(sign * by) for by in _amounts(text, rest, most=180) for sign in (1, -1)]
    return [each for each in found if each.name != "rotate -180"]  # which is +180


def _scalings(text: str, rest: list[str], side: int) -> list[Symmetry]:
    factors = _amounts(text, rest, least=1 / _LARGEST, most=_LARGEST)
    if 1 in factors:
        raise ValueError(f"{text!r} has 1, which changes nothing; use factors below or above it")
    return [scaling(factor) for factor in factors]


def _shears(text: str, rest: list[str], side: int) -> list[Symmetry]:
    return [shear(sign * slant) for slant in _amounts(text, rest, most=_LARGEST) for sign in (1, -1)]


def _flips(text: str, rest: list[str], side: int) -> list[Symmetry]:
    if rest not in ([], ["vertical"]):
        raise ValueError(f"{text!r} is no symmetry; use 'flip' or 'flip vertical'")
    return [Flip(vertical=bool(rest))]


_WORDS: dict[str, Callable[[str, list[str], int], list[Symmetry]]] = {
    "shift": _shifts,
    "rotate": _rotations,
    "scale": _scalings,
    "shear": _shears,
    "flip": _flips,
}


def _amounts(text: str, words: list[str], *, most: float, least: float = 0.0) -> list[float]:
    """At least one number, each above 0, from `least` to `most`."""
    allowed = f"{least:g} to {most:g}" if least else f"above 0, at most {most:g}"
    if not words:
        raise ValueError(f"{text!r} lacks an amount, {allowed}; use {_KINDS}")
    found = []
    for word in words:
        try:
            amount = float(word)
        except ValueError:
            raise ValueError(f"{text!r} has {word!r}, which is no number; use amounts {allowed}") from None
        if not (amount > 0 and least <= amount <= most):  # nan too
            raise ValueError(f"{text!r} has {word}; use amounts {allowed}")
        found.append(amount)
    return found


def _moved(images: Tensor, by: int, *, dim: int) -> Tensor:
    """Shifted along an axis; the edge is repeated."""
    if not by:
        return images
    size = images.shape[dim]
    kept = images.narrow(dim, max(0, -by), size - abs(by))
    edge = images.narrow(dim, 0 if by > 0 else size - 1, 1).repeat_interleave(abs(by), dim)
    return torch.cat([edge, kept] if by > 0 else [kept, edge], dim)


def _checked(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != images.shape[-2]:
        given = f"{images.dtype} {tuple(images.shape)}"
        raise ValueError(f"images are {given}, expected torch.uint8 (M, C, H, W) with H = W")
    return images
