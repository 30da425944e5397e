"""Linear regression against numpy's solver and scikit-learn's least squares."""

import numpy as np
import pytest
import torch
from sklearn import linear_model

from attractor.baselines import LinearRegression, regression
from attractor.images import Corrupted, Denoise, Masked, synthetic, to_pixels, token_mask_to_pixels

SPLITS = synthetic(side=6, channels=2, train=400, test=7)
TEST = to_pixels(SPLITS.test, torch.float64)


def test_masked_pixels_are_the_gaussian_conditional() -> None:
    """mu_m + C_mv C_vv^-1 (y_v - mu_v) by numpy.linalg.solve: the solver works on L_mm instead.

    A sign, a ridge on one block only, or masked zeros leaking in as pixels would differ.
    """
    model = LinearRegression(SPLITS.train, ridge=0.01)
    corrupted = Masked(patch=2).corrupt(TEST, range(len(TEST)), seed=0)
    (prediction,) = model.reconstruct(corrupted)
    assert corrupted.pixel_mask is not None
    data = SPLITS.train.flatten(1).double().numpy() / 255
    mean, covariance = data.mean(0), np.cov(data.T, bias=True) + 0.01 * np.eye(data.shape[1])
    for image, mask, predicted in zip(TEST, corrupted.pixel_mask, prediction, strict=True):
        m = mask.expand_as(image).flatten().numpy()
        y = image.flatten().numpy()
        pull = np.linalg.solve(covariance[np.ix_(~m, ~m)], y[~m] - mean[~m])
        expected = mean[m] + covariance[np.ix_(m, ~m)] @ pull
        # 1e-9: the condition of the covariance is about 1e3, its inverse is formed
        np.testing.assert_allclose(predicted.flatten()[m], expected, atol=1e-9)
        np.testing.assert_array_equal(predicted.flatten()[~m], y[~m])


def test_every_image_has_its_own_mask() -> None:
    """Masks of different sizes in one batch, and none at all, as one's own images may have."""
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[0, :4] = True
    mask[1, 8] = True
    pixel_mask = token_mask_to_pixels(mask, patch=2)
    images = TEST[:3]
    batch = Corrupted("masked", images, images.masked_fill(pixel_mask, 0), mask, pixel_mask)
    model = LinearRegression(SPLITS.train)
    (together,) = model.reconstruct(batch)
    for i in range(3):
        part = slice(i, i + 1)
        single = Corrupted("masked", images[part], batch.corrupted[part], mask[part], pixel_mask[part])
        torch.testing.assert_close(next(model.reconstruct(single)), together[part])
    assert torch.equal(together[2], images[2])


def test_denoising_is_ordinary_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn's OLS with intercept, on the same noise; chunks of 100 make no difference."""
    monkeypatch.setattr(regression, "_NOISY_IMAGES", 1)  # one draw
    denoise = Denoise(0.2)
    corrupted = denoise.corrupt(TEST, range(len(TEST)), seed=0)
    clean = to_pixels(SPLITS.train, torch.float64)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    oracle = linear_model.LinearRegression()
    oracle.fit(denoise.add_noise(clean, noise.double()).flatten(1).numpy(), clean.flatten(1).numpy())
    expected = torch.from_numpy(oracle.predict(corrupted.corrupted.flatten(1).numpy()))
    for chunk in (4096, 100):
        monkeypatch.setattr(regression, "_CHUNK", chunk)
        model = LinearRegression(SPLITS.train, denoise=denoise, seed=5)
        (prediction,) = model.reconstruct(corrupted)
        torch.testing.assert_close(prediction.flatten(1), expected, rtol=0, atol=1e-9)


def test_a_small_training_set_is_seen_under_many_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three draws of noise for each image are three times the data; one alone weakens the reference."""
    train = SPLITS.train[:100]
    monkeypatch.setattr(regression, "_NOISY_IMAGES", 300)
    weight, _ = LinearRegression(train, seed=1).least_squares
    clean = to_pixels(train, torch.float64)
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(clean.shape, generator=generator).double() for _ in range(3)]
    noisy = torch.cat([Denoise().add_noise(clean, noise).flatten(1) for noise in draws])
    oracle = linear_model.LinearRegression().fit(noisy.numpy(), clean.flatten(1).repeat(3, 1).numpy())
    np.testing.assert_allclose(weight.numpy().T, oracle.coef_, atol=1e-9)


def test_fewer_images_than_pixels_give_the_shortest_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 images of 72 pixels: the covariance is singular, and OLS is the one of least norm."""
    monkeypatch.setattr(regression, "_NOISY_IMAGES", 1)
    train = SPLITS.train[:40]
    model = LinearRegression(train, seed=1)
    weight, _ = model.least_squares
    clean = to_pixels(train, torch.float64)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    noisy = Denoise().add_noise(clean, noise.double()).flatten(1).numpy()
    oracle = linear_model.LinearRegression().fit(noisy, clean.flatten(1).numpy())
    # 1e-7: the covariance squares the condition of the data
    np.testing.assert_allclose(weight.numpy().T, oracle.coef_, atol=1e-7)


def test_single_precision_images_are_solved_in_double() -> None:
    """float32 in, float32 out, and the prediction is that of float64 to its rounding."""
    model = LinearRegression(SPLITS.train)
    for task in (Masked(patch=2), Denoise()):
        corrupted = task.corrupt(TEST.float(), range(len(TEST)), seed=0)
        mask = {"mask": corrupted.mask, "pixel_mask": corrupted.pixel_mask}
        double = Corrupted(task.name, TEST, corrupted.corrupted.double(), **mask)
        (single,), (exact,) = model.reconstruct(corrupted), model.reconstruct(double)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single, exact.float())


def test_regression_does_not_see_the_original() -> None:
    """Predictions depend on what is seen alone, whatever the masked pixels hold."""
    model = LinearRegression(SPLITS.train)
    corrupted = Masked(patch=2).corrupt(TEST, range(len(TEST)), seed=0)
    assert corrupted.pixel_mask is not None
    other = Corrupted(
        "masked",
        1 - TEST,
        corrupted.corrupted.masked_fill(corrupted.pixel_mask, 9),
        corrupted.mask,
        corrupted.pixel_mask,
    )
    first, second = next(model.reconstruct(corrupted)), next(model.reconstruct(other))
    scored = corrupted.pixel_mask.expand_as(first)
    assert torch.equal(first[scored], second[scored])


def test_ridge_must_be_positive() -> None:
    """MNIST has pixels that are always black: without a ridge the covariance is singular."""
    with pytest.raises(ValueError, match="ridge"):
        LinearRegression(SPLITS.train, ridge=0)
