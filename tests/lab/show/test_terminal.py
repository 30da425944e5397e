"""What a run says on the terminal, line by line."""

from pathlib import Path
from typing import Any

import pytest

from attractor.lab.config.titles import title
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.numbers import headline
from attractor.lab.show import terminal
from attractor.physics import SGD, Hebb, PseudoLikelihood


def curve(*mse: float, t: int) -> dict[str, Any]:
    oracle = min(range(len(mse)), key=mse.__getitem__)
    return {
        "mse": list(mse),
        "best": {"t": t, "mse": mse[t - 1]},
        "oracle_best": {"t": oracle + 1, "mse": mse[oracle]},
    }


@pytest.fixture
def tasks() -> dict[str, Any]:
    """Results with the references first, as no run writes them, so that the order is the table's."""
    return {
        "masked": {
            "models": {
                "training_mean": {"mse": [0.0675]},
                "bare_attention": curve(0.05, 0.04, 0.03, t=2),
            },
            "differences": {"bare_attention": {"training_mean": {"mse": -0.0275, "standard_error": 0.001}}},
        },
        "denoise": {
            "models": {
                "training_mean": {"mse": [0.0675]},
                "memory": {"mse": [0.0211]},
                "bare_attention": curve(0.06, 0.07, 0.08, t=1),
                "bare_attention+evidence": curve(0.05, 0.045, 0.05, t=2),
            },
            "differences": {
                "bare_attention": {"memory": {"mse": 0.0389, "standard_error": 0.0012}},
                "bare_attention+evidence": {"memory": {"mse": 0.0239, "standard_error": 0.0011}},
            },
        },
    }


def test_the_table_has_a_row_for_each_model(tasks: dict[str, Any]) -> None:
    """Learned rows first, then references; best (t; oracle at its t) or one number; `-` for no entry.

    Numbers in another task's column would be believed, so the whole table is compared.
    """
    head, *lines = terminal.table(tasks).splitlines()
    assert head.split() == ["masked", "denoise"]
    first, second = head.index("masked"), head.index("denoise")
    rows = [[line[:first].strip(), line[first:second].strip(), line[second:].strip()] for line in lines]
    assert rows == [
        ["bare self-attention", "0.0400 (t=2; 0.0300 at 3)", "0.0600 (t=1)"],
        ["bare self-attention + evidence", "-", "0.0450 (t=2)"],
        ["training mean", "0.0675", "0.0675"],
        ["softmax memory", "-", "0.0211"],
    ]


def test_cells_of_the_table_do_not_touch(tasks: dict[str, Any]) -> None:
    """With t and T of three digits a cell is still apart from the next one: numbers stay readable."""
    late = curve(*[0.5] * 99, 0.4, 0.5, t=101)
    for task in tasks.values():
        task["models"]["bare_attention"] = late
    line = terminal.table(tasks).splitlines()[1]
    assert line.count("0.5000 (t=101; 0.4000 at 100)  ") == 1


def test_titles_are_words() -> None:
    """A key of results.json as a reader would say it; a name of one's own stays as it is."""
    assert title("bare_attention") == "bare self-attention"
    assert title("bare_attention+evidence") == "bare self-attention + evidence"
    assert title("memory") == "softmax memory"
    assert title("my_model") == "my_model"
    assert title("run/my_model+evidence") == "run: my_model + evidence"
    assert title("sweep/1/hopfield") == "sweep/1: vector Hopfield network"


def test_headline_is_what_the_table_shows(tasks: dict[str, Any]) -> None:
    """task/model -> error at the chosen t, or of the one shot; never the oracle's."""
    assert headline({"tasks": tasks}) == {
        "masked/training_mean": 0.0675,
        "masked/bare_attention": 0.04,
        "denoise/training_mean": 0.0675,
        "denoise/memory": 0.0211,
        "denoise/bare_attention": 0.06,
        "denoise/bare_attention+evidence": 0.045,
    }


def test_comparisons_are_with_the_best_row(tasks: dict[str, Any]) -> None:
    """For each task the best row is named, and the paired distance of every other learned row to it.

    The best may be a reference (memory) or a learned row, which then is not compared with itself.
    """
    assert terminal.comparisons(tasks).splitlines() == [
        "masked: above bare self-attention, +- paired standard error over images",
        "denoise: above softmax memory, +- paired standard error over images",
        "  bare self-attention  +0.0389 +- 0.0012",
        "  bare self-attention + evidence  +0.0239 +- 0.0011",
    ]


def test_short_names_tell_runs_apart() -> None:
    """The last part of the path where that is enough, as many parts as needed where it is not."""
    assert terminal.short_names([Path("/a/first"), Path("/a/second")]) == ["first", "second"]
    assert terminal.short_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x-run", "y-run"]
    assert terminal.short_names([Path("/a/run")]) == ["run"]
    assert len(set(terminal.short_names([Path("/run"), Path("/a/run")]))) == 2
    with pytest.raises(ConfigError, match="given twice"):
        terminal.short_names([Path("/a/x"), Path("/a/x")])


def test_progress_says_the_objective_and_the_validation() -> None:
    """A one-shot rule has no objective, and then none is made up."""
    errors = {"masked": 0.12345, "denoise": 0.2}
    climbing = terminal.progress(PseudoLikelihood(SGD()), 1.5, errors)
    assert climbing == "log PL 1.500 nats/token  masked 0.1235  denoise 0.2000 (validation)"
    assert terminal.progress(Hebb(), None, errors) == ("masked 0.1235  denoise 0.2000 (validation)")


def test_the_objective_is_called_what_it_is(make_config, tmp_path: Path) -> None:
    """Energy descent climbs -e_i, which is no log-likelihood, and must not be shown as one."""
    from contextlib import redirect_stderr
    from io import StringIO

    from attractor.lab.run.folder import RunFolder
    from train import train

    bar = StringIO()
    path = tmp_path / "run"
    config = make_config(
        "data=synthetic",
        "rule=energy_descent",
        "train.steps=2",
        "train.validate_every=1",
        "eval.steps=1",
        "eval.images=2",
        "dynamics.evidence=[]",
        "figures=false",
        "wandb=disabled",
        f"folder={path}",
    )
    with redirect_stderr(bar):
        train(config, RunFolder(path, ""))
    assert "train/negative_energy" in (path / "metrics.jsonl").read_text()
    assert "masked" in bar.getvalue()
    assert "log PL" not in bar.getvalue()


def test_a_run_says_what_it_is_and_where(trained) -> None:
    """Header first, then the table, then the folder: the shape of a first run in DESIGN.md, section 5."""
    lines = trained.output.splitlines()
    assert lines[0] == (
        "bare self-attention on synthetic: 8x8 images, 2x2 patches, N=16 tokens of D=8, 15,360 couplings"
    )
    assert lines[1] == (
        "rule: exact pseudo-likelihood (local, no backpropagation)   device: cpu, 1 thread, backend "
        + trained.results["cost"]["backend"]
    )
    names = ("bare self-attention", "training mean", "linear regression", "softmax memory")
    places = [trained.output.index(f"  {name} ") for name in names]
    assert places == sorted(places)
    assert terminal.table(trained.results["tasks"]) in trained.output
    assert f"run folder   {trained.path}      figures   {trained.path / 'figures'}" in lines
    assert "tracked offline" not in trained.output
    assert lines[-1].endswith(" s in all")


def test_the_number_of_test_images_and_iterations_is_said(trained) -> None:
    """Errors without the number of images behind them cannot be judged; DESIGN.md shows this line."""
    assert "9 test images, 6 iterations" in trained.output


def test_closing_says_how_to_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are as one would type them here; the sync command only if there is one."""
    monkeypatch.chdir(tmp_path)
    said = terminal.closing(tmp_path / "out" / "run", figures=False, sync="wandb sync X", seconds=2.4)
    assert said.splitlines() == [
        "run folder   out/run",
        "tracked offline; upload with: uv run wandb sync X",
        "2 s in all",
    ]
    assert terminal.closing(Path("/elsewhere/run"), figures=True, sync=None) == (
        "run folder   /elsewhere/run      figures   /elsewhere/run/figures"
    )


def test_a_model_worse_than_the_mean_is_called_so(tasks: dict[str, Any]) -> None:
    """Diverged training ends with finite numbers: without this line they would pass for a result."""
    assert terminal.warnings(tasks) == []
    tasks["denoise"]["models"]["bare_attention"] = curve(0.09, 0.07, t=1)
    assert terminal.warnings(tasks) == ["bare self-attention is worse than the training mean at denoising"]
