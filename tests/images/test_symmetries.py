"""Symmetric copies, against slices, torch.rot90 and scipy; and their descriptions, with every error."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from attractor.images.symmetries import (
    Flip,
    Identity,
    Linear,
    Shift,
    Symmetry,
    copies,
    rotation,
    scaling,
    shear,
)

SIDE = 9
EVERY = ["shift 1 diagonal", "rotate 8", "scale 0.9 1.1", "shear 0.1", "flip", "flip vertical"]


@pytest.fixture
def images() -> Tensor:
    """Noise, in which a pixel in the wrong place is seen; (5, 3, 9, 9)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (5, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def smooth(side: int) -> Tensor:
    """255 exp(-r^2 / 0.08) about a place off the centre, 0 at the edge; pixels 2 / (side - 1) wide."""
    place = torch.linspace(-1, 1, side)
    blob = torch.exp(-((place[:, None] - 0.15) ** 2 + (place + 0.1) ** 2) / 0.08)
    return (255 * blob).round().to(torch.uint8)[None, None]


def levels_apart(mine: Tensor, other: Tensor) -> int:
    return int((mine.int() - other.int()).abs().max())


def test_shifts_are_slices(images: Tensor) -> None:
    """Right and down are the signs; no level changes; edges are repeated."""
    right, down = 2, -3
    shifted = Shift(right, down)(images)
    assert torch.equal(shifted[..., :-3, 2:], images[..., 3:, :-2])
    assert torch.equal(shifted[..., :-3, 0], images[..., 3:, 0])
    assert torch.equal(shifted[..., :-3, 1], images[..., 3:, 0])
    for row in (-3, -2, -1):
        assert torch.equal(shifted[..., row, 2:], images[..., -1, :-2])
    assert torch.equal(Shift(-right, -down)(shifted)[..., 3:, :-2], images[..., 3:, :-2])


@pytest.mark.parametrize("side", [1, 2, 8, 9])
@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_quarter_turns_are_exact(side: int, quarters: int) -> None:
    """About the centre, also of an even side, counter-clockwise: half a pixel off would blur noise."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, 2, side, side), generator=generator, dtype=torch.uint8)
    turned = rotation(90.0 * quarters)(images)
    assert torch.equal(turned, torch.rot90(images, quarters, dims=(-2, -1)))


@pytest.mark.parametrize(
    "symmetry",
    [rotation(17), rotation(-140), scaling(0.7), scaling(1.6), shear(0.3), shear(-1.2)],
    ids=lambda each: each.name,
)
def test_interpolation_is_that_of_scipy(images: Tensor, symmetry: Linear) -> None:
    """The pixel at A (x, y) from the centre, linearly interpolated, the nearest of the edge outside."""
    a, b, c, d = symmetry.matrix
    by_row = np.array([[d, c], [b, a]])  # scipy has the row, y, first
    centre = np.full(2, (SIDE - 1) / 2)
    offset = centre - by_row @ centre
    found = symmetry(images)
    for image, copy in zip(images.flatten(0, 1).double(), found.flatten(0, 1), strict=True):
        expected = ndimage.affine_transform(image.numpy(), by_row, offset=offset, order=1, mode="nearest")
        assert np.abs(copy.numpy() - expected).max() <= 0.5 + 1e-3  # rounded, from float32


def test_directions() -> None:
    """What scipy cannot tell, the sign: counter-clockwise, larger above 1, leaning to the right."""
    dot = torch.zeros(1, 1, 21, 21, dtype=torch.uint8)
    dot[..., 4, 10] = 255  # above the centre
    row, column = divmod(int(rotation(30)(dot).argmax()), 21)
    assert column == 10 - 3  # sin 30 of 6
    assert row < 10
    assert int(scaling(1.5)(dot).argmax()) // 21 == 10 - 9
    assert divmod(int(shear(0.5)(dot).argmax()), 21) == (4, 10 + 3)


@pytest.mark.parametrize("degrees", [5, 8, 20, 45])
def test_there_and_back(degrees: float) -> None:
    """+a, then -a: a smooth image again, but for what interpolating twice loses.

    Linear interpolation loses at most h^2 / 8 of each second derivative, which at the peak of the blob is
    255 * 25: 4 levels of both at h = 1/20, twice, and half a level of rounding each time.
    """
    image = smooth(41)
    turned = rotation(degrees)(image)
    assert levels_apart(rotation(degrees)(turned), image) > 15  # and not +a twice
    assert levels_apart(rotation(-degrees)(turned), image) <= 9


def test_what_changes_nothing(images: Tensor) -> None:
    """Two flips, scale 1, no shift, no turn, and the identity: bit for bit."""
    for symmetry in (Identity(), scaling(1.0), shear(0.0), rotation(0.0), rotation(360.0), Shift(0, 0)):
        assert torch.equal(symmetry(images), images)
    for flip in (Flip(), Flip(vertical=True)):
        assert not torch.equal(flip(images), images)
        assert torch.equal(flip(flip(images)), images)
    assert torch.equal(Flip()(images)[..., 0], images[..., -1])
    assert torch.equal(Flip(vertical=True)(images)[..., 0, :], images[..., -1, :])


@pytest.mark.parametrize("symmetry", copies(EVERY, side=SIDE), ids=lambda each: each.name)
def test_every_symmetry_is_linear_and_treats_images_and_channels_alike(
    images: Tensor, symmetry: Symmetry
) -> None:
    """uint8 of the same shape, the images given left as they are, each plane by itself, levels added."""
    before = images.clone()
    copied = symmetry(images)
    assert torch.equal(images, before)
    assert (copied.dtype, copied.shape) == (torch.uint8, images.shape)
    for image in range(len(images)):
        for channel in range(3):
            alone = images[image : image + 1, channel : channel + 1]
            assert torch.equal(symmetry(alone), copied[image : image + 1, channel : channel + 1])
    strided = images.movedim(1, -1).contiguous().movedim(-1, 1)
    assert torch.equal(symmetry(strided), copied)
    half, rest = images // 2, images - images // 2
    assert levels_apart(symmetry(half) + symmetry(rest), copied) <= 1  # three roundings
    constant = torch.full_like(images, 77)
    assert torch.equal(symmetry(constant), constant)


def test_chunks_are_joined_in_order(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """More images than are interpolated at once, the last chunk smaller."""
    whole = rotation(12)(images)
    monkeypatch.setattr("attractor.images.symmetries._CHUNK", 4 * SIDE**2)
    assert torch.equal(rotation(12)(images), whole)
    assert rotation(12)(images[:0]).shape == (0, 3, SIDE, SIDE)


def test_descriptions() -> None:
    """The identity first, then in the order given; both signs of angles and slants, not of factors."""
    found = copies(
        ["shift 1", "rotate 5 10", "flip", "shear 0.1", "scale 0.9 1.1", "flip vertical"], side=8
    )
    assert [each.name for each in found] == [
        "identity",
        *("shift +0 -1", "shift -1 +0", "shift +1 +0", "shift +0 +1"),
        *("rotate +5", "rotate -5", "rotate +10", "rotate -10"),
        *("flip", "shear +0.1", "shear -0.1", "scale 0.9", "scale 1.1", "flip vertical"),
    ]
    assert found[5] == rotation(5)
    assert math.isclose(found[5].matrix[0], math.cos(math.pi / 36))
    around = {(each.right, each.down) for each in copies(["shift 2 diagonal"], side=8)[1:]}
    assert around == {(x, y) for x in (-2, 0, 2) for y in (-2, 0, 2)} - {(0, 0)}
    assert len(copies(["shift 1 2"], side=8)) == 9
    assert len(copies(["rotate 180"], side=8)) == 2
    assert copies([], side=8) == [Identity()]


@pytest.mark.parametrize(
    ("descriptions", "message"),
    [
        (["turn 5"], r"'turn 5' is no symmetry; use 'shift 1'"),
        ([""], "'' is no symmetry"),
        (["identity"], "is no symmetry"),
        (["rotate"], "lacks an amount, above 0, at most 180"),
        (["shift diagonal"], "lacks an amount"),
        (["scale"], "lacks an amount, 0.1 to 10"),
        (["rotate five"], "'five', which is no number"),
        (["shift 1 diagonally"], "'diagonally', which is no number"),
        (["rotate nan"], "has nan; use amounts above 0"),
        (["shear inf"], "has inf; use amounts above 0"),
        (["rotate 0"], "has 0; use amounts above 0, at most 180"),
        (["rotate 181"], "has 181"),
        (["rotate -5"], "has -5"),
        (["shift 8"], "has 8; use amounts above 0, at most 7"),
        (["shift 0"], "has 0"),
        (["shift 1.5"], "whole pixels, 1 to 7"),
        (["scale 0"], "has 0; use amounts 0.1 to 10"),
        (["scale -1"], "has -1"),
        (["scale 1"], "changes nothing"),
        (["flip 3"], "use 'flip' or 'flip vertical'"),
        (["flip", "flip"], "'flip' makes the copy 'flip' a second time"),
        (
            ["shift 1", "shift 1 diagonal"],
            "'shift 1 diagonal' makes the copy 'shift [+]0 -1' a second time",
        ),
        (["rotate 5", "rotate 10 5.0"], "a second time"),
    ],
)
def test_descriptions_that_are_refused(descriptions: list[str], message: str) -> None:
    """One sentence: what was given, what is allowed."""
    with pytest.raises(ValueError, match=message) as caught:
        copies(descriptions, side=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("symmetry", copies(EVERY, side=SIDE)[::4], ids=lambda each: each.name)
def test_images_that_are_refused(images: Tensor, symmetry: Symmetry) -> None:
    """Pixels, one image without its axis, and oblongs, with their type and shape."""
    for bad, message in (
        (images.float(), "float32"),
        (images[0], r"\(3, 9, 9\)"),
        (images[..., :8], r"\(5, 3, 9, 8\), expected torch.uint8 \(M, C, H, W\) with H = W"),
    ):
        with pytest.raises(ValueError, match=message):
            symmetry(bad)
