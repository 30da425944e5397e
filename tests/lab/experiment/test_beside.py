"""A memory and slots as further rows of a table: what they are, where they stand, what they leave alone."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException

from attractor.images import ImageSplits, pixel_mean
from attractor.lab.config.beside import configurations
from attractor.lab.config.fields import differences, leaves
from attractor.lab.config.schema import BesideConfig
from attractor.lab.config.titles import TASK_WORDS, title
from attractor.lab.errors import ConfigError
from attractor.lab.experiment import beside
from attractor.lab.experiment.assessment import Assessment
from attractor.lab.experiment.build import build_data, build_network, build_tasks
from attractor.lab.experiment.objective import chosen
from attractor.lab.run.finished import enough_steps, load_run
from attractor.lab.run.folder import RunFolder
from attractor.lab.show import terminal
from evaluate import compare

ROWS = ("local_linear_memory", "slots")
FIELDS = {
    "memory": ("candidates=60", "neighbours=[50]", "reaches=[3.0]", "ridges=[0.001]", "iterations=3"),
    "slots": ("slots=6", "parents=2", "rank=10", "screening_rank=3", "candidates=3"),
}
SMALL = (
    "beside=digits",
    "beside.validation_images=8",
    *(f"beside.{name}.{field}" for name, fields in FIELDS.items() for field in fields),
)
# what conf/beside/digits.yaml gives the memory beside what is above
DIGITS = (
    "model.common=1",
    "model.inverse_temperatures=[4.0]",
    "model.pulls=[3.0]",
    "model.shrinkages=[0.03]",
    "model.softenings=[0.0]",
)
ALONE = {
    "local_linear_memory": (*(f"model.{field}" for field in FIELDS["memory"]), *DIGITS),
    "slots": tuple(f"model.{field}" for field in FIELDS["slots"]),
}


@pytest.fixture(scope="module")
def beside_run(train_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of another training seed than that of the rows, which is eval.seed."""
    return train_run(tmp_path_factory.mktemp("beside") / "run", *SMALL, "seed=5", "figures=true")


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_what_a_run_of_that_model_would_be(
    beside_run: Any, row: str, train_run: Callable[..., Any], tmp_path: Path
) -> None:
    """Errors and readings of both are the same numbers: another choice, or other draws, would show."""
    alone = train_run(tmp_path / "run", f"model={row}", *ALONE[row])
    for task, found in alone.results["tasks"].items():
        assert beside_run.results["tasks"][task]["models"][row] == found["models"][row]
        assert beside_run.results["beside"]["selection"][task][row] == alone.results["selection"][task][row]
    assert beside_run.results["beside"]["seconds"][row] > 0


def test_the_run_itself_is_left_as_it_is(
    beside_run: Any, train_run: Callable[..., Any], tmp_path: Path
) -> None:
    """What a sweeper hears, how the run is read and what it measures are those of a run without the rows.

    The memory does better than six steps of training: were it taken for a row of the run, it would be its
    score.
    """
    plain = train_run(tmp_path / "run", "seed=5")
    mine, results = beside_run.results, plain.results
    assert (beside_run.score, mine["selection"]) == (plain.score, results["selection"])
    for task, values in results["tasks"].items():
        models = mine["tasks"][task]["models"]
        assert {name: models[name] for name in values["models"]} == values["models"]
        assert chosen(mine, task) == chosen(results, task)
        assert models[ROWS[0]]["best"]["mse"] < chosen(mine, task)["test"]
        assert set(models) - set(values["models"]) == set(ROWS)
    assert results["beside"]["seconds"] == results["beside"]["selection"] == {}
    assert load_run(beside_run.path).choices.keys() == load_run(plain.path).choices.keys()


def test_the_rows_stand_after_the_run_and_before_the_references(beside_run: Any) -> None:
    """In the printed table; a run with evidence has both of its rows first."""
    names = list(terminal.table_rows(beside_run.results["tasks"]))
    own = ["bare_attention", "bare_attention+evidence"]
    assert names == [*own, *ROWS, "training_mean", "regression", "memory"]
    lines = [line.split("  ")[1] for line in beside_run.output.splitlines() if line.startswith("  ")]
    assert [title(name) for name in names] == [line for line in lines if line]


