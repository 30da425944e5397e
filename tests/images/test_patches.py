"""Patches and encodings against closed forms and round trips."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attractor.images import (
    PhaseEncoding,
    PixelEncoding,
    from_patches,
    to_patches,
    token_mask_to_pixels,
)


def pixels(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


geometry = st.tuples(*(st.integers(1, 4) for _ in range(4)))  # images, channels, grid, patch


@given(geometry)
def test_patches_hold_the_pixels_of_their_square(shape: tuple[int, int, int, int]) -> None:
    """Token (r, c) is the square of patch r, c, row by row, channels last: else masks miss their pixels."""
    batch, channels, grid, patch = shape
    images = pixels(batch, channels, grid * patch, grid * patch)
    patches = to_patches(images, patch=patch)
    for row in range(grid):
        for column in range(grid):
            square = images[:, :, row * patch :, column * patch :][:, :, :patch, :patch]
            expected = square.movedim(1, -1).flatten(1)
            assert torch.equal(patches[:, row * grid + column], expected)
    assert torch.equal(from_patches(patches, patch=patch), images)


@given(geometry, st.floats(0.01, 1.0), st.booleans())
def test_phase_round_trips(shape: tuple[int, int, int, int], span: float, projected: bool) -> None:
    """decode(encode(p)) = p and encode(decode(x)) = x, to rounding; a lost scale or order breaks both.

    Angles of span 0.01 keep 14 of their 16 digits, hence 1e-12.
    """
    batch, channels, grid, patch = shape
    encoding = PhaseEncoding(
        channels,
        grid * patch,
        patch=patch,
        span=span,
        projection_dim=2 * patch * patch * channels + 3 if projected else None,
        generator=torch.Generator().manual_seed(1),
    )
    images = pixels(batch, channels, grid * patch, grid * patch)
    tokens = encoding.encode(images)
    assert tokens.shape == (batch, encoding.tokens, encoding.dim)
    decoded = encoding.decode(tokens)
    torch.testing.assert_close(decoded, images, rtol=0, atol=1e-12)
    torch.testing.assert_close(encoding.encode(decoded), tokens, rtol=0, atol=1e-12)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones_like(tokens[..., 0]))


def test_phase_round_trip_in_float32() -> None:
    """Black and white survive in single precision, where the angle has an error of about 1e-7."""
    encoding = PhaseEncoding(3, 8, patch=2)
    images = pixels(5, 3, 8, 8, dtype=torch.float32).round(decimals=1)
    assert encoding.encode(images).dtype == torch.float32
    torch.testing.assert_close(encoding.decode(encoding.encode(images)), images, rtol=0, atol=1e-6)


def test_phase_components_are_adjacent_circles() -> None:
    """Components 2k, 2k+1 are (cos, sin)(pi span p_k)/sqrt K: Circles(K) reads them so."""
    encoding = PhaseEncoding(2, 4, patch=2, span=0.7)
    images = pixels(3, 2, 4, 4)
    angles = to_patches(images, patch=2) * 0.7 * math.pi
    circles = encoding.encode(images).unflatten(-1, (8, 2)) * math.sqrt(8)
    torch.testing.assert_close(circles[..., 0], angles.cos())
    torch.testing.assert_close(circles[..., 1], angles.sin())


@pytest.mark.parametrize("span", [0.25, 0.5, 1.0])
def test_angles_off_the_arc_go_to_the_nearer_end(span: float) -> None:
    """Every angle of the circle decodes to the pixel of the nearest point of the arc, by brute force."""
    encoding = PhaseEncoding(1, 1, patch=1, span=span)
    angles = torch.linspace(-math.pi, math.pi, 2003, dtype=torch.float64)[1:-1]
    # at this angle both ends are equally near
    angles = angles[((angles - math.pi * (span / 2 - 1)).abs() > 1e-9)]
    tokens = torch.stack((angles.cos(), angles.sin()), -1).unsqueeze(1) * 0.37
    arc = torch.linspace(0, 1, 2001, dtype=torch.float64)
    points = torch.polar(torch.ones_like(arc), arc * span * math.pi)
    nearest = (torch.view_as_complex(tokens.contiguous()) - 0.37 * points).abs().argmin(-1)
    decoded = encoding.decode(tokens).flatten()
    torch.testing.assert_close(decoded, arc[nearest], rtol=0, atol=1 / 2000)
    outside = decoded[(angles < -1e-9) | (angles > span * math.pi + 1e-9)]
    assert set(outside.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("projection_dim", [None, 40])
def test_zero_vectors_decode_to_the_training_mean(projection_dim: int | None) -> None:
    """A token without information is its mean, not black: decoding atan2(0, 0) = 0 would say black."""
    mean = pixels(2, 6, 6, seed=3)
    generator = torch.Generator().manual_seed(0)
    encoding = PhaseEncoding(2, 6, patch=3, mean=mean, projection_dim=projection_dim, generator=generator)
    images = pixels(1, 2, 6, 6)
    tokens = encoding.encode(images)
    tokens[0, 2] = 0
    decoded = encoding.decode(tokens)
    torch.testing.assert_close(decoded[0, :, 3:, :3], mean[:, 3:, :3])
    torch.testing.assert_close(decoded[0, :, :3], images[0, :, :3])
    blank = PhaseEncoding(1, 2, patch=2).decode(torch.zeros(1, 1, 8))
    assert torch.equal(blank, torch.full((1, 1, 2, 2), 0.5))


def test_zero_circle_decodes_to_the_mean_of_its_pixel() -> None:
    """Within a token, only the pixel whose 2-vector is zero falls back on its mean."""
    mean = pixels(1, 2, 2, seed=3)
    encoding = PhaseEncoding(1, 2, patch=2, mean=mean)
    images = pixels(1, 1, 2, 2)
    tokens = encoding.encode(images)
    tokens[0, 0, 4:6] = 0
    expected = images.clone()
    expected[0, 0, 1, 0] = mean[0, 1, 0]
    torch.testing.assert_close(encoding.decode(tokens), expected)


def test_vectors_on_an_axis_are_no_zero_vectors() -> None:
    """(1, 0) is black and (0, 1) white at span 0.5, exactly, not the mean of their pixel."""
    encoding = PhaseEncoding(1, 1, patch=1, mean=torch.full((1, 1, 1), 0.3))
    tokens = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert encoding.decode(tokens).flatten().tolist() == [0, 1]


def test_nan_tokens_stay_nan() -> None:
    """A diverged state must not decode to a picture."""
    tokens = torch.full((1, 1, 8), math.nan)
    assert PhaseEncoding(1, 2, patch=2).decode(tokens).isnan().all()


def test_pixels_beyond_white_are_not_clipped_by_encoding() -> None:
    """Jitter leaves the arc a little; clipped, it would be biased at black and white."""
    encoding = PhaseEncoding(1, 1, patch=1)
    token = encoding.encode(torch.tensor([[[[1.1]]]], dtype=torch.float64))
    torch.testing.assert_close(torch.atan2(token[..., 1], token[..., 0]).item(), 0.55 * math.pi)
    assert encoding.decode(token) == 1


@pytest.mark.parametrize("dim", [5, 8, 13])
def test_projection_is_semi_orthogonal_and_drawn_from_its_generator(dim: int) -> None:
    """F^T F = I or F F^T = I, so that F^T is the pseudo-inverse; the same seed gives the same F."""
    first, second = (
        PhaseEncoding(1, 4, patch=2, projection_dim=dim, generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert first.projection is not None
    assert second.projection is not None
    assert torch.equal(first.projection, second.projection)
    torch.testing.assert_close(first.projection.T, torch.linalg.pinv(first.projection))
    tokens = first.encode(pixels(2, 1, 4, 4))
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2, 4, dtype=torch.float64))


def test_narrow_projection_decodes_by_its_pseudo_inverse() -> None:
    """With D' < D decoding is lossy, but is that of the plain tokens F^+ x."""
    plain = PhaseEncoding(1, 4, patch=2)
    narrow = PhaseEncoding(1, 4, patch=2, projection_dim=5, generator=torch.Generator().manual_seed(7))
    assert narrow.projection is not None
    tokens = narrow.encode(pixels(2, 1, 4, 4))
    expected = plain.decode(tokens @ torch.linalg.pinv(narrow.projection).T)
    torch.testing.assert_close(narrow.decode(tokens), expected)


