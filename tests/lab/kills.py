"""kill -9 a run at 20 seeded moments, resume it each time, compare it with an uninterrupted one.

    uv run python -m tests.lab.kills             # exit code 1 if anything differs
    uv run python -m tests.lab.kills --seed 1

A moment is a step and a phase of it: in the middle of the step, before its checkpoint is written, after its
first file, before and after the rename, and while older checkpoints are removed, one of them by half.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from attractor.lab.run import checkpoints
from tests.lab.faulty import moments
from tests.lab.traces import lines

ROOT = Path(__file__).resolve().parents[2]

KILLS = 20
STEPS, EVERY = 60, 4
SMALL = (
    f"train.steps={STEPS}",
    f"train.validate_every={EVERY}",
    *("rule.rows_per_step=12", "train.batch_size=64", "eval.images=20", "eval.steps=6"),
    *("dynamics.validation_images=20", "wandb=disabled", "figures=false"),
)


def run(*overrides: str, fault: str | None = None) -> int:
    """Exit code of train.py, negative for the signal that killed it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if fault is not None:
        environment["FAULT"] = fault
    words = [sys.executable, str(ROOT / "tests" / "lab" / "faulty.py"), *overrides]
    return subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, check=False).returncode


def differences(folder: Path, whole: Path) -> list[str]:
    """What of metrics, last checkpoint and errors is not equal, at zero tolerance."""
    found = [] if lines(folder) == lines(whole) else ["metrics.jsonl"]
    mine, theirs = (checkpoints.load(path / "checkpoints") for path in (folder, whole))
    for group in ("weights", "optimiser", "generators"):
        own, other = getattr(mine, group), getattr(theirs, group)
        found += [name for name in own.keys() ^ other.keys()]
        found += [name for name in own.keys() & other.keys() if not torch.equal(own[name], other[name])]
    found += [
        name for name in ("step", "cursor", "validation") if getattr(mine, name) != getattr(theirs, name)
    ]
    results = [json.loads((path / "results.json").read_text())["tasks"] for path in (folder, whole)]
    return found if results[0] == results[1] else [*found, "results.json"]


def main() -> int:
    """Kill, resume, compare, report; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    seed = parser.parse_args().seed
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        whole, folder = Path(place) / "whole", Path(place) / "killed"
        if run(*SMALL, f"folder={whole}"):
            print("the run that nothing interrupts failed")
            return 1
        start = (*SMALL, f"folder={folder}")
        chosen = moments(seed, KILLS, saves=range(2 * EVERY, STEPS + 1, EVERY))
        for step, phase in chosen:
            code = run(*start, fault=f"kill:{step}:{phase}")
            if code != -signal.SIGKILL:
                print(f"step {step}, {phase}: exit code {code}, it was not killed")
                return 1
            print(f"step {step:2d}  {phase}")
            start = (f"resume={folder}",)
        if code := run(*start):
            print(f"the last start ended with exit code {code}")
            return 1
        found = differences(folder, whole)
    counts = ", ".join(f"{count} {phase}" for phase, count in Counter(phase for _, phase in chosen).items())
    print(f"{KILLS} kills ({counts}), seed {seed}, {STEPS} steps, {time.monotonic() - begin:.0f} s")
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores")
    print(
        f"differs: {', '.join(found)}" if found else "checkpoint, metrics and errors are equal, bit for bit"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
