"""Images to tokens and back: patches of pixels, as unit vectors or as raw numbers.

The N = (side / patch)^2 tokens are numbered row by row over the image, and the K = patch^2 C pixels
of a patch row by row, the channels of a pixel side by side.

Source: D'Amico & Negri 2024, arXiv 2409.16112. Pixels on a quarter of a circle (span = 0.5) are
decoded nearly linearly; on half a circle (span = 1) decoding a mean is a majority vote.
"""

import math
from typing import Protocol

import torch
from torch import Generator, Tensor


class Encoding(Protocol):
    """What turns pixels (B, C, H, W) into tokens (B, N, D) and back."""

    channels: int
    side: int
    patch: int
    tokens: int
    dim: int
    components: str  # what they are, for a figure
    mean: Tensor  # of the training images, (C, H, W) pixels

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, tokens: Tensor) -> Tensor: ...


class PhaseEncoding:
    """A pixel p is the unit 2-vector (cos, sin)(pi span p); the K of a patch make one unit token.

        token = (cos a_1, sin a_1, ..., cos a_K, sin a_K) / sqrt K,   a_k = pi span p_k,   D = 2K

    Components 2k and 2k+1 stay side by side, as `physics.Circles(K)` wants them. With a projection
    the token is F token / |F token|. F (D', D) is random with orthonormal columns (D' >= D) or rows
    (D' < D), so its pseudo-inverse is its transpose; D' < D loses information.

    Decoding takes the angle of each 2-vector. Outside [0, pi span] it goes to the nearer end; where
    the 2-vector is zero, and says nothing, the pixel gets its training mean.
    """

    def __init__(
        self,
        channels: int,
        side: int,
        *,
        patch: int,
        span: float = 0.5,
        mean: Tensor | None = None,
        projection_dim: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        """`mean` is the training mean (C, H, W), in pixels, or else 0.5; `projection_dim` is D'.

        Raises ValueError for a patch that does not divide the side, a span outside (0, 1], a mean
        of another shape, or a projection without the `generator` to draw it from.
        """
        if not 0 < span <= 1:
            raise ValueError(f"span is {span}; the pixel angles pi span p need 0 < span <= 1")
        self.channels, self.side, self.patch, self.span = channels, side, patch, span
        self.tokens = grid_side(side, patch=patch) ** 2
        self.circles = patch * patch * channels
        if mean is None:
            mean = torch.full((channels, side, side), 0.5)
        self.mean = _checked_mean(mean, shape=(channels, side, side))
        self._mean_patches = to_patches(self.mean.unsqueeze(0), patch=patch)  # (1, N, K)
        self.dim = 2 * self.circles
        self.projection: Tensor | None = None  # F (D', D)
        if projection_dim is not None:
            if generator is None or projection_dim < 2:
                raise ValueError(
                    f"a projection to dimension {projection_dim} needs a generator to be drawn from"
                    " and a dimension of at least 2"
                )
            self.projection = _semi_orthogonal(projection_dim, self.dim, generator=generator)
            self.dim = projection_dim
        projected = self.projection is not None
        self.components = "random projections" if projected else "cos, sin of each pixel"

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, C, H, W) to tokens (B, N, D); jittered pixels may leave the arc."""
        angles = to_patches(pixels, patch=self.patch) * (math.pi * self.span)  # (B, N, K)
        tokens = torch.stack((angles.cos(), angles.sin()), -1).flatten(-2) / math.sqrt(self.circles)
        if self.projection is None:
            return tokens
        return torch.nn.functional.normalize(tokens @ self.projection.T.to(tokens), dim=-1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) of any length to pixels (B, C, H, W) in [0, 1]."""
        if self.projection is not None:
            tokens = tokens @ self.projection.to(tokens)
        cos, sin = tokens.unflatten(-1, (self.circles, 2)).unbind(-1)
        # Turned back by half the arc, the arc lies around 0, where clamping finds the nearer end.
        # The turn also leaves contiguous operands: atan2 is six times slower on strided ones.
        half = math.pi * self.span / 2
        c, s = math.cos(half), math.sin(half)
        angles = torch.atan2(sin * c - cos * s, cos * c + sin * s)
        pixels = angles.div_(2 * half).add_(0.5).clamp_(0, 1)
        blank = (cos == 0) & (sin == 0)
        pixels = torch.where(blank, self._mean_patches.to(pixels), pixels)
        return from_patches(pixels, patch=self.patch)


