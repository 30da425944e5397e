"""status.json of a run folder, as another process reads it: who has the run, and whether it goes on."""

import os
import platform
import time
from pathlib import Path
from typing import Any

from attractor.lab.run.files import read_json
from attractor.lab.run.locks import lock


def read_status(path: Path) -> dict[str, Any]:
    """What status.json below `path` says; nothing if it is not there, or damaged."""
    return read_json(path / "status.json")


def holder(status: dict[str, Any]) -> str:
    """Who has a run, of which host, since when."""
    begin = status.get("begin")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begin)) if begin else "an unknown time"
    where = f"{status.get('pid', '?')} on {status.get('host', 'an unknown host')}"
    return f"another process ({where}, since {since})"


def occupied(path: Path) -> bool:
    """Whether a process has the run in the folder `path` now."""
    try:
        with (path / "train.log").open("a") as log:
            return not lock(log, patience=0.0)
    except OSError:  # without locks
        return _alive(read_status(path))


def _alive(status: dict[str, Any]) -> bool:
    """Whether the process that says it is running is there, if it is one of this host."""
    if status.get("status") != "running" or status.get("host") != platform.node():
        return False
    pid = status.get("pid")
    return isinstance(pid, int) and pid != os.getpid() and Path(f"/proc/{pid}").exists()
