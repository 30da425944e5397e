"""Small files that other processes read: each is there as a whole, or not at all, whenever one looks."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

_WRITING = ".writing"


def write(path: Path, text: str) -> None:
    """Write a file, or put another in its place: to a temporary name, flushed to disk, renamed."""
    temporary = path.with_name(f".{path.name}{_WRITING}")
    _flushed(temporary, text)
    temporary.replace(path)


def create(path: Path, text: str) -> None:
    """Write a file that is not there yet: of several that race for it all but one get FileExistsError."""
    # a name of its own: the others are writing too
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_WRITING}")
    try:
        _flushed(temporary, text)
        try:
            path.hardlink_to(temporary)  # unlike a rename, it replaces nothing
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: for a moment, the file is there and empty
            with path.open("x", encoding="utf-8") as handle:
                handle.write(text)
    finally:
        temporary.unlink(missing_ok=True)


def half_written(path: Path) -> bool:
    """Whether a process that was killed has left this file on its way to another name."""
    return path.name.startswith(".") and path.name.endswith(_WRITING)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} if there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _flushed(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def relative(path: Path) -> Path:
    """`path` as one would type it from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
