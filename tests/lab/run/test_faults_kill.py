"""SIGKILL, signals, a full disk, a removed folder: what is left of a run goes on, bit for bit."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from attractor.lab.run import checkpoints
from tests.lab.faulty import LONG, STEPS, moments
from tests.lab.traces import lines, same, status

SAVES = (4, 6, 8, 10)  # after the first one, before which there is nothing to go on from


def test_killed_again_and_again_it_ends_as_it_would_have(commands, whole: Path, tmp_path: Path) -> None:
    """kill -9 at five moments, drawn with a seed from steps and phases of the save, and resumed each time.

    A file that is flushed after its folder is renamed, a line of metrics that is lost or doubled, a
    generator that starts anew would end in another checkpoint or other metrics. See kills.py too.
    """
    chosen = moments(26, 5, saves=SAVES)
    assert len({phase for _, phase in chosen}) == 5
    folder = tmp_path / "run"
    start = (*LONG, f"folder={folder}")
    for step, phase in chosen:
        code, said = commands.run(*start, FAULT=f"kill:{step}:{phase}")
        assert code == -signal.SIGKILL, (step, phase, said)
        assert status(folder)["status"] == "running"
        start = (f"resume={folder}",)
    code, said = commands.run(*start)
    assert code == 0, said
    same(folder, whole)
    assert [line["step"] for line in lines(folder)] == list(range(1, STEPS + 1))
    results = [json.loads((path / "results.json").read_text()) for path in (folder, whole)]
    assert results[0]["tasks"] == results[1]["tasks"]
    assert not [entry for entry in (folder / "checkpoints").iterdir() if entry.name.startswith(".")]
    assert status(folder)["status"] == "done"


@pytest.mark.parametrize(("what", "code"), [("term", 143), ("int", 130)])
def test_a_signal_finishes_the_step_and_saves(
    what: str, code: int, commands, whole: Path, tmp_path: Path
) -> None:
    """SIGTERM and SIGINT in the middle of step 5, which no validation follows: step 5 is saved, the status
    is killed, the exit code says so, the way on is printed; resumed, the run is what it would have been.
    """
    folder = tmp_path / "run"
    found, said = commands.run(*LONG, f"folder={folder}", FAULT=f"{what}:5:step")
    assert found == code, said
    assert f"saved after step 5 of {STEPS}; go on with: uv run train.py resume={folder}" in said
    assert (status(folder)["status"], status(folder)["exit_code"]) == ("killed", code)
    assert checkpoints.found(folder / "checkpoints")[-2:] == [4, 5]
    assert lines(folder) == lines(whole)[:5]
    found, said = commands.run(f"resume={folder}")
    assert found == 0, said
    assert "going on from step 5" in said
    same(folder, whole)


def test_a_second_signal_ends_at_once_and_harms_nothing(commands, whole: Path, tmp_path: Path) -> None:
    """SIGINT while the checkpoint that SIGTERM asked for is written: no step-5, and step-4 as it was.

    Whoever asks twice does not want to wait; what they have must still go on.
    """
    folder = tmp_path / "run"
    code, said = commands.run(*LONG, f"folder={folder}", FAULT="term+int:5:metrics")
    assert code == 130, said
    assert "Traceback" not in said
    assert checkpoints.found(folder / "checkpoints")[-1] == 4
    checkpoints.verify(folder / "checkpoints", 4)
    code, said = commands.run(f"resume={folder}")
    assert code == 0, said
    same(folder, whole)


def test_step_limit_tracking_figures_and_place_may_change(commands, whole: Path, tmp_path: Path) -> None:
    """train.stop_after is 3, then 7, and the run is tracked and without figures; then it has moved. No step
    is another one.

    The rate falls along train.steps all the while. A limit that is behind is refused (2).
    """
    folder = tmp_path / "run"
    code, said = commands.run(*LONG, f"folder={folder}", "train.stop_after=3", "figures=true")
    assert code == 0, said
    assert "paused after step 3" in said
    assert status(folder)["status"] == "killed"
    assert not (folder / "results.json").exists()
    code, said = commands.run(f"resume={folder}", "train.stop_after=3")
    assert code == 2
    assert "train.stop_after is 3, but the run has done 3 steps" in said
    logging = ("wandb=offline", "wandb.project=other", "wandb.wait_seconds=0.5", "figures=false")
    code, said = commands.run(f"resume={folder}", "train.stop_after=7", *logging)
    assert code == 0, said
    assert (folder / "wandb" / "id").exists()
    assert lines(folder) == lines(whole)[:7]
    moved = folder.rename(tmp_path / "moved")
    code, said = commands.run(f"resume={moved}", "figures=false")
    assert code == 0, said
    assert not folder.exists()
    same(moved, whole)


def test_a_full_disk_leaves_the_checkpoint_before_it(commands, whole: Path, tmp_path: Path) -> None:
    """No file may get beyond 1,000 bytes when the third checkpoint is written: exit code 5, one line, no
    half of a checkpoint; with room again the run goes on.
    """
    folder = tmp_path / "run"
    code, said = commands.run(*LONG, f"folder={folder}", FAULT="full:6:before")
    assert code == 5, said
    last = said.splitlines()[-1]
    assert last.startswith("error: ")
    assert "cannot be written" in last
    assert "File too large" in last
    assert "Traceback" not in said
    assert sorted(entry.name for entry in (folder / "checkpoints").iterdir())[-1] == "step-4"
    assert not list((folder / "checkpoints").glob(".*"))
    checkpoints.verify(folder / "checkpoints", 4)
    assert commands.run(f"resume={folder}")[0] == 0
    same(folder, whole)


@pytest.mark.parametrize("fault", ["remove:5:step", "remove:6:before"])
def test_a_folder_that_is_removed_ends_the_run(fault: str, commands, tmp_path: Path) -> None:
    """Exit code 5, found at the next line of metrics or the next checkpoint, and no folder comes back.

    Else the run would train for hours into a file that has no name any more.
    """
    folder = tmp_path / "run"
    code, said = commands.run(*LONG, f"folder={folder}", FAULT=fault)
    assert code == 5, said
    assert "was removed while the run was going on" in said.splitlines()[-1]
    assert not folder.exists()


def test_a_path_below_a_file(commands, tmp_path: Path) -> None:
    """A regular file where a folder should be: exit code 5, and the file is as it was."""
    (tmp_path / "file").write_text("kept")
    code, said = commands.run(f"folder={tmp_path / 'file' / 'run'}")
    assert code == 5
    assert "cannot be written" in said.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "kept"


def test_two_runs_in_one_folder(commands, whole: Path, tmp_path: Path) -> None:
    """While one goes on, another start and another resume are refused (5) and name it; once it is killed
    its lock is nobody's, and the run goes on.
    """
    folder = tmp_path / "run"
    first = commands.start(*LONG, f"folder={folder}", FAULT="hold:5:metrics", WHEN=str(tmp_path))
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "held-run").exists():
            assert Path(f"/proc/{first}").exists()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for overrides in ((f"folder={folder}",), (f"resume={folder}",)):
            code, said = commands.run(*overrides)
            assert code == 5, said
            assert f"going on in another process ({first} on " in said.splitlines()[-1]
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    finally:
        os.kill(first, signal.SIGKILL)
    assert commands.end(first)[0] == -signal.SIGKILL
    assert status(folder)["status"] == "running"
    code, said = commands.run(f"resume={folder}")
    assert code == 0, said
    same(folder, whole)
