"""The run folder: what a run leaves behind, and how it says what became of it.

config.yaml  status.json  metrics.jsonl  train.log  results.json  report.html
checkpoints/  figures/  wandb/
"""

import errno
import json
import logging
import os
import platform
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from attractor.lab.errors import OutputError, Paused, Terminated, exit_code
from attractor.lab.run import files
from attractor.lab.run.locks import lock
from attractor.lab.run.metrics import MetricsFile
from attractor.lab.run.signals import Signals, heeded
from attractor.lab.run.status import holder, occupied, read_status

log = logging.getLogger("attractor")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG)


class RunFolder:
    """A folder that holds exactly one run. Nothing is written before `job` is entered.

    Raises OutputError if it already holds a run, or has `=` or `,` in its name, which Hydra cannot be given
    back on the command line. With `resumed` it must hold one, which goes on, from its newest checkpoint or
    from that of `step`. signals: what the process was sent; heeded in `job`.
    """

    silent = False

    def __init__(
        self, path: Path, config_yaml: str, *, resumed: bool = False, step: int | None = None
    ) -> None:
        self.path = path.absolute()
        self.resumed = resumed
        self.step = step
        self.signals = Signals()
        self._config_yaml = config_yaml
        self._begin = time.time()
        self._handlers: list[logging.Handler] = []
        self._before = read_status(self.path) if resumed else {}
        if not resumed:
            self._check_free()

    def _check_free(self) -> None:
        if "=" in self.path.name or "," in self.path.name:
            raise OutputError(
                f"the run folder {self.path.name!r} has '=' or ',' in its name; choose another"
            )
        if self.path.is_dir() and not all(map(files.half_written, self.path.iterdir())):
            self._refuse()

    def _refuse(self) -> NoReturn:
        found = "files"
        if (self.path / "status.json").exists():
            status = read_status(self.path)
            found = f"a run, going on in {holder(status)}" if occupied(self.path) else "a run"
        raise OutputError(
            f"{self.path} already holds {found}; nothing was changed. Choose another folder with "
            "folder=DIR (hydra.sweep.dir=DIR in a multirun), go on with an unfinished training by "
            "resume=DIR, or remove it"
        )

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # FileExistsError: a file is in the way
            raise OutputError(f"{self.path} cannot be written: {error}") from error
        try:
            # of two jobs that race for a folder, one is refused
            files.create(self.path / "status.json", _json(self._status("running")))
            files.write(self.path / "config.yaml", self._config_yaml)
        except FileExistsError:
            self._refuse()
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error}") from error

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def write_json(self, name: str, value: Any) -> None:
        """A value as a JSON file, whole or not at all."""
        self.write_text(name, _json(value))

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file or none."""
        if self._removed():
            raise OutputError(f"{self.path} was removed while the run was going on")
        files.write(self.path / name, text)

    def status(self, status: str, **more: Any) -> None:
        """running, done, failed or killed, with what else is known."""
        self.write_json("status.json", self._status(status, **more))

    def _status(self, status: str, **more: Any) -> dict[str, Any]:
        times = {"begin": self._begin, "end": time.time()}
        return {"status": status} | times | {"pid": os.getpid(), "host": platform.node()} | more

    def _removed(self) -> bool:
        return not (self.path / "status.json").exists()

    def metrics(self, *, done: int = 0) -> MetricsFile:
        """metrics.jsonl, with what it holds of the first `done` steps."""
        return MetricsFile(self.path / "metrics.jsonl", done=done)

    def say(self, text: str) -> None:
        """Print, and keep it in train.log."""
        with suppress(BrokenPipeError):  # the reader has gone; the run has not
            print(text, flush=True)
        for handler in self._handlers:
            handler.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, text, (), None))

    @contextmanager
    def job(self) -> Iterator[None]:
        """Make the folder and run the body; leave its traceback in train.log, its end in status.json.

        SIGTERM raises Terminated in the body, SIGINT KeyboardInterrupt, as `signals` says. A full disk
        becomes OutputError, and so does a folder that is removed.
        """
        if not self.resumed:
            self._create()
        with heeded() as self.signals, self._log() as handler:
            yield from self._body(handler)

    @contextmanager
    def _log(self) -> Iterator[logging.FileHandler]:
        """train.log, locked; it has what the program logs."""
        try:
            handler = _LogFile(self.path / "train.log")
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error}") from error
        try:
            self._lock(handler)
        except OutputError:
            handler.close()
            raise
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)
        self._handlers = [handler]
        try:
            yield handler
        finally:
            logging.getLogger().removeHandler(handler)
            self._handlers = []
            with suppress(OSError):  # what it could not write, it cannot write now
                handler.close()

    def _body(self, handler: logging.Handler) -> Iterator[None]:
        try:
            self.status("running")
            yield
            self.status("done")
        except BaseException as error:
            self.signals.conclude()
            failure = self._failure(error)
            trace = "".join(traceback.format_exception(error))
            handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, trace, (), None))
            killed = isinstance(error, KeyboardInterrupt | Terminated | Paused)
            with suppress(OSError, OutputError):  # a full disk must not hide what went wrong first
                self.status(
                    "killed" if killed else "failed",
                    error=f"{type(failure).__name__}: {failure}",
                    exit_code=exit_code(failure),
                )
            if failure is not error:
                raise failure from error
            raise

    def _lock(self, handler: logging.FileHandler) -> None:
        """One process at a time has a run; the lock on train.log ends with the process that holds it."""
        try:
            assert handler.stream is not None  # it is open
            held = lock(handler.stream)
        except OSError:
            log.warning("%s is on a file system without locks", self.path)
            held = not (self.resumed and occupied(self.path))
        if not held:
            raise OutputError(f"{self.path}: the run is still going on in {holder(read_status(self.path))}")
        if self.resumed and read_status(self.path) != self._before:
            raise OutputError(f"{self.path}: another process has gone on with the run in the meantime")

    def _failure(self, error: BaseException) -> BaseException:
        if isinstance(error, OSError):
            if self._removed():
                return OutputError(f"{self.path} was removed while the run was going on ({error})")
            if error.errno in _DISK_ERRORS:
                return OutputError(f"{self.path} cannot be written: {error}")
        return error


class SilentFolder(RunFolder):
    """The same folder to the processes that do not keep it: they write checkpoints there, and say nothing.

    SIGTERM ends them at once, even where they wait for another process: they heed no signals.
    """

    silent = True

    def _check_free(self) -> None:
        """The process that keeps the folder looks."""

    def write_text(self, name: str, text: str) -> None:
        """Nothing."""

    def metrics(self, *, done: int = 0) -> MetricsFile:
        """Nowhere."""
        return MetricsFile(Path(os.devnull))

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def job(self) -> Iterator[None]:
        """Run the body. A full disk becomes OutputError."""
        try:
            yield
        except OSError as error:
            failure = self._failure(error)
            if failure is not error:
                raise failure from error
            raise


class _LogFile(logging.FileHandler):
    """A log that cannot be written does not add its own traceback to the error that it was to hold."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing."""


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
