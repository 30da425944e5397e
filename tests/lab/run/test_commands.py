"""train.py and evaluate.py as commands: exit codes, what is printed, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.warm import WarmPython

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def command(root: Path, tiny: tuple[str, ...], warm: WarmPython) -> Command:
    """A function that runs train.py, small, from the root of the repository; torch is imported already."""

    def run(
        *overrides: str, script: str = "train.py", flags: tuple[str, ...] = ()
    ) -> "subprocess.CompletedProcess[str]":
        small = tiny if script == "train.py" else ()
        argv = [script, *flags, *small, *overrides]
        return warm.run(argv, cwd=root, environment=environment(), timeout=120)

    return run


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(command: Command, tmp_path_factory: pytest.TempPathFactory):
    """A run through the command, tracked offline."""
    folder = tmp_path_factory.mktemp("commands") / "run"
    return folder, command(f"folder={folder}", "wandb=offline")


def test_a_run_exits_with_0_and_says_where_it_is(finished) -> None:
    """Header, table, run folder and sync command on standard output, progress on standard error.

    The shape of a first run in DESIGN.md, section 5; what is piped away must hold no progress bars.
    """
    folder, done = finished
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("bare self-attention on synthetic: 8x8 images, 2x2 patches")
    table = next(index for index, line in enumerate(lines) if line.split() == ["masked", "denoise"])
    assert lines[table + 1].startswith("  bare self-attention  ")
    assert lines[table + 5].startswith("  softmax memory")
    assert f"run folder   {folder}" in done.stdout
    (offline,) = (folder / "wandb").glob("offline-run-*")
    assert f"tracked offline; upload with: uv run wandb sync {offline}" in lines
    assert "training" not in done.stdout.replace("training mean", "")
    assert "training" in done.stderr
    assert "Traceback" not in done.stderr
    assert status(folder)["status"] == "done"
    assert json.loads((folder / "results.json").read_text())["schema"] == 1
    assert "steps: 6" in (folder / "config.yaml").read_text()


def test_an_existing_run_exits_with_5(finished, command: Command) -> None:
    """The folder of a run is refused, with the remedy, and stays byte for byte what it was."""
    folder, _ = finished
    before = contents(folder)
    done = command(f"folder={folder}", "seed=1")
    assert done.returncode == 5
    assert f"error: {folder} already holds a run" in done.stderr
    assert "folder=DIR" in done.stderr
    assert contents(folder) == before


def test_a_patch_that_does_not_divide_exits_with_2(command: Command, tmp_path: Path) -> None:
    """One line that names what was given and what would do; no traceback, no folder."""
    done = command("model.patch=3", f"folder={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.strip() == ("error: patch size 3 does not divide image side 8; use 1, 2, 4 or 8")
    assert not (tmp_path / "run").exists()


def test_an_unknown_field_exits_with_1(command: Command, tmp_path: Path) -> None:
    """Hydra's own refusal, which names the field."""
    done = command("train.stepz=3", f"folder={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "Could not override 'train.stepz'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_missing_data_exits_with_6(command: Command, tmp_path: Path) -> None:
    """The folder that was searched is named, and the field that sets it."""
    done = command("data=mnist", "data.root=/nonexistent", f"folder={tmp_path / 'run'}")
    assert done.returncode == 6
    assert done.stderr.startswith("error: mnist is not in /nonexistent")
    assert "data.root=" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_non_finite_couplings_exit_with_3(command: Command, tmp_path: Path) -> None:
    """Step and row are named, the status is failed, and the last good checkpoint stays.

    With this decay every weight is multiplied by about -1e10 in each step: the first couplings are
    finite, those of the fifth are not.
    """
    folder = tmp_path / "run"
    done = command(
        f"folder={folder}",
        "rule=energy_descent",
        "rule.learning_rate=1.0",
        "rule.decay=1e10",
        "train.validate_every=1",
        "train.steps=20",
    )
    assert done.returncode == 3, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: at step ")
    assert "non-finite in row " in last
    after = status(folder)
    assert (after["status"], after["exit_code"]) == ("failed", 3)
    assert "at step" in after["error"]
    assert list((folder / "checkpoints").glob("step-*/rows-0-16.safetensors"))
    assert "Traceback" in (folder / "train.log").read_text()


def test_sigterm_exits_with_143(root: Path, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A run that is killed while training says so, and keeps every metric that it had measured.

    A scheduler that sees 0 or 1 would believe that the run ended by itself.
    """
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "train.py", *tiny, f"folder={folder}", "train.steps=1000000"],
        cwd=root,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        metrics = folder / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert status(folder)["status"] == "running"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    assert said.splitlines()[-1].startswith("error: ")
    after = status(folder)
    assert (after["status"], after["exit_code"]) == ("killed", 143)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert not (folder / "results.json").exists()


def test_a_multirun_makes_a_folder_for_each_job(command: Command, tmp_path: Path) -> None:
    """-m with one job that fails: the others finish, every folder says how it went, the exit code is 1."""
    done = command("seed=0,1", "model.patch=2,3", f"hydra.sweep.dir={tmp_path / 'sweep'}", flags=("-m",))
    assert done.returncode == 1
    ends = {}
    for folder in (tmp_path / "sweep").iterdir():
        if (folder / "status.json").exists():
            ends[folder.name] = status(folder)["status"]
    assert ends == {"0": "done", "1": "failed", "2": "done", "3": "failed"}
    seeds = {
        json.loads((tmp_path / "sweep" / job / "results.json").read_text())["seed"] for job in ("0", "2")
    }
    assert seeds == {0, 1}
    assert status(tmp_path / "sweep" / "1")["exit_code"] == 2
    assert "patch size 3" in status(tmp_path / "sweep" / "1")["error"]


def test_evaluate_exits_with_0_and_prints_the_same_table(
    finished, command: Command, tmp_path: Path
) -> None:
    """evaluate.py on that run prints the rows that train.py printed, and how far they are from the best."""
    folder, trained = finished
    small = ("images=9", "steps=6", "batch_size=4", "wandb=disabled")
    done = command(f"runs=[{folder}]", f"folder={tmp_path / 'eval'}", *small, script="evaluate.py")
    assert done.returncode == 0, done.stderr
    rows = [line for line in trained.stdout.splitlines() if line.startswith("  ")]
    assert len(rows) >= 6
    assert all(row in done.stdout.splitlines() for row in rows)
    assert "paired standard error" in done.stdout
    assert (tmp_path / "eval" / "figures" / "error_curves.pdf").exists()


def test_a_damaged_checkpoint_exits_with_4(trained, command: Command, tmp_path: Path) -> None:
    """evaluate.py names the damaged file; no result is printed of couplings that nobody trained."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained.path, copy)
    for weights in copy.glob("checkpoints/*/rows-0-16.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    done = command(f"runs=[{copy}]", f"folder={tmp_path / 'eval'}", "wandb=disabled", script="evaluate.py")
    assert done.returncode == 4
    assert "is damaged" in done.stderr
    assert str(copy) in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/proc").exists(), reason="what a process has loaded is looked up in /proc")
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_ctrl_c_while_modules_are_imported_is_quiet(script: str, root: Path, tmp_path: Path) -> None:
    """As soon as torch is being loaded: an end by SIGINT, to a shell 130, without a word."""
    with subprocess.Popen(
        [sys.executable, script, f"folder={tmp_path / 'run'}"],
        cwd=root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (-signal.SIGINT, "")
    assert not (tmp_path / "run").exists()
