"""Images: where they come from, how they become tokens, how they are corrupted and scored.

Pixels are in [0, 1] everywhere but in the stored data sets, which are uint8.
"""

from attractor.images.datasets import (
    DATASETS,
    check_images,
    load,
    pixel_mean,
    synthetic,
    to_pixels,
)
from attractor.images.patches import (
    Encoding,
    PhaseEncoding,
    PixelEncoding,
    from_patches,
    grid_side,
    squared_distances,
    to_patches,
    token_mask_to_pixels,
)
from attractor.images.splits import DataError, ImageSplits, Loader
from attractor.images.tasks import Corrupted, Denoise, Masked, Reconstructor, Task

__all__ = [
    "DATASETS",
    "Corrupted",
    "DataError",
    "Denoise",
    "Encoding",
    "ImageSplits",
    "Loader",
    "Masked",
    "PhaseEncoding",
    "PixelEncoding",
    "Reconstructor",
    "Task",
    "check_images",
    "from_patches",
    "grid_side",
    "load",
    "pixel_mean",
    "squared_distances",
    "synthetic",
    "to_patches",
    "to_pixels",
    "token_mask_to_pixels",
]
