"""Transients against the number P of training images: a sweep, iterated far beyond where it is read.

uv run train.py -m experiment=mnist sweep=transients data.root=DIR hydra.sweep.dir=SWEEP_DIR
uv run python -m attractor.lab.transients SWEEP_DIR [--images 200] [--steps 1000] [--couplings last]

For every job that is done, training images of that P and test images are corrupted, the same way for all
jobs, and iterated: overlap of the state with the original and pixel error against t, how long the transient
lives, and what the states at the last t, the attractors, are. Where P is smaller than --images, each
training image is corrupted several times. Tables, results.json and figures go to SWEEP_DIR/transients/NAME,
NAME being the task, the dynamics and the couplings. What is in results.json is not measured again.

The dynamics are free: --dynamics chosen is what the validation images of each job chose, without evidence;
--dynamics attention is the paper's map for all jobs, at the given inverse temperature and inertia. The
couplings are those of the step that validation images chose, which are held out and so choose against
memorisation, or (--couplings last) those of the last step.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from attractor.lab.config.names import MapName, TaskName
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.build import build_data, build_tasks
from attractor.lab.experiment.network import AttractorNetwork, Retrieval
from attractor.lab.run import checkpoints, files, manifest
from attractor.lab.run.finished import TrainedModel, load_run, same_data, same_images
from attractor.lab.show import command
from attractor.lab.sweep import jobs
from attractor.lab.sweep.table import SEED, collect
from attractor.studies.transients.measures import measure
from attractor.studies.transients.tables import printed, write

TRAIN_IMAGES = "data.train_images"
SCHEMA = 1


def load_jobs(sweep: Path) -> tuple[list[TrainedModel], list[str]]:
    """The jobs of a sweep over P that are done, and a line for each other. Raises ConfigError."""
    table = collect(sweep)
    if others := [name for name in table.fields if name != TRAIN_IMAGES]:
        raise ConfigError(
            f"{sweep} sweeps {', '.join(others)} too; transients are compared over {TRAIN_IMAGES} and"
            f" {SEED} alone"
        )
    ordered = sorted(table.jobs, key=lambda job: job.order)
    missing = [
        f"{job.state}: {job.path}  {job.asked([TRAIN_IMAGES, SEED])}"
        for job in ordered
        if job.state != jobs.DONE
    ]
    runs = [load_run(job.path) for job in ordered if job.state == jobs.DONE]
    if not runs:
        raise ConfigError(f"no job of {sweep} is done: {missing[0]}")
    same_data(runs)
    for run in runs:
        if not isinstance(run.network, AttractorNetwork):
            raise ConfigError(f"{run.folder} is a {run.config.model.name}, which has no states to follow")
    return runs, missing


def retrieval_of(run: TrainedModel, given: argparse.Namespace) -> Retrieval:
    """How the states of a job move."""
    if given.dynamics == "attention":
        return Retrieval(
            MapName.attention, inverse_temperature=given.inverse_temperature, inertia=given.inertia
        )
    if given.task not in run.choices:
        raise ConfigError(f"{run.folder} has not learned {given.task}; use --dynamics attention")
    free = run.choices[given.task][run.config.model.name].retrieval
    assert isinstance(free, Retrieval)
    return free


def _run(given: argparse.Namespace) -> list[Path]:
    """Measure what is not yet measured, write tables and figures; the files."""
    command.at_least_one(given, "images", "steps")
    if not 0 < given.same <= 1:
        raise ConfigError(f"--same is an overlap in (0, 1], got {given.same:g}")
    if given.inertia < 0:
        raise ConfigError(f"inertia must not be negative, got {given.inertia:g}")
    runs, missing = load_jobs(given.sweep)
    for line in missing:
        print(f"warning: not measured, {line}")
    first = runs[0].config
    torch.set_num_threads(first.threads)
    splits = build_data(replace(first.data, root=given.root or first.data.root, train_images=None))
    same_images(runs, splits)
    test = len(splits.test)
    if given.images > test:
        raise ConfigError(
            f"--images is {given.images}, but {splits.name} has {test} test images; use fewer"
        )
    every = replace(first.task, names=list(TaskName))
    task = build_tasks(every, patch=first.model.patch, side=splits.side)[given.task]
    retrievals = [retrieval_of(run, given) for run in runs]
    folder = given.sweep / "transients" / f"{given.task}-{given.dynamics}-{given.couplings}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    asked = {name: getattr(given, name) for name in ("task", "images", "steps", "same", "couplings")}
    results: dict[str, Any] = {"schema": SCHEMA, "data": splits.name, "asked": asked, "jobs": {}}
    earlier = _earlier(path, like=results)
    with tqdm(total=len(runs) * 2 * given.steps, desc="iterating", unit="it", dynamic_ncols=True) as bar:
        for run, retrieval in zip(runs, retrievals, strict=True):
            name, step = run.folder.name, run.step
            if given.couplings == "last":
                newest = checkpoints.load(run.folder / "checkpoints", rows=run.network.rows)
                checkpoints.fill(run.network.weights, newest, run.folder)
                step = newest.step
            key = {
                "step": step,
                "train_images": run.config.data.train_images,
                "seed": run.config.seed,
                # trained anew, even the same step holds other couplings
                "checkpoint": manifest.read(run.folder / "checkpoints" / f"step-{step}")["sha256"],
            }
            known = earlier.get(name, {})
            if known.get("key") == key and known.get("retrieval") == retrieval.to_json():
                results["jobs"][name] = known
            else:
                bar.set_postfix_str(f"job {name}")
                found = measure(
                    run,
                    retrieval,
                    splits,
                    task,
                    images=given.images,
                    steps=given.steps,
                    same=given.same,
                    progress=bar.update,
                )
                results["jobs"][name] = {"key": key} | found
                kept = results | {"jobs": earlier | results["jobs"]}  # later ones may be known
                files.write(path, json.dumps(kept) + "\n")
            bar.n = len(results["jobs"]) * 2 * given.steps  # states that have all arrived end early
            bar.refresh()
    files.write(path, json.dumps(results) + "\n")
    from attractor.studies.transients.figures import draw  # matplotlib takes a second to import

    command.say(printed(results))
    written = [path, write(results, folder)]
    return written if given.no_figures else written + draw(results, folder)


def _earlier(path: Path, *, like: dict[str, Any]) -> dict[str, Any]:
    """The jobs of a results.json that asked the same; none if it is another or cannot be read."""
    found = files.read_json(path)
    jobs_of: dict[str, Any] = found.pop("jobs", {})
    return jobs_of if found == {name: value for name, value in like.items() if name != "jobs"} else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = command.parser("attractor.lab.transients", __doc__, sweep="the sweep")
    parser.add_argument("--task", choices=[name.value for name in TaskName], default="denoise")
    parser.add_argument("--dynamics", choices=["chosen", "attention"], default="chosen")
    parser.add_argument("--inverse-temperature", type=float, default=1.0, help="of --dynamics attention")
    parser.add_argument("--inertia", type=float, default=1.0, help="of --dynamics attention")
    parser.add_argument(
        "--couplings", choices=["selected", "last"], default="selected", help="of which step"
    )
    parser.add_argument("--images", type=int, default=200, help="starts, of training and of test images")
    parser.add_argument("--steps", type=int, default=1000, help="T")
    parser.add_argument(
        "--same", type=float, default=0.99, help="overlap at which two states are one attractor"
    )
    parser.add_argument("--root", help="data.root, if the data have moved")
    parser.add_argument("--no-figures", action="store_true", help="write the tables alone")
    given = parser.parse_args(arguments)
    return command.carry_out(lambda: _run(given), given.sweep)


if __name__ == "__main__":
    sys.exit(main())
