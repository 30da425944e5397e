"""Data sets are downloaded whole or not at all, and by one process at a time."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = ".downloading-"


def fetch(root: Path, files: Sequence[str], get: Callable[[Path], object]) -> None:
    """Have `get` download `files` to a folder that it is given, then move them below `root`.

    Whatever ends `get`, what it has left is removed, and so is `root` if it was not there before. Of
    several processes that want them one downloads; the others wait for it, and find the files.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(root):
            if all((root / file).is_file() for file in files):
                return
            for left in root.glob(f"{_PREFIX}*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
            try:
                get(folder)
                for file in files:
                    (root / file).parent.mkdir(parents=True, exist_ok=True)
                    (folder / file).replace(root / file)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        with suppress(OSError):  # something is in it
            for folder in made:
                folder.rmdir()


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process at a time, by a lock on the folder itself, which leaves no file behind."""
    handle = os.open(root, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: each downloads, and the last one stays
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
