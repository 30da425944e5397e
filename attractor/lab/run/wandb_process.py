"""The process in which wandb runs, beside the run that it watches.

`tracking` starts this file as a script, so that whatever wandb does here (waits, asks, crashes, leaves
threads behind) is no matter of the run. It needs wandb and the standard library alone: importing torch
would take seconds. Orders come in on standard input, what is to be told goes out on standard output, one
JSON object a line. The input ends when the run has ended, however it did; the run is then finished as
failed, unless it has said otherwise.
"""

import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

# Shares of the time that a run waits for wandb: to reach the server, for one answer of it, and to upload
# what is left at the end. What remains is for an offline record where the server could not be reached.
_REACHING = 0.4
_ANSWERING = 0.2
_UPLOADING = 0.4
# A server that is away for hours may come back: never give up sending, while the run goes on.
_RETRIES = 1_000_000


class Witness:
    """One wandb run, and who hears of it."""

    def __init__(self, ear: int) -> None:
        self._ear = ear
        self._run: Any = None

    def tell(self, **news: Any) -> None:
        with suppress(BrokenPipeError):  # the run was killed
            os.write(self._ear, json.dumps(news).encode() + b"\n")

    def start(self, *, mode: str, wait: float, program: str, pid: int, **about: Any) -> None:
        """wandb.init, offline where the server cannot be reached or would want a key that is not there."""
        # tables are logged with a question to the server, for which it would wait 19 s
        os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(max(1, int(_ANSWERING * wait))))
        import wandb

        if mode == "online" and not wandb.login(prompt=False, verify=False):
            self.tell(warning="wandb has no key: tracking offline (wandb login, or WANDB_API_KEY)")
            mode = "offline"
        common: dict[str, Any] = {"console": "off", "x_stats_pid": pid, "program": program}
        if mode == "online":
            limits: dict[str, Any] = {
                "init_timeout": _REACHING * wait,
                "finish_timeout": _UPLOADING * wait,
                "finish_timeout_raises": True,
                "x_file_stream_retry_max": _RETRIES,
            }
            before = self._parts(about)
            try:
                self._run = wandb.init(mode="online", settings=wandb.Settings(**common, **limits), **about)
            except Exception as error:
                reason = str(error).partition("\n")[0]
                self.tell(warning=f"wandb cannot reach its server ({reason}): tracking offline")
                wandb.teardown()  # it holds on to the id
                for part in self._parts(about) - before:  # there is nothing in it
                    shutil.rmtree(part, ignore_errors=True)
                mode = "offline"
        if mode == "offline":
            self._run = wandb.init(mode="offline", settings=wandb.Settings(**common), **about)
        if mode == "online":
            self.tell(url=self._run.url)

    @staticmethod
    def _parts(about: dict[str, Any]) -> set[Path]:
        """Folders of the run that were recorded online."""
        return set((Path(about["dir"]) / "wandb").glob(f"run-*-{about['id']}"))

    def log(self, *, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def results(
        self,
        *,
        summary: dict[str, Any],
        tables: dict[str, tuple[list[str], list[list[Any]]]],
        charts: dict[str, tuple[str, dict[str, list[float]]]],
    ) -> None:
        """Tables as (columns, rows); charts as (title, lines over t = 1, 2, ...)."""
        import wandb

        self._run.summary.update(summary)
        shown: dict[str, Any] = {}
        for name, (columns, rows) in tables.items():
            shown[name] = wandb.Table(columns=list(columns), data=rows)
        for name, (title, lines) in charts.items():
            over = [list(range(1, len(line) + 1)) for line in lines.values()]
            shown[name] = wandb.plot.line_series(
                over, list(lines.values()), list(lines), title=title, xname="iteration t"
            )
        self._run.log(shown)

    def media(self, *, files: dict[str, str]) -> None:
        import wandb

        media: dict[str, Any] = {}
        for name, path in files.items():
            media[name] = wandb.Video(path) if path.endswith(".gif") else wandb.Image(path)
        self._run.log(media)

    def finish(self, *, exit_code: int) -> None:
        try:
            if self._run is None:  # it could not start
                return
            self._run.finish(exit_code=exit_code)
            if not self._run.settings._offline:
                # the mark that `wandb sync` leaves, and looks for
                Path(f"{self._run.settings.sync_file}.synced").touch()
        except TimeoutError:
            self.tell(warning="wandb could not upload everything in time; the rest is on disk")
        finally:
            self.tell(finished=True)


def main() -> None:
    """Follow orders until `finish`; none of a kind that failed, for it might take long again."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are for the run, which tells what becomes of it
    ear = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what wandb prints is not for the terminal of the run
        os.dup2(nowhere, stream)
    witness = Witness(ear)
    orders: SimpleQueue[dict[str, Any]] = SimpleQueue()
    # the run is never held up by a full pipe, however long wandb takes
    Thread(target=_read, args=(orders,), daemon=True).start()
    what, failed = "", set[str]()
    while what != "finish":
        order = orders.get()
        what = order.pop("do")
        if what in failed or ("start" in failed and what != "finish"):
            continue
        try:
            getattr(witness, what)(**order)
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            witness.tell(warning=f"wandb failed at '{what}' ({reason}); the run goes on without it")
            failed.add(what)


def _read(orders: "SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        order = json.loads(line)
        orders.put(order)
        if order["do"] == "finish":
            return  # a thread that reads while the interpreter exits would abort it
    orders.put({"do": "finish", "exit_code": 1})


if __name__ == "__main__":
    main()
