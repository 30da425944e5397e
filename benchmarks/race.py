"""What the race measures of a finished run, kept beside it, and its figure."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from rates import best

from attractor.images import Corrupted, ImageSplits, Reconstructor, Task
from attractor.lab.config.titles import TASK_WORDS, title
from attractor.lab.experiment import assessment
from attractor.lab.experiment.build import build_data, build_tasks
from attractor.lab.experiment.build_rule import build_rule
from attractor.lab.experiment.memory_network import Storing
from attractor.lab.experiment.network import Recall
from attractor.lab.experiment.slot_network import ClosedForm
from attractor.lab.run import files
from attractor.lab.run.finished import TrainedModel, load_run
from attractor.lab.show.figures import MODEL_COLOURS, PAGE, STYLE, legend_below, reference_line

BATCH = 100
FIRST = 500  # of the validation images that are evaluated; the others are there to choose on
FEW = 10  # images with which choosing is repeated


@dataclass(frozen=True)
class Answer:
    """Error on the last validation images, its standard error over images, seconds of an image."""

    error: float
    standard_error: float
    image: float


@dataclass(frozen=True)
class Cost:
    """Seconds of learning or storing, and of choosing, task by task."""

    learning: float
    choosing: dict[str, float]


@dataclass(frozen=True)
class Point:
    """A model in the race. parts: seconds of learning, of choosing and of reconstruction."""

    model: str
    kind: str
    task: str
    parts: tuple[float, float, float]
    error: float
    standard_error: float

    @property
    def seconds(self) -> float:
        return sum(self.parts)


def answered(folder: Path) -> dict[str, Answer]:
    """Task -> answer of the run in this folder."""

    def look() -> dict[str, Any]:
        run, splits = _loaded(folder)
        found = {}
        for name, task in _tasks(run, splits).items():
            choice = run.choice(name)
            model, t = Recall(run.network, choice.retrieval), choice.retrieval.steps or 1
            found[name] = asdict(_answer(model, _batches(splits, task, seed=run.config.eval.seed), t))
        return found

    return {name: Answer(**values) for name, values in _kept(folder / "answers.json", look).items()}


def measured(folder: Path) -> Cost:
    """What learning and choosing take, of a run whose rule learns at once."""

    def look() -> dict[str, Any]:
        run, splits = _loaded(folder)
        config = run.config
        few = replace(config, dynamics=replace(config.dynamics, validation_images=FEW))
        choosing = {
            name: best(
                lambda asked={name: task}: assessment.choose_retrievals(few, run.network, splits, asked),
                repeats=2,
            )
            * (config.dynamics.validation_images / FEW)
            for name, task in _tasks(run, splits).items()
        }
        rule = build_rule(config.rule, run.network, {}, seed=config.seed)
        assert isinstance(rule, Storing | ClosedForm)
        again = rule.learn(run.network, splits.train)  # type: ignore[arg-type]
        return asdict(Cost(min(run.results["cost"]["train_seconds"], again), choosing))

    return Cost(**_kept(folder / "cost.json", look))


def references(run: TrainedModel, folder: Path) -> dict[str, dict[str, float]]:
    """Task -> reference -> error on the same images as the models."""

    def look() -> dict[str, Any]:
        splits = build_data(run.config.data)
        tasks = _tasks(run, splits)
        seed = run.config.eval.seed
        models = assessment.references(splits, tasks.values(), validation_images=FIRST, seed=seed)
        return {
            name: {
                key: _answer(model, _batches(splits, task, seed=seed), 1).error
                for key, model in models.items()
            }
            for name, task in tasks.items()
        }

    return _kept(folder / "references.json", look)


def draw(points: Sequence[Point], lines: dict[str, dict[str, float]]) -> Figure:
    """A panel for each task, both axes logarithmic.

    Points that differ in updates alone are joined; the others have their names beside them.
    """
    models = list(dict.fromkeys(point.model for point in points))
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 3.2), layout="constrained")
        panels = figure.subplots(1, len(lines), squeeze=False)[0]
        for axes, (task, errors) in zip(panels, lines.items(), strict=True):
            for model, colour, marker in zip(models, MODEL_COLOURS, "ovsD", strict=False):
                mine = sorted(
                    (point for point in points if point.task == task and point.model == model),
                    key=lambda point: point.seconds,
                )
                trained = any("updates" in point.kind for point in mine)
                axes.errorbar(
                    [point.seconds for point in mine],
                    [point.error for point in mine],
                    [point.standard_error for point in mine],
                    fmt=f"{marker}-" if trained else marker,
                    color=colour,
                    markersize=4,
                    label=title(model),
                )
                offset = (-4, 5) if marker == "D" else (-4, -9)  # names of the last model above its points
                for point in [] if trained else mine:
                    place = (point.seconds, point.error)
                    axes.annotate(
                        point.kind, place, offset, textcoords="offset points", fontsize=5, color=colour
                    )
            for name, error in errors.items():
                reference_line(axes, name, error)
            axes.set_xscale("log")
            axes.set_yscale("log")
            lowest = min(point.error for point in points if point.task == task)
            axes.set_ylim(bottom=min(0.007, 0.75 * lowest))  # room for names below the points
            axes.set_yticks([0.01, 0.02, 0.04], ["0.01", "0.02", "0.04"])
            axes.set_xticks([10, 100, 1000], ["10", "100", "1,000"])
            axes.minorticks_off()
            axes.set_xlabel("seconds: learning, choosing and 1,000 images")
            axes.set_ylabel("validation error (pixel$^2$)")
            axes.set_title(f"{TASK_WORDS[task]}, 4x4 patches")
        legend_below(figure, panels)
        return figure


def _answer(model: Reconstructor, batches: Sequence[Corrupted], t: int) -> Answer:
    """Of the prediction at t; the time is that of the best batch."""
    errors, seconds = [], []
    for batch in batches:
        begin = time.perf_counter()
        *_, pixels = islice(model.reconstruct(batch), t)
        seconds.append((time.perf_counter() - begin) / len(pixels))
        errors.append(batch.squared_error(pixels))
    found = torch.cat(errors)
    return Answer(float(found.mean()), float(found.std() / len(found) ** 0.5), min(seconds))


def _batches(splits: ImageSplits, task: Task, *, seed: int) -> list[Corrupted]:
    return [
        assessment.validation_batch(splits, task, images=BATCH, seed=seed, first=first)
        for first in range(FIRST, len(splits.validation), BATCH)
    ]


def _loaded(folder: Path) -> tuple[TrainedModel, ImageSplits]:
    run = load_run(folder)
    return run, build_data(run.config.data)


def _tasks(run: TrainedModel, splits: ImageSplits) -> dict[str, Task]:
    return build_tasks(run.config.task, patch=run.config.model.patch, side=splits.side)


def _kept(path: Path, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file holds, or what is found now, which it then holds."""
    if not path.is_file():
        files.write(path, json.dumps(look(), indent=1))
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept
