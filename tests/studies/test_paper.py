"""The paper's comparison: its numbers are those of the runs, its spread that of the seeds."""

import json
import os
import runpy
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from attractor.images import Corrupted
from attractor.lab.config.schema import REFERENCES
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.build import build_data
from attractor.lab.experiment.network import Recall
from attractor.studies.paper import command, figures
from attractor.studies.paper import comparison as compared
from attractor.studies.paper.command import read_jobs
from attractor.studies.paper.comparison import Comparison, Row, compare, table
from tests.warm import WarmPython

ARMS = {
    "0": ("seed=0",),
    "1": ("seed=1",),
    "2": ("model=transformer", "task=masked", "model.width=8", "model.heads=2"),
    "3": ("model=transformer_block", "task=denoise", "model.width=8", "model.heads=2"),
    "4": ("model.patch=4",),
    "5": (
        *("model=local_linear_memory", "task=denoise", "model.neighbours=[50]", "model.candidates=60"),
        *(
            "model.reaches=[3.0]",
            "model.inverse_temperatures=[4.0]",
            "model.iterations=3",
            "model.heads=1",
            "model.readout=0",
        ),
    ),
    "6": ("model=slots", "model.slots=10", "model.parents=2", "model.rank=20"),
}


@pytest.fixture(scope="module")
def sweep(train_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper")
    for name, overrides in ARMS.items():
        train_run(folder / name, *overrides)
    return folder


@pytest.fixture(scope="module")
def comparison(sweep: Path) -> Comparison:
    runs = read_jobs(sweep)[0][2]
    return compare(runs, build_data(runs[0].config.data), images=9, curve_images=9, steps=6)


def results_of(sweep: Path, name: str) -> dict:
    return json.loads((sweep / name / "results.json").read_text())["tasks"]


def test_runs_are_grouped_by_patch(sweep: Path) -> None:
    """The patch is the grain of the mask: errors at 2x2 and at 4x4 are not of one task."""
    groups, missing = read_jobs(sweep)
    assert {patch: len(runs) for patch, runs in groups.items()} == {2: 6, 4: 1}
    assert missing == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("seed=2", "rule=hebb"),
            r"bare self-attention .* 2x2 patches, differ in rule; only seeds are averaged",
        ),
        (("model=local_attention", "data.train_images=99"), r"differ in data\.train_images"),
    ],
)
def test_a_mean_over_seeds_is_over_nothing_else(
    overrides: tuple[str, ...], said: str, sweep: Path, train_run, tmp_path: Path
) -> None:
    """Runs of other rules or other data are no further seeds: refused, with what differs; exit code 2."""
    for name in "01":
        (tmp_path / name).symlink_to(sweep / name)
    train_run(tmp_path / "2", *overrides)
    with pytest.raises(ConfigError, match=said):
        read_jobs(tmp_path)
    assert command.main([str(tmp_path)]) == 2


def test_what_is_not_compared_is_said(sweep: Path, tmp_path: Path) -> None:
    """A job that has failed is no seed of a mean, and must not be missing from it in silence."""
    (tmp_path / "0").symlink_to(sweep / "0")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "status.json").write_text('{"status": "failed", "error": "no"}')
    groups, missing = read_jobs(tmp_path)
    assert [run.folder.name for run in groups[2]] == ["0"]
    assert missing == [f"failed: {tmp_path / '1'}"]


@pytest.mark.parametrize("asked", ["--images=0", "--curve-images=-5", "--steps=1"])
def test_what_cannot_be_shown_is_refused_first(asked: str, sweep: Path, capsys) -> None:
    """No images, or fewer iterations than a t that was chosen: exit code 2 before anything is evaluated."""
    assert command.main([str(sweep), asked]) == 2
    assert not (sweep / "comparison").exists()
    said = capsys.readouterr().err
    assert "must be at least 1" in said or "give steps=" in said


def test_the_errors_are_those_of_the_runs(sweep: Path, comparison: Comparison) -> None:
    """On the same images, row by row, the chosen t and its error are those in results.json."""
    for task, rows in comparison.rows.items():
        for name, row in rows.items():
            mine = [key for key in ARMS if name in results_of(sweep, key).get(task, {}).get("models", {})]
            mine = [key for key in mine if key != "4"]
            entries = [results_of(sweep, key)[task]["models"][name] for key in mine]
            if name in REFERENCES:
                assert row.errors == pytest.approx([entries[0]["mse"][0]], rel=1e-5)
                continue
            assert row.errors == pytest.approx([entry["best"]["mse"] for entry in entries], rel=1e-5)
            assert row.chosen == [entry["best"]["t"] for entry in entries]
            # what ends before the last iteration is asked has a curve that ends there
            assert row.curves[0].shape[1] == {"transformer": 1, "slots": 1, "local_linear_memory": 3}.get(
                name, 6
            )
            for curve, entry in zip(row.curves, entries, strict=True):
                assert curve.mean(0).tolist() == pytest.approx(entry["mse"], rel=1e-5)
    assert set(comparison.rows["masked"]) == {"bare_attention", "transformer", "slots", *REFERENCES}
    learned = {
        "bare_attention",
        "bare_attention+evidence",
        "transformer_block",
        "local_linear_memory",
        "slots",
    }
    assert set(comparison.rows["denoise"]) == {*learned, *REFERENCES}


