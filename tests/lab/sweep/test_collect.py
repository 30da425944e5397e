"""The table of a sweep: what is a column, what is averaged, what comes first, and what is missing."""

import csv
import fcntl
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from omegaconf import OmegaConf

from attractor.lab.collect import main
from attractor.lab.config.names import Objective
from attractor.lab.errors import ConfigError
from attractor.lab.show.figures import STYLE
from attractor.lab.sweep import jobs
from attractor.lab.sweep.figures import _against, _heat_map
from attractor.lab.sweep.table import collect
from attractor.lab.sweep.text import printed, write

Make = Callable[..., Path]


def measures(val: float, test: float, log_pl: float = 1.0) -> dict[str, Any]:
    """results.json as far as it is read. The row with evidence is the better one on test images only."""

    def task(error: float) -> dict[str, Any]:
        return {
            "models": {
                "bare_attention": {"mse": [test], "best": {"t": 1, "mse": test}},
                "bare_attention+evidence": {"mse": [test / 2], "best": {"t": 1, "mse": test / 2}},
                "training_mean": {"mse": [0.5]},
                "regression": {"mse": [0.25]},
                "memory": {"mse": [test / 8]},
            }
        }

    rows = {
        "bare_attention": {"validation_mse": val * 2},
        "bare_attention+evidence": {"validation_mse": val * 3},
    }
    return {
        "schema": 1,
        "validation": {"score": val},
        "pseudo_likelihood": {"validation": log_pl},
        "selection": {"denoise": rows},
        "tasks": {"denoise": task(test)},
    }


@pytest.fixture
def make(make_raw, tmp_path: Path) -> Make:
    """A function that leaves a job in a sweep's folder, as a run leaves it; the sweep's folder."""

    def write(name: str, *overrides: str, results: Any = None, **status: Any) -> Path:
        path = tmp_path / "sweep" / name
        path.mkdir(parents=True)
        raw = make_raw("task=denoise", *overrides, f"folder={path}")
        (path / "config.yaml").write_text(OmegaConf.to_yaml(raw, resolve=True))
        (path / "status.json").write_text(json.dumps({"status": "done"} | status))
        if results is not None:
            (path / "results.json").write_text(json.dumps(results))
        return path.parent

    return write


@pytest.fixture
def rates(make: Make) -> Path:
    """Two rates x two seeds, one rate of which fails once, in folders that say nothing of them."""
    make("0", "rule.learning_rate=0.1", "seed=0", results=measures(0.4, 0.1, log_pl=3.0))
    make("1", "rule.learning_rate=0.1", "seed=1", results=measures(0.6, 0.2, log_pl=4.0))
    make("2", "rule.learning_rate=0.01", "seed=0", results=measures(0.3, 0.3, log_pl=2.0))
    return make("10", "rule.learning_rate=0.01", "seed=1", status="failed", error="NonFiniteError: row 3")


def test_rows_are_means_over_seeds_best_first_on_validation(rates: Path, make: Make) -> None:
    """The swept field is found in the configurations; the rate that is best on test images is not first,
    and neither is one that has lost a seed.

    Choosing on test images, or among the seeds that survived, would report luck as a result.
    """
    for seed, val in enumerate((0.35, 0.45)):
        make(f"2{seed}", "rule.learning_rate=0.003", f"seed={seed}", results=measures(val, 0.4))
    table = collect(rates)
    assert table.fields == ["rule.learning_rate"]
    assert [row.settings["rule.learning_rate"] for row in table.rows] == [0.003, 0.1, 0.01]
    last = table.rows[1]
    assert (last.done, last.mean("val")) == (2, pytest.approx(0.5))
    assert last.deviation("val") == pytest.approx(math.sqrt(0.02))
    # of the rows of a task the one that is best on validation images counts
    assert last.mean("denoise") == pytest.approx(1.0)
    assert last.mean("denoise test") == pytest.approx(0.15)
    lost = table.rows[2]
    assert (lost.done, lost.mean("val")) == (1, pytest.approx(0.3))
    assert math.isnan(lost.deviation("val"))


def test_the_metric_to_sort_by_has_its_direction(rates: Path) -> None:
    """More log pseudo-likelihood is better, less error is; what is sorted by comes first."""
    by_likelihood = collect(rates, sort=Objective.log_pl)
    assert by_likelihood.metrics[0] == "log_pl"
    assert [row.settings["rule.learning_rate"] for row in by_likelihood.rows] == [0.1, 0.01]
    with pytest.raises(ConfigError, match=r"no job of .* has 'masked'"):
        collect(rates, sort=Objective.masked)


