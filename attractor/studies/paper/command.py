"""The paper's comparison: the runs of `experiment=paper`, side by side with the references.

uv run python -m attractor.lab.paper SWEEP_DIR... [--root DIR] [--images N] [--curve-images N] [--steps T]

The runs may be those of several sweeps; what is written goes to the folder of the first one.
For every patch size, which sets the grain of the mask, all runs see the same corruptions: those of all test
images at the t that validation chose, and of some of them until T. Writes for each of them results.json,
table.md, figure 1 (error against t, and pictures) and figure 2 (variance within predicted patches) to
SWEEP_DIR/comparison/PxP.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from attractor.lab.config.titles import TASK_WORDS, title
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.build import build_data
from attractor.lab.run import files
from attractor.lab.run.finished import FinishedRun, enough_steps, read_run, same_data, same_images
from attractor.lab.show import command
from attractor.lab.sweep import jobs
from attractor.lab.sweep.jobs import Job
from attractor.lab.sweep.table import SEED, once
from attractor.studies.paper.comparison import compare, table

# what the corruptions and the references follow from, beside what `same_data` looks at
SHARED = ("data.train_images", "eval.seed")


def read_jobs(*sweeps: Path) -> tuple[dict[int, list[FinishedRun]], list[str]]:
    """The finished runs of these sweeps, by patch size, and a line for each job that has not finished.

    Raises ConfigError if a sweep has none, or if the runs of one model differ in more than their seed.
    """
    found: dict[str, Job] = {}  # a configuration that ran twice is one sample
    for sweep in sweeps:
        if not sweep.is_dir():
            raise ConfigError(f"{sweep} is not a folder; give the hydra.sweep.dir of the sweep")
        there, _ = once(jobs.of_sweep(sweep))
        if all(job.state != jobs.DONE for job in there):
            raise ConfigError(
                f"{sweep} holds no finished run; train with uv run train.py -m experiment=paper"
            )
        found |= {job.configuration: job for job in there if job.configuration not in found}
    done = [job for job in found.values() if job.state == jobs.DONE]
    _refuse_mixtures(done)
    groups: dict[int, list[FinishedRun]] = {}
    for job in done:
        groups.setdefault(job.settings["model.patch"], []).append(read_run(job.path))
    missing = [f"{job.state}: {job.path}" for job in found.values() if job.state != jobs.DONE]
    return dict(sorted(groups.items())), missing


def _refuse_mixtures(done: list[Job]) -> None:
    """A mean over seeds is one over nothing else, and all models have the same references."""
    rows: dict[tuple[int, str, str], list[Job]] = {}
    for job in done:
        for task in job.settings["task.names"]:
            rows.setdefault((job.settings["model.patch"], job.settings["model.name"], task), []).append(job)
    for (patch, model, task), members in rows.items():
        others = [name for name in jobs.swept(members) if name not in (SEED, "task.names")]
        if others:
            raise ConfigError(
                f"the runs of {title(model)} for {TASK_WORDS[task]}, {patch}x{patch} patches, "
                f"differ in {', '.join(others)}; only seeds are averaged here, see attractor.lab.collect"
            )
    shared = [name for name in jobs.swept(done) if name in SHARED]
    if shared:
        raise ConfigError(f"the runs differ in {', '.join(shared)}, and cannot be compared")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = command.parser("attractor.lab.paper", __doc__, sweep="experiment=paper")
    parser.add_argument("more", nargs="*", type=Path, metavar="SWEEP_DIR", help="of further sweeps")
    parser.add_argument("--root", help="data.root; that of the runs unless given")
    parser.add_argument("--images", type=int, help="test images of the table; all unless given")
    parser.add_argument("--curve-images", type=int, default=1000, help="of the curves")
    parser.add_argument("--steps", type=int, default=100, help="iterations T of the curves")
    given = parser.parse_args(arguments)
    return command.carry_out(lambda: _run(given), given.sweep)


def _run(given: argparse.Namespace) -> list[Path]:
    """Compare, patch size by patch size, and write what came out; the files."""
    written: list[Path] = []
    command.at_least_one(given, "images", "curve_images", "steps")
    groups, missing = read_jobs(given.sweep, *given.more)
    for line in missing:
        print(f"warning: not compared, {line}")
    for runs in groups.values():
        same_data(runs)
        enough_steps(runs, given.steps)
    for patch, runs in groups.items():
        data = runs[0].config.data
        splits = build_data(replace(data, root=given.root or data.root))
        same_images(runs, splits)
        with tqdm(desc=f"{patch}x{patch} patches", bar_format="{desc}  {elapsed}  {postfix}") as bar:
            found = compare(
                runs,
                splits,
                images=given.images,
                curve_images=given.curve_images,
                steps=given.steps,
                root=given.root,
                progress=bar.set_postfix_str,
            )
        folder = given.sweep / "comparison" / f"{patch}x{patch}"
        folder.mkdir(parents=True, exist_ok=True)
        files.write(folder / "results.json", json.dumps(found.to_json(), indent=1))
        files.write(folder / "table.md", table(found) + "\n")
        command.say(f"{patch}x{patch} patches, {found.images['table']:,} test images of {splits.name}")
        command.say(table(found))
        from attractor.studies.paper import figures  # matplotlib takes a second to import

        drawn = figures.draw(found, folder)
        written += [folder / "results.json", folder / "table.md", *drawn]
    return written


if __name__ == "__main__":
    sys.exit(main())
