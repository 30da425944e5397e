"""Going on with an interrupted run: it ends where it would have ended, or is refused."""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attractor.lab import load_run
from attractor.lab.errors import CheckpointError, ConfigError, OutputError, exit_code
from attractor.lab.run import checkpoints
from attractor.lab.run.folder import RunFolder
from attractor.lab.run.metrics import MetricsFile
from attractor.lab.run.resuming import continued
from train import train

STEPS = ("train.steps=8", "train.validate_every=3")
RULES = {
    "adam": (),
    "momentum, drawn rows": ("rule.optimiser=sgd", "rule.momentum=0.9", "rule.rows_per_step=3"),
    "local": ("model=local_attention", "model.radius=1"),
    "energy descent": ("rule=energy_descent",),
    "hopfield": ("model=hopfield",),
    "one shot": ("rule=hebb",),
    "slots": ("model=slots", "model.slots=6", "model.parents=2", "model.rank=10"),
    "transformer": ("model=transformer", "model.width=8", "task=masked"),
    "recycled block": ("model=transformer_block", "model.width=8", "task=denoise"),
    "patience": ("train.patience=1", "train.validate_every=1", "rule.learning_rate=1e-30"),
}


class Interrupted(Exception):
    """What a power cut is to a test."""


def interrupt(monkeypatch: pytest.MonkeyPatch, when: int | str) -> None:
    """End the next run when the metrics of a step are written, or before the evaluation."""
    if when == "evaluation":

        def stop(*given: Any, **settings: Any) -> None:
            raise Interrupted

        monkeypatch.setattr("train.assessment.choose_retrievals", stop)
        return
    write = MetricsFile.write

    def write_or_stop(self: MetricsFile, step: int, values: dict[str, float | None]) -> None:
        write(self, step, values)
        if step == when:
            raise Interrupted

    monkeypatch.setattr(MetricsFile, "write", write_or_stop)


@pytest.fixture
def resume(make_raw) -> Callable[..., Path]:
    """A function that goes on with the run in a folder, as `train.py resume=DIR` does."""

    def go_on(folder: Path, *overrides: str) -> Path:
        given = (f"resume={folder}", *overrides)
        config, path = continued(make_raw(*given), given)
        train(config, RunFolder(path, "", resumed=True))
        return path

    return go_on


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in found]


@pytest.mark.parametrize(
    ("rule", "when"),
    [
        ("adam", 5),
        ("adam", 6),  # the metrics are there, the checkpoint is not
        ("adam", "evaluation"),
        ("momentum, drawn rows", 5),
        ("local", 5),
        ("energy descent", 5),
        ("hopfield", 5),
        ("transformer", 5),
        ("recycled block", 5),
        ("one shot", "evaluation"),
        ("slots", "evaluation"),
        ("patience", "evaluation"),
    ],
)
def test_a_resumed_run_ends_where_it_would_have(
    rule: str,
    when: int | str,
    train_run,
    resume: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every number of results.json and metrics.jsonl, and every bit of the last state.

    A lost optimiser, generator, place in the data order or best score would change some of them.
    """
    overrides = (*STEPS, *RULES[rule])
    whole = train_run(tmp_path / "whole", *overrides)
    folder = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        interrupt(patch, when)
        with pytest.raises(Interrupted):
            train_run(folder, *overrides)
    assert json.loads((folder / "status.json").read_text())["status"] == "failed"
    config_yaml = (folder / "config.yaml").read_text()
    assert resume(folder) == folder
    assert json.loads((folder / "status.json").read_text())["status"] == "done"
    assert (folder / "config.yaml").read_text() == config_yaml

    results = json.loads((folder / "results.json").read_text())
    for key in ("tasks", "selection", "pseudo_likelihood"):
        assert results[key] == whole.results[key]
    for key in ("steps", "selected_step"):
        assert results["cost"][key] == whole.results["cost"][key]
    assert lines(folder) == lines(whole.path)
    mine, theirs = (checkpoints.load(path / "checkpoints") for path in (folder, whole.path))
    assert (mine.step, mine.config["folder"]) == (theirs.step, str(folder))
    for group in ("weights", "optimiser", "generators"):
        assert getattr(mine, group).keys() == getattr(theirs, group).keys()
        for name, tensor in getattr(mine, group).items():
            assert torch.equal(tensor, getattr(theirs, group)[name])
    if rule == "patience":
        assert results["cost"]["steps"] < 8  # it had given up


@pytest.fixture(scope="module")
def interrupted(train_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended at step 5 of 8. Tests copy it."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(Interrupted):
            train_run(folder, *STEPS)
    return folder


@pytest.fixture
def copy(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def test_metrics_after_the_checkpoint_are_dropped(
    copy: Path, resume: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 4 and 5 are done again: their lines, and half a line at the end, must not stand twice."""
    assert [line["step"] for line in lines(copy)] == [1, 2, 3, 4, 5]
    with (copy / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 6, "ti')
    interrupt(monkeypatch, 4)
    with pytest.raises(Interrupted):
        resume(copy)
    assert [line["step"] for line in lines(copy)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["seed=1"], "seed (0, now 1)"),
        (["model.patch=4"], "model.patch (2, now 4)"),  # the number of tokens, and their dimension
        (["model.measure=gaussian"], "model.measure (sphere, now gaussian)"),
        (["model.span=0.25"], "model.span (0.5, now 0.25)"),
        (
            ["model=local_attention"],
            "model.name (bare_attention, now local_attention), model.radius (None, now 3)",
        ),
        (["data=digits"], "data.name (synthetic, now digits)"),
        (["data=cifar10"], "data.name (synthetic, now cifar10)"),  # another image side, and more channels
        (["data.train_images=100"], "data.train_images (None, now 100)"),
        (["data.validation=32"], "data.validation (None, now 32)"),
        (["rule.learning_rate=0.1", "seed=0"], "rule.learning_rate (0.03, now 0.1)"),
        (["train.batch_size=8"], "train.batch_size (16, now 8)"),
        (["eval.seed=1", "seed=2"], "eval.seed (0, now 1), seed (0, now 2)"),
        (["folder=elsewhere"], "folder ({folder}, now elsewhere)"),
    ],
)
def test_another_run_is_not_gone_on_with(
    interrupted: Path, make_raw, overrides: list[str], changed: str
) -> None:
    """ConfigError (2) with the fields that differ, and no others: the folder would say one thing, and hold
    another.
    """
    given = [f"resume={interrupted}", *overrides]
    with pytest.raises(ConfigError) as caught:
        continued(make_raw(*given), given)
    said = f"resume={interrupted} goes on as it began, and cannot change "
    assert str(caught.value) == said + changed.format(folder=interrupted)
    assert exit_code(caught.value) == 2


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["train.steps=16"], "train.steps (8, now 16); the rate falls to 0 at the last step"),
        (["rule=hebb"], "rule.rate (None, now 1.0)"),
        (["rule=hebb"], "rule.learning_rate (0.03, now None)"),
        (["experiment=mnist"], "data.name (synthetic, now mnist)"),
        (["experiment=mnist"], "train.steps (8, now 400)"),
    ],
)
def test_what_a_group_changes_is_said(
    interrupted: Path, make_raw, overrides: list[str], changed: str
) -> None:
    """A rule or an experiment sets many fields at once; for the number of steps, what to do instead."""
    given = [f"resume={interrupted}", *overrides]
    with pytest.raises(ConfigError) as caught:
        continued(make_raw(*given), given)
    assert changed in str(caught.value)
    assert ("train.stop_after=N ends this start" in str(caught.value)) == (
        "train.steps" in str(caught.value)
    )


def test_what_does_not_change_the_run_may_change(interrupted: Path, make_raw, make_config) -> None:
    """Threads, device, tracking, figures, other models and the place of the data; and what is as it was."""
    given = [
        f"resume={interrupted}",
        *("seed=0", "data=synthetic", "train.steps=8", "threads=2", "device=cpu", "backend=eager"),
        *("wandb=offline", "wandb.project=other", "figures=true", "data.root=/elsewhere", "beside=digits"),
    ]
    config, path = continued(make_raw(*given), given)
    assert path == interrupted
    assert (config.threads, config.device.value, config.backend.value) == (2, "cpu", "eager")
    assert (config.wandb.mode.value, config.wandb.project) == ("offline", "other")
    assert (config.figures, config.data.root) == (True, "/elsewhere")
    assert (config.train.steps, config.train.batch_size, config.resume) == (8, 16, None)
    assert config.beside == make_config("beside=digits", "folder=unused").beside
    plain, _ = continued(make_raw(given[0]), given[:1])
    assert (plain.threads, plain.wandb.mode.value, plain.figures) == (1, "disabled", False)
    assert plain.data.root == "."
    assert plain.beside.memory is None


def test_what_cannot_go_on_is_said(
    trained, copy: Path, resume: Callable[..., Path], tmp_path: Path
) -> None:
    """A finished run, no run, a running one, one without a checkpoint: refused, and nothing is written."""

    def refused(folder: Path, kind: type[Exception], message: str) -> None:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(kind, match=message):
            resume(folder)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    refused(trained.path, ConfigError, "is done; there is nothing to go on with")
    refused(tmp_path, ConfigError, "there is no run in this folder")
    with (copy / "train.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        refused(copy, OutputError, "still going on in another process")
    (copy / "status.json").write_text('{"status": "running"}')  # as SIGKILL leaves it
    shutil.rmtree(copy / "checkpoints")
    refused(copy, CheckpointError, "does not hold a checkpoint; there: none")


@pytest.mark.parametrize("content", ["", "{}", '{"status": "runn'])
def test_a_run_whose_status_is_damaged_goes_on(content: str, copy: Path, make_raw) -> None:
    """It was interrupted, whatever status.json says no more; its checkpoints say where."""
    (copy / "status.json").write_text(content)
    with pytest.raises(ConfigError, match=r"holds no finished run: its status is damaged"):
        load_run(copy)
    assert continued(make_raw(f"resume={copy}"), [f"resume={copy}"])[1] == copy
    (copy / "status.json").unlink()
    with pytest.raises(ConfigError, match=r"no status\.json"):
        continued(make_raw(f"resume={copy}"), [f"resume={copy}"])


def test_other_images_are_refused(copy: Path, resume: Callable[..., Path]) -> None:
    """data.root may change, the images in it may not: their mean is in the checkpoint (ConfigError)."""
    path = copy / "config.yaml"
    path.write_text(path.read_text().replace("name: synthetic", "name: digits"))
    with pytest.raises(ConfigError, match="not the images that the run was trained on"):
        resume(copy)


def test_a_run_that_goes_on_is_loaded_when_it_is_done(copy: Path, resume: Callable[..., Path]) -> None:
    """load_run refuses the interrupted run, and takes the couplings that were chosen in the end."""
    with pytest.raises(ConfigError, match=r"its status is failed \(Interrupted"):
        load_run(copy)
    resume(copy, "train.steps=8")
    results = json.loads((copy / "results.json").read_text())
    assert load_run(copy).step == results["cost"]["selected_step"]