def test_runs_that_diverged_are_never_first(make: Make) -> None:
    """NaN compares as neither less nor more, and would stay wherever the sort has put it."""
    make("0", "train.jitter=0.1", results=measures(math.nan, 0.1))
    make("1", "train.jitter=0.2", results=measures(0.4, 0.1))
    sweep = make("2", "train.jitter=0.3", status="failed", error="ZeroDivisionError: x")
    assert [row.settings["train.jitter"] for row in collect(sweep).rows] == [0.2, 0.1, 0.3]


def test_what_is_not_done_is_counted_and_listed(rates: Path, make: Make) -> None:
    """Failed, interrupted, running and not started: a row that lacks jobs says so, and so does the list.

    A mean over the seeds that happened to survive is not the mean over seeds.
    """
    make("11", "rule.learning_rate=0.1", "seed=2", status="killed", error="Terminated: SIGTERM")
    make("12", "rule.learning_rate=0.1", "seed=3", status="running")
    (rates / "12" / "train.log").touch()
    planned = {str(n): [] for n in (0, 1, 2, 10, 11, 12)} | {"13": ["rule.learning_rate=1e-1", "seed=4"]}
    (rates / jobs.SWEEP_FILE).write_text(json.dumps({"schema": 1, "jobs": planned}))
    with (rates / "12" / "train.log").open() as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        table = collect(rates)
        text = printed(table)
    assert "7 jobs, 3 done" in text.splitlines()[0]
    for line in (
        f"failed: {rates / '10'}  rule.learning_rate=0.01 seed=1\n      NonFiniteError: row 3",
        f"interrupted: {rates / '11'}  rule.learning_rate=0.1 seed=2\n      Terminated: SIGTERM",
        f"running: {rates / '12'}  rule.learning_rate=0.1 seed=3",
        f"not started: {rates / '13'}  rule.learning_rate=1e-1 seed=4",
    ):
        assert line in text
    assert "2 of 5" in text
    assert "best: rule.learning_rate=0.01\n  of which 1 of 2 jobs are missing" in text
    write(table)
    (head, *rows) = list(csv.reader((rates / "table.csv").read_text().splitlines()))
    assert head[:5] == ["rule.learning_rate", "n", "failed", "unfinished", "val"]
    assert [row[:4] for row in rows] == [["0.01", "1", "1", "0"], ["0.1", "2", "0", "3"]]
    assert float(rows[1][4]) == pytest.approx(0.5)
    each = list(csv.DictReader((rates / "jobs.csv").read_text().splitlines()))
    assert [job["job"] for job in each] == ["0", "1", "2", "10", "11", "12", "13"]
    assert each[3]["error"] == "NonFiniteError: row 3"
    assert each[1]["denoise test"] == "0.2"
    assert [job["state"] for job in each].count("done") == 3


def test_a_rule_is_one_column(make: Make) -> None:
    """Fields that only one rule has, or that follow from its name, are no columns of their own.

    What is swept on top of it is: here the rate of one of the rules.
    """
    make("0", "rule=pseudo_likelihood", results=measures(0.3, 0.3))
    sweep = make("1", "rule=hebb", results=measures(0.4, 0.3))
    assert collect(sweep).fields == ["rule"]
    make("2", "rule=pseudo_likelihood", "rule.learning_rate=0.5", results=measures(0.2, 0.3))
    assert collect(sweep).fields == ["rule", "rule.learning_rate"]
    rows = [tuple(row.settings.values()) for row in collect(sweep).rows]
    assert rows == [("pseudo_likelihood", 0.5), ("pseudo_likelihood", 0.03), ("hebb", None)]


def test_where_a_job_ran_is_no_column(make: Make) -> None:
    """Threads, folders and tracking are not what is swept, even if they differ."""
    make("0", "threads=2", "seed=0", results=measures(0.3, 0.3))
    sweep = make("1", "wandb=disabled", "on_error=stop", "seed=1", results=measures(0.4, 0.3))
    table = collect(sweep)
    assert table.fields == []
    assert [row.done for row in table.rows] == [2]
    assert "2 of 2" in printed(table)


def test_two_data_sets_are_not_averaged(make: Make) -> None:
    """The same name below another root may be other images: a mean over both would be of nothing."""
    make("0", "data.root=a", results=measures(0.3, 0.3))
    sweep = make("1", "data.root=b", results=measures(0.4, 0.3))
    assert [row.done for row in collect(sweep).rows] == [1, 1]


