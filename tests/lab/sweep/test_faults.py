"""SIGKILL, signals, damaged checkpoints in the middle of a sweep: the same command goes on, bit for bit."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attractor.lab.collect import main as collect
from attractor.lab.run import checkpoints
from tests.lab.traces import contents, lines, same, status

# two of the six fail: with this decay the weights grow by 1e10 in each step
SIX = ("-m", "rule=energy_descent", "seed=0,1", "rule.decay=0.1,0.2,1e10")
# rows are drawn, so that there is a generator whose state must come back
THREE = ("-m", "train.steps=10", "backend=eager", "rule.rows_per_step=12", "seed=0,1,2")
ROWS = "rows-0-16.safetensors"


@pytest.fixture(scope="module")
def six(commands, tmp_path_factory: pytest.TempPathFactory):
    """A sweep of six jobs, killed in step 3 of the fourth, what it held then, and what its rerun said."""
    sweep = tmp_path_factory.mktemp("sweeps") / "six"
    given = (*SIX, f"hydra.sweep.dir={sweep}")
    code, said = commands.run(*given, FAULT="kill:3:metrics", JOB="3")
    assert code == -signal.SIGKILL, said
    return sweep, contents(sweep), *commands.run(*given)


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three jobs that nothing interrupts."""
    sweep = tmp_path_factory.mktemp("sweeps") / "whole"
    code, said = commands.run(*THREE, f"hydra.sweep.dir={sweep}")
    assert code == 0, said
    return sweep


def test_a_killed_sweep_is_finished_by_the_same_command(six, train_run, tmp_path: Path) -> None:
    """Of six jobs four are done and two have failed; nothing was run twice.

    What was done or had failed is as it was, to the last byte; the killed job trained no step again that it
    had saved. Without it a night's sweep is lost with its last job, or holds jobs that were run twice.
    """
    sweep, before, code, said = six
    assert code == 1, said
    ends = {name: status(sweep / name)["status"] for name in "012345"}
    assert ends == {"0": "done", "1": "done", "2": "failed", "3": "done", "4": "done", "5": "failed"}
    after = contents(sweep)
    for name in "012":
        kept = {path: content for path, content in before.items() if (sweep / name) in path.parents}
        assert len(kept) > 3
        assert {path: after[path] for path in kept} == kept
    assert "job 0 is done already: val 0." in said
    assert "job 2 would fail as it did: NonFiniteError: at step" in said
    assert not (sweep / "earlier").exists()
    # the fourth job goes on from its checkpoint: of each step there is one line, of saved ones the first
    assert "going on from step 2" in (sweep / "3" / "train.log").read_text()
    first, second = (found[sweep / "3" / "metrics.jsonl"].splitlines() for found in (before, after))
    assert [json.loads(line)["step"] for line in first] == [1, 2, 3]
    assert [json.loads(line)["step"] for line in second] == [1, 2, 3, 4, 5, 6]
    assert second[:2] == first[:2]
    straight = train_run(tmp_path / "run", "rule=energy_descent", "seed=1", "rule.decay=0.1").path
    same(sweep / "3", straight)


def test_a_failed_job_keeps_its_traceback_and_is_summed_up(six) -> None:
    """Error in status.json, traceback in train.log, and at the end values, error and folder of each.

    Hydra alone shows the traceback of the first failed job, at the very end, and of the others nothing.
    """
    sweep, _, _, said = six
    for name in "25":
        assert status(sweep / name)["error"].startswith("NonFiniteError: at step ")
        assert status(sweep / name)["exit_code"] == 3
        assert (sweep / name / "train.log").read_text().count(" ERROR Traceback") == 1
    assert f"sweep {sweep}: 6 jobs: 4 done, 2 failed" in said
    assert f"failed: {sweep / '2'}  rule.decay=1e+10 seed=0\n      NonFiniteError: at step" in said
    assert "error: job 5 failed: NonFiniteError: at step" in said


