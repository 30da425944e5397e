"""Whole runs: what they leave behind, that they repeat, and that they load without their data."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from attractor.images import DATASETS, Corrupted, DataError, synthetic, to_pixels, token_mask_to_pixels
from attractor.lab import load_run
from attractor.lab.config.names import TaskName
from attractor.lab.errors import CheckpointError, ConfigError
from attractor.lab.experiment.network import Recall
from attractor.lab.run import manifest
from attractor.lab.run.finished import same_data
from attractor.lab.run.folder import RunFolder
from evaluate import compare

TrainRun = Callable[..., Any]


@pytest.fixture(scope="module")
def loaded(trained):
    return load_run(trained.path)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return to_pixels(synthetic().test[:5])


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    """(B, N): 0 to 4 hidden tokens, other ones in every image."""
    hidden = torch.zeros(5, 16, dtype=torch.bool)
    for index in range(5):
        hidden[index, index : 2 * index] = True
    return hidden


def test_results_follow_their_schema(trained) -> None:
    """results.json has the fields of DESIGN.md, section 5: others read it by these names.

    Curves have T entries, one-shot references one, `best` is an entry of the curve.
    """
    results = trained.results
    assert {key: results[key] for key in ("schema", "model", "data", "patch", "seed")} == {
        "schema": 1,
        "model": "bare_attention",
        "data": "synthetic",
        "patch": 2,
        "seed": 0,
    }
    assert results["cost"].keys() >= {"train_seconds", "steps", "parameters", "peak_memory_mb"}
    assert 0 < results["cost"]["train_seconds"] < 60
    assert results["cost"]["steps"] == 6
    assert results["cost"]["selected_step"] in (2, 4, 6)
    assert results["cost"]["parameters"] == 16 * 15 * 8 * 8
    assert 50 < results["cost"]["peak_memory_mb"] < 20_000
    assert results["pseudo_likelihood"].keys() == {"train", "validation", "test"}
    assert results["tasks"].keys() == {"masked", "denoise"}
    for task, values in results["tasks"].items():
        assert values["images"] == 9
        assert 0 < values["corrupted_mse"] < 1
        learned = {"bare_attention"} | ({"bare_attention+evidence"} if task == "denoise" else set())
        assert values["models"].keys() == learned | {"training_mean", "regression", "memory"}
        assert results["selection"][task].keys() == learned
        for name, entry in values["models"].items():
            steps = 6 if name in learned else 1
            assert len(entry["mse"]) == len(entry["std"]) == steps
            if name in learned:
                assert entry["best"]["mse"] == entry["mse"][entry["best"]["t"] - 1]
                assert entry["oracle_best"]["mse"] == min(entry["mse"])
                assert entry["best"]["t"] == results["selection"][task][name]["steps"]


def test_a_run_folder_holds_what_it_should(trained) -> None:
    """config.yaml, status.json, metrics.jsonl, checkpoints/, results.json, report.html, figures/; nothing
    temporary.
    """
    names = {entry.name for entry in trained.path.iterdir()}
    assert names == {
        "config.yaml",
        "status.json",
        "metrics.jsonl",
        "train.log",
        "checkpoints",
        "results.json",
        "report.html",
        "figures",
    }
    assert json.loads((trained.path / "status.json").read_text())["status"] == "done"
    lines = [json.loads(line) for line in (trained.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "val/masked" in line] == [2, 4, 6]
    assert all("train/log_pseudo_likelihood" in line for line in lines)
    # the score that a sweeper gets is the least of the validations
    scores = [(line["val/masked"] * line["val/denoise"]) ** 0.5 for line in lines if "val/masked" in line]
    assert trained.score == pytest.approx(min(scores))


def test_a_run_repeats(trained, train_run: TrainRun, tmp_path: Path) -> None:
    """Same configuration and seed: the same errors, choices and couplings, to the last bit.

    Another seed of training gives others on the same corruptions: the references, which do not train by
    it, stay the same.
    """
    again = train_run(tmp_path / "again")
    for key in ("tasks", "selection", "pseudo_likelihood"):
        assert again.results[key] == trained.results[key]
    for mine, theirs in zip(
        load_run(again.path).network.energy.couplings.weights.values(),
        load_run(trained.path).network.energy.couplings.weights.values(),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
    other = train_run(tmp_path / "other", "seed=1")
    for task, values in other.results["tasks"].items():
        before = trained.results["tasks"][task]
        assert values["models"]["bare_attention"]["mse"] != before["models"]["bare_attention"]["mse"]
        assert values["models"]["memory"] == before["models"]["memory"]
        assert values["models"]["regression"] == before["models"]["regression"]
        assert values["corrupted_mse"] == before["corrupted_mse"]


def test_one_task_alone_gives_the_same_references(trained, train_run: TrainRun, tmp_path: Path) -> None:
    """task=masked has one table, and its corruptions do not depend on the other task being there."""
    alone = train_run(tmp_path / "alone", "task=masked", "rule=hebb")
    assert alone.results["tasks"].keys() == {"masked"}
    for name in ("memory", "training_mean", "regression"):
        mine, theirs = (r["tasks"]["masked"]["models"][name] for r in (alone.results, trained.results))
        assert mine == theirs
    assert alone.results["cost"]["steps"] == 1


def test_load_run_needs_no_data(
    trained, images: torch.Tensor, mask: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is used on one's own images wherever its folder is copied; its data set may be gone."""
    monkeypatch.delitem(DATASETS, "synthetic")
    model = load_run(trained.path)
    assert model.reconstruct(images).shape == images.shape
    assert model.reconstruct(images, mask).shape == images.shape
    assert model.step == trained.results["cost"]["selected_step"]
    assert model.config == trained.config


