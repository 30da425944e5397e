"""Runs of one patch size, side by side with the references: errors, curves, variances, the table.

Every model and every seed sees the same corruptions, so that errors can be compared image by image.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attractor.images import Corrupted, ImageSplits, Reconstructor, to_patches
from attractor.lab.config.schema import REFERENCES
from attractor.lab.config.titles import TASK_WORDS, title
from attractor.lab.experiment import assessment
from attractor.lab.experiment.build import build_tasks
from attractor.lab.experiment.evaluation import corruptions, evaluate, of_task
from attractor.lab.experiment.network import Recall
from attractor.lab.experiment.numbers import deviation, in_order, with_deviation
from attractor.lab.run.finished import FinishedRun, load_run, same_data

BATCH = 256  # images at a time
PREDICTED = 2  # batches whose predicted patches are looked at


@dataclass(frozen=True)
class Row:
    """One model, or reference, on one task. The lists have an entry for each training seed.

    at_best: errors of all test images at the chosen t, (images,). curve: of some of them at t = 1 .. T,
    (images, T). variances: within each predicted patch at the chosen t, of all patches in one vector.
    examples, of the first seed alone: pixels (B, C, H, W) at t = 1 .. T.
    """

    at_best: list[Tensor] = field(default_factory=list)
    curves: list[Tensor] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    variances: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    examples: list[Tensor] = field(default_factory=list)

    @property
    def errors(self) -> list[float]:
        """Test error of each seed."""
        return [float(errors.mean()) for errors in self.at_best]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.errors)

    def cell(self) -> str:
        """For a table: mean and standard deviation over n seeds, and the t that validation chose."""
        n = len(self.errors)
        notes = [f"{n} seeds"] if n > 1 else []
        if self.curves[0].shape[1] > 1:
            notes.append(f"t = {', '.join(map(str, sorted(set(self.chosen))))}")
        value = with_deviation(self.mean, deviation(self.errors))
        return value + (f" ({'; '.join(notes)})" if notes else "")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        curve = torch.stack(self.curves).mean(0)  # over seeds
        over_images = curve.std(0, correction=1 if len(curve) > 1 else 0)
        return {
            "test_error": self.errors,
            "chosen_t": self.chosen,
            "curve": curve.mean(0).tolist(),
            "curve_std_over_images": over_images.tolist(),
            "mean_patch_variance": float(torch.cat(self.variances).mean()),
            "train_seconds": self.seconds,
        }


@dataclass(frozen=True)
class Comparison:
    """All rows of one patch size. rows: task -> name -> row; originals: task -> variances in the images."""

    patch: int
    images: dict[str, int]  # of the table and of the curves
    rows: dict[str, dict[str, Row]]
    originals: dict[str, Tensor]
    few: dict[str, Corrupted]  # the images of the pictures

    def above(self, task: str, name: str, other: str) -> tuple[float, float]:
        """How much more error `name` has than `other`, and its paired standard error over images."""
        mine, its = (torch.stack(self.rows[task][key].at_best).mean(0) for key in (name, other))
        difference = mine - its
        over_images = difference.std(correction=1 if len(difference) > 1 else 0)
        return float(difference.mean()), float(over_images / len(difference) ** 0.5)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for results.json."""
        tasks = {}
        for task, rows in self.rows.items():
            tasks[task] = {name: row.to_json() for name, row in rows.items()}
            for name in rows:
                others = {other: self.above(task, name, other) for other in REFERENCES if other != name}
                tasks[task][name]["above"] = {
                    other: {"mse": mse, "standard_error": error} for other, (mse, error) in others.items()
                }
        original = {task: float(values.mean()) for task, values in self.originals.items()}
        return {
            "patch": self.patch,
            "images": self.images,
            "mean_patch_variance_of_originals": original,
            "tasks": tasks,
        }


