"""SIGTERM and SIGINT: the first one ends a run in good order, a second one ends the process at once."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from attractor.lab.errors import Terminated

# `uv run` and schedulers forward a signal that the whole group of processes has got: it comes twice,
# up to 0.3 s apart.
_SAME = 1.0  # seconds
ENDING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """What was received in the body of `heeded`.

    The first signal raises Terminated (SIGTERM) or KeyboardInterrupt (SIGINT) where it arrives, or, between
    `defer` and `heed`, at `heed`. A second one ends the process there and then, with exit code 128 + its
    number: what is written under a temporary name and renamed is not harmed by that.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._when = 0.0
        self._deferring = False
        self._over = False

    def defer(self) -> None:
        """From now on the first signal only sets `received`, for the caller to come to an end."""
        self._deferring = True

    def heed(self) -> None:
        """Raise what came in the meantime, and what comes from now on where it arrives."""
        self._deferring = self._over = False
        self._end()

    def conclude(self) -> None:
        """The body has come to its end, which is being written down: a first signal only sets `received`.

        torchrun sends one to a process that is just saying which of its peers has ended.
        """
        self._over = True

    def _end(self) -> None:
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt("SIGINT")
        if self.received is signal.SIGTERM:
            raise Terminated("SIGTERM")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is not None:
            if number != self.received or now - self._when > _SAME:
                self._second(number)
            return
        self.received, self._when = signal.Signals(number), now
        self._first(self.received)

    def _first(self, received: signal.Signals) -> None:
        if self._over:
            return
        if not self._deferring:
            self._end()
            return
        said = f"\n{received.name}: the step is finished and saved; a second signal ends the run at once\n"
        os.write(2, said.encode())  # print is not safe here: it may be what was interrupted

    def _second(self, number: int) -> None:
        os._exit(128 + number)


_current: list[Signals] = []  # a process has one disposition for each signal


def heeding() -> bool:
    """Whether the body of a `heeded` is being executed."""
    return bool(_current)


@contextmanager
def heeded() -> Iterator[Signals]:
    """In the body, and in all that it calls, signals are treated as `Signals` says; then as before.

    Only the main thread of a process can ask for that; in another one nothing is received. A process that
    was started for jobs, with signals blocked (`relay`), receives here what has come since then. Afterwards
    it ignores them: it may have threads by then that do not block them.
    """
    if _current or threading.current_thread() is not threading.main_thread():
        yield _current[0] if _current else Signals()
        return
    signals = Signals()
    before: dict[int, Any] = {number: signal.signal(number, signals._handle) for number in ENDING}
    _current.append(signals)
    try:
        if multiprocessing.parent_process() is not None:
            before = dict.fromkeys(ENDING, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        yield signals
    finally:
        _current.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
