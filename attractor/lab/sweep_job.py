"""One job of a sweep, and what its folder holds already.

What a job is told, and what it tells, goes through its folder, so that it does not matter which process or
machine a launcher runs it on.
"""

import math
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from attractor.lab import checkpoints, jobs
from attractor.lab.config import Objective, OnError
from attractor.lab.errors import ConfigError, OutputError
from attractor.lab.fields import differences
from attractor.lab.folder import RunFolder
from attractor.lab.objective import measured, worst

STOPPED = ".stopped"  # a file in the sweep's folder: a job has failed, with on_error=stop
_EARLIER = "earlier"  # a folder for what failed jobs had left, when they are run again


def run_job(raw: DictConfig, path: Path, sweep: Path, start: Callable[[], float | None]) -> float:
    """A job of a sweep, which is skipped if it is done; its objective, the worst there is if it fails.

    raw: its configuration, where `resume` is set if it goes on. A folder with another run ends the sweep.
    """
    objective: Objective = raw.objective
    if (sweep / STOPPED).exists():
        print(f"job {path.name} is not started: another one has failed (on_error=stop)")
        return worst(objective)
    before = None
    try:
        done = _take_up(raw, path, objective)
        if done is not None:
            print(f"job {path.name} is done already: {objective.value} {done:.6g}")
            return done
        before = _text(path / "status.json")
        value = start()
    except Exception as error:
        _record(raw, path, error, before)
        if raw.on_error is OnError["stop"]:
            (sweep / STOPPED).touch()
        print(
            f"error: job {path.name} failed: {type(error).__name__}: {error}\n"
            f"its traceback is in {path / 'train.log'}",
            file=sys.stderr,
        )
        return worst(objective)
    except SystemExit as end:
        if end.code in (130, 143):
            again = f"hydra.sweep.dir={shlex.quote(str(sweep))}"
            print(f"the same command with {again} goes on with the sweep", file=sys.stderr)
        raise
    return value if value is not None and math.isfinite(value) else worst(objective)


def _take_up(raw: DictConfig, path: Path, objective: Objective) -> float | None:
    """The objective of a job that is done; otherwise its folder is made ready for it to start or go on."""
    if raw.get("resume") is not None:
        raise ConfigError("resume is for single runs; in a sweep an interrupted job goes on by itself")
    job = jobs.read(path)
    if job.state == jobs.RUNNING:
        raise OutputError(f"{path}: the run is still going on in another process")
    if job.state == jobs.NOT_STARTED:
        return None
    different = different_from(raw, job)
    if different:
        end(refusal({path: different}), 2)
    if job.state == jobs.DONE:
        with suppress(KeyError, TypeError):  # results of an older version: the job is run again
            return measured(job.results, objective)
    if job.state == jobs.INTERRUPTED and job.settings and checkpoints.found(path / "checkpoints"):
        raw.resume = str(path)
        return None
    _set_aside(path)
    return None


def _set_aside(path: Path) -> None:
    """What the job left goes to earlier/NAME-1, or the next number that is free."""
    earlier = path.parent / _EARLIER
    number = 1
    while (earlier / f"{path.name}-{number}").exists():
        number += 1
    try:
        earlier.mkdir(exist_ok=True)
        path.rename(earlier / f"{path.name}-{number}")
    except OSError as error:
        raise OutputError(f"{path} cannot be moved to {earlier}: {error}") from error
    print(f"job {path.name} begins again from step 0; what it left is in {earlier}/{path.name}-{number}")


def _record(raw: DictConfig, path: Path, error: Exception, before: str | None) -> None:
    """See to it that the folder of a job says why it failed, and with what traceback.

    before: its status.json when it was started. A job that had entered its folder has said so itself.
    """
    job = jobs.read(path)
    if job.state == jobs.RUNNING or (job.state == jobs.FAILED and _text(path / "status.json") != before):
        return
    with suppress(type(error), OutputError):
        folder = RunFolder(path, OmegaConf.to_yaml(raw, resolve=True), resumed=before is not None)
        with folder.job():
            raise error


def different_from(raw: DictConfig, job: jobs.Job) -> dict[str, tuple[Any, Any]]:
    """In what a job is not the one that its folder holds; {} if that holds none, or had only begun to."""
    if job.state == jobs.NOT_STARTED or not job.settings:
        return {}
    return differences(job.settings, jobs.settings(raw))


def refusal(refused: dict[Path, dict[str, tuple[Any, Any]]]) -> str:
    """What is said of folders that hold other jobs: field by field, of the first three of them."""
    lines = []
    for path, different in list(refused.items())[:3]:
        lines.append(f"{path} holds a job of another configuration; nothing was changed")
        lines += [
            f"  {name}: {jobs.shown(old)} there, {jobs.shown(new)} now"
            for name, (old, new) in different.items()
        ]
    if len(refused) > 3:
        lines.append(f"and so do {len(refused) - 3} more")
    lines.append("choose another folder with hydra.sweep.dir=DIR, or give the sweep as it was")
    return "\n".join(lines)


def end(text: str, code: int) -> NoReturn:
    """End the sweep: Hydra lets any other exception of a callback or of a job pass."""
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(code)


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