def compare(
    runs: Sequence[FinishedRun],
    splits: ImageSplits,
    *,
    images: int | None,
    curve_images: int,
    steps: int,
    root: str | None = None,
    examples: int = 3,
    progress: Callable[[str], Any] = lambda text: None,
) -> Comparison:
    """Evaluate runs of one patch size, of several models and seeds, with the references.

    One network at a time is loaded, a memory with the images of `root`, data.root of its run unless given.
    """
    first = runs[0]
    patch, seed = first.config.model.patch, first.config.eval.seed
    tasks = build_tasks(same_data(runs), patch=patch, side=splits.side)
    references = assessment.references(
        splits, tasks.values(), validation_images=len(splits.validation), seed=seed
    )
    test = splits.test if images is None else splits.test[:images]
    views = {}
    for name, task in tasks.items():
        some = corruptions(task, test[:curve_images], seed=seed, batch_size=BATCH)
        rest = test[curve_images:]
        others = (
            corruptions(task, rest, seed=seed, batch_size=BATCH, first=curve_images) if len(rest) else []
        )
        views[name] = _View(some, others, patch, examples, steps)
    rows: dict[str, dict[str, Row]] = {name: {} for name in tasks}
    said = {name: of_task(progress, name) for name in tasks}
    for run in runs:
        network = load_run(run.folder, root=root).network
        seconds = float(run.results["cost"]["train_seconds"])
        for name, view in views.items():
            for key, choice in run.choices.get(name, {}).items():
                row, t = rows[name].setdefault(key, Row()), choice.retrieval.steps or 1
                view.look(key, Recall(network, choice.retrieval), row, t, seconds, said[name])
    for key, model in references.items():
        for name, view in views.items():
            view.look(key, model, rows[name].setdefault(key, Row()), 1, 0.0, said[name])
    counts = {"table": len(test), "curves": min(curve_images, len(test))}
    originals = {name: view.originals for name, view in views.items()}
    few = {
        name: corruptions(task, test[:examples], seed=seed, batch_size=examples)[0]
        for name, task in tasks.items()
    }
    return Comparison(patch, counts, rows, originals, few)


@dataclass(frozen=True)
class _View:
    """The corrupted test images of a task: `some` of them for curves until t = `steps` too."""

    some: list[Corrupted]
    others: list[Corrupted]
    patch: int
    examples: int
    steps: int

    @property
    def originals(self) -> Tensor:
        """Variances within the patches of the original images."""
        return torch.cat([_variances(b.original, b, self.patch) for b in self.some[:PREDICTED]])

    def look(
        self,
        key: str,
        model: Reconstructor,
        row: Row,
        t: int,
        seconds: float,
        progress: Callable[[str], Any],
    ) -> None:
        """Add a model, of which t was chosen, to its row. No image is answered twice: some take long."""
        watched = _Watched(model, t, self.patch, self.examples)
        progress(title(key))
        curve = evaluate({key: watched}, self.some, steps=self.steps, progress=progress).errors[key]
        at_best = [curve[:, t - 1]]
        if self.others:
            found = evaluate({key: model}, self.others, steps=t, progress=progress)
            at_best.append(found.errors[key][:, -1])
        row.at_best.append(torch.cat(at_best))
        row.curves.append(curve)
        row.chosen.append(t)
        row.variances.append(torch.cat(watched.variances))
        row.seconds.append(seconds)
        if not row.examples:
            row.examples.extend(watched.states)


@dataclass
class _Watched:
    """A model, and what the figures show of its answers: of the first batches, and of the first images."""

    model: Reconstructor
    t: int
    patch: int
    examples: int
    variances: list[Tensor] = field(default_factory=list)  # at t, of PREDICTED batches
    states: list[Tensor] = field(default_factory=list)  # of the first images, at every t

    def reconstruct(self, corrupted: Corrupted) -> Iterator[Tensor]:
        """What the model answers."""
        first = not self.variances
        for t, pixels in enumerate(self.model.reconstruct(corrupted), start=1):
            if t == self.t and len(self.variances) < PREDICTED:
                self.variances.append(_variances(pixels, corrupted, self.patch))
            if first:
                self.states.append(pixels[: self.examples].clone())
            yield pixels


def _variances(pixels: Tensor, batch: Corrupted, patch: int) -> Tensor:
    """Variance of the pixels within each patch, of the masked patches or of all, in squared pixels."""
    patches = to_patches(pixels.clamp(0, 1), patch=patch)  # (B, N, K)
    variances = patches.var(-1, correction=0)
    return variances.flatten() if batch.mask is None else variances[batch.mask]


def table(comparison: Comparison) -> str:
    """A Markdown table: mean ± standard deviation over seeds, learned models first, the best one bold."""
    names = in_order(name for rows in comparison.rows.values() for name in rows)
    best = {task: min(rows, key=lambda name: rows[name].mean) for task, rows in comparison.rows.items()}
    lines = ["| model | " + " | ".join(TASK_WORDS[task] for task in comparison.rows) + " |"]
    lines.append("|---" * (1 + len(comparison.rows)) + "|")
    for name in names:
        cells = []
        for task, rows in comparison.rows.items():
            cell = rows[name].cell() if name in rows else "-"
            cells.append(f"**{cell}**" if best[task] == name else cell)
        lines.append(f"| {title(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
