"""Tracking: a witness that is never imported in vain, never asks and never ends a run."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from attractor.lab.config import WandbConfig, WandbMode
from attractor.lab.tracking import Tracker

TASKS = {"masked": {"models": {"net": {"mse": [0.3, 0.2]}, "memory": {"mse": [0.1]}}}}


def tracker(mode: str, folder: Path) -> Tracker:
    return Tracker(
        WandbConfig(mode=WandbMode(mode)),
        folder=folder,
        name="a run",
        job_type="train",
        settings={"seed": 0},
    )


class FakeRun:
    """What wandb.init returns, as far as a tracker uses it. `fails`: the methods that raise."""

    def __init__(self, folder: Path, *fails: str) -> None:
        self.dir = str(folder / "wandb" / "offline-run-1" / "files")
        self.fails = fails
        self.logged: list[dict[str, Any]] = []
        self.finished: list[int] = []
        self.summary: dict[str, Any] = {}

    def define_metric(self, *names: str, **settings: Any) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        if "log" in self.fails:
            raise OSError("wandb broke")
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        if "finish" in self.fails:
            raise OSError("wandb broke")
        self.finished.append(exit_code)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_disabled_never_touches_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every call is a no-op though wandb cannot even be imported: no warning, no file, no command."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracker("disabled", tmp_path) as disabled:
        disabled.log(1, {"train/rate": 0.1})
        disabled.curves(TASKS)
        disabled.images({"picture": tmp_path / "none.png"})
        disabled.summary({"masked/net": 0.2})
    assert disabled.sync_command is None
    assert not warnings_of(caplog)
    assert not list(tmp_path.iterdir())


def test_the_commands_import_no_wandb(root: Path) -> None:
    """Importing train and evaluate does not import wandb, which takes seconds; nor does a disabled run."""
    code = "import sys, train, evaluate; sys.exit('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, timeout=120)
    assert done.returncode == 0


def test_offline_leaves_a_run_and_the_command_that_uploads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A real offline run below the run folder's wandb/, with a sync command that names its folder.

    Nothing but wandb's own logs goes to the home folder, and nothing to the working directory.
    """
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    with tracker("offline", folder) as offline:
        offline.log(1, {"train/rate": 0.1})
        offline.curves(TASKS)
        offline.summary({"masked/net": 0.2})
    assert not warnings_of(caplog)
    (found,) = (folder / "wandb").glob("offline-run-*")
    (record,) = found.glob("run-*.wandb")
    deadline = time.monotonic() + 20  # its service writes when it likes
    while b"train/rate" not in record.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert offline.sync_command == f"wandb sync run/wandb/{found.name}"
    assert not (tmp_path / "wandb").exists()
    home = tmp_path / "home"
    assert {path.suffix for path in home.rglob("*") if path.is_file()} <= {".log"}


def test_artifacts_of_two_runs_stay_in_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, as in a multirun, what wandb stages for the second run is not put into the first's.

    The staging folder is an environment variable: set once and left, it is the first run's for all.
    """
    import wandb

    seen = []

    def init(**settings: Any) -> FakeRun:
        seen.append(os.environ.get("WANDB_DATA_DIR"))
        return FakeRun(Path(settings["dir"]))

    monkeypatch.setattr(wandb, "init", init)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with tracker("offline", tmp_path / name):
            pass
    assert seen == [str(tmp_path / name / "wandb") for name in ("first", "second")]


def test_a_tracker_that_fails_warns_once_and_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """log raises: one warning, then nothing more, and no error. metrics.jsonl has the numbers anyway."""
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **settings: FakeRun(tmp_path, "log", "finish"))
    with tracker("offline", tmp_path) as broken:
        for step in range(5):
            broken.log(step, {"train/rate": 0.1})
        broken.summary({"masked/net": 0.2})
    (warning,) = warnings_of(caplog)
    assert "wandb broke" in warning
    assert "goes on without it" in warning


def test_a_start_that_fails_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """wandb.init raises, or wandb is not installed: the run goes on, without a command to upload it."""
    import wandb

    def init(**settings: Any) -> FakeRun:
        raise TimeoutError("no service")

    monkeypatch.setattr(wandb, "init", init)
    with tracker("offline", tmp_path) as broken:
        broken.log(1, {"train/rate": 0.1})
    (warning,) = warnings_of(caplog)
    assert "no service" in warning
    assert broken.sync_command is None


def test_online_without_a_key_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, no prompt: a run on a cluster would wait for an answer for ever."""
    import wandb

    asked: list[dict[str, Any]] = []
    modes: list[str] = []

    def login(**settings: Any) -> bool:
        asked.append(settings)
        return False

    def init(**settings: Any) -> FakeRun:
        modes.append(settings["mode"])
        return FakeRun(tmp_path)

    monkeypatch.setattr(wandb, "login", login)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr("builtins.input", lambda *text: pytest.fail("it asked"))
    with tracker("online", tmp_path) as online:
        online.log(1, {"train/rate": 0.1})
    assert [settings["prompt"] for settings in asked] == [False]
    assert modes == ["offline"]
    (warning,) = warnings_of(caplog)
    assert "no key" in warning
    assert online.sync_command is not None


def test_online_with_a_key_is_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a key it is online, without warning, and there is nothing left to sync."""
    import wandb

    modes: list[str] = []

    def init(**settings: Any) -> FakeRun:
        modes.append(settings["mode"])
        return FakeRun(tmp_path)

    monkeypatch.setattr(wandb, "login", lambda **settings: True)
    monkeypatch.setattr(wandb, "init", init)
    with tracker("online", tmp_path) as online:
        pass
    assert modes == ["online"]
    assert online.sync_command is None
    assert not warnings_of(caplog)


def test_a_run_that_failed_is_finished_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """finish(1) after an error, finish(0) without: a crashed run must not look finished in wandb."""
    import wandb

    runs: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        runs.append(FakeRun(tmp_path))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    with tracker("offline", tmp_path) as fine:
        fine.log(3, {"train/rate": 0.5})
        fine.summary({"masked/net": 0.2})
    with pytest.raises(RuntimeError, match="surprise"), tracker("offline", tmp_path):
        raise RuntimeError("surprise")
    assert [run.finished for run in runs] == [[0], [1]]
    assert runs[0].logged == [{"step": 3, "train/rate": 0.5}]
    assert runs[0].summary == {"masked/net": 0.2}