def test_what_cannot_be_compared_is_said(make: Make) -> None:
    """Patches of other sizes are other tasks; references that differ between jobs show their range."""
    make("0", "model.patch=2", results=measures(0.3, 0.32))
    sweep = make("1", "model.patch=4", results=measures(0.4, 0.16))
    text = printed(collect(sweep))
    assert "model.patch differs: errors of masked prediction" in text
    assert "softmax memory: denoise 0.0200 to 0.0400" in text
    assert "linear regression: denoise 0.2500\n" in text


def test_figures_show_the_numbers_of_the_table(make: Make) -> None:
    """A line for each value of the other field, error bars over seeds; a heat map of both fields.

    A combination without a result stays empty; were it 0, it would be the best one to the eye.
    """
    for index, (rate, steps, val) in enumerate([(0.01, 100, 0.3), (0.1, 100, 0.4), (0.01, 200, 0.2)]):
        for seed in (0, 1):
            given = (f"rule.learning_rate={rate}", f"train.steps={steps}", f"seed={seed}")
            make(f"{2 * index + seed}", *given, results=measures(val + 0.1 * seed, 0.1))
    sweep = make("6", "rule.learning_rate=0.1", "train.steps=200", status="failed", error="E: x")
    table = collect(sweep)
    rows = [row for row in table.rows if row.done]
    with rc_context(STYLE):
        (axes,) = _against(table, rows, "rule.learning_rate").axes
        heat, _ = _heat_map(table, rows).axes
    assert axes.get_xscale() == "log"
    assert axes.get_legend_handles_labels()[1] == ["train.steps 100", "train.steps 200"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.01", "0.1"]
    first = axes.containers[0]
    np.testing.assert_allclose(first.lines[0].get_xydata(), [[0.01, 0.7], [0.1, 0.9]])
    (bar, _) = first.lines[2][0].get_segments()
    assert bar[1, 1] - bar[0, 1] == pytest.approx(2 * math.sqrt(0.02))
    shown = np.ma.filled(heat.images[0].get_array(), np.nan)
    labels = [
        [tick.get_text() for tick in ticks] for ticks in (heat.get_yticklabels(), heat.get_xticklabels())
    ]
    assert sorted(labels) == [["0.01", "0.1"], ["100", "200"]]
    expected = {("0.01", "100"): 0.35, ("0.1", "100"): 0.45, ("0.01", "200"): 0.25}
    for i, down in enumerate(labels[0]):
        for j, across in enumerate(labels[1]):
            value = expected.get((down, across), expected.get((across, down), np.nan))
            assert shown[i, j] == pytest.approx(value, nan_ok=True)


def test_the_command_writes_tables_and_figures(rates: Path, capsys) -> None:
    """Exit code 0, and every file that it says it has written is there."""
    assert main([str(rates)]) == 0
    said = capsys.readouterr().out
    written = [Path(line.removeprefix("written: ")) for line in said.splitlines() if "written: " in line]
    assert [path.name for path in written] == ["table.csv", "jobs.csv", "error_rule.learning_rate.png"]
    assert all(path.stat().st_size for path in written)
    assert (rates / "figures" / "error_rule.learning_rate.pdf").exists()


def test_folders_that_hold_no_sweep_exit_with_2(rates: Path, tmp_path: Path, capsys) -> None:
    """Each says what it is instead; nothing is written."""
    (tmp_path / "empty").mkdir()
    for folder, said in (
        (tmp_path / "none", "is not a folder"),
        (tmp_path / "empty", "holds no jobs of a sweep"),
        (rates / "0", "holds one run, not a sweep"),
    ):
        assert main([str(folder)]) == 2
        assert said in capsys.readouterr().err
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"schema": 2}', "has schema 2, this code reads 1"),
        ('{"schema": 1}', "lacks 'validation'"),
        ('{"schema": 1, "valida', "is missing or damaged"),
        (None, "is missing or damaged"),
    ],
)
def test_results_that_cannot_be_read_are_a_failed_job(
    content: str | None, reason: str, rates: Path, capsys
) -> None:
    """One file of another version, damaged or lost does not take the other 99 jobs from the table."""
    path = rates / "0" / "results.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert main([str(rates), "--no-figures"]) == 0
    said = capsys.readouterr().out
    assert "4 jobs, 2 done, 2 failed" in said
    assert f"failed: {rates / '0'}  rule.learning_rate=0.1 seed=0\n      results.json {reason}" in said
    assert "1 of 2" in said


@pytest.mark.parametrize("content", ["", '{"status": "do', "[]", "{}"])
def test_a_status_that_cannot_be_read_is_that_of_an_interrupted_job(
    content: str, rates: Path, capsys
) -> None:
    """A power cut may leave any of these; a sweep goes on with such a job, and does not stumble over it."""
    (rates / "0" / "status.json").write_text(content)
    assert main([str(rates), "--no-figures"]) == 0
    said = capsys.readouterr().out
    assert (
        f"interrupted: {rates / '0'}  rule.learning_rate=0.1 seed=0\n      status.json is damaged" in said
    )


