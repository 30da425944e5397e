"""Which code a run was made by."""

import subprocess
from pathlib import Path

_PATIENCE = 2.0  # seconds for git, which may be on a slow disk


def commit(folder: Path = Path(__file__).parent) -> dict[str, str | bool] | None:
    """The git commit of the code in `folder`, and whether tracked files differ from it.

    None where the code is not tracked (an installed package in somebody else's repository is not), or there
    is no git.
    """
    try:
        if not _git(folder, "ls-files", "--", "."):
            return None
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/")
        return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        # no lock is taken: runs that start together would get into each other's way
        ["git", "--no-optional-locks", "-C", str(folder), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=_PATIENCE,
    )
    return done.stdout.strip()