def test_visible_pixels_come_back_untouched(loaded, images: torch.Tensor, mask: torch.Tensor) -> None:
    """Where nothing is hidden the output is the input, bit for bit; hidden pixels do not matter.

    Decoding what was encoded would change visible pixels by rounding; what hidden ones hold would be a
    leak of the answer.
    """
    found = loaded.reconstruct(images, mask)
    hidden = token_mask_to_pixels(mask, patch=2)
    assert torch.equal(found[~hidden], images[~hidden])
    scrambled = torch.where(hidden, 1 - images, images)
    assert torch.equal(loaded.reconstruct(scrambled, mask), found)
    assert not torch.equal(found[hidden], images[hidden])
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("steps", [None, 1, 4])
def test_reconstruct_is_the_trajectory_at_t(
    loaded, images: torch.Tensor, mask: torch.Tensor, steps: int | None
) -> None:
    """Denoising is the state after the chosen t, or after `steps`, of the best retrieval; so is masking."""
    noisy = Corrupted("denoise", images, images)
    choice = loaded.choice("denoise")
    t = steps or choice.retrieval.steps
    *_, expected = islice(Recall(loaded.network, choice.retrieval).reconstruct(noisy), t)
    assert torch.equal(loaded.reconstruct(images, steps=steps), expected)

    hidden = token_mask_to_pixels(mask, patch=2)
    seen = Corrupted("masked", images, images.masked_fill(hidden, 0), mask, hidden)
    choice = loaded.choice("masked")
    t = steps or choice.retrieval.steps
    *_, expected = islice(Recall(loaded.network, choice.retrieval).reconstruct(seen), t)
    assert torch.equal(
        loaded.reconstruct(images, mask, steps=steps)[hidden.expand_as(images)],
        expected[hidden.expand_as(images)],
    )