def test_the_page_shows_their_states_and_how_they_are_read(
    beside_run: Any, read_scenes: Callable[[Path], list[dict[str, Any]]]
) -> None:
    """Six iterations of the run are all there; a model that takes fewer stays as it is after them."""
    scenes = read_scenes(beside_run.path)
    tasks = beside_run.results["tasks"]
    shown = {(scene["task"], scene["row"]): scene for scene in scenes}
    for task, values in tasks.items():
        for row in ROWS:
            scene, mse = shown[TASK_WORDS[task], title(row)], values["models"][row]["mse"]
            assert scene["times"] == [0, 1, 2, 3, 4, 5, 6]
            assert scene["mean"] == [values["corrupted_mse"], *mse, *[mse[-1]] * (6 - len(mse))]
            assert all(errors[-1] == errors[len(mse)] for errors in scene["errors"])
    text = (beside_run.path / "report.html").read_text()
    assert "3 slots answer, inverse temperature" in text
    grids = {file.name for file in (beside_run.path / "figures").glob("grid_*.png")}
    assert grids == {"grid_masked.png", "grid_denoise.png", "grid_denoise_evidence.png"}


def compared(make_comparison: Callable[..., Any], runs: list[Any], folder: Path) -> dict[str, Any]:
    config = make_comparison([run.path for run in runs])
    compare(config, RunFolder(folder, ""))
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def test_a_comparison_shows_the_same_rows_and_chooses_nothing(
    beside_run: Any, make_comparison: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """evaluate.py has the numbers of train.py, bit for bit, by the choices that are in results.json."""
    monkeypatch.setattr(beside, "choose_retrievals", None)
    results = compared(make_comparison, [beside_run], tmp_path / "one")
    for task, values in beside_run.results["tasks"].items():
        assert results["tasks"][task]["models"] == values["models"]
    assert results["beside"]["selection"] == beside_run.results["beside"]["selection"]
    assert results["selection"] == beside_run.results["selection"]


def test_of_several_runs_the_rows_stand_once(
    beside_run: Any, train_run: Callable[..., Any], make_comparison: Callable[..., Any], tmp_path: Path
) -> None:
    """No row of a model that one of the runs is, and none where runs have seen other numbers of images."""
    slots = train_run(tmp_path / "slots", "model=slots", *ALONE["slots"])
    results = compared(make_comparison, [slots, beside_run], tmp_path / "both")
    names = set(results["tasks"]["masked"]["models"])
    assert names == {
        *("slots/slots", "run/bare_attention", "local_linear_memory"),
        *("training_mean", "regression", "memory"),
    }
    assert list(results["beside"]["selection"]["masked"]) == ["local_linear_memory"]
    few = train_run(tmp_path / "few", "data.train_images=100")
    results = compared(make_comparison, [few, beside_run], tmp_path / "other")
    assert not set(ROWS) & set(results["tasks"]["masked"]["models"])


def test_a_comparison_takes_as_many_steps_as_a_row_needs(
    beside_run: Any, make_comparison: Callable[..., Any], tmp_path: Path
) -> None:
    """The row of the memory has its own t, which a shorter comparison would leave out."""
    loaded = load_run(beside_run.path)
    choice = loaded.beside["denoise"]["local_linear_memory"]
    late = replace(choice, retrieval=replace(choice.retrieval, steps=7))
    rows = {"denoise": {"local_linear_memory": late}}
    with pytest.raises(ConfigError, match=r"chose t=7 for denoise, local_linear_memory, but steps is 6"):
        enough_steps([replace(loaded, beside=rows)], 6)


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        ([], {"memory", "slots"}),
        (["beside=none"], set()),
        (["beside.slots=null"], {"memory"}),
        (["model=slots"], {"memory"}),
        (["model=local_linear_memory"], {"slots"}),
        (["experiment=mnist"], {"memory", "slots"}),
        (["experiment=mnist_4x4"], {"memory", "slots"}),
        (["experiment=memory_mnist"], set()),
        (["experiment=transformer"], set()),
        (["experiment=paper", "arm=bare_2x2"], set()),
        (["experiment=paper_quick", "arm=bare_2x2"], set()),
        (["sweep=rates"], set()),
        (["experiment=mnist", "sweep=representation", "arm=bare_4x4"], set()),
        (["data=synthetic"], set()),
        (["data=mnist"], set()),
    ],
)
def test_where_the_rows_stand(
    make_config: Callable[..., Any], overrides: list[str], rows: set[str]
) -> None:
    """By default where they are cheap; never twice; masks are those of the run."""
    config = make_config(*overrides, "folder=unused")
    found = configurations(config)
    assert set(found) == rows
    assert {each.model.patch for each in found.values()} <= {config.model.patch}


