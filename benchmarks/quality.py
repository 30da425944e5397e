"""Quality per second: validation error against seconds of training, local rule and backpropagation.

    uv run benchmarks/quality.py data.root=DIR [hydra.sweep.dir=DIR] [FIELD=VALUE ...]

MNIST at 4x4 patches, one thread. For every budget in seconds, bare self-attention is trained once for both
tasks and a transformer for each of them, from the start, with a learning rate that falls to zero at the end
of the budget: of three blocks while the budget is small, of five when it is large. Seconds are those of
updates, as each run has measured them; what else the machine does costs updates, so it should do the same
for all. Errors are those of 500 validation images, by which the step and the retrieval of each run were
chosen too; test images are not looked at. Interrupted, the same command goes on; SIGTERM and Ctrl-C save
first. Writes docs/figures/benchmark_quality.png and prints the tables, both after every budget.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from measure import save, table

from attractor.lab import assessment, command, jobs
from attractor.lab.build import build_data, build_tasks
from attractor.lab.evaluation import evaluate
from attractor.lab.figures import MODEL_COLOURS, PAGE, STYLE, legend_below, reference_line
from attractor.lab.jobs import Job
from attractor.lab.report import TASK_WORDS, deviation, title, with_deviation
from attractor.lab.runs import TrainedModel, load_run, same_data

ROOT = Path(__file__).parents[1]
SHALLOW = "bare_4x4,shallow_masked,shallow_denoise"
DEEP = "bare_4x4,transformer_masked,transformer_denoise"
BUDGETS = {10: SHALLOW, 40: SHALLOW, 160: SHALLOW, 1200: DEEP}  # seconds of training -> arms


@dataclass
class Point:
    """A model trained for one budget: its seconds, updates and validation error, for each seed."""

    seconds: list[float] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    @property
    def cell(self) -> str:
        """Mean ± standard deviation over seeds, and the updates that the budget had room for."""
        error = with_deviation(statistics.fmean(self.errors), deviation(self.errors))
        return f"{error} ({statistics.fmean(self.updates):,.0f})"


def train(folder: Path, budget: int, overrides: Mapping[str, str]) -> list[Job]:
    """The arms, each for `budget` seconds; the jobs that are done. Skips what is done already."""
    given = {
        "experiment": "paper",
        "arm": BUDGETS[budget],
        "seed": "0",
        "train.max_seconds": str(budget),
        "train.steps": "1000000",  # the clock ends training
        "train.validate_every": "100" if budget < 1000 else "500",
        "eval.images": "10",  # nothing is said of test images
        "eval.steps": "20",
        "wandb": "disabled",
        "hydra.sweep.dir": str(folder),
    }
    fields = [f"{name}={value}" for name, value in (given | dict(overrides)).items()]
    if code := command.child([ROOT / "train.py", "-m", *fields]):
        sys.exit(code)
    return [job for job in jobs.of_sweep(folder) if job.state == jobs.DONE]


def gather(found: Sequence[Job], budget: int, points: dict[str, dict[str, dict[int, Point]]]) -> None:
    """Add the jobs of a budget to task -> model -> budget -> point."""
    for job in found:
        for task, rows in job.results["selection"].items():
            for row, choice in rows.items():
                models = points.setdefault(task, {})
                point = models.setdefault(title(row), {}).setdefault(budget, Point())
                point.seconds.append(job.results["cost"]["train_seconds"])
                point.updates.append(job.results["cost"]["steps"])
                point.errors.append(choice["validation_mse"])


def references(runs: Sequence[TrainedModel]) -> dict[str, dict[str, float]]:
    """task -> reference -> error on the validation images of these runs."""
    config = runs[0].config
    splits = build_data(config.data)
    tasks = build_tasks(same_data(runs), patch=config.model.patch, side=splits.side)
    models = assessment.references(
        splits, tasks.values(), validation_images=len(splits.validation), seed=config.eval.seed
    )
    count, seed = config.dynamics.validation_images, config.eval.seed
    errors = {}
    for name, task in tasks.items():
        batch = assessment.validation_batch(splits, task, images=count, seed=seed)
        found = evaluate(models, [batch], steps=1).errors
        errors[name] = {model: float(values.mean()) for model, values in found.items()}
    return errors


def draw(points: dict[str, dict[str, dict[int, Point]]], lines: dict[str, dict[str, float]]) -> Figure:
    """A panel for each task, seconds on a logarithmic axis; references, which are not trained, as lines."""
    models = list(dict.fromkeys(model for found in points.values() for model in found))
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
        panels = figure.subplots(1, len(points), squeeze=False)[0]
        for axes, (task, found) in zip(panels, points.items(), strict=True):
            for model, budgets in found.items():
                colour = MODEL_COLOURS[models.index(model)]
                seconds = [statistics.fmean(point.seconds) for point in budgets.values()]
                errors = [statistics.fmean(point.errors) for point in budgets.values()]
                axes.plot(seconds, errors, "o-", color=colour, markersize=3, label=model)
            for name, error in lines[task].items():
                reference_line(axes, name, error)
            axes.set_xscale("log")
            axes.set_ylim(0, None)
            axes.set_xlabel("seconds of training")
            axes.set_ylabel("validation error (pixel$^2$)")
            axes.set_title(f"{TASK_WORDS[task]}, 4x4 patches")
        legend_below(figure, panels)
        return figure


def main(arguments: Sequence[str]) -> None:
    """Train what is not trained yet, budget by budget; after each of them, table and figure."""
    given = command.overrides(arguments, __doc__)
    root = Path(given.pop("hydra.sweep.dir", "outputs/quality"))
    points: dict[str, dict[str, dict[int, Point]]] = {}
    lines: dict[str, dict[str, float]] = {}
    done: list[int] = []
    for budget in BUDGETS:
        done.append(budget)
        found = train(root / str(budget), budget, given)
        gather(found, budget, points)
        if not lines:
            lines = references([load_run(job.path) for job in found])
        for task, models in points.items():
            rows = [
                [model, *(budgets[b].cell if b in budgets else "-" for b in done)]
                for model, budgets in models.items()
            ]
            rows += [
                [title(name), f"{error:.4f}"] + ["-"] * (len(done) - 1)
                for name, error in lines[task].items()
            ]
            table([TASK_WORDS[task], *(f"{b} s" for b in done)], rows)
        save(draw(points, lines), "benchmark_quality")


if __name__ == "__main__":
    main(sys.argv[1:])
