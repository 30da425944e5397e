"""Quality per second: error against all the seconds that a model takes, with and without backpropagation.

    uv run benchmarks/quality.py data.root=DIR [hydra.sweep.dir=DIR] [FIELD=VALUE ...]

MNIST at 4x4 patches, one thread, seed 0. The seconds of a model are those of learning (or storing), of
choosing on validation images, its step too, and of reconstructing 1,000 images.

Trained models have budgets. Other work on the machine would cost them updates, so a budget is a number of
updates: their time, and that of a validation, is measured once, the best of several (`rates`), and as
many are made as there is then time for, with a learning rate that falls to zero at the last one.
Backpropagation has the precision that is faster here. Its transformer has three blocks while the budget is
small, five when it is large. The seconds reported are updates x seconds of one, and the rest. Bare
self-attention learns both tasks at once, and so do slots; they pay for both. Of the models that are not
trained, learning is timed twice, the better one counts; choosing is repeated with 10 images, and the time
multiplied; that of an image, of all models, is from the best of five batches of 100.

Everything is chosen on the first 100 validation images; errors are those of the last 500, of which nothing
was chosen, with the standard error over images. Test images are not looked at. Interrupted, the same
command goes on; SIGTERM and Ctrl-C save first. Prints the tables and writes docs/figures/race.png after
every model.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import save, table
from race import Point, answered, draw, measured, references
from rates import Rate, configuration, measure

from attractor.lab.config.titles import TASK_WORDS, title
from attractor.lab.experiment.build import build_data
from attractor.lab.run import files
from attractor.lab.run.finished import load_run
from attractor.lab.show import command

ROOT = Path(__file__).parents[1]
VALIDATIONS = 4  # in training
IMAGES = 1000  # to be reconstructed
SHALLOW, DEEP = ("shallow_masked", "shallow_denoise"), ("transformer_masked", "transformer_denoise")
# what a trained model does when: seconds -> arms
BUDGETS = {
    "bare_attention": {10: ("bare_4x4",), 40: ("bare_4x4",), 160: ("bare_4x4",)},
    "transformer": {10: SHALLOW, 40: SHALLOW, 160: SHALLOW, 1200: DEEP},
}
FIELDS = {
    "experiment": "paper",
    "seed": "0",
    "train.validation_images": "100",
    "dynamics.validation_images": "100",
    "eval.images": "10",  # nothing is said of test images
    "eval.steps": "20",
    "wandb": "disabled",
}
# fewer candidates than for the tables: at the smallest budget there is no time for more
BARE = {"dynamics.evidence": "[]", "dynamics.screening_steps": "3", "dynamics.finalists": "1"}
ONE_ATTENTION = {"model.copies": "[]", "model.reaches": "[]", "model.candidates": "2000"}
# model -> kind, as the figure calls it -> arm -> fields
UNTRAINED = {
    "local_linear_memory": {
        "one attention": {
            "memory_4x4_masked": ONE_ATTENTION
            | {"model.neighbours": "[1000]", "model.ridges": "[0.001,0.01]"},
            "memory_denoise": ONE_ATTENTION | {"model.iterations": "2"},
        },
        "3,000 images": {
            "memory_4x4_masked": {"data.train_images": "3000"},
            "memory_denoise": {"data.train_images": "3000"},
        },
        "all images": {"memory_4x4_masked": {}, "memory_denoise": {}},
    },
    "slots": {
        "100 slots": {"slots_4x4": {"model.slots": "100", "model.parents": "10"}},
        "500 slots": {"slots_4x4": {}},
    },
}


@dataclass(frozen=True)
class Race:
    """Where runs are, and what was given on the command line."""

    root: Path
    given: dict[str, str]

    def fields(self, arm: str, own: dict[str, str]) -> list[str]:
        """Overrides of a run."""
        everything = {"arm": arm} | FIELDS | own | self.given
        return [f"{name}={value}" for name, value in everything.items()]

    def run(self, place: str, arm: str, own: dict[str, str]) -> Path:
        """The folder of a run, which is done if it is not; ends the race if it fails."""
        folder = self.root / place / arm
        fields = [*self.fields(arm, own), f"hydra.sweep.dir={folder}"]
        if not (folder / "0" / "results.json").is_file() and (
            code := command.child([ROOT / "train.py", "-m", *fields])
        ):
            sys.exit(code)
        return folder / "0"

    def rate(self, arm: str) -> Rate:
        """That of an arm, measured unless it is known."""
        path = self.root / "rates.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        if arm not in known:
            config = configuration(
                [*self.fields(arm, BARE if arm.startswith("bare") else {}), "folder=unused"]
            )
            known[arm] = asdict(measure(config, build_data(config.data)))
            self.root.mkdir(parents=True, exist_ok=True)
            files.write(path, json.dumps(known, indent=1))
        return Rate(**known[arm])

    def trained(self, model: str, budget: int) -> Iterator[Point]:
        """The points of a budget, a run for each arm; both arms of it make as many updates."""
        arms = BUDGETS[model][budget]
        rate = self.rate(arms[-1])
        updates = rate.updates(budget, validations=VALIDATIONS, images=IMAGES)
        every = -(-updates // VALIDATIONS)
        own = {"train.steps": str(updates), "train.validate_every": str(every)}
        own |= BARE if model == "bare_attention" else {"rule.precision": rate.precision}
        choosing = rate.validation * VALIDATIONS + rate.choosing
        for arm in arms:
            found = answered(self.run(str(budget), arm, own))
            for task, answer in found.items():
                parts = (rate.update * updates, choosing, IMAGES * answer.image)
                yield Point(model, f"{updates:,} updates", task, parts, answer.error, answer.standard_error)

    def untrained(self, model: str, kind: str) -> Iterator[Point]:
        """The points of a memory or of slots, a run for each arm."""
        for arm, own in UNTRAINED[model][kind].items():
            folder = self.run(kind.replace(",", "").replace(" ", "_"), arm, own)
            found, cost = answered(folder), measured(folder)
            for task, answer in found.items():
                parts = (cost.learning, cost.choosing[task], IMAGES * answer.image)
                yield Point(model, kind, task, parts, answer.error, answer.standard_error)


def tables(points: Sequence[Point], lines: dict[str, dict[str, float]]) -> None:
    """Print a table for each task, in the order of seconds; references below."""
    header = ["seconds", "learning", "choosing", f"{IMAGES:,} images", "error"]
    for task, errors in lines.items():
        rows = [
            [
                f"{title(point.model)}, {point.kind}",
                *(f"{seconds:,.0f}" for seconds in (point.seconds, *point.parts)),
                f"{point.error:.4f} ± {point.standard_error:.4f}",
            ]
            for point in sorted(points, key=lambda point: point.seconds)
            if point.task == task
        ]
        rows += [[title(name), *"----", f"{error:.4f}"] for name, error in errors.items()]
        table([TASK_WORDS[task], *header], rows)


def main(arguments: Sequence[str]) -> None:
    """Run what is not done yet; after each model, tables and figure."""
    given = command.overrides(arguments, __doc__)
    torch.set_num_threads(1)
    race = Race(Path(given.pop("hydra.sweep.dir", "outputs/quality")).resolve(), given)
    points: list[Point] = []
    lines: dict[str, dict[str, float]] = {}
    entries = [(race.trained, model, budget) for model, found in BUDGETS.items() for budget in found]
    entries += [(race.untrained, model, kind) for model, found in UNTRAINED.items() for kind in found]
    # the longest training, of which there is most to wait for, comes last
    entries.sort(key=lambda entry: entry[2] == max(BUDGETS["transformer"]))
    for action, model, which in entries:
        points += action(model, which)
        lines = lines or references(load_run(race.root / "10" / "bare_4x4" / "0"), race.root)
        tables(points, lines)
        save(draw(points, lines), "race")


if __name__ == "__main__":
    main(sys.argv[1:])
