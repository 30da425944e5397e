"""The run folder: what a run leaves behind, and how it says what became of it.

config.yaml  status.json  metrics.jsonl  train.log  results.json  report.html
checkpoints/  figures/  wandb/
"""

import errno
import fcntl
import json
import logging
import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from attractor.lab.errors import OutputError, Terminated, exit_code

log = logging.getLogger("attractor")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG)


class RunFolder:
    """A folder that holds exactly one run. Nothing is written before `job` is entered.

    Raises OutputError if it already holds a run, or has `=` or `,` in its name, which Hydra cannot be given
    back on the command line. With `resumed` it must hold one, which goes on.
    """

    silent = False

    def __init__(self, path: Path, config_yaml: str, *, resumed: bool = False) -> None:
        self.path = path.absolute()
        self.resumed = resumed
        self._config_yaml = config_yaml
        self._begin = time.time()
        self._handlers: list[logging.Handler] = []
        if not resumed:
            self._check_free()

    def _check_free(self) -> None:
        if "=" in self.path.name or "," in self.path.name:
            raise OutputError(
                f"the run folder {self.path.name!r} has '=' or ',' in its name; choose another"
            )
        if self.path.is_dir() and any(self.path.iterdir()):
            self._refuse()

    def _refuse(self) -> NoReturn:
        run = (self.path / "status.json").exists()
        raise OutputError(
            f"{self.path} already holds {'a run' if run else 'files'}; nothing was changed. Choose another "
            "folder with folder=DIR (hydra.sweep.dir=DIR in a multirun), or remove it"
        )

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # FileExistsError: a file is in the way
            raise OutputError(f"{self.path} cannot be written: {error}") from error
        try:
            # exclusive creation: of two jobs that race for a folder, one is refused
            with (self.path / "status.json").open("x") as handle:
                json.dump({"status": "running"}, handle)
            (self.path / "config.yaml").write_text(self._config_yaml)
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
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file or none: to a temporary name, flushed, renamed."""
        temporary = self.path / f".{name}.writing"
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.rename(self.path / name)

    def status(self, status: str, **more: Any) -> None:
        """running, done, failed or killed, with what else is known."""
        times = {"begin": self._begin, "end": time.time(), "pid": os.getpid()}
        self.write_json("status.json", {"status": status} | times | more)

    def metrics(self, *, done: int = 0) -> "MetricsFile":
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

        SIGTERM raises Terminated in the body, SIGINT KeyboardInterrupt. A full disk becomes OutputError.
        """
        if not self.resumed:
            self._create()
        handler = logging.FileHandler(self.path / "train.log")
        try:
            self._lock(handler)
        except OutputError:
            handler.close()
            raise
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)
        self._handlers = [handler]
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            self.status("running")
            yield
            self.status("done")
        except BaseException as error:
            failure = self._failure(error)
            trace = "".join(traceback.format_exception(error))
            handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, trace, (), None))
            killed = isinstance(error, KeyboardInterrupt | Terminated)
            with suppress(OSError):  # a full disk must not hide what went wrong first
                self.status(
                    "killed" if killed else "failed",
                    error=f"{type(failure).__name__}: {failure}",
                    exit_code=exit_code(failure),
                )
            if failure is not error:
                raise failure from error
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
            logging.getLogger().removeHandler(handler)
            self._handlers = []
            handler.close()

    def _lock(self, handler: logging.FileHandler) -> None:
        """One process at a time has a run; the lock on train.log ends with the process that holds it."""
        try:
            assert handler.stream is not None  # it is open
            fcntl.flock(handler.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{self.path}: the run is still going on in another process") from error
        except OSError:
            log.warning("%s is on a file system without locks", self.path)

    def _failure(self, error: BaseException) -> BaseException:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return OutputError(f"{self.path} cannot be written: {error}")
        return error


class SilentFolder(RunFolder):
    """The same folder to the processes that do not keep it: they write checkpoints there, and say nothing.

    SIGTERM ends them at once, even where they wait for another process.
    """

    silent = True

    def _check_free(self) -> None:
        """The process that keeps the folder looks."""

    def write_text(self, name: str, text: str) -> None:
        """Nothing."""

    def metrics(self, *, done: int = 0) -> "MetricsFile":
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


class MetricsFile:
    """metrics.jsonl: one JSON object a line, flushed, so that a killed run keeps all it measured.

    Lines of steps after the first `done` are dropped, and half a line at the end.
    """

    def __init__(self, path: Path, *, done: int = 0) -> None:
        if done and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done]
            temporary = path.with_name(f".{path.name}.writing")
            temporary.write_text("".join(kept))
            temporary.rename(path)
        self._handle = path.open("a")

    def write(self, step: int, values: dict[str, float | None]) -> None:
        self._handle.write(json.dumps({"step": step, "time": time.time()} | values) + "\n")
        self._handle.flush()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.close()


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated("SIGTERM")
