"""A lock between processes. The system lets go of it when its holder ends, however it ends."""

import fcntl
from pathlib import Path
from typing import TextIO

from attractor.lab.errors import OutputError


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
