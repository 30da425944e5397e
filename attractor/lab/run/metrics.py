"""metrics.jsonl of a run folder: the record of a run, step by step."""

import json
import os
import time
from pathlib import Path

from attractor.lab.errors import OutputError
from attractor.lab.run import files


class MetricsFile:
    """One JSON object a line, flushed, so that a killed run keeps all it measured.

    Lines of steps after the first `done` are dropped, and half a line at the end.
    """

    def __init__(self, path: Path, *, done: int = 0) -> None:
        if done and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done]
            files.write(path, "".join(kept))
        self._path = path
        self._handle = path.open("a")

    def write(self, step: int, values: dict[str, float | None]) -> None:
        """Raises OutputError if the file was removed: nobody would ever read the line."""
        self._handle.write(json.dumps({"step": step, "time": time.time()} | values) + "\n")
        self._handle.flush()
        if not os.fstat(self._handle.fileno()).st_nlink:
            raise OutputError(f"{self._path} was removed while the run was going on")

    def flush_to_disk(self) -> None:
        """A checkpoint must not outlive the lines of its steps."""
        if self._path != Path(os.devnull):
            os.fsync(self._handle.fileno())

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.close()
