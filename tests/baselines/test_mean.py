"""The training mean, whatever the corruption."""

import torch

from attractor.baselines import TrainingMean
from attractor.images import Denoise, Masked, synthetic, to_pixels


def test_prediction_is_the_mean_of_training_images_alone() -> None:
    """In the images' type and shape, for both tasks; its denoising error is a variance plus a bias."""
    splits = synthetic(side=6, channels=2, train=90, test=5)
    images = to_pixels(splits.test, torch.float64)
    mean = splits.train.double().mean(0) / 255
    for task in (Masked(patch=2), Denoise()):
        corrupted = task.corrupt(images, range(5), seed=0)
        (prediction,) = TrainingMean(splits.train).reconstruct(corrupted)
        assert prediction.dtype == torch.float64
        torch.testing.assert_close(prediction, mean.expand(5, -1, -1, -1), rtol=1e-6, atol=0)
    error = corrupted.squared_error(prediction)
    torch.testing.assert_close(error, (images - mean).pow(2).mean((1, 2, 3)), rtol=1e-5, atol=0)