class PixelEncoding:
    """A token is a patch of raw pixels less their training mean, D = K, for `physics.Gaussian`.

    Decoding adds the mean and clips to [0, 1].
    """

    def __init__(self, channels: int, side: int, *, patch: int, mean: Tensor) -> None:
        """`mean` is the training mean (C, H, W) in pixels. Raises ValueError as `PhaseEncoding`."""
        self.channels, self.side, self.patch = channels, side, patch
        self.tokens = grid_side(side, patch=patch) ** 2
        self.dim = patch * patch * channels
        self.components = "pixels"
        self.mean = _checked_mean(mean, shape=(channels, side, side))

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, C, H, W) to tokens (B, N, D)."""
        return to_patches(pixels - self.mean.to(pixels), patch=self.patch)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) to pixels (B, C, H, W) in [0, 1]."""
        return (from_patches(tokens, patch=self.patch) + self.mean.to(tokens)).clamp_(0, 1)


def grid_side(side: int, *, patch: int) -> int:
    """Patches along a side of the image. Raises ValueError unless `patch` divides `side`."""
    if patch < 1 or side % patch:
        divisors = [str(d) for d in range(1, side + 1) if side % d == 0]
        choice = " or ".join(filter(None, (", ".join(divisors[:-1]), divisors[-1])))
        raise ValueError(f"patch size {patch} does not divide image side {side}; use {choice}")
    return side // patch


def to_patches(images: Tensor, *, patch: int) -> Tensor:
    """(B, C, H, W) to (B, N, patch * patch * C)."""
    if images.dim() != 4 or images.shape[-1] != images.shape[-2]:
        raise ValueError(f"images have shape {tuple(images.shape)}, expected (B, C, H, W), H = W")
    batch, channels, side, _ = images.shape
    grid = grid_side(side, patch=patch)
    blocks = images.reshape(batch, channels, grid, patch, grid, patch)
    return blocks.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid * grid, patch * patch * channels)


def from_patches(patches: Tensor, *, patch: int) -> Tensor:
    """(B, N, patch * patch * C) to (B, C, H, W), the inverse of `to_patches`."""
    batch, tokens, dim = patches.shape
    grid, channels = math.isqrt(tokens), dim // (patch * patch)
    if grid * grid != tokens or channels * patch * patch != dim:
        raise ValueError(
            f"patches have shape {tuple(patches.shape)}, expected (B, N, {patch * patch} C) with N"
            " a square number"
        )
    blocks = patches.reshape(batch, grid, grid, patch, patch, channels)
    return blocks.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, grid * patch, grid * patch)


def squared_distances(channels: int, side: int, *, patch: int) -> Tensor:
    """From the centre of each token to each pixel, in squared pixels, (N, N K), pixels as in patches."""
    steps = torch.arange(side, dtype=torch.float32)
    places = torch.stack(torch.meshgrid(steps, steps, indexing="ij"))  # (2, H, W)
    pixels = to_patches(places[:, None].expand(-1, channels, -1, -1), patch=patch)  # (2, N, K)
    centres = pixels.mean(2)  # (2, N)
    return (pixels.flatten(1)[:, None] - centres[:, :, None]).square().sum(0)


def token_mask_to_pixels(mask: Tensor, *, patch: int) -> Tensor:
    """(B, N) to (B, 1, H, W): a pixel is masked where its token is."""
    return from_patches(mask.unsqueeze(-1).expand(-1, -1, patch * patch), patch=patch)


def _checked_mean(mean: Tensor, *, shape: tuple[int, int, int]) -> Tensor:
    if mean.shape != shape or not bool(((mean >= 0) & (mean <= 1)).all()):
        raise ValueError(
            f"mean has shape {tuple(mean.shape)} and values from {float(mean.min()):g} to"
            f" {float(mean.max()):g}, expected pixels in [0, 1] of shape (C, H, W) = {shape}"
        )
    return mean


def _semi_orthogonal(rows: int, columns: int, *, generator: Generator) -> Tensor:
    """Draw (rows, columns) with orthonormal columns, or rows if those are fewer, uniformly."""
    tall = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(tall)
    frame: Tensor = q * r.diagonal().sign()  # QR alone favours some signs
    return frame if rows >= columns else frame.T
