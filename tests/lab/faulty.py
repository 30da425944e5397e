"""train.py with a fault planted in it, and a server that starts many of them without importing torch again.

    PYTHONPATH=. FAULT=kill:4:rename python tests/lab/faulty.py OVERRIDES     one run, as train.py
    python tests/lab/faulty.py --serve                           lines of JSON on standard input

Faults are `what:step:phase`. step: the training step, or that of the save. phase: where in it; see PHASES.
what: `kill` (SIGKILL), `term`, `int` (sent to itself), `term+int` (SIGINT comes after SIGTERM, at the
next phase that is reached), `full` (no file may get beyond 1,000 bytes: RLIMIT_FSIZE), `remove` (the run
folder is removed), `hold` (makes the file held-RUN in the folder WHEN, and waits for a signal), `stuck`
(the same, and goes on waiting), `data`, `couplings` and `gradient` (a value, that of row 5, becomes VALUE,
nan or inf). In a sweep the fault is in the job JOB, or in each of them.

With MIRROR, which is then the only address at which MNIST is looked for, its files and their checksums are
those in RESOURCES (JSON).

A request is {"argv": [...], "cwd": DIR, "environment": {...}, "output": FILE}; its answer is the id of a
forked process that is train.py with these arguments. {"wait": PID} answers its exit code, negative for a
signal, as subprocess does.
"""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from torch import Tensor

import train
from attractor.images import datasets
from attractor.lab.config.checks import validate
from attractor.lab.config.schema import register
from attractor.lab.entry import launch
from attractor.lab.run import checkpoints, signals, tensor_files
from attractor.lab.run.folder import RunFolder
from attractor.lab.run.metrics import MetricsFile
from attractor.physics import LocalEnergy
from tests.warm import forked

# a run of which much can be lost: rows are drawn, so that there is a generator whose state must come back
STEPS = 10
LONG = (f"train.steps={STEPS}", "backend=eager", "rule.rows_per_step=12")
# in the order in which a step reaches them
PHASES = ("step", "metrics", "before", "file", "rename", "renamed", "prune")


def moments(seed: int, count: int, *, saves: Sequence[int]) -> list[tuple[int, str]]:
    """`count` pairs of step and phase, all of which a run reaches that is resumed after each of them.

    saves: the steps of the second save and of those that follow. Once a checkpoint has its name the run
    goes on from it, so of the phases after that a step gets one. The second save has nothing to remove.
    """
    draw = random.Random(seed)
    late = ("renamed", "prune")
    possible = []
    for step in saves:
        last = "renamed" if step == saves[0] else draw.choice(late)
        possible += [(step, phase) for phase in ("step", "before", "file", "rename", last)]
    return sorted(draw.sample(possible, count), key=lambda moment: (moment[0], PHASES.index(moment[1])))


def plant(fault: str) -> None:
    """Wrap what a step goes through, so that the fault happens in it."""
    what, step, phase = fault.split(":")
    where: dict[str, Any] = {"step": 0, "saving": 0, "folder": None, "armed": None}

    def reached(name: str, at: int) -> None:
        if where["armed"] is not None:
            os.kill(os.getpid(), where["armed"])
        if (name, at) == (phase, int(step)):
            happen()

    def happen() -> None:
        job = where["folder"].name
        if os.environ.get("JOB", job) != job:
            return
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what in ("term", "term+int"):
            os.kill(os.getpid(), signal.SIGTERM)
            where["armed"] = signal.SIGINT if what == "term+int" else None
        elif what == "int":
            os.kill(os.getpid(), signal.SIGINT)
        elif what == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        elif what == "remove":
            shutil.rmtree(where["folder"])
        elif what in ("hold", "stuck"):
            (Path(os.environ["WHEN"]) / f"held-{job}").touch()
            while what == "stuck" or signals._current[0].received is None:
                time.sleep(0.01)

    def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        setattr(owner, name, lambda *given, **named: around(original, *given, **named))

    def entered(original: Any, self: RunFolder, *given: Any, **named: Any) -> Any:
        original(self, *given, **named)
        where["folder"] = self.path

    def computed(
        original: Any, self: LocalEnergy, x: Tensor, gradient: dict[str, Tensor], **named: Any
    ) -> Any:
        where["step"] += 1
        own = self.couplings.weights["couplings"]
        if (what, where["step"]) == ("couplings", int(step)):
            own[5, 0, 1, 0] = float(os.environ["VALUE"])
        objective = original(self, x, gradient, **named)
        if (what, where["step"]) == ("gradient", int(step)):
            gradient["couplings"][5, 0, 1, 0] = float(os.environ["VALUE"])
            objective[:, 5] = float("nan")  # so do all kernels then (tests/physics/test_kernels.py)
        reached("step", where["step"])
        return objective

    def fitted(original: Any, *given: Any, **named: Any) -> Any:
        where["step"] = named["done"]
        return original(*given, **named)

    def wrote(original: Any, self: MetricsFile, at: int, values: Any) -> None:
        original(self, at, values)
        reached("metrics", at)

    def saved(original: Any, folder: Path, checkpoint: Any, *given: Any) -> Any:
        where["saving"] = checkpoint.step
        reached("before", checkpoint.step)
        return original(folder, checkpoint, *given)

    def wrote_file(original: Any, *given: Any) -> Any:
        digest = original(*given)
        reached("file", where["saving"])
        return digest

    def renamed(original: Any, *given: Any) -> None:
        reached("rename", where["saving"])
        original(*given)
        reached("renamed", where["saving"])

    def removed(original: Any, path: Path, **named: Any) -> None:
        if Path(path).name.endswith(".removing") and Path(path).exists() and where["saving"] == int(step):
            if phase == "prune":
                next(Path(path).iterdir()).unlink()  # half of it is gone
            reached("prune", where["saving"])
        original(path, **named)

    def split(original: Any, name: str, images: Tensor, **named: Any) -> Any:
        if what == "data":
            images = images.float()
            images[:, 0, 0, 0] = float(os.environ["VALUE"])
        return original(name, images, **named)

    wrap(datasets, "hold_out", split)
    wrap(RunFolder, "__init__", entered)
    wrap(train, "fit", fitted)
    wrap(LocalEnergy, "write_gradient", computed)
    wrap(MetricsFile, "write", wrote)
    wrap(checkpoints, "save", saved)
    wrap(tensor_files, "write", wrote_file)
    wrap(checkpoints, "_publish", renamed)
    wrap(shutil, "rmtree", removed)


def serve() -> None:
    """Fork a process for each request, wait for those that are asked for."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        if "MIRROR" in request["environment"]:
            import torchvision.datasets  # noqa: F401 - which takes seconds, and the child has it then
        print(forked(lambda request=request: work(request)), flush=True)


def work(request: dict[str, Any]) -> None:
    """In the child: be train.py."""
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    run(request["argv"])


@hydra.main(version_base="1.3", config_path="../../conf", config_name="config")
def main(raw: DictConfig) -> float | None:
    if multiprocessing.parent_process() is not None and "FAULT" in os.environ:
        plant(os.environ.pop("FAULT"))  # a process of a launcher, which has this module by value
    return launch(raw, check=validate, job=train.train)


def run(argv: list[str]) -> None:
    sys.argv = [__file__, *argv]
    if "FAULT" in os.environ:
        plant(os.environ["FAULT"])
    if "MIRROR" in os.environ:
        from torchvision.datasets import MNIST

        MNIST.mirrors, MNIST.resources = [os.environ["MIRROR"]], json.loads(os.environ["RESOURCES"])
    main()


if __name__ == "__main__":
    register()
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        run(sys.argv[1:])
