"""Tracking in wandb: never a prompt, never a crash of the run because of it.

Offline unless asked otherwise. Online without a key falls back to offline with one warning. wandb is
imported only when it is used; metrics.jsonl in the run folder is the complete record, wandb a copy.
"""

import logging
import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from attractor.lab.config import WandbConfig, WandbMode
from attractor.lab.report import relative

log = logging.getLogger("attractor")


class Tracker:
    """A wandb run, or nothing if disabled; a context manager, so that it always finishes."""

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
        self._silent = silent
        self._run: Any = None
        self._sync_command: str | None = None
        self._environment: dict[str, str | None] = {}

    def __enter__(self) -> "Tracker":
        if self._silent or self._config.mode is WandbMode.disabled:
            return self
        self._environment = {name: os.environ.get(name) for name in ("WANDB_DATA_DIR", "WANDB_SILENT")}
        # offline artifacts would otherwise go to the home folder
        os.environ["WANDB_DATA_DIR"] = str(self._folder / "wandb")
        os.environ["WANDB_SILENT"] = "true"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._run = self._tried("start", self._start)
        return self

    def _start(self) -> Any:
        import wandb

        mode = WandbMode.offline if self._config.mode is WandbMode.dryrun else self._config.mode
        if mode is WandbMode.online and not wandb.login(prompt=False, verify=False):
            log.warning("wandb has no key: tracking offline (wandb login, or WANDB_API_KEY)")
            mode = WandbMode.offline
        run = wandb.init(
            mode=mode.value,
            project=self._config.project,
            entity=self._config.entity,
            group=self._config.group,
            tags=self._config.tags,
            name=self._name,
            job_type=self._job_type,
            config=self._settings,
            dir=str(self._folder),
            settings=wandb.Settings(init_timeout=30, console="off"),
        )
        run.define_metric("*", step_metric="step")
        if mode is WandbMode.offline:
            self._sync_command = f"wandb sync {relative(Path(run.dir).parent)}"
        return run

    def log(self, step: int, values: dict[str, float]) -> None:
        """Scalars, under names like train/rate."""
        self._tried("log", lambda: self._run.log({"step": step} | values))

    def curves(self, tasks: dict[str, Any]) -> None:
        """The error curves of results.json, as a table for each task: model, t, error."""
        self._tried("log", lambda: self._log_curves(tasks))

    def _log_curves(self, tasks: dict[str, Any]) -> None:
        import wandb

        for task, values in tasks.items():
            rows = [
                [model, t, error]
                for model, entry in values["models"].items()
                for t, error in enumerate(entry["mse"], start=1)
            ]
            self._run.log({f"{task}/curves": wandb.Table(columns=["model", "t", "mse"], data=rows)})

    def images(self, files: dict[str, Path]) -> None:
        """Pictures and animations, by path."""
        for name, path in files.items():
            self._tried("log", lambda name=name, path=path: self._log_image(name, path))

    def _log_image(self, name: str, path: Path) -> None:
        import wandb

        media = wandb.Video(str(path)) if path.suffix == ".gif" else wandb.Image(str(path))
        self._run.log({name: media})

    def summary(self, values: dict[str, Any]) -> None:
        """Headline numbers of the run."""
        self._tried("summarise", lambda: self._run.summary.update(values))

    @property
    def sync_command(self) -> str | None:
        """What uploads an offline run, or None."""
        return self._sync_command

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tried("finish", lambda: self._run.finish(exit_code=0 if error is None else 1))
        self._run = None
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _tried(self, what: str, action: Any) -> Any:
        """wandb is a witness: when it fails, the run goes on without it."""
        if self._run is None and what != "start":
            return None
        try:
            return action()
        except Exception as error:  # whatever wandb raises, the numbers are in the run folder
            log.warning("wandb could not %s (%s); the run goes on without it", what, error)
            self._run = None
            return None