def test_every_sweep_leaves_them_out(make_config: Callable[..., Any], root: Path) -> None:
    """A sweep that has them pays for them in every job, and its table does not show them."""
    for file in (root / "conf" / "sweep").glob("*.yaml"):
        assert not configurations(make_config(f"sweep={file.stem}", "folder=unused")), file


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("beside.memory.ridges=[1e-9]", "beside.memory.ridges has 1e-09"),
        ("beside.memory.readout=12", "beside.memory.readout is 12"),
        (
            "beside.memory.common=3",
            "beside.memory.common is 3; it must be 0 to beside.memory.iterations, 2",
        ),
        ("beside.slots.parents=99", "beside.slots.parents is 99"),
        ("beside.rule.ridge=-1", "beside.rule.ridge is -1"),
        ("beside.rule=null", "beside.slots has no beside.rule"),
        ("beside.validation_images=0", "beside.validation_images is 0"),
        ("beside.memory.patch=4", "beside.memory.patch is 4, but masks hide patches of model.patch=2"),
        ("beside.slots.name=bare_attention", "beside.slots.name is 'bare_attention', as model.name is"),
        ("beside.memory.name=slots", "beside.slots.name is 'slots', as beside.memory.name is"),
        ("beside.memory.name=regression", "beside.memory.name is 'regression'"),
    ],
)
def test_what_no_row_can_be_is_refused(make_config: Callable[..., Any], override: str, said: str) -> None:
    """As of a run of that model, before any work, by the name that the field has here."""
    with pytest.raises(ConfigError) as caught:
        make_config("beside=digits", override, "folder=unused")
    assert str(caught.value).startswith(("each of " + said, said))


def test_typos_are_refused(make_raw: Callable[..., Any]) -> None:
    with pytest.raises(HydraException):
        make_raw("beside=digit")
    with pytest.raises(HydraException):
        make_raw("beside.memory.neighbors=[3]")


def test_copies_that_are_none_are_refused(make_config: Callable[..., Any]) -> None:
    """Before any work, though it is the images that say how large they are."""
    config = make_config("data=synthetic", "beside=digits", "beside.slots.copies=[turn 3]", "folder=unused")
    with pytest.raises(ConfigError, match="turn 3"):
        beside.possible(config, build_data(config.data))


def test_a_row_that_the_images_do_not_allow_is_left_out(
    train_run: Callable[..., Any], tmp_path: Path
) -> None:
    """Few images must not end a run whose own model can do with them; what is missing is said, and why."""
    run = train_run(tmp_path / "run", *SMALL, "data.train_images=5", "beside.memory.neighbours=[]")
    reason = "the table has no row of slots: beside.slots.slots is 6, but there are 5 images to train on"
    assert f"warning: {reason}" in run.output
    assert set(run.results["beside"]["seconds"]) == {"local_linear_memory"}
    assert "slots" not in run.results["tasks"]["masked"]["models"]