def test_no_image_is_answered_twice(sweep: Path, comparison: Comparison, monkeypatch) -> None:
    """Fewer images of the curves change no error of the table, and ask each model for each image once."""
    answered: dict[str, int] = {}
    reconstruct = Recall.reconstruct

    def count(self: Recall, corrupted: Corrupted):
        name = type(self.network).__name__
        answered[name] = answered.get(name, 0) + len(corrupted.original)
        return reconstruct(self, corrupted)

    monkeypatch.setattr(Recall, "reconstruct", count)
    runs = [run for run in read_jobs(sweep)[0][2] if run.config.model.name == "local_linear_memory"]
    found = compare(runs, build_data(runs[0].config.data), images=9, curve_images=4, steps=6)
    mine, its = (each.rows["denoise"]["local_linear_memory"] for each in (found, comparison))
    assert mine.at_best[0].tolist() == pytest.approx(its.at_best[0].tolist(), rel=1e-4)
    torch.testing.assert_close(mine.curves[0], its.curves[0][:4], rtol=1e-4, atol=0)  # of other batches
    assert answered == {"MemoryNetwork": 9}


def test_runs_of_several_sweeps_are_compared(sweep: Path, tmp_path: Path) -> None:
    """Their jobs have the same numbers, and are other runs; one that is in both is one sample."""
    for folder, name, place in (("a", "0", "0"), ("b", "2", "0"), ("b", "0", "1")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / place).symlink_to(sweep / name)
    groups, _ = read_jobs(tmp_path / "a", tmp_path / "b")
    assert [run.folder for run in groups[2]] == [(sweep / name).resolve() for name in "02"]


def test_pictures_end_where_a_model_does() -> None:
    """The chosen t of a memory is the last one, and has to be seen: 3 is no usual time of a picture."""
    assert figures.times(3) == [1, 2, 3]
    assert figures.times(1) == [1]
    assert figures.times(250) == list(figures.TIMES)


def test_the_table_spreads_over_seeds_and_marks_the_best(comparison: Comparison) -> None:
    """Mean ± standard deviation where there are seeds, the lowest mean of a column bold, whoever it is."""
    lines = table(comparison).splitlines()
    row = comparison.rows["masked"]["bare_attention"]
    spread = f"{statistics.fmean(row.errors):.4f} ± {statistics.stdev(row.errors):.4f} (2 seeds; t = "
    (line,) = [line for line in lines if line.startswith("| bare self-attention |")]
    assert spread in line
    for column, rows in enumerate(comparison.rows.values(), start=2):
        bold = [line for line in lines if line.split("|")[column].strip().startswith("**")]
        best = min(row.mean for row in rows.values())
        assert len(bold) == 1
        assert f"{best:.4f}" in bold[0]


def test_differences_are_paired(comparison: Comparison) -> None:
    """Mean over images of the difference, seeds averaged first, and std / sqrt(n): against numpy."""
    rows = comparison.rows["masked"]
    mine = np.mean([errors.numpy() for errors in rows["bare_attention"].at_best], 0)
    difference = mine - rows["memory"].at_best[0].numpy()
    expected = (difference.mean(), difference.std(ddof=1) / len(difference) ** 0.5)
    assert comparison.above("masked", "bare_attention", "memory") == pytest.approx(expected)


def test_variance_is_that_within_the_masked_patches() -> None:
    """Of a picture with one striped masked patch, and one striped visible one: 1/4, once."""
    pixels = torch.zeros(1, 1, 4, 4)
    pixels[..., :2, 0] = 1.0  # patch 0: two of four pixels
    pixels[..., 2:, 2] = 1.0  # patch 3 too
    mask = torch.tensor([[True, True, False, False]])
    batch = Corrupted("masked", pixels, pixels, mask)
    found = compared._variances(pixels, batch, 2)
    assert found.tolist() == [0.25, 0.0]


def test_figures_show_every_row(comparison: Comparison, tmp_path: Path) -> None:
    """Both are drawn, PNG and PDF."""
    for path in figures.draw(comparison, tmp_path):
        assert path.stat().st_size > 10_000
        assert path.with_suffix(".pdf").is_file()


def test_a_row_of_one_seed_has_no_spread() -> None:
    """One run says nothing about others: no ±."""
    errors = torch.tensor([0.1, 0.3], dtype=torch.float64)
    row = Row([errors], [errors[:, None].expand(2, 4)], [3], [errors], [1.0], [])
    assert row.cell() == "0.2000 (t = 3)"


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    """With what to do instead; the command exits with 2."""
    with pytest.raises(ConfigError, match="no finished run"):
        read_jobs(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        read_jobs(tmp_path / "none")
    assert command.main([str(tmp_path)]) == 2


def test_one_command_trains_and_compares(
    root: Path, warm: WarmPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scripts/paper.py: the arms that are asked for, then tables and figures. Again, it trains nothing.

    What it starts is started where torch is imported already; see test_command.py for how it starts it.
    """
    said: list[str] = []

    def child(arguments: Sequence[str | Path]) -> int:
        done = warm.run(arguments, cwd=root, environment=os.environ, timeout=300)
        said.append(done.stderr)
        return done.returncode

    monkeypatch.setattr("attractor.lab.show.command.child", child)
    asked = [
        *("experiment=paper_quick", "data=synthetic"),
        *("arm=bare_4x4,transformer_masked", "train.steps=4", "train.validation_images=8", "eval.steps=6"),
        *("dynamics.validation_images=8", "eval.images=8", "wandb=disabled", f"hydra.sweep.dir={tmp_path}"),
    ]
    script = runpy.run_path(str(root / "scripts" / "paper.py"))
    before: dict[Path, int] = {}
    for again in (False, True):
        assert script["main"](asked) == 0, said
        written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.jsonl")}
        assert len(written) == 2
        assert written == (before if again else written)
        before = written
        results = json.loads((tmp_path / "comparison" / "4x4" / "results.json").read_text())
        assert set(results["tasks"]["masked"]) == {"bare_attention", "transformer", *REFERENCES}
        assert (tmp_path / "comparison" / "4x4" / "figure_1.png").is_file()
    assert script["main"]([*asked, "train.stepz=4"]) == 1
