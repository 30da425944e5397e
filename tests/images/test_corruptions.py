"""Corruptions and scores: independent of the batch, of the device's dtype and of what is not masked."""

import math

import pytest
import torch

from attractor.images import Corrupted, Denoise, Masked, Task, to_patches

TASKS: list[Task] = [Masked(patch=2), Denoise()]


def pixels(count: int, *, channels: int = 1, side: int = 8) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_draws_do_not_depend_on_the_batch(task: Task) -> None:
    """Image 5 is corrupted alike alone, in a batch, in another order and in float64."""
    images = pixels(8)
    together = task.corrupt(images, range(8), seed=3)
    alone = task.corrupt(images[5:6], [5], seed=3)
    backwards = task.corrupt(images.flip(0).double(), range(7, -1, -1), seed=3)
    assert together.task == task.name
    assert torch.equal(together.original, images)
    assert torch.equal(alone.corrupted[0], together.corrupted[5])
    assert backwards.corrupted.dtype == torch.float64
    torch.testing.assert_close(backwards.corrupted.flip(0).float(), together.corrupted)
    if together.mask is not None and alone.mask is not None:
        assert torch.equal(alone.mask[0], together.mask[5])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_draws_depend_on_seed_and_image(task: Task) -> None:
    """Equal images get different corruptions, as do different seeds; the caller's images stay."""
    images = pixels(1).expand(2, -1, -1, -1)
    before = images.clone()
    first, second = task.corrupt(images, [0, 1], seed=0).corrupted
    other = task.corrupt(images, [0, 1], seed=1).corrupted[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


def test_draws_do_not_touch_the_global_generator() -> None:
    """Corrupting a test image must not change the training that follows."""
    before = torch.get_rng_state()
    for task in TASKS:
        task.corrupt(pixels(2), [0, 1], seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("patch", "masked"), [(1, 19), (2, 5), (4, 1)])
def test_masked_hides_the_rounded_fraction(patch: int, masked: int) -> None:
    """round(0.3 N) tokens of 64, 16 and 4, whole patches, in every image; the rest stays."""
    images = pixels(6, channels=3) + 0.1
    corrupted = Masked(patch=patch).corrupt(images, range(6), seed=0)
    assert corrupted.mask is not None
    assert corrupted.pixel_mask is not None
    assert corrupted.mask.dtype == torch.bool
    assert corrupted.mask.sum(1).tolist() == [masked] * 6
    hidden = to_patches(corrupted.corrupted, patch=patch) == 0
    assert torch.equal(hidden, corrupted.mask.unsqueeze(-1).expand_as(hidden))
    assert torch.equal(corrupted.corrupted == 0, corrupted.pixel_mask.expand_as(images))
    assert torch.equal(corrupted.corrupted, images * ~corrupted.pixel_mask)


def test_every_token_is_masked_equally_often() -> None:
    """Drawn uniformly: 0.25 of 4,000 draws for each of 16 tokens, within 5 standard errors (0.034)."""
    images = torch.zeros(1, 1, 4, 4).expand(4000, -1, -1, -1)
    mask = Masked(0.25, patch=1).corrupt(images, range(4000), seed=0).mask
    assert mask is not None
    torch.testing.assert_close(mask.float().mean(0), torch.full((16,), 0.25), rtol=0, atol=0.034)


def test_noise_has_the_variance_asked_for() -> None:
    """`variance` is no standard deviation: at 0.01 and mid-grey nothing is clipped, and it is seen."""
    grey = torch.full((400, 1, 8, 8), 0.5, dtype=torch.float64)
    noise = Denoise(0.01).corrupt(grey, range(400), seed=0).corrupted - grey
    # 25,600 pixels: the standard error of the variance is 0.9 %
    assert noise.var().item() == pytest.approx(0.01, rel=0.04)
    assert abs(noise.mean().item()) < 0.003


def test_noisy_pixels_are_clipped() -> None:
    """Black with the noise of variance 0.7: half at 0, Phi(-1/sqrt 0.7) = 0.116 at 1."""
    black = torch.zeros(400, 1, 8, 8)
    noisy = Denoise().corrupt(black, range(400), seed=0).corrupted
    tail = 0.5 * math.erfc(1 / math.sqrt(2 * 0.7))
    assert (noisy == 0).double().mean().item() == pytest.approx(0.5, abs=0.016)
    assert (noisy == 1).double().mean().item() == pytest.approx(tail, abs=0.01)


def test_error_is_the_mean_over_masked_pixels_alone() -> None:
    """Brute force over pixels and channels; a NaN on a visible pixel does not count."""
    images = pixels(3, channels=2)
    corrupted = Masked(patch=2).corrupt(images, range(3), seed=0)
    assert corrupted.pixel_mask is not None
    prediction = pixels(3, channels=2).flip(0) * 1.6 - 0.3
    errors = corrupted.squared_error(torch.where(corrupted.pixel_mask, prediction, math.nan))
    assert errors.dtype == torch.float64
    for image, error in enumerate(errors.tolist()):
        squares = [
            (min(max(prediction[image, c, y, x].item(), 0), 1) - images[image, c, y, x].item()) ** 2
            for c in range(2)
            for y in range(8)
            for x in range(8)
            if corrupted.pixel_mask[image, 0, y, x]
        ]
        assert len(squares) == 5 * 4 * 2
        assert error == pytest.approx(sum(squares) / len(squares), rel=1e-12)


def test_error_without_a_mask_is_the_mean_over_all_pixels() -> None:
    """The clipped prediction against the original, not against the corrupted image."""
    images = pixels(3)
    corrupted = Denoise().corrupt(images, range(3), seed=0)
    torch.testing.assert_close(corrupted.squared_error(images), torch.zeros(3).double())
    beyond = corrupted.squared_error(torch.full_like(images, 7))
    torch.testing.assert_close(beyond, ((1 - images.double()) ** 2).mean((1, 2, 3)))


def test_error_of_a_broadcast_shape_is_refused() -> None:
    """A prediction (1, C, H, W) would broadcast and score the wrong images."""
    images = pixels(3)
    corrupted = Corrupted("denoise", images, images)
    with pytest.raises(ValueError, match=r"\(1, 1, 8, 8\).*\(3, 1, 8, 8\)"):
        corrupted.squared_error(images[:1])


@pytest.mark.parametrize("fraction", [0.0, 0.03, 0.98, 1.0, 1.5, -0.2, math.nan])
def test_masks_of_nothing_or_everything_are_refused(fraction: float) -> None:
    """With no token masked there is nothing to score; with none visible, nothing to see."""
    with pytest.raises(ValueError, match="16 tokens"):
        Masked(fraction, patch=2).corrupt(pixels(1), [0], seed=0)


@pytest.mark.parametrize("variance", [0.0, -0.7, math.nan, math.inf])
def test_noise_of_no_variance_is_refused(variance: float) -> None:
    """Before any work is done."""
    with pytest.raises(ValueError, match="variance"):
        Denoise(variance)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_bytes_and_missing_indices_are_refused(task: Task) -> None:
    """uint8 images would be noised in units of 1/255; too few indices would leave images clean."""
    with pytest.raises(ValueError, match="uint8"):
        task.corrupt((pixels(1) * 255).to(torch.uint8), [0], seed=0)
    with pytest.raises(ValueError, match="1 indices"):
        task.corrupt(pixels(2), [0], seed=0)
