"""Colour crops of scikit-learn's two sample photographs, as a .npz file for data=npz.

    uv run scripts/photographs.py FILE [--side 16] [--count 4000] [--seed 0] [--from-right]
    uv run train.py data=npz data.root=FILE

china.jpg and flower.jpg are 427 x 640 pixels. The left three fifths of each are cut for training, the next
fifth for validation, the last one for tests: no pixel is in crops of two kinds. Of COUNT crops 80 % are for
training and 10 % each for the others, half of them from each photograph; none is there twice, but crops of
one kind may overlap. With --from-right the photographs are cut from their right ends, mirrored.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_images

REGIONS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}  # of the width
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}  # of the crops


def crops(photograph: np.ndarray, *, side: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` different squares (count, side, side, C) of a photograph (H, W, C).

    Raises ValueError for more crops than there are.
    """
    views = np.lib.stride_tricks.sliding_window_view(photograph, (side, side), axis=(0, 1))
    rows, columns = views.shape[:2]  # (rows, columns, C, side, side)
    if count > rows * columns:
        raise ValueError(
            f"{count} crops of side {side} are wanted, the region has {rows * columns}; use fewer"
        )
    chosen = generator.choice(rows * columns, count, replace=False)
    return np.moveaxis(views[chosen // columns, chosen % columns], 1, -1)


def splits(*, side: int, count: int, seed: int, from_right: bool = False) -> dict[str, np.ndarray]:
    """train, validation and test: uint8 (P, side, side, 3). ValueError for sizes that cannot be cut."""
    if count < 20 or count % 20:
        raise ValueError(f"count is {count}; it must be a multiple of 20, for shares of 80, 10 and 10 %")
    generator = np.random.default_rng(seed)
    photographs = [image[:, ::-1] if from_right else image for image in load_sample_images().images]
    regions = {
        name: [p[:, round(left * p.shape[1]) : round(right * p.shape[1])] for p in photographs]
        for name, (left, right) in REGIONS.items()
    }
    largest = min(min(region.shape[:2]) for parts in regions.values() for region in parts)
    if not 0 < side <= largest:
        raise ValueError(f"side is {side}; the regions of the photographs allow 1 to {largest}")
    found = {}
    for name, parts in regions.items():
        each = round(count * SHARES[name]) // len(parts)
        cut = [crops(region, side=side, count=each, generator=generator) for region in parts]
        found[name] = np.concatenate(cut)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Write the file; 2 for sizes that cannot be cut, or a file that is no .npz or is there already."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="what is written, a .npz")
    parser.add_argument("--side", type=int, default=16, help="of a crop, pixels")
    parser.add_argument("--count", type=int, default=4000, help="of crops, in all")
    parser.add_argument("--seed", type=int, default=0, help="of their places")
    parser.add_argument("--from-right", action="store_true", help="mirrored: other regions for each kind")
    given = parser.parse_args(arguments)
    path = given.file.expanduser()
    if path.suffix != ".npz" or path.exists():
        parser.error(f"{path} exists or is no .npz; give a new file that ends in .npz")
    try:
        found = splits(side=given.side, count=given.count, seed=given.seed, from_right=given.from_right)
        np.savez_compressed(path, **found)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{path}: {', '.join(f'{name} {images.shape}' for name, images in found.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
