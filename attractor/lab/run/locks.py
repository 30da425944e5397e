"""Locks between processes. The system lets go of one when its holder ends, however it ends."""

import fcntl
import time
from pathlib import Path
from typing import IO, TextIO

from attractor.lab.errors import OutputError


def lock(file: IO[str], *, patience: float = 1.0) -> bool:
    """Take the lock on an open file; False if another process keeps it for `patience` s.

    Raises OSError where files have no locks.
    """
    deadline = time.monotonic() + patience  # `status.occupied` holds one for a moment
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def take(path: Path, refusal: str) -> TextIO:
    """The lock on a file, which is made; it is let go of when the handle is closed. Raises OutputError."""
    try:
        handle = path.open("a")
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be written: {error}") from error
    try:
        taken = lock(handle, patience=0.0)
    except OSError:  # a file system without locks: as before there were any
        return handle
    if not taken:
        handle.close()
        raise OutputError(refusal)
    return handle