def test_jobs_of_one_configuration_count_once(make: Make) -> None:
    """seed=0,0,1: n is 2, and so is the deviation. Of equal jobs the one that is done counts.

    Counted twice, a deterministic run would halve its own error bar, or show ± 0.0000.
    """
    make("0", "seed=0", status="failed", error="E: x")
    make("1", "seed=0", "wandb=disabled", results=measures(0.4, 0.1))
    make("2", "seed=0", "wandb=offline", results=measures(0.4, 0.1))
    sweep = make("3", "seed=1", results=measures(0.6, 0.1))
    table = collect(sweep)
    (row,) = table.rows
    assert (row.done, len(row.jobs)) == (2, 2)
    assert row.deviation("val") == pytest.approx(math.sqrt(0.02))
    assert "\nof the same configuration, and counted once: 0 as 1, 2 as 1\n" in printed(table)
    # of jobs whose configuration is lost, nobody knows that it is the same
    for name in ("1", "3"):
        (sweep / name / "config.yaml").unlink()
    assert len(collect(sweep).jobs) == 3


def test_settings_that_are_almost_equal_are_two(make: Make) -> None:
    """Sweepers that choose as they go try values that six digits do not tell apart."""
    make("0", "rule.learning_rate=0.0312345671", results=measures(0.4, 0.1))
    sweep = make("1", "rule.learning_rate=0.0312345672", results=measures(0.5, 0.1))
    assert [row.settings["rule.learning_rate"] for row in collect(sweep).rows] == [
        0.0312345671,
        0.0312345672,
    ]
    assert "best: rule.learning_rate=0.0312345671" in printed(collect(sweep))


def test_jobs_of_an_earlier_plan_are_left_out(rates: Path) -> None:
    """A sweep that was started again with fewer values is the one that is asked for; what it has left out
    is named. Without a plan (another sweeper, or a sweep.json that is damaged), every job counts.
    """
    plan = rates / jobs.SWEEP_FILE
    plan.write_text(json.dumps({"schema": 1, "jobs": {"0": [], "1": []}}))
    table = collect(rates)
    assert [job.name for job in table.jobs] == ["0", "1"]
    assert table.fields == []
    assert "\nof an earlier sweep in this folder, and left out: 2, 10\n" in printed(table)
    plan.write_text(plan.read_text()[:-9])
    assert len(collect(rates).jobs) == 4


def test_a_reader_that_stops_is_no_error(rates: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """collect DIR | head -1: nothing on standard error, exit code 0, and all files are there."""
    read, end = os.pipe()
    os.close(read)  # sooner than the first line
    with os.fdopen(end, "w") as pipe:  # whose last flush, as that of the interpreter, must not fail
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main([str(rates), "--no-figures"]) == 0
    assert capsys.readouterr().err == ""
    assert (rates / "table.csv").stat().st_size
    assert (rates / "jobs.csv").stat().st_size


def test_test_errors_cannot_be_sorted_by(rates: Path, capsys) -> None:
    """They are reported and choose nothing."""
    with pytest.raises(SystemExit) as end:
        main([str(rates), "--sort", "denoise test"])
    assert end.value.code == 2
    assert "val" in capsys.readouterr().err


def test_a_sweep_without_results_has_a_table(make: Make) -> None:
    """Where every job failed, that is what the table says; there is nothing to draw."""
    sweep = make("0", "seed=0", status="failed", error="E: x")
    assert main([str(sweep)]) == 0
    assert not (sweep / "figures").exists()


def test_what_an_arm_stands_for_is_not_made_up(make: Make) -> None:
    """A job that has not started is like one of the same arm; of a new one its overrides alone are known.

    Else a transformer that is to come would be listed, and counted, as a missing bare self-attention.
    """
    sweep = make("0", "rule.learning_rate=0.1", "seed=0", results=measures(0.4, 0.1))
    plan = {"0": ["seed=0", "arm=a"], "1": ["seed=1", "arm=a"], "2": ["seed=0", "arm=b"]}
    (sweep / "sweep.json").write_text(json.dumps({"jobs": plan}))
    _, second, third = jobs.of_sweep(sweep)
    assert (second.settings["rule.learning_rate"], second.settings["seed"]) == (0.1, 1)
    assert third.settings == {"seed": 0}
    assert third.asked(["seed", "rule.learning_rate"]) == "seed=0 arm=b"
