"""Measured transients as text and as CSV: a row for each P and set of images, means over seeds."""

import csv
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attractor.lab.experiment.network import Retrieval
from attractor.lab.experiment.numbers import deviation, with_deviation

# What is in the tables, from the entry of a set of images in results.json
Get = Callable[[dict[str, Any]], float]
TRANSIENT: dict[str, Get] = {
    "best error": lambda entry: entry["lifetime"]["error"],
    "at t": lambda entry: entry["lifetime"]["best"],
    "of the mean's": lambda entry: entry["lifetime"]["error"] / entry["baseline"]["error"],
    "lifetime": lambda entry: entry["lifetime"]["iterations"],
    "of an image": lambda entry: entry["lifetime"]["images"]["quartiles"][1],
    "error at T": lambda entry: entry["error"]["mean"][-1],
    "overlap at best": lambda entry: entry["lifetime"]["overlap"],
    "at T": lambda entry: entry["overlap"]["mean"][-1],
    "of the mean": lambda entry: entry["baseline"]["overlap"],
    "centred at best": lambda entry: entry["lifetime"]["centred"],
    "centred at T": lambda entry: entry["centred"]["mean"][-1],
}
ATTRACTORS: dict[str, Get] = {
    "distinct": lambda entry: entry["attractors"]["distinct"],
    "largest": lambda entry: entry["attractors"]["largest"],
    "fixed": lambda entry: entry["attractors"]["fixed"],
    "cycle": lambda entry: entry["attractors"]["cycle"],
    "original is nearest": lambda entry: entry["attractors"]["original_is_nearest"],
    "nearest": lambda entry: entry["attractors"]["nearest"],
    "centred": lambda entry: entry["attractors"]["nearest_centred"],
    "with original": lambda entry: entry["attractors"]["nearest_with_original"],
    "original's other": lambda entry: entry["baseline"]["nearest"],
    "nearest images": lambda entry: entry["attractors"]["nearest_images"],
}
COUNTS = {"at t", "lifetime", "of an image", "distinct", "nearest images"}


@dataclass(frozen=True)
class Row:
    """The seeds of one P and one set of images. jobs: the entries of results.json."""

    count: int  # P
    images: str  # "training" or "test"
    jobs: list[dict[str, Any]]

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [job["sets"][self.images] for job in self.jobs]

    @property
    def censored(self) -> bool:
        return any(entry["lifetime"]["censored"] for entry in self.entries)

    def mean(self, get: Get) -> float:
        return statistics.fmean(map(get, self.entries))

    def deviation(self, get: Get) -> float:
        """Over seeds, see `numbers.deviation`."""
        return deviation(list(map(get, self.entries)))


def rows(results: dict[str, Any]) -> list[Row]:
    """By P, training images before test images."""
    found: dict[int, list[dict[str, Any]]] = {}
    for job in results["jobs"].values():
        found.setdefault(job["train_images"], []).append(job)
    return [Row(count, images, found[count]) for count in sorted(found) for images in ("training", "test")]


# What training images have more of than test images: mean of an entry, and its deviation over images
GAPS: dict[str, Callable[[dict[str, Any]], tuple[float, float]]] = {
    "error, of the mean's": lambda entry: (
        entry["lifetime"]["error"] / entry["baseline"]["error"],
        entry["lifetime"]["error_std"] / entry["baseline"]["error"],
    ),
    "centred overlap at best": lambda entry: (
        entry["lifetime"]["centred"],
        entry["lifetime"]["centred_std"],
    ),
    "at T": lambda entry: (entry["centred"]["mean"][-1], entry["centred"]["std"][-1]),
    "original is nearest": lambda entry: (
        entry["attractors"]["original_is_nearest"],
        math.sqrt(
            entry["attractors"]["original_is_nearest"] * (1 - entry["attractors"]["original_is_nearest"])
        ),
    ),
}


def gap(
    training: Row, test: Row, get: Callable[[dict[str, Any]], tuple[float, float]]
) -> tuple[float, float]:
    """Training minus test images, and its standard error over images, those of one seed.

    Seeds see the same images, so that more of them do not make it smaller. Corruptions of one image count
    as one image.
    """
    difference, variance = [], []
    for one, other in zip(training.entries, test.entries, strict=True):
        (mean, std), (mean_other, std_other) = get(one), get(other)
        difference.append(mean - mean_other)
        variance.append(std**2 / one["images"] + std_other**2 / other["images"])
    return statistics.fmean(difference), math.sqrt(statistics.fmean(variance))


def printed(results: dict[str, Any]) -> str:
    """How the states moved; the transient, the attractors, and what training images have more of."""
    asked = results["asked"]
    found = rows(results)
    starts, steps = asked["images"], asked["steps"]
    lines = [
        f"{results['data']}, {asked['task']}: {starts} starts from training images and as many from test"
        f" images, T = {steps}; mean ± standard deviation over n seeds"
    ]
    for row in found[::2]:
        dynamics = dict.fromkeys(_described(job) for job in row.jobs)
        lines.append(f"  P = {row.count}: " + "; or ".join(dynamics))
    for title, columns in (
        (
            "the transient; lifetime, of each seed: iterations without a gap within 10 % of the best error",
            TRANSIENT,
        ),
        (f"the states at t = {steps}, the attractors", ATTRACTORS),
    ):
        body = [
            [
                f"{row.count:,}",
                row.images,
                str(len(row.jobs)),
                *(_cell(row, name, get) for name, get in columns.items()),
            ]
            for row in found
        ]
        lines += ["", title, *_aligned([["P", "images", "n", *columns], *body])]
    body = [
        [f"{training.count:,}"]
        + ["{:+.3f} ± {:.3f}".format(*gap(training, test, get)) for get in GAPS.values()]
        for training, test in zip(found[::2], found[1::2], strict=True)
    ]
    lines += ["", "memorisation: training minus test images, ± standard error over images"]
    lines += _aligned([["P", *GAPS], *body])
    return "\n".join(lines)


def _described(job: dict[str, Any]) -> str:
    return f"{Retrieval.from_json(job['retrieval']).describe()}, couplings of step {job['key']['step']}"


def write(results: dict[str, Any], folder: Path) -> Path:
    """table.csv: every column of both tables, with its deviation over seeds."""
    columns = TRANSIENT | ATTRACTORS
    path = folder / "table.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        heads = [f"{name}{part}" for name in columns for part in ("", " deviation")]
        writer.writerow(["P", "images", "n", "censored", *heads])
        for row in rows(results):
            numbers = [value for get in columns.values() for value in (row.mean(get), row.deviation(get))]
            writer.writerow(
                [row.count, row.images, len(row.jobs), row.censored]
                + ["" if math.isnan(value) else repr(value) for value in numbers]
            )
    return path


def _cell(row: Row, name: str, get: Get) -> str:
    if name == "lifetime":  # a mean of what is only known to be longer is none
        lives = [entry["lifetime"] for entry in row.entries]
        return ", ".join(">= " * life["censored"] + str(life["iterations"]) for life in lives)
    digits = 0 if name in COUNTS else 4 if "error" in name else 3
    if digits == 0 and len(row.jobs) > 1:
        digits = 1
    return with_deviation(row.mean(get), row.deviation(get), digits=digits)


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) + 2 for column in zip(*table, strict=True)]
    return ["  " + "".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