def test_the_best_row_of_a_task_is_used(loaded) -> None:
    """Free or with evidence: the one with the least validation error, never by test errors."""
    rows = loaded.choices["denoise"]
    assert loaded.choice("denoise").error == min(choice.error for choice in rows.values())
    assert set(rows) == {"bare_attention", "bare_attention+evidence"}
    better = replace(rows["bare_attention"], error=0.0)
    changed = replace(loaded, choices={"denoise": rows | {"bare_attention": better}})
    assert changed.choice("denoise") is better


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :, :6, :6], r"\(5, 1, 6, 6\).*\(B, 1, 8, 8\)"),
        (lambda x: x.expand(-1, 3, -1, -1), r"\(5, 3, 8, 8\).*\(B, 1, 8, 8\)"),
        (lambda x: x[0], r"\(1, 8, 8\).*\(B, 1, 8, 8\)"),
        (lambda x: x[:0], r"\(0, 1, 8, 8\).*\(B, 1, 8, 8\)"),
        (lambda x: (x * 255).byte(), r"torch\.uint8.*divide"),
        (lambda x: x * 255, r"values from .* to 2\d\d"),
        (lambda x: x.where(x != x[0, 0, 0, 0], float("nan")), "non-finite"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    loaded, images: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    """DataError, a ValueError, with the shape or value that was given and what is expected."""
    with pytest.raises(DataError, match=message):
        loaded.reconstruct(change(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[:, :9], r"\(5, 9\).*\(5, 16\)"),
        (lambda m: m[:2], r"\(2, 16\).*\(5, 16\)"),
        (lambda m: m.float(), r"torch\.float32.*bool"),
        (lambda m: m.view(5, 4, 4), r"\(5, 4, 4\).*\(5, 16\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    loaded,
    images: torch.Tensor,
    mask: torch.Tensor,
    change: Callable[[torch.Tensor], torch.Tensor],
    message: str,
) -> None:
    """ValueError with both shapes: a mask of pixels, or of one image, would be broadcast silently."""
    with pytest.raises(ValueError, match=message):
        loaded.reconstruct(images, change(mask))


def test_steps_and_tasks_that_do_not_exist_are_refused(loaded, images: torch.Tensor) -> None:
    """steps=0 has no prediction; a task that was not learned has no retrieval, and the remedy is said."""
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        loaded.reconstruct(images, steps=0)
    masked_only = replace(loaded, choices={"masked": loaded.choices["masked"]})
    with pytest.raises(ConfigError, match=r"no retrieval for 'denoise', only for masked.*task=both"):
        masked_only.reconstruct(images)


def test_only_finished_and_fitting_runs_load(trained, tmp_path: Path) -> None:
    """No results: ConfigError. Weights of another shape: CheckpointError with both shapes."""
    with pytest.raises(ConfigError, match=r"no results\.json"):
        load_run(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(trained.path, copy)
    for checkpoint in copy.glob("checkpoints/step-*"):
        values = manifest.read(checkpoint)
        values["config"]["model"]["patch"] = 4
        manifest.write(checkpoint, values)
    with pytest.raises(CheckpointError, match=r"\(4, 16, 8, 8\).*\(4, 4, 32, 32\)"):
        load_run(copy)


def test_evaluate_reproduces_a_run_exactly(trained, make_comparison, tmp_path: Path) -> None:
    """The same checkpoint, corruptions and retrievals: train.py and evaluate.py agree to the last bit.

    Checked on every number of "tasks", differences and spreads included.
    """
    folder = RunFolder(tmp_path / "eval", "")
    compare(make_comparison([trained.path], f"folder={folder.path}"), folder)
    results = json.loads((folder.path / "results.json").read_text())
    assert results["tasks"] == trained.results["tasks"]
    assert results["selection"] == trained.results["selection"]
    assert results["runs"] == {"first": str(trained.path)}
    assert json.loads((folder.path / "status.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    "overrides",
    [["rule=hebb"], ["model=hopfield", "rule=ridge"], ["rule=energy_descent"]],
    ids=lambda overrides: overrides[-1],
)
def test_every_rule_is_loaded_as_it_was_evaluated(
    overrides: list[str], train_run: TrainRun, make_comparison, tmp_path: Path
) -> None:
    """Whatever the rule, evaluate.py reproduces the run: the checkpoint holds the couplings of the results.

    A rule that puts a new tensor in the place of the couplings, while the old one is saved, leaves a
    checkpoint of zeros, and a loaded run that was never trained.
    """
    run = train_run(tmp_path / "run", *overrides)
    assert all(weight.any() for weight in load_run(run.path).network.energy.couplings.weights.values())
    folder = RunFolder(tmp_path / "eval", "")
    compare(make_comparison([run.path], f"folder={folder.path}"), folder)
    assert json.loads((folder.path / "results.json").read_text())["tasks"] == run.results["tasks"]


def test_two_runs_share_a_table(
    trained, train_run: TrainRun, make_comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are called run/model; each has the numbers of its own run, with paired differences."""
    other = train_run(tmp_path / "second", "model=hopfield", "dynamics.inertias=[0.0,0.1]")
    folder = RunFolder(tmp_path / "eval", "")
    compare(make_comparison([trained.path, other.path], f"folder={folder.path}"), folder)
    results = json.loads((folder.path / "results.json").read_text())
    for task, values in results["tasks"].items():
        for name, run, key in (
            ("first/bare_attention", trained, "bare_attention"),
            ("second/hopfield", other, "hopfield"),
        ):
            assert values["models"][name] == run.results["tasks"][task]["models"][key]
        one, two = values["models"]["first/bare_attention"], values["models"]["second/hopfield"]
        difference = values["differences"]["first/bare_attention"]["second/hopfield"]["mse"]
        assert difference == pytest.approx(one["best"]["mse"] - two["best"]["mse"])
    said = capsys.readouterr().out
    assert "first: bare self-attention" in said
    assert "second: vector Hopfield network" in said
    assert "synthetic: 9 test images, 6 iterations" in said


@pytest.mark.parametrize("steps", [1, 2])
def test_fewer_iterations_than_the_chosen_t(trained, make_comparison, steps: int, tmp_path: Path) -> None:
    """evaluate.py with fewer steps than a chosen t says so (ConfigError) or evaluates: no IndexError.

    The run is copied with a t of 6 for every row, so that the curve is certainly too short.
    """
    copy = tmp_path / "late"
    shutil.copytree(trained.path, copy)
    values = json.loads((copy / "results.json").read_text())
    for rows in values["selection"].values():
        for row in rows.values():
            row["steps"] = 6
    (copy / "results.json").write_text(json.dumps(values))
    folder = RunFolder(tmp_path / "eval", "")
    config = make_comparison([copy], f"folder={folder.path}", f"steps={steps}")
    with pytest.raises(ConfigError, match="steps"):
        compare(config, folder)


def test_runs_that_cannot_be_compared_are_refused(loaded) -> None:
    """Other data, validation images, patch or corruption: ConfigError, with both values."""
    config = loaded.config
    others = {
        "data.name=synthetic, .*digits": replace(config, data=replace(config.data, name="digits")),
        "data.validation=None, .*7": replace(config, data=replace(config.data, validation=7)),
        "model.patch=2, .*4": replace(config, model=replace(config.model, patch=4)),
        "mask_fraction=0.3, .*0.5": replace(config, task=replace(config.task, mask_fraction=0.5)),
        "noise_variance=0.7, .*0.5": replace(config, task=replace(config.task, noise_variance=0.5)),
    }
    one = replace(
        loaded, config=replace(config, seed=5, task=replace(config.task, names=[TaskName.denoise]))
    )
    assert same_data([one, loaded]) == config.task
    assert same_data([one]).names == [TaskName.denoise]
    for message, other in others.items():
        with pytest.raises(ConfigError, match=message):
            same_data([replace(loaded, config=other), loaded])


@pytest.mark.parametrize("again", ["", "../first"], ids=["same", "spelled otherwise"])
def test_a_run_given_twice_is_refused(trained, make_comparison, again: str, tmp_path: Path) -> None:
    """ConfigError before any work: two rows of one run look like a result, and are none."""
    folder = RunFolder(tmp_path / "eval", "")
    with pytest.raises(ConfigError, match="given twice"):
        compare(make_comparison([trained.path, trained.path / again], f"folder={folder.path}"), folder)
    assert not folder.path.exists()


def test_double_precision_images_are_taken(loaded) -> None:
    """torch.from_numpy(image / 255) is float64: it must give what float32 gives, not an error of bmm."""
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.reconstruct(images.double()), loaded.reconstruct(images))
