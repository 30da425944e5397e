"""One job of a sweep and what its folder holds: skipped, gone on with, begun again, or left as it is."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from attractor.lab.errors import CheckpointError
from attractor.lab.experiment.assessment import SCHEMA
from attractor.lab.sweep import jobs
from attractor.lab.sweep.job import run_job
from tests.lab.traces import contents, status


@pytest.fixture
def attempt(make_raw, tiny: tuple[str, ...], tmp_path: Path) -> Callable[..., tuple[float, list[Any]]]:
    """A function that gives `run_job` a job 0; what it returns, and `resume` of each start."""

    def run(*overrides: str, start: Callable[[], float] = lambda: 0.5) -> tuple[float, list[Any]]:
        raw = make_raw(*tiny, *overrides)
        starts: list[Any] = []

        def begin() -> float:
            starts.append(raw.resume)
            return start()

        return run_job(raw, tmp_path / "0", tmp_path, begin), starts

    return run


@pytest.fixture
def leave(make_raw, tiny: tuple[str, ...], tmp_path: Path) -> Callable[..., Path]:
    """A function that leaves a job 0 with a status, as a process that is gone has left it."""

    def write(
        state: str, *overrides: str, code: int | None = None, results: dict[str, Any] | None = None
    ) -> Path:
        path = tmp_path / "0"
        path.mkdir()
        raw = make_raw(*tiny, *overrides)
        (path / "config.yaml").write_text(OmegaConf.to_yaml(raw, resolve=True))
        (path / "status.json").write_text(json.dumps({"status": state, "exit_code": code}))
        (path / "train.log").touch()
        if results is not None:
            (path / "results.json").write_text(json.dumps(results))
        return path

    return write


def fail() -> float:
    raise ZeroDivisionError("by a test")


@pytest.mark.parametrize(("objective", "worst"), [("val", float("inf")), ("log_pl", float("-inf"))])
def test_a_job_that_fails_never_counts_as_the_best(
    attempt, tmp_path: Path, objective: str, worst: float
) -> None:
    """A sweeper is told the worst there is, in the direction of the objective, of errors and of NaN.

    Even where the job fails before it has a folder its traceback is kept, and its error.
    """
    assert attempt(f"objective={objective}", start=fail)[0] == worst
    assert status(tmp_path / "0")["error"] == "ZeroDivisionError: by a test"
    assert "raise ZeroDivisionError" in (tmp_path / "0" / "train.log").read_text()
    assert attempt(f"objective={objective}", start=lambda: float("nan"))[0] == worst


def test_a_job_that_is_done_is_skipped(attempt, leave) -> None:
    """Its objective is read from its results; fields that say where it is computed may differ."""
    results = {"schema": SCHEMA, "tasks": {}, "pseudo_likelihood": {"validation": 1.0}}
    leave("done", "threads=2", results=results | {"validation": {"score": 0.25}})
    assert attempt("on_error=stop") == (0.25, [])


def test_a_job_that_is_done_but_lost_its_results_is_run_again(attempt, leave, tmp_path: Path) -> None:
    """A results file that is cut off must not be taken for a result."""
    path = leave("done")
    (path / "results.json").write_text('{"validation": {"sco')
    assert attempt() == (0.5, [None])
    assert (tmp_path / "earlier" / "0-1" / "results.json").exists()


@pytest.mark.parametrize(
    ("state", "code"),
    [("running", None), ("killed", 143), ("failed", 1), ("failed", 2), ("failed", 5), ("failed", 6)],
)
def test_a_job_that_has_saved_goes_on_from_there(attempt, leave, state: str, code: int | None) -> None:
    """Whatever it ended with, but for 3 and 4: `resume` is set to its folder, and nothing is moved.

    With no checkpoint, and no step after the first validation, it begins again; what it left is kept.
    """
    path = leave(state, code=code)
    (path / "checkpoints" / "step-2").mkdir(parents=True)
    assert attempt() == (0.5, [str(path)])
    (path / "checkpoints" / "step-2").rmdir()
    (path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3')
    assert attempt() == (0.5, [None])
    assert (path.parent / "earlier" / "0-1" / "metrics.jsonl").exists()


def test_a_job_whose_checkpoints_are_gone_never_begins_anew(attempt, leave, capsys) -> None:
    """It has trained beyond its first validation, so it had saved: to go on fails with 4, again and again.

    A fresh start is the user's to ask for, and the message says how; until then all is kept.
    """
    path = leave("killed", code=143)
    (path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 3}\n')

    def nothing_left() -> float:
        raise CheckpointError("none is whole")

    for _ in range(2):
        assert attempt(start=nothing_left) == (float("inf"), [str(path)])
        assert (status(path)["exit_code"], status(path)["error"]) == (4, "CheckpointError: none is whole")
        said = capsys.readouterr().err
        assert (
            f"nothing was lost or begun anew; to run it again from step 0, move or delete {path}," in said
        )
        (path / "metrics.jsonl").unlink(missing_ok=True)  # the second time its status says enough
    path.rename(path.with_name("moved"))
    assert attempt() == (0.5, [None])


def test_a_job_that_became_non_finite_is_left_as_it_is(attempt, leave, capsys) -> None:
    """It would again, at the same step. It counts as the worst there is, and says how to run it anyway."""
    path = leave("failed", code=3)
    (path / "checkpoints" / "step-2").mkdir(parents=True)
    before = contents(path)
    assert attempt() == (float("inf"), [])
    assert contents(path) == before
    assert f"would fail as it did: None; to run it again from step 0, move or delete {path}" in (
        capsys.readouterr().out
    )


def test_a_job_that_another_process_runs_is_left_alone(attempt, leave, capsys) -> None:
    """It is an error of this attempt; the status of the run that goes on stays its own."""
    path = leave("running")
    before = contents(path)
    with (path / "train.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert jobs.read(path).state == jobs.RUNNING
        assert attempt() == (float("inf"), [])
    assert "still going on in another process" in capsys.readouterr().err
    assert contents(path) == before
    assert jobs.read(path).state == jobs.INTERRUPTED


@pytest.mark.parametrize("state", ["done", "failed", "killed"])
def test_a_folder_with_another_job_ends_the_sweep(attempt, leave, state: str, capsys) -> None:
    """Exit code 2 also where a sweeper decides on its jobs as it goes, so that none is looked at before."""
    path = leave(state, "rule=hebb", "model.span=0.25")
    before = contents(path)
    with pytest.raises(SystemExit) as end:
        attempt()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "  rule: hebb there, pseudo_likelihood now\n" in said
    assert "  model.span: 0.25 there, 0.5 now\n" in said
    assert contents(path) == before
