"""What limits what in a memory that regresses: one change at a time, on validation images of MNIST.

    uv run benchmarks/ablation.py data.root=DIR [task=masked|denoise] [images=N]

4x4 patches, 59,000 stored images unless said. Errors are those of the first N validation images after the
last iteration; the difference to the first row has its paired standard error over images. `read out` and
`two heads` are fitted to a half of the images, and measured on the other one. For few stored images the
number of neighbours is the best of 50, 150, 500 and 1,000. Test images are not looked at.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from measure import table
from memory import COPIES, MASKED, NOISY, empty
from torch import Tensor

from attractor.images import Corrupted, Denoise, ImageSplits, Masked, load
from attractor.lab.experiment.assessment import validation_batch
from attractor.lab.experiment.memory_network import Answers, MemoryNetwork
from attractor.lab.experiment.recollection import Recollection
from attractor.lab.experiment.recollection_choice import cross_validated
from attractor.lab.show import command

TASKS = {"masked": Masked(patch=4), "denoise": Denoise(0.7)}
GRAINS = {"masked": 2, "denoise": 4}
FULL = {"masked": MASKED[0], "denoise": NOISY[0]}
WHOLE = {  # one attention for the image
    "masked": replace(FULL["masked"], reach=None, shrinkage=0.0),
    "denoise": replace(FULL["denoise"], reach=None, coupled=False),
}
STORED = (100, 300, 1000, 3000, 10_000, 30_000)
NEIGHBOURS = (50, 150, 500, 1000)


def changes(task: str) -> Iterator[tuple[str, Recollection]]:
    """One change at a time, of what is read from the same memory."""
    full = FULL[task]
    yield "one attention for the image", WHOLE[task]
    for reach in (1.5, 3.0, 6.0):
        if reach != full.reach:
            yield f"reach {reach:g} pixels", replace(full, reach=reach)
    for k in (100, 250, 500, 1000, 2000):
        if k != full.neighbours:
            yield f"{k:,} neighbours", replace(full, neighbours=k)
    for tau in (0.0, 2.0, 8.0):
        yield f"inverse temperature {tau:g}", replace(full, inverse_temperature=tau)
    yield "no choice (linear regression)", replace(WHOLE[task], neighbours=None, pull=0.0, limit=1)
    yield "no regression (softmax memory)", replace(full, softening=float("inf"), coupled=False)
    for size in (64, 256):
        yield f"window of {size} pixels", replace(full, window=size)
    if task == "masked":
        yield "no shrinkage", replace(full, shrinkage=0.0)
        yield "a second look, with the answer (pull 3)", replace(full, pull=3.0, common=1, limit=2)
        return
    yield "shrinkage 0.03", replace(full, shrinkage=0.03)
    yield "tokens not coupled", replace(full, coupled=False)
    for pull in (0.0, 3.0, 12.0):
        yield f"pull {pull:g}", replace(full, pull=pull, coupled=pull > 0)
    yield "one iteration, whole image", replace(WHOLE[task], limit=1)
    yield "two iterations, whole image", replace(WHOLE[task], limit=2)
    yield "a token's own attention from t = 2 on", replace(full, common=1, limit=2)
    yield "a fourth iteration", replace(full, limit=4)


def stored(splits: ImageSplits, grain: int, copies: Sequence[str] = COPIES) -> MemoryNetwork:
    """Of all training images."""
    network = empty(splits, grain=grain, copies=copies)
    network.store(splits.train)
    return network


def errors(answers: Answers, reading: Recollection, batch: Corrupted) -> Tensor:
    """Of each image, after the last iteration."""
    return batch.squared_error(answers.at(reading, reading.last)).double()


class Rows:
    """The rows of a table, printed as they come."""

    def __init__(self, first: Tensor) -> None:
        self._first = first
        self._rows: list[list[str]] = []

    def add(self, name: str, found: Tensor, seconds: float) -> None:
        """A row, with what it differs from the first one, in percent of its error."""
        scale = 100 / float(self._first.mean())
        difference = found - self._first
        spread = float(difference.std()) / len(found) ** 0.5 * scale
        change = f"{float(difference.mean()) * scale:+.1f} ± {spread:.1f} %"
        self._rows.append([name, f"{float(found.mean()):.5f}", change, f"{1e3 * seconds / len(found):.0f}"])
        print(" | ".join(self._rows[-1]), file=sys.stderr, flush=True)

    def show(self, task: str) -> None:
        """The table."""
        table([task, "error", "to the first row", "ms an image"], self._rows)


def ablate(task: str, splits: ImageSplits, images: int) -> None:
    """All changes for a task; the table."""
    batch = validation_batch(splits, TASKS[task], images=images, seed=0)
    full, rows = FULL[task], None

    def measure(network: MemoryNetwork, name: str, reading: Recollection) -> Tensor:
        nonlocal rows
        begin = time.perf_counter()
        found = errors(Answers(network, batch), reading, batch)
        rows = rows or Rows(found)
        rows.add(name, found, time.perf_counter() - begin)
        return found

    network = stored(splits, GRAINS[task])
    measure(network, "as it is", full)
    assert rows is not None
    for name, reading in changes(task):
        measure(network, name, reading)
    answers, plain = Answers(network, batch), replace(full, steps=full.limit)
    whole = replace(WHOLE[task], steps=WHOLE[task].limit)
    for name, readings in (("read out", (plain,)), ("two heads", (plain, whole))):
        begin = time.perf_counter()
        found = cross_validated([answers.at(each, each.last) for each in readings], batch, degree=3)
        rows.add(name, found, time.perf_counter() - begin)
    for name, copies in (("no copies", ()), ("copies shifted by a pixel", COPIES[:1])):
        measure(stored(splits, GRAINS[task], copies), name, full)
    measure(stored(splits, 4 if GRAINS[task] == 2 else 2), "the other grain", full)
    for count in STORED:
        few = stored(splits.fewer(count), GRAINS[task])
        begin = time.perf_counter()
        tried = [k for k in NEIGHBOURS if k <= count * few.patterns.copies]
        answers = Answers(few, batch)
        found = min(
            (errors(answers, replace(full, neighbours=k), batch) for k in tried),
            key=lambda each: float(each.mean()),
        )
        rows.add(f"{count:,} stored images", found, (time.perf_counter() - begin) / len(tried))
    rows.show(task)


def main(arguments: list[str]) -> None:
    """Both tasks, or one."""
    given = command.overrides(arguments, __doc__)
    torch.set_num_threads(1)
    images, chosen = int(given.pop("images", 100)), given.pop("task", None)
    splits = load("mnist", root=given.pop("data.root", "data"))
    if given or (chosen and chosen not in TASKS):
        sys.exit(f"error: {', '.join(given) or chosen} is not for this benchmark; see --help")
    for task in [chosen] if chosen else TASKS:
        ablate(task, splits, images)


if __name__ == "__main__":
    main(sys.argv[1:])
