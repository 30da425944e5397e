"""Jobs in other processes of this machine: they learn what their parent is sent, and that it has ended.

joblib kills its processes when one of them raises, and leaves them training when their parent is killed.
Here the parent waits until each has saved its step, and a process whose parent is gone ends by itself.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing import resource_tracker

from attractor.lab.run.signals import ENDING, Signals, heeding


class Relay(Signals):
    """Signals of a process that waits for those that have the jobs: it passes them on, and waits.

    stop: called before the first one is passed on, to see to it that no further job is started. The second
    one is passed on too, and ends this process at once.
    """

    def __init__(self, stop: Callable[[signal.Signals], None]) -> None:
        super().__init__()
        self._stop = stop

    def begin(self) -> None:
        """To be called in the main thread, before any process is started.

        A process starts with those signals blocked that the thread blocks which starts it: so none ends it
        before the body of `heeded`. This one receives them in a thread that does nothing else.
        """
        resource_tracker.ensure_running()  # which unblocks them when it starts (Python 3.11)
        for number in ENDING:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        threading.Thread(target=_receive, name="signals", daemon=True).start()

    def _first(self, received: signal.Signals) -> None:
        self._stop(received)
        _pass_on(received)

    def _second(self, number: int) -> None:
        _pass_on(number)
        super()._second(number)


def is_worker() -> bool:
    """Whether this process was started to do the jobs of another one."""
    return multiprocessing.parent_process() is not None


def end_with_parent() -> None:
    """End a process whose parent is gone; otherwise see to it that a job ends once that is so, saved."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    if os.getppid() != parent.pid:
        os._exit(128 + signal.SIGTERM)
    _watch(parent.pid)


@cache  # once for a process
def _watch(parent: int) -> None:
    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        if not heeding():
            os._exit(128 + signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _receive() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    threading.Event().wait()


def _pass_on(number: int) -> None:
    for child in multiprocessing.active_children():
        with suppress(ProcessLookupError):
            if child.pid is not None:
                os.kill(child.pid, number)
