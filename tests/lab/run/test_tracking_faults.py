"""wandb whose server hangs, fails, dies or is not there: the same run, a bounded wait, one warning."""

import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from attractor.lab.run.tracking import Tracker
from tests.lab.wandb_server import KEY, Server

WAIT = 8.0  # seconds; wandb itself needs two or three to start


def couplings(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of couplings."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def measured(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


@pytest.fixture(scope="module")
def untracked(train_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as it is without wandb."""
    path: Path = train_run(tmp_path_factory.mktemp("untracked") / "run", "wandb=disabled").path
    return path


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the run was held up at every call of its tracker, seconds."""
    times: list[float] = []

    def timed(method: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **more: object) -> object:
            begin = time.monotonic()
            try:
                return method(*given, **more)
            finally:
                times.append(time.monotonic() - begin)

        return call

    for name in ("__enter__", "log", "results", "images", "__exit__"):
        monkeypatch.setattr(Tracker, name, timed(getattr(Tracker, name)))
    return times


@pytest.fixture
def tracked(
    train_run,
    untracked: Path,
    waited: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., tuple[str, str]]:
    """A function that runs online, with a server if one is given; what that printed, and its one warning.

    Every number is that of the untracked run, the wait is bounded, and nobody but the server is contacted:
    neither wandb's own, nor one that collects errors.
    """

    def run(server: Server | None = None) -> tuple[str, str]:
        for name, value in (server.environment if server else {}).items():
            monkeypatch.setenv(name, value)
        with server.running() if server else nullcontext():
            done = train_run(tmp_path / "run", "wandb=online", f"wandb.wait_seconds={WAIT}")
        assert couplings(done.path) == couplings(untracked)
        assert measured(done.path) == measured(untracked)
        assert json.loads((done.path / "status.json").read_text())["status"] == "done"
        assert sum(waited) < WAIT + 3
        if server:
            assert server.requests
            assert not server.elsewhere
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        return done.output, warning

    return run


@pytest.mark.parametrize("behaviour", ["hangs", "fails"])
def test_a_server_that_cannot_be_reached(
    behaviour: str, tracked: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    """The run is tracked offline instead, loses nothing but the wait that was allowed, and says so once.

    Without the bound, a cluster job that trains for an hour would wait for days.
    """
    said, warning = tracked(Server(behaviour))
    assert "cannot reach its server" in warning
    (record,) = (tmp_path / "run" / "wandb").glob("*run-*")
    assert record.name.startswith("offline-run-")
    assert f"upload with: uv run wandb sync {record}" in said


@pytest.mark.parametrize("behaviour", ["hangs", "dies", "fails"])
def test_a_server_that_is_lost_in_the_middle(
    behaviour: str, tracked: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    """It answers until it knows the run, then never, or with 500: all is on disk, with the command."""
    server = Server(afterwards=behaviour)
    said, _ = tracked(server)
    assert server.runs  # it was reached
    assert not server.history  # and has heard nothing of the training
    (record,) = (tmp_path / "run" / "wandb").glob("run-*")
    assert f"not all of it was uploaded; upload with: uv run wandb sync --include-online {record}" in said


def test_a_witness_that_is_killed(
    tracked: Callable[..., tuple[str, str]], waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, say: the run does not even wait."""
    enter = Tracker.__enter__

    def enter_and_kill(tracker: Tracker) -> Tracker:
        enter(tracker)
        assert tracker._channel is not None
        tracker._channel._process.kill()
        tracker._channel._process.wait()
        return tracker

    monkeypatch.setattr(Tracker, "__enter__", enter_and_kill)
    _, warning = tracked()
    assert warning == "wandb did not finish: its process has ended; the run is complete without it"
    assert sum(waited) < WAIT / 2


def test_the_command_ends_well_without_a_server(
    root: Path, tiny: tuple[str, ...], untracked: Path, tmp_path: Path
) -> None:
    """As a user types it, WANDB_MODE=online: exit code 0, one warning, no traceback, no process left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = subprocess.run(
        [
            *(sys.executable, "train.py", *(word for word in tiny if word != "wandb=disabled")),
            *(f"folder={tmp_path / 'run'}", "wandb.wait_seconds=4"),
        ],
        cwd=root,
        env=os.environ | {"WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = (done.stdout + done.stderr).splitlines()
    assert len([line for line in said if line.startswith("wandb")]) == 1
    assert "Traceback" not in done.stderr
    assert couplings(tmp_path / "run") == couplings(untracked)


def test_a_run_that_is_killed_is_finished_as_failed(tmp_path: Path) -> None:
    """SIGKILL leaves no last words: without its witness, wandb would show the run as running for ever."""
    code = f"""
import os, signal
from pathlib import Path
from attractor.lab.config.names import WandbMode
from attractor.lab.config.schema import WandbConfig
from attractor.lab.run.tracking import Tracker
config = WandbConfig(mode=WandbMode.online, wait_seconds={WAIT})
with Tracker(config, folder=Path({str(tmp_path)!r}), name="a", job_type="train", settings={{}}) as tracker:
    tracker.log(1, {{"train/rate": 0.5}})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with Server().running() as server:
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | server.environment, check=False, timeout=120
        )
        assert done.returncode == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while not server.exit_codes:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ((run, told),) = server.exit_codes.items()
        assert told == 1
        assert [line["train/rate"] for line in server.history[run].values()] == [0.5]