def test_collect_gives_the_table_of_the_killed_sweep(six, capsys) -> None:
    """Swept fields as columns, means of the four that are done, the two that failed counted and listed."""
    sweep = six[0]
    assert collect([str(sweep), "--no-figures"]) == 0
    heads, *rows = [line.split(",") for line in (sweep / "table.csv").read_text().splitlines()]
    assert heads[:4] == ["rule.decay", "n", "failed", "unfinished"]
    assert sorted(row[:4] for row in rows) == [
        ["0.1", "2", "0", "0"],
        ["0.2", "2", "0", "0"],
        ["1e+10", "0", "2", "0"],
    ]
    scores = [
        json.loads((sweep / name / "results.json").read_text())["validation"]["score"] for name in "03"
    ]
    mean = next(float(row[4]) for row in rows if row[0] == "0.1")
    assert heads[4] == "val"
    assert mean == pytest.approx(sum(scores) / 2, rel=1e-12)
    assert f"failed: {sweep / '5'}  rule.decay=1e+10 seed=1" in capsys.readouterr().out


def test_another_sweep_is_refused_in_the_same_folder(six, commands) -> None:
    """Exit code 2, the fields that differ, before anything is run; the folder stays as it is.

    Otherwise results of two experiments lie in one folder, and the table averages over them.
    """
    sweep = six[0]
    before = contents(sweep)
    code, said = commands.run(*SIX, "train.batch_size=8", f"hydra.sweep.dir={sweep}")
    assert code == 2
    assert f"error: {sweep / '0'} holds a job of another configuration; nothing was changed" in said
    assert "  train.batch_size: 16 there, 8 now" in said
    assert contents(sweep) == before


# --- signals


@pytest.mark.parametrize(
    ("fault", "code", "saved"),
    [("term:3:step", 143, 3), ("int:3:step", 130, 3), ("term+int:3:metrics", 130, 2)],
)
def test_a_signal_ends_a_sweep_one_job_after_the_other(
    fault: str, code: int, saved: int, commands, whole: Path, tmp_path: Path
) -> None:
    """In step 3 of the second job: that step is saved, the third job is not started, and the rerun ends as
    the sweep that was left alone. A second signal saves nothing, and costs what came after the last save.
    """
    given = (*THREE, f"hydra.sweep.dir={tmp_path}")
    found, said = commands.run(*given, FAULT=fault, JOB="1")
    assert found == code, said
    assert status(tmp_path / "0")["status"] == "done"
    assert checkpoints.newest_whole(tmp_path / "1" / "checkpoints") == (saved, [])
    assert not (tmp_path / "2" / "status.json").exists()
    if saved == 3:
        assert (status(tmp_path / "1")["status"], status(tmp_path / "1")["exit_code"]) == ("killed", code)
        assert f"the same command with hydra.sweep.dir={tmp_path} goes on with the sweep" in said
    first = contents(tmp_path / "0")
    found, said = commands.run(*given)
    assert found == 0, said
    assert f"going on from step {saved}" in said
    assert contents(tmp_path / "0") == first
    for name in "012":
        same(tmp_path / name, whole / name)


