"""Tracking in wandb: never a prompt, never a crash, a changed number or a long wait because of it.

wandb runs in a process of its own (`wandb_process`), which is told what happens and never waited for, but
at the end, for at most `wandb.wait_seconds`; then it is ended. Offline unless asked otherwise; online
without a key or a server falls back to offline with one warning. metrics.jsonl in the run folder is the
complete record, wandb a copy.
"""

import json
import logging
import os
import secrets
import shlex
import string
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from attractor.lab.config.names import WandbMode
from attractor.lab.config.schema import WandbConfig
from attractor.lab.config.titles import TASK_WORDS, title
from attractor.lab.errors import Terminated
from attractor.lab.experiment.numbers import headline, rows
from attractor.lab.run.channel import Channel
from attractor.lab.run.files import relative
from attractor.lab.run.provenance import commit

log = logging.getLogger("attractor")
_INTERRUPTED = 5.0  # seconds that a run waits for wandb when it was told to end


class Tracker:
    """A wandb run, or nothing if disabled; a context manager, so that it always finishes.

    A run that goes on keeps its id, and tells nothing twice: what it had already told, up to the last line
    of metrics.jsonl when it is entered, is left out.
    """

    def __init__(
        self,
        config: WandbConfig,
        *,
        folder: Path,
        name: str,
        job_type: str,
        settings: dict[str, Any],
        silent: bool = False,
    ) -> None:
        """`silent`: nothing is tracked here; another process does."""
        self._config = config
        self._folder = folder
        self._name = name
        self._job_type = job_type
        self._settings = settings
        self._off = silent or config.mode is WandbMode.disabled
        self._id = ""
        self._told = 0  # the last step that an earlier part of the run has told
        self._channel: Channel | None = None
        self._warned = False
        self.url: str | None = None  # where an online run can be seen

    def __enter__(self) -> "Tracker":
        if self._off:
            return self
        environment = {
            "WANDB_DATA_DIR": str(
                self._folder / "wandb"
            ),  # artifacts would otherwise go to the home folder
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",  # to others than the server that was asked for
        }
        try:
            self._id, self._told = self._identity()
            self._channel = Channel(os.environ | environment)
        except OSError as error:
            self._warn(f"wandb could not start ({error}); the run goes on without it")
            return self
        dryrun = self._config.mode is WandbMode.dryrun
        self._tell(
            "start",
            mode="offline" if dryrun else self._config.mode.value,
            wait=self._config.wait_seconds,
            pid=os.getpid(),
            program=sys.argv[0],
            project=self._config.project,
            entity=self._config.entity,
            group=self._config.group or sweep_name(),
            tags=list(self._config.tags),
            name=self._name,
            job_type=self._job_type,
            config=self._settings | {"git": commit()},
            id=self._id,
            resume="allow",
            dir=str(self._folder),
        )
        return self

    def _identity(self) -> tuple[str, int]:
        """The id of the run in wandb, kept in the run folder, and the last step it was told."""
        path = self._folder / "wandb" / "id"
        if path.exists():
            return path.read_text().strip(), _last_step(self._folder / "metrics.jsonl")
        # an agent of a wandb sweep has chosen one
        chosen = None if sweep_name() else os.environ.get("WANDB_RUN_ID")
        letters = string.ascii_lowercase + string.digits
        identity = chosen or "".join(secrets.choice(letters) for _ in range(8))
        path.parent.mkdir(exist_ok=True)
        path.write_text(identity)
        return identity, 0

    def log(self, step: int, values: dict[str, float]) -> None:
        """Scalars, under names like train/rate."""
        if step > self._told:
            self._tell("log", step=step, values=values)

    def results(self, results: dict[str, Any], **more: float) -> None:
        """results.json: its headline numbers and `more`, a table of all models, the curves of each task."""
        tables: dict[str, Any] = {"results": rows(results["tasks"])}
        charts: dict[str, Any] = {}
        for task, values in results["tasks"].items():
            models = values["models"]
            points = [
                [model, t, *point]
                for model, entry in models.items()
                for t, point in enumerate(zip(entry["mse"], entry["std"], strict=True), start=1)
            ]
            tables[f"{task}/curves"] = (["model", "t", "mse", "std over images"], points)
            steps = max(len(entry["mse"]) for entry in models.values())
            # a model of one shot is the same at every t
            lines = {
                title(model): entry["mse"] * (steps if len(entry["mse"]) == 1 else 1)
                for model, entry in models.items()
            }
            charts[f"{task}/error"] = (f"{TASK_WORDS[task]}: mean squared error", lines)
        summary = headline(results) | results.get("cost", {}) | more
        self._tell("results", summary=summary, tables=tables, charts=charts)

    def summary(self, values: dict[str, float]) -> None:
        """Numbers that sum a run up, and no more."""
        self._tell("results", summary=values, tables={}, charts={})

    def images(self, files: dict[str, Path]) -> None:
        """Pictures and animations, by path."""
        self._tell("media", files={name: str(path) for name, path in files.items()})

    @property
    def sync_command(self) -> str | None:
        """What uploads all parts of a run that are only on disk, or None."""
        # wandb puts the parts of a run that went on together itself, by their id and in order of time
        parts = sorted((self._folder / "wandb").glob(f"*run-*-{self._id}")) if self._id else []
        parts = [p for p in parts if any(p.glob("*.wandb")) and not any(p.glob("*.synced"))]
        if not parts:
            return None
        online = any(part.name.startswith("run-") for part in parts)
        flags = ["--include-online"] if online else []
        return shlex.join(["wandb", "sync", *flags, *(str(relative(part)) for part in parts)])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._channel is None:
            return
        self._tell("finish", exit_code=0 if error is None else 1)
        seconds = self._config.wait_seconds
        if isinstance(error, KeyboardInterrupt | Terminated):
            seconds = min(seconds, _INTERRUPTED)
        deadline = time.monotonic() + seconds
        finished = False
        try:
            while not finished and (left := deadline - time.monotonic()) > 0:
                finished = self._hear(self._channel.exchange(left))
                if not self._channel.alive:
                    break
        finally:
            ended = self._channel.close(grace=1.0 if finished else 0.0)
        if not finished:
            why = "its process has ended" if ended else f"it took more than {seconds:g} s"
            self._warn(f"wandb did not finish: {why}; the run is complete without it")

    def _tell(self, what: str, **order: Any) -> None:
        """Send an order, and hear what there is to hear, without waiting."""
        if self._channel is None:
            return
        self._channel.send({"do": what} | order)
        self._hear(self._channel.exchange(0))

    def _hear(self, news: list[dict[str, Any]]) -> bool:
        """Whether wandb has finished."""
        finished = False
        for item in news:
            if "warning" in item:
                self._warn(item["warning"])
            self.url = item.get("url", self.url)
            finished = finished or "finished" in item
        return finished

    def _warn(self, text: str) -> None:
        if not self._warned:  # what fails once fails again, and one line says it
            log.warning("%s", text)
        self._warned = True


def sweep_name() -> str | None:
    """The folder of the sweep that this run is a job of, by which its runs are grouped; None without one.

    A folder named by its time only is preceded by its day.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    folder = Path(HydraConfig.get().sweep.dir)
    day = folder.parent.name
    dated = len(day) == 10 and day.replace("-", "").isdigit()
    return f"{day} {folder.name}" if dated else folder.name


def _last_step(metrics: Path) -> int:
    """The step of the last whole line of metrics.jsonl; 0 without one."""
    try:
        whole = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return int(json.loads(whole[-1])["step"]) if whole else 0
    except (OSError, ValueError, KeyError):
        return 0
