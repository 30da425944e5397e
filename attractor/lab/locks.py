"""Locks between processes. The system lets go of them when their holder ends, however it ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from attractor.lab.errors import OutputError


def held(path: Path) -> bool:
    """Whether a process holds the lock on a file."""
    try:
        with path.open("r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file, or the file system has no locks
        return False
    return False


def take(path: Path, refusal: str) -> TextIO:
    """The lock on a file, which is made; it is let go of when the handle is closed. Raises OutputError."""
    try:
        handle = path.open("a")
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be written: {error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.close()
        raise OutputError(refusal) from error
    except OSError:  # a file system without locks: as before there were any
        pass
    return handle


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time gets something into `folder`; the others wait."""
    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".attractor.lock").open("a")
    except OSError:  # what cannot be written to is not downloaded to either, which is told there
        yield
        return
    with handle:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
