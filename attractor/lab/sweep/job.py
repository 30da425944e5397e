"""One job of a sweep, and what its folder holds already.

What a job is told, and what it tells, goes through its folder, so that it does not matter which process or
machine a launcher runs it on.
"""

import json
import math
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from attractor.lab.config.fields import differences
from attractor.lab.config.names import Objective, OnError
from attractor.lab.errors import (
    EXIT_CODES,
    CheckpointError,
    ConfigError,
    OutputError,
    Terminated,
    exit_code,
)
from attractor.lab.experiment.objective import worst
from attractor.lab.run import checkpoints
from attractor.lab.run.folder import RunFolder
from attractor.lab.run.relay import end_with_parent, is_worker
from attractor.lab.run.signals import heeded
from attractor.lab.run.status import read_status
from attractor.lab.sweep import jobs
from attractor.physics import NonFiniteError

STOPPED = ".stopped"  # a file in the sweep's folder: why no further job is started
_EARLIER = "earlier"  # a folder for what jobs had left that begin again


def run_job(raw: DictConfig, path: Path, sweep: Path, start: Callable[[], float | None]) -> float:
    """A job of a sweep, which is skipped if it is done; its objective, the worst there is if it fails.

    raw: its configuration, where `resume` is set if it goes on. A folder with another run ends the sweep,
    and so does a signal; of several processes each ends its job, and their parent the sweep.
    """
    try:
        with heeded() as signals:
            end_with_parent()
            value = _run_job(raw, path, sweep, start)
            signals.heed()  # what came while a failure was written down
            return value
    except (SystemExit, KeyboardInterrupt, Terminated) as error:
        code = error.code if isinstance(error, SystemExit) else exit_code(error)
        if code not in (130, 143):
            raise
        if is_worker():
            end_with_parent()
            return worst(raw.objective)
        again = f"hydra.sweep.dir={shlex.quote(str(sweep))}"
        print(f"the same command with {again} goes on with the sweep", file=sys.stderr)
        raise SystemExit(code) from error


def _run_job(raw: DictConfig, path: Path, sweep: Path, start: Callable[[], float | None]) -> float:
    objective: Objective = raw.objective
    if (stopped := _text(sweep / STOPPED)) is not None:
        print(f"job {path.name} is not started: {stopped}")
        return worst(objective)
    before = None
    try:
        ended = _take_up(raw, path, objective)
        if ended is not None:
            return ended
        before = _text(path / "status.json")
        value = start()
    except Exception as error:
        _record(raw, path, error, before)
        if raw.on_error is OnError["stop"]:
            (sweep / STOPPED).write_text("another one has failed (on_error=stop)")
        print(
            f"error: job {path.name} failed: {type(error).__name__}: {error}\n"
            f"its traceback is in {path / 'train.log'}",
            file=sys.stderr,
        )
        if isinstance(error, CheckpointError):
            print(f"nothing was lost or begun anew; {_afresh(path)}", file=sys.stderr)
        return worst(objective)
    return value if value is not None and math.isfinite(value) else worst(objective)


def _take_up(raw: DictConfig, path: Path, objective: Objective) -> float | None:
    """The objective of a job that has come to its end; else its folder is made ready to start or go on.

    A job that has saved a checkpoint goes on from the newest whole one, whatever it ended with; where none
    is left it fails (CheckpointError) instead of beginning anew. One that has saved none begins again. One
    that became non-finite would again, at the same step, and is left as it is.
    """
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
        done = job.metrics.get(objective.value)  # of another task it has no error, and a study has none
        print(f"job {path.name} is done already" + (f": {objective.value} {done:.6g}" if done else ""))
        return worst(objective) if done is None else done
    status = read_status(path)
    code = status.get("exit_code")
    if code == EXIT_CODES[NonFiniteError]:
        print(f"job {path.name} would fail as it did: {job.error}; {_afresh(path)}")
        return worst(objective)
    saved = code == EXIT_CODES[CheckpointError] or _has_saved(path, job)
    if status.get("status") != "done" and job.settings and saved:
        raw.resume = str(path)
        return None
    _set_aside(path)
    return None


def _has_saved(path: Path, job: jobs.Job) -> bool:
    """Whether a job has ever saved a checkpoint: it may be damaged or gone."""
    if checkpoints.found(path / "checkpoints"):
        return True
    *lines, _ = (_text(path / "metrics.jsonl") or "").split("\n")  # the last one may be half a line
    # a validation is saved before the next step is written
    return any(json.loads(line)["step"] > job.settings["train.validate_every"] for line in lines)


def _afresh(path: Path) -> str:
    return f"to run it again from step 0, move or delete {path}, and give the same command"


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
    before, now = job.settings, jobs.settings(raw)
    different = differences(before, now)
    # of one's own images the root is no mere place: another file is another job
    was, root = before.get("data.root"), now.get("data.root")
    if now.get("data.name") == "npz" and was != root:
        different["data.root"] = (was, root)
    return different


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