def test_pixel_encoding_is_centred_and_clips() -> None:
    """Tokens are patches of p - mean; decoding adds the mean once and stays in [0, 1]."""
    mean = pixels(2, 4, 4, seed=1)
    encoding = PixelEncoding(2, 4, patch=2, mean=mean)
    images = pixels(3, 2, 4, 4)
    tokens = encoding.encode(images)
    assert tokens.shape == (3, encoding.tokens, encoding.dim) == (3, 4, 8)
    torch.testing.assert_close(tokens, to_patches(images, patch=2) - to_patches(mean[None], patch=2))
    torch.testing.assert_close(encoding.decode(tokens), images)
    torch.testing.assert_close(encoding.decode(torch.zeros_like(tokens[:1]))[0], mean)
    assert encoding.decode(tokens + 5).max() == 1
    assert encoding.decode(tokens - 5).min() == 0


def test_masked_tokens_cover_their_pixels() -> None:
    """A mask of tokens, as pixels, covers exactly the patch of each masked token."""
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[0, 5] = True
    expected = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    expected[0, 0, 2:4, 4:6] = True
    assert torch.equal(token_mask_to_pixels(mask, patch=2), expected)


def test_patch_that_does_not_divide_the_side_names_those_that_do() -> None:
    """The message says what to use instead."""
    message = "patch size 3 does not divide image side 28; use 1, 2, 4, 7, 14 or 28"
    with pytest.raises(ValueError, match=message):
        PhaseEncoding(1, 28, patch=3)
    with pytest.raises(ValueError, match="patch size 0"):
        PixelEncoding(1, 28, patch=0, mean=torch.zeros(1, 28, 28))


@pytest.mark.parametrize("span", [0.0, -0.5, 1.01, math.nan])
def test_span_off_the_half_circle_is_refused(span: float) -> None:
    """Beyond half a circle, the nearer end of the arc is not defined by clamping."""
    with pytest.raises(ValueError, match="span"):
        PhaseEncoding(1, 4, patch=2, span=span)


def test_bad_mean_projection_and_shapes_are_refused() -> None:
    """Shapes that would broadcast silently are errors."""
    with pytest.raises(ValueError, match=r"\(4, 4\).*expected.*\(1, 4, 4\)"):
        PhaseEncoding(1, 4, patch=2, mean=torch.zeros(4, 4))
    with pytest.raises(ValueError, match="mean"):
        PixelEncoding(1, 4, patch=2, mean=torch.full((1, 4, 4), math.nan))
    with pytest.raises(ValueError, match="generator"):
        PhaseEncoding(1, 4, patch=2, projection_dim=9)
    with pytest.raises(ValueError, match="H = W"):
        to_patches(torch.zeros(1, 1, 4, 6), patch=2)
    with pytest.raises(ValueError, match="square number"):
        from_patches(torch.zeros(1, 3, 4), patch=2)
