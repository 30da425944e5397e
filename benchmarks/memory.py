"""What an image costs that a memory answers, in milliseconds and as a share of the rate of matrix products.

    uv run benchmarks/memory.py data.root=DIR [eval.images=N]

MNIST's 59,000 training images and the copies of experiment=memory_mnist, one thread, in one process. The
readings are those that validation chose for docs/beyond.md. Operations are those of the products and
solves that the equations ask for, of every iteration: the search over the stored images, the scores of
candidates and copies, moments, covariance and the factorisation of each token's system. Gathering the
patterns, exponentials and sorting are not counted, and take their time. The rate of matrix products is that
of 1024 x 1024 ones, measured between the images. Memory is the peak of the process, libraries included.
"""

import math
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from measure import gemm, table

from attractor.images import (
    Corrupted,
    Denoise,
    ImageSplits,
    Masked,
    PixelEncoding,
    Task,
    load,
    pixel_mean,
    to_patches,
    to_pixels,
)
from attractor.lab.experiment.assessment import peak_memory
from attractor.lab.experiment.memory_network import Answers, MemoryNetwork
from attractor.lab.experiment.recollection import Heads, Recollection
from attractor.lab.show import command

COPIES = ["shift 1 diagonal", "rotate 4 8 12", "shear 0.15", "scale 0.92 1.08"]
MASKED = (
    Recollection(neighbours=1000, reach=2.0, window=128, shrinkage=0.03),
    Recollection(neighbours=1000),
)
FINE = (Recollection(neighbours=400, reach=1.5, window=96),)
NOISY = (
    Recollection(
        neighbours=500,
        inverse_temperature=3.0,
        reach=4.0,
        window=160,
        pull=6.0,
        coupled=True,
        common=2,
        limit=3,
    ),
    Recollection(neighbours=2000, inverse_temperature=0.35, relative=False, softening=float("inf")),
)
CASES: dict[str, tuple[Task, int, tuple[Recollection, ...]]] = {  # task, grain, heads
    "masked, 4x4": (Masked(patch=4), 2, MASKED),
    "masked, 2x2": (Masked(patch=2), 2, FINE),
    "denoise": (Denoise(0.7), 4, NOISY),
}


def empty(splits: ImageSplits, *, grain: int, copies: Sequence[str] = COPIES) -> MemoryNetwork:
    """A memory that has stored nothing yet, as experiment=memory_mnist makes it."""
    encoding = PixelEncoding(1, splits.side, patch=4, mean=pixel_mean(splits.train))
    return MemoryNetwork(
        encoding, descriptions=[*copies], grain=grain, candidates=500, device=torch.device("cpu")
    )


def searching(network: MemoryNetwork) -> float:
    """Floating-point operations of the search for an image: h . m and P . m^2 of all stored images."""
    return 4.0 * network.patterns.count * network.patterns.components


def operations(network: MemoryNetwork, reading: Recollection, corrupted: Corrupted) -> float:
    """Floating-point operations of a head for an image of the batch, in the mean over it."""
    memory, tokens = network.patterns, network.patterns.tokens
    pixels, dim = memory.components, memory.dim
    asked = float(tokens)
    if corrupted.pixel_mask is not None:
        hidden = to_patches(corrupted.pixel_mask.expand_as(corrupted.original), patch=network.grain)
        asked = float(hidden.any(2).sum(1).double().mean())
    rows, total = network.compared * memory.copies, 0.0
    for t in range(1, reading.limit + 1):
        attention = network.attention(reading, t)
        assert attention.neighbours is not None
        groups = 1 if attention.reach is None else asked  # with one attention there is one system
        size = pixels if attention.reach is None else (attention.window or pixels) + dim
        k = attention.neighbours
        total += groups * 2 * rows * pixels  # scores
        total += groups * 4 * k * size  # mean and deviations
        if attention.softening == float("inf"):
            continue  # no response
        smaller = size if attention.shrinkage else min(k, size)
        total += groups * (2 * k * size * smaller + smaller**3 / 3)
    return total


def main(arguments: list[str]) -> None:
    """Answer some test images of each case, one batch after the other."""
    given = command.overrides(arguments, __doc__)
    torch.set_num_threads(1)
    images = int(given.pop("eval.images", 50))
    splits = load("mnist", root=given.pop("data.root", "data"))
    if given:
        sys.exit(f"error: {', '.join(given)} is not for this benchmark; see --help")
    product = gemm()
    rows = []
    for name, (task, grain, readings) in CASES.items():
        coefficients = math.comb(len(readings) + 3, 3)  # of a readout of degree 3; its values cost nothing
        heads = Heads(readings, 3, (0.0,) * coefficients)
        network = empty(splits, grain=grain)
        begin = time.perf_counter()
        network.store(splits.train)
        stored = time.perf_counter() - begin
        seconds, products = [], []
        for start in range(0, images, 10):
            pixels = to_pixels(splits.test[start : start + 10])
            corrupted = task.corrupt(pixels, range(start, start + len(pixels)), seed=0)
            begin = time.perf_counter()
            Answers(network, corrupted).at(heads, heads.limit)
            middle = time.perf_counter()
            for _ in range(5):
                product()
            seconds.append((middle - begin) / len(pixels))
            products.append((time.perf_counter() - middle) / 5)
        image, rate = statistics.median(seconds), 2 * 1024**3 / statistics.median(products)
        count = searching(network) + sum(operations(network, each, corrupted) for each in readings)
        rows.append(
            [
                name,
                f"{1e3 * image:.0f}",
                f"{count / 1e9:.1f}",
                f"{count / image / 1e9:.0f}",
                f"{rate / 1e9:.0f}",
                f"{count / image / rate:.0%}",
                f"{stored:.0f}",
                f"{peak_memory() / 1e3:.2f}",
            ]
        )
    header = [
        "",
        "ms an image",
        "10^9 operations",
        "10^9/s",
        "of products",
        "share",
        "s to store",
        "peak GB",
    ]
    table(header, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