def test_a_row_that_cannot_learn_is_left_out(
    make_config: Callable[..., Any], splits: ImageSplits, tmp_path: Path
) -> None:
    """Three images, each ten times, leave slots empty: seen after training, which must not be lost."""
    images = replace(splits, train=splits.train[:3].repeat(10, 1, 1, 1))
    config = make_config(*SMALL, "beside.memory.neighbours=[20]", "eval.steps=3", f"folder={tmp_path}")
    tasks = build_tasks(config.task, patch=2, side=images.side)
    asked, left_out = beside.possible(config, images)
    assert not left_out
    rows, left_out = beside.choose(asked, images, tasks)
    assert [type(row.network).__name__ for row in rows] == ["MemoryNetwork"]
    (reason,) = left_out
    assert reason.startswith("the table has no row of slots: ")
    assert "have no images" in reason


def test_rows_of_another_job_are_chosen_anew(
    make_config: Callable[..., Any], splits: ImageSplits, tmp_path: Path
) -> None:
    """Jobs that ask for the same rows of the same images share them, whatever else they do."""

    def rows(images: ImageSplits, *overrides: str) -> list[beside.Row]:
        small = ("beside.memory.neighbours=[20]", "beside.slots.rank=5", "eval.steps=3")
        config = make_config(*SMALL, *small, *overrides, f"folder={tmp_path}")
        tasks = build_tasks(config.task, patch=2, side=images.side)
        asked, left_out = beside.possible(config, images)
        assert not left_out
        chosen, left_out = beside.choose(asked, images, tasks)
        assert not left_out
        return chosen

    first = rows(splits)
    again = rows(replace(splits), "seed=3", "rule.learning_rate=0.1", f"folder={tmp_path / 'other'}")
    assert [id(row.network) for row in again] == [id(row.network) for row in first]
    for images, override in (
        (splits.fewer(20), "seed=0"),
        (splits, "eval.seed=1"),
        (splits, "beside.validation_images=7"),
        (splits, "beside.rule.ridge=0.01"),
        (splits, "task.noise_variance=0.1"),
    ):
        assert all(
            row.network is not old.network for row, old in zip(rows(images, override), first, strict=True)
        )


def test_the_switch_makes_no_other_run(make_raw: Callable[..., Any]) -> None:
    """A run may be resumed without the rows, and a job that ended with them is not run again."""
    with_rows, without = (
        leaves(make_raw(f"beside={name}", "folder=unused")) for name in ("digits", "none")
    )
    assert with_rows != without
    assert differences(with_rows, without) == {}


def test_a_run_that_went_on_with_other_rows_is_loaded_with_them(beside_run: Any, tmp_path: Path) -> None:
    """The checkpoint that is loaded may be older than the rows: what was said at the end counts."""
    folder = Path(shutil.copytree(beside_run.path, tmp_path / "run"))
    results = json.loads((folder / "results.json").read_text())
    assert load_run(folder).config.beside == beside_run.config.beside
    results["beside"]["settings"]["slots"]["slots"] = 7
    (folder / "results.json").write_text(json.dumps(results))
    loaded = load_run(folder).config.beside
    assert loaded.slots is not None
    assert loaded.slots.slots == 7
    del results["beside"]  # as of a run before there were such rows
    (folder / "results.json").write_text(json.dumps(results))
    assert (load_run(folder).config.beside, load_run(folder).beside) == (BesideConfig(), {})


def test_a_network_in_the_place_of_another_keeps_the_other_rows(
    make_config: Callable[..., Any], splits: ImageSplits
) -> None:
    """Of several processes the first one draws with all rows of the couplings; others stay."""
    config = make_config("folder=unused")
    shared, whole, other = (build_network(config.model, pixel_mean(splits.train), seed=0) for _ in range(3))
    outcome = Assessment({}, {}, {"masked": {"a": "how", "b": "how"}}, {"a": shared, "b": other})  # type: ignore[dict-item]
    assert outcome.choices_of(shared) == {"masked": {"a": "how"}}
    swapped = outcome.instead(shared, whole)
    assert (swapped.networks["a"], swapped.networks["b"]) == (whole, other)
