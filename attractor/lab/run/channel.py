"""The line to the witness of a run, a process of its own that tells wandb."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

_WITNESS = Path(__file__).with_name("wandb_process.py")


class Channel:
    """The witness process: orders go in, news come out, and nothing here waits unless it is asked to."""

    def __init__(self, environment: dict[str, str]) -> None:
        # -P: the modules beside the script are not for its imports
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WITNESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the run
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        os.set_blocking(self._in.fileno(), False)
        self._unsent = bytearray()
        self._unread = b""
        self.alive = True

    def send(self, order: dict[str, Any]) -> None:
        self._unsent += json.dumps(order).encode() + b"\n"

    def exchange(self, seconds: float) -> list[dict[str, Any]]:
        """Send what the pipe takes; return what has come, waiting at most so long for something to do."""
        if not self.alive:
            return []
        sending = [self._in] if self._unsent else []
        readable, writable, _ = select.select([self._out], sending, [], seconds)
        try:
            if writable:
                del self._unsent[: self._in.write(self._unsent) or 0]
        except BrokenPipeError:
            self._unsent.clear()
        if not readable:
            return []
        received = os.read(self._out.fileno(), 65536)
        self.alive = bool(received)
        *lines, self._unread = (self._unread + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self, *, grace: float) -> bool:
        """End the process after so many seconds; return whether it had ended by itself."""
        for pipe in (self._in, self._out):
            pipe.close()
        try:
            self._process.wait(grace if self.alive else 1.0)
            return True
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
