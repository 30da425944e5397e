"""The training mean: what is known of an image before seeing it."""

from collections.abc import Iterator

from torch import Tensor

from attractor.images import Corrupted, pixel_mean


class TrainingMean:
    """Predicts the mean training image, whatever is seen."""

    def __init__(self, train: Tensor) -> None:
        """`train` is uint8 (P, C, H, W)."""
        self.mean = pixel_mean(train)  # (C, H, W)

    def reconstruct(self, corrupted: Corrupted) -> Iterator[Tensor]:
        """See `images.Reconstructor`; one shot."""
        yield self.mean.to(corrupted.corrupted).expand_as(corrupted.corrupted)