def wait_for(what: str, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def gone(pid: int) -> bool:
    """Whether a process has ended; nobody may have asked yet how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def all_gone(pids: list[int]) -> None:
    wait_for("the processes end", lambda: all(map(gone, pids)))


def test_signals_end_jobs_that_run_side_by_side(commands, whole: Path, tmp_path: Path) -> None:
    """launcher=joblib, ended three times by what its parent alone is sent. SIGTERM: both jobs are saved and
    marked. SIGINT, and SIGTERM after it: all end at once. SIGKILL: the jobs notice, and are saved. No
    process is left, the same command goes on each time, and ends as the sweep that was left alone.

    joblib leaves its processes training when its parent is killed, beside those of the next start, and
    kills them when one of them raises.
    """
    given = (*THREE, "launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    jobs = [tmp_path / "sweep" / name for name in "01"]

    def start(fault: str) -> tuple[int, list[int]]:
        """Its process id once both jobs are where the fault is, and those of the jobs."""
        when = tmp_path / fault.replace(":", "-")
        when.mkdir()
        pid = commands.start(*given, FAULT=fault, WHEN=str(when))
        wait_for(fault, lambda: len(list(when.iterdir())) == 2)
        return pid, [status(job)["pid"] for job in jobs]

    pid, workers = start("hold:3:metrics")
    os.kill(pid, signal.SIGTERM)
    code, said = commands.end(pid)
    assert code == 143, said
    assert "job 2 is not started: SIGTERM was received" in said
    assert "3 jobs: 2 interrupted, 1 not started" in said
    all_gone(workers)
    for job in jobs:
        assert (status(job)["status"], status(job)["exit_code"]) == ("killed", 143)
        assert checkpoints.newest_whole(job / "checkpoints") == (3, [])

    pid, workers = start("stuck:5:metrics")
    os.kill(pid, signal.SIGINT)
    wait_for("both have heard", lambda: commands.said(pid).count("SIGINT: the step is finished") == 2)
    os.kill(pid, signal.SIGTERM)
    assert commands.end(pid)[0] == 143
    all_gone(workers)
    assert [checkpoints.newest_whole(job / "checkpoints") for job in jobs] == [(4, [])] * 2

    pid, workers = start("hold:7:metrics")
    os.kill(pid, signal.SIGKILL)
    assert commands.end(pid)[0] == -signal.SIGKILL
    all_gone(workers)
    assert [status(job)["exit_code"] for job in jobs] == [143, 143]

    found, said = commands.run(*(word for word in given if "launcher" not in word))
    assert found == 0, said
    assert said.count("going on from step 7") == 2
    for name in "012":
        same(tmp_path / "sweep" / name, whole / name)


# --- what a job saved is damaged, or could not be saved


def exchange(checkpoints: Path, one: int, other: int) -> None:
    first, second = (checkpoints / f"step-{step}" / ROWS for step in (one, other))
    first.rename(checkpoints / "aside")
    second.rename(first)
    (checkpoints / "aside").rename(second)


def test_swapped_checkpoints_of_a_job(commands, whole: Path, tmp_path: Path) -> None:
    """The rows of two steps in each other's place: both are named with the reason, and the job falls back
    to the one before them. Where there is none it fails with 4, at each rerun, while the others are done:
    nothing is lost, and nothing begun anew.
    """
    given = (*THREE, f"hydra.sweep.dir={tmp_path}")
    assert commands.run(*given, FAULT="term:5:step", JOB="0")[0] == 143
    saved = tmp_path / "0" / "checkpoints"
    assert checkpoints.found(saved) == [2, 4, 5]  # 2 is the best one
    shutil.copytree(tmp_path / "0", tmp_path / "spare")
    exchange(saved, 4, 5)
    code, said = commands.run(*given)
    assert code == 0, said
    for step in (4, 5):
        assert f"warning: {saved}/step-{step}/{ROWS} is damaged: its SHA-256" in said
    assert "going on from step-2, the newest that is whole" in said
    same(tmp_path / "0", whole / "0")

    shutil.rmtree(tmp_path / "0")
    (tmp_path / "spare").rename(tmp_path / "0")
    shutil.rmtree(saved / "step-2")
    exchange(saved, 4, 5)
    before = contents(saved)
    for _ in range(2):
        code, said = commands.run(*given)
        assert code == 1, said
        assert (status(tmp_path / "0")["status"], status(tmp_path / "0")["exit_code"]) == ("failed", 4)
        error = status(tmp_path / "0")["error"]
        assert all(f"step-{step}/{ROWS} is damaged: its SHA-256" in error for step in (4, 5))
        assert f"to run it again from step 0, move or delete {tmp_path / '0'}," in said
        assert "3 jobs: 2 done, 1 failed" in said
        assert contents(saved) == before
        assert [line["step"] for line in lines(tmp_path / "0")] == [1, 2, 3, 4, 5]
    assert not (tmp_path / "earlier").exists()


def test_a_job_that_found_the_disk_full_goes_on(commands, whole: Path, tmp_path: Path) -> None:
    """It fails with 5 in its third save; with room again it goes on from the second, not from step 0."""
    given = (*THREE[:-1], "seed=0", f"hydra.sweep.dir={tmp_path}")
    code, said = commands.run(*given, FAULT="full:6:before")
    assert code == 1, said
    assert (status(tmp_path / "0")["status"], status(tmp_path / "0")["exit_code"]) == ("failed", 5)
    code, said = commands.run(*given)
    assert code == 0, said
    assert "going on from step 4" in said
    assert not (tmp_path / "earlier").exists()
    same(tmp_path / "0", whole / "0")
