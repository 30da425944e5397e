"""Slots as a model of the lab: learned, chosen, evaluated, saved, loaded, compared, refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attractor.images import (
    Denoise,
    ImageSplits,
    Masked,
    PixelEncoding,
    from_patches,
    pixel_mean,
    to_patches,
    to_pixels,
)
from attractor.lab import load_run
from attractor.lab.errors import ConfigError
from attractor.lab.experiment import slot_limits
from attractor.lab.experiment.build import build_data, build_network
from attractor.lab.experiment.evaluation import corruptions
from attractor.lab.experiment.network import Recall
from attractor.lab.experiment.slot_choice import choose_slot_reading
from attractor.lab.experiment.slot_limits import refuse_slots
from attractor.lab.experiment.slot_network import ClosedForm, SlotNetwork, SlotReading
from attractor.lab.experiment.training import EarlyStopping
from attractor.physics import Ranks, Shrinkage, SlotRecipe, noisy, posterior_mean, seen
from evaluate import compare

SMALL = (
    "model=slots",
    "model.slots=6",
    "model.parents=2",
    "model.rank=10",
    "model.screening_rank=3",
    "model.candidates=3",
    "model.copies=[shift 1]",
)
TASKS = [Masked(patch=2), Denoise(0.7)]


@pytest.fixture(scope="module")
def slot_run(train_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_run(tmp_path_factory.mktemp("slots") / "run", *SMALL)


def empty(splits: ImageSplits, *, heads: int = 2) -> SlotNetwork:
    encoding = PixelEncoding(1, splits.side, patch=2, mean=pixel_mean(splits.train))
    recipe = SlotRecipe(slots=4, parents=2, rank=5, screening_rank=2)
    cpu = torch.device("cpu")
    return SlotNetwork(encoding, recipe, heads=heads, descriptions=["shift 1"], device=cpu)


def learned(splits: ImageSplits, *, seed: int = 0) -> SlotNetwork:
    network = empty(splits)
    ClosedForm(Shrinkage(ridge=1e-2), iterations=4, seed=seed).learn(network, splits.train)
    return network


def test_slots_are_a_row_of_the_results(slot_run: Any) -> None:
    """One error and t = 1 for each task, no pseudo-likelihood, and what a mixture of 6 learns."""
    for task in TASKS:
        entry = slot_run.results["tasks"][task.name]["models"]["slots"]
        assert entry["best"] == entry["oracle_best"] == {"t": 1, "mse": entry["mse"][0]}
        assert len(entry["mse"]) == 1
    assert slot_run.results["pseudo_likelihood"] is None
    assert slot_run.results["cost"]["parameters"] == 6 * (1 + 64 + 64 * 65 // 2)
    assert slot_run.results["cost"]["steps"] == 1
    said = "a mixture of 6 Hopfield networks with 2 parents, rank 10, with shift 1"
    assert said in slot_run.output
    assert "closed form (no backpropagation)" in slot_run.output


def test_what_is_saved_is_what_the_answers_need(slot_run: Any) -> None:
    """One matrix for each slot, and no second one: at 500 slots of MNIST a matrix each is 1.2 GB."""
    (checkpoint,) = (slot_run.path / "checkpoints").glob("step-*")
    size = sum(file.stat().st_size for file in checkpoint.glob("rows-*"))
    assert 4 * 6 * 64 * 64 < size < 4 * 6 * (64 * 64 + 64 * (10 + 3 + 1) + 2) + 2000


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_loaded_run_predicts_what_was_evaluated_without_the_images(
    slot_run: Any, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """load_run reads no data set and answers as results.json says; `reconstruct` gives the same."""
    with monkeypatch.context() as patch:
        patch.setattr("attractor.lab.run.finished.build_data", None)
        loaded = load_run(slot_run.path)
    config = loaded.config
    images = build_data(config.data).test[: config.eval.images]
    (batch,) = corruptions(task, images, seed=config.eval.seed, batch_size=len(images))
    reading = loaded.choice(task.name).retrieval
    (found,) = Recall(loaded.network, reading).reconstruct(batch)
    expected = slot_run.results["tasks"][task.name]["models"]["slots"]["mse"][0]
    # other batches add up in another order
    assert float(batch.squared_error(found).mean()) == pytest.approx(expected, rel=1e-5)
    answer = loaded.reconstruct(batch.corrupted, batch.mask)
    assert float(batch.squared_error(answer).mean()) == pytest.approx(expected, rel=1e-5)


def test_readings_survive_json() -> None:
    """A reading is known by its fields in results.json, and comes back as it was."""
    reading = SlotReading(candidates=4, inverse_temperature=0.03, noise_variance=0.5, steps=1)
    assert SlotReading.from_json(json.loads(json.dumps(reading.to_json()))) == reading
    assert reading.describe() == "4 slots answer, inverse temperature 0.03"


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_predictions_are_the_mean_of_what_the_heads_answer(splits: ImageSplits, task: Any) -> None:
    """Masks with full precision and visible pixels kept, noise with low rank; every head counts the same.

    The mask is of tokens, and pixels are compared token after token: another order would hide others.
    """
    network = learned(splits)
    batch = task.corrupt(to_pixels(splits.test), range(len(splits.test)), seed=3)
    pixels = to_patches(batch.corrupted, patch=2).flatten(1)
    settings = {"candidates": 2, "inverse_temperature": 0.3}
    if batch.mask is None:
        evidence = noisy(pixels, variance=0.7)
        readers = [head.quick(**settings) for head in network.heads]
    else:
        hidden = to_patches(batch.pixel_mask.expand_as(batch.corrupted).float(), patch=2).flatten(1) > 0
        evidence = seen(pixels, ~hidden, variance=1e-3)
        readers = [head.exact(**settings) for head in network.heads]
    x = posterior_mean(readers, evidence).view(len(pixels), 4, 4)
    (found,) = network.predictions(batch, SlotReading(**settings))
    torch.testing.assert_close(found, from_patches(x, patch=2).clamp(0, 1), rtol=0, atol=1e-6)
    if batch.pixel_mask is not None:
        shown = ~batch.pixel_mask.expand_as(found)
        torch.testing.assert_close(found[shown], batch.corrupted[shown], rtol=0, atol=1e-6)
    one, other = (reader.posterior_mean(evidence) for reader in readers)
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_best_temperature_is_chosen(
    splits: ImageSplits, task: Any, make_config: Callable[..., Any]
) -> None:
    """Asking the slots once for all temperatures gives what each of them gives by itself."""
    network = learned(splits)
    model = make_config(*SMALL, "folder=unused").model
    batch = task.corrupt(to_pixels(splits.validation), range(len(splits.validation)), seed=3)
    choice = choose_slot_reading(network, model, batch, noise_variance=0.7)
    errors = {}
    for temperature in model.inverse_temperatures:
        (x,) = network.predictions(batch, replace(choice.retrieval, inverse_temperature=temperature))
        errors[temperature] = float(batch.squared_error(x).mean())
    assert choice.error == min(errors.values())
    assert errors[choice.retrieval.inverse_temperature] == choice.error
    assert choice.retrieval.steps == 1
    assert len(set(errors.values())) > 1


def test_the_seed_is_all_that_chance_depends_on(splits: ImageSplits) -> None:
    """The same seed gives the same slots bit for bit; another seed, and another head, other ones."""
    first, again, other = learned(splits), learned(splits), learned(splits, seed=1)
    for name, weight in first.weights.items():
        assert torch.equal(weight, again.weights[name]), name
    assert not torch.equal(first.weights["0.means"], other.weights["0.means"])
    assert not torch.equal(first.weights["0.means"], first.weights["1.means"])
    shapes = {name: weight.shape for name, weight in empty(splits).weights.items()}
    assert {name: weight.shape for name, weight in first.weights.items()} == shapes


def test_the_same_command_gives_the_same_run(
    slot_run: Any, train_run: Callable[..., Any], tmp_path: Path
) -> None:
    """From configuration to results; another seed is another run."""
    again = train_run(tmp_path / "again", *SMALL)
    assert again.results["tasks"] == slot_run.results["tasks"]
    assert again.score == slot_run.score
    other = train_run(tmp_path / "other", *SMALL, "seed=1")
    assert other.results["tasks"] != slot_run.results["tasks"]


def test_runs_are_compared_with_others(
    slot_run: Any,
    train_run: Callable[..., Any],
    make_comparison: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """evaluate.py puts slots beside bare self-attention, on the same corruptions, with its figures."""
    from attractor.lab.run.folder import RunFolder

    other = train_run(tmp_path / "other").path
    config = make_comparison([slot_run.path, other], f"folder={tmp_path / 'both'}", "figures=true")
    compare(config, RunFolder(tmp_path / "both", ""))
    results = json.loads((tmp_path / "both" / "results.json").read_text())
    models = results["tasks"]["masked"]["models"]
    (key,) = (name for name in models if name.endswith("/slots"))
    said = slot_run.results["tasks"]["masked"]["models"]["slots"]["best"]["mse"]
    assert models[key]["best"]["mse"] == pytest.approx(said, rel=1e-6)
    assert (tmp_path / "both" / "report.html").is_file()


def test_the_weights_of_the_last_step_are_not_copied(splits: ImageSplits) -> None:
    """Nothing changes them any more, and a copy of gigabytes may be more than the machine has."""
    weights = learned(splits).weights
    stopping = EarlyStopping(None)
    stopping.update(1, {"masked": 0.1}, weights, last=True)
    before = {name: weight.clone() for name, weight in weights.items()}
    assert all(stopping.best_weights[name] is weight for name, weight in weights.items())
    stopping.restore(weights)
    assert all(torch.equal(weights[name], weight) for name, weight in before.items())


def test_more_than_the_machine_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before any work, with the number of slots that would fit."""
    monkeypatch.setattr(slot_limits, "available_bytes", lambda: 3_000_000_000)
    recipe, sizes = SlotRecipe(slots=5000), {"images": 60_000, "pixels": 784, "heads": 2}
    with pytest.raises(
        ConfigError, match=r"5,000 slots of 784 pixels with model\.heads=2 need .* GB"
    ) as caught:
        refuse_slots(recipe, **sizes)
    fit = int(str(caught.value).split("model.slots=")[1].split(",")[0])
    # two heads and the covariances of one, 2.5 MB a slot each
    assert 250 < fit < 3e9 / (3 * 4 * 784**2)
    refuse_slots(replace(recipe, slots=fit), **sizes)
    with pytest.raises(ConfigError):
        refuse_slots(replace(recipe, slots=fit + 2), **sizes)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.slots=20000"], r"model\.slots is 20,000, but there are \d+ images to train on"),
        (["model.parents=7"], r"model\.parents is 7, but there are 6 slots"),
        (["model.rank=64"], r"model\.rank is 64, but images have 64 pixels"),
        (["model.screening_rank=70"], r"model\.screening_rank is 70, but images have 64 pixels"),
        (["model.heads=0"], r"model\.heads is 0"),
        (["model.slots=0"], r"model\.slots is 0"),
        (["model.parents=0"], r"model\.parents is 0"),
        (["model.rank=0"], r"model\.rank is 0"),
        (["model.screening_rank=0"], r"model\.screening_rank is 0"),
        (["model.candidates=0"], r"model\.candidates is 0"),
        (["model.inverse_temperatures=[]"], r"model\.inverse_temperatures is empty"),
        (["model.inverse_temperatures=[0.1,0]"], r"each of model\.inverse_temperatures is 0"),
        (["model.copies=[turn 3]"], r"'turn 3' is no symmetry; use 'shift 1'"),
        (["rule=pseudo_likelihood"], r"slots learn in closed form"),
        (["rule.iterations=0"], r"rule\.iterations is 0"),
        (["rule.ridge=0"], r"ridge is 0"),
        (["rule.parent_images=-1"], r"rule\.parent_images is -1"),
        (["rule.root_images=nan"], r"rule\.root_images is nan"),
        (["objective=log_pl"], r"objective is log_pl"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_any_work(
    overrides: list[str], words: str, train_run: Callable[..., Any], tmp_path: Path
) -> None:
    """A sentence, and no folder."""
    with pytest.raises(ConfigError, match=words):
        train_run(tmp_path / "run", *SMALL, *overrides)
    assert not (tmp_path / "run").exists()


def test_images_that_make_fewer_slots_are_refused(splits: ImageSplits) -> None:
    """A sentence for what only k-means can find out: the same image again and again is one slot."""
    rule = ClosedForm(Shrinkage(), iterations=2, seed=0)
    with pytest.raises(ConfigError, match="have no images; leave them out, or use fewer slots"):
        rule.learn(empty(splits), splits.train[:1].expand(20, -1, -1, -1))


def test_rule_closed_form_is_for_slots(train_run: Callable[..., Any], tmp_path: Path) -> None:
    """The other way round it is refused too."""
    with pytest.raises(ConfigError, match=r"rule=closed_form is for slots"):
        train_run(tmp_path / "run", "rule=closed_form")


def test_processes_cannot_share_slots(splits: ImageSplits, make_config: Callable[..., Any]) -> None:
    """A second process would learn all of it again."""
    model = make_config(*SMALL, "folder=unused").model
    ranks = Ranks(rank=0, count=2)
    with pytest.raises(ConfigError, match="slots is no network of rows"):
        build_network(model, pixel_mean(splits.train), seed=0, ranks=ranks)


def test_slots_that_learned_nothing_do_not_answer(splits: ImageSplits) -> None:
    """An error, and not what happens to be in the memory."""
    corrupted = Denoise(0.7).corrupt(to_pixels(splits.test[:2]), range(2), seed=0)
    with pytest.raises(ValueError, match="the slots have learned nothing"):
        next(empty(splits).predictions(corrupted, SlotReading(4, 0.3)))
