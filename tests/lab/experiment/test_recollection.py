"""The memory as a model of the lab: stored, chosen, evaluated, saved, loaded, compared, refused."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attractor.images import (
    DataError,
    Denoise,
    ImageSplits,
    Masked,
    PixelEncoding,
    load,
    pixel_mean,
    to_pixels,
)
from attractor.lab import load_run
from attractor.lab.errors import ConfigError
from attractor.lab.experiment import memory_network
from attractor.lab.experiment.build import build_data
from attractor.lab.experiment.evaluation import corruptions
from attractor.lab.experiment.memory_network import MemoryNetwork
from attractor.lab.experiment.network import Recall
from attractor.lab.experiment.recollection import Heads, Recollection, monomials, read_out
from attractor.lab.experiment.recollection_choice import choose_recollection, fit_readout
from evaluate import compare

SMALL = (
    "model=local_linear_memory",
    "model.copies=[shift 1]",
    "model.candidates=60",
    "model.neighbours=[50,100]",
    "model.reaches=[3.0]",
    "model.inverse_temperatures=[4.0]",
    "model.ridges=[0.001]",
)


@pytest.fixture(scope="module")
def memory_run(train_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_run(tmp_path_factory.mktemp("memory") / "run", *SMALL)


@pytest.fixture
def network(splits: ImageSplits) -> MemoryNetwork:
    encoding = PixelEncoding(1, splits.side, patch=2, mean=pixel_mean(splits.train))
    made = MemoryNetwork(
        encoding, descriptions=["shift 1"], grain=None, candidates=60, device=torch.device("cpu")
    )
    made.store(splits.train)
    return made


def test_a_memory_is_a_row_of_the_results(memory_run: Any) -> None:
    """Curves as long as the iterations that it takes, a chosen t, no pseudo-likelihood, what it stores."""
    masked = memory_run.results["tasks"]["masked"]["models"]["local_linear_memory"]
    assert masked["best"] == masked["oracle_best"] == {"t": 1, "mse": masked["mse"][0]}
    denoise = memory_run.results["tasks"]["denoise"]["models"]["local_linear_memory"]
    assert len(denoise["mse"]) in (1, 4)
    assert memory_run.results["pseudo_likelihood"] is None
    stored = len(build_data(memory_run.config.data).train)
    assert memory_run.results["cost"]["parameters"] == stored * 64
    assert f"{stored} images to store with shift 1" in memory_run.output
    assert "training images are stored (no training, no backpropagation)" in memory_run.output


def test_what_is_saved_is_which_images_are_stored(memory_run: Any) -> None:
    """Indices, not pixels: a checkpoint of MNIST has half a megabyte and not 46 of them, nor its copies."""
    (checkpoint,) = (memory_run.path / "checkpoints").glob("step-*")
    stored = len(build_data(memory_run.config.data).train)
    size = sum(file.stat().st_size for file in checkpoint.glob("rows-*"))
    assert size < 8 * stored + 500
    loaded = load_run(memory_run.path)
    assert torch.equal(loaded.network.weights["stored"], torch.arange(stored)[None])


@pytest.mark.parametrize("task", [Masked(patch=2), Denoise(0.7)], ids=lambda task: task.name)
def test_a_loaded_memory_predicts_what_was_evaluated(memory_run: Any, task: Any) -> None:
    """load_run reads the images again and answers as results.json says; `reconstruct` gives the same."""
    loaded = load_run(memory_run.path)
    config = loaded.config
    images = build_data(config.data).test[: config.eval.images]
    (batch,) = corruptions(task, images, seed=config.eval.seed, batch_size=len(images))
    reading = loaded.choice(task.name).retrieval
    states = list(Recall(loaded.network, reading).reconstruct(batch))
    found = [float(batch.squared_error(state).mean()) for state in states]
    entry = memory_run.results["tasks"][task.name]["models"]["local_linear_memory"]
    assert found == pytest.approx(entry["mse"], rel=1e-6)
    answer = loaded.reconstruct(batch.corrupted, batch.mask)
    error = float(batch.squared_error(answer).mean())
    assert error == pytest.approx(entry["best"]["mse"], rel=1e-6)


def test_squares_may_be_finer_than_those_that_a_mask_hides(splits: ImageSplits) -> None:
    """With one attention for the image the grain changes nothing; with a reach each square has its own."""
    encoding = PixelEncoding(1, splits.side, patch=2, mean=pixel_mean(splits.train))
    corrupted = Masked(patch=2).corrupt(to_pixels(splits.test[:5]), range(5), seed=0)
    answers = {}
    for grain in (2, 1):
        made = MemoryNetwork(
            encoding, descriptions=[], grain=grain, candidates=None, device=torch.device("cpu")
        )
        made.store(splits.train)
        for reach in (None, 1.5):
            reading = Recollection(neighbours=60, reach=reach, window=32)
            answers[grain, reach] = next(made.predictions(corrupted, reading))
    hidden = corrupted.pixel_mask
    torch.testing.assert_close(answers[2, None][hidden], answers[1, None][hidden], rtol=0, atol=1e-4)
    assert not torch.allclose(answers[2, 1.5][hidden], answers[1, 1.5][hidden], atol=1e-3)


def test_readings_survive_json() -> None:
    """results.json is strict JSON, which has no infinity; the softmax memory has an infinite softening."""
    readings = (
        Recollection(neighbours=None, steps=1),
        Recollection(neighbours=5, softening=float("inf"), relative=False, reach=2.0, common=1, steps=2),
    )
    for reading in readings:
        text = json.dumps(reading.to_json(), allow_nan=False)
        assert Recollection.from_json(json.loads(text)) == reading
        assert reading.describe()
    heads = Heads(readings, 1, readout=(0.1, 0.9, 0.2), steps=2)
    assert Heads.from_json(json.loads(json.dumps(heads.to_json(), allow_nan=False))) == heads
    assert heads.describe().startswith("linear regression on all patterns")
    assert heads.describe().endswith("; read out by a polynomial of degree 1")


@pytest.mark.parametrize("task", [Masked(patch=2), Denoise(0.7)], ids=lambda task: task.name)
def test_heads_are_read_out_each_at_its_own_t(
    task: Any, network: MemoryNetwork, splits: ImageSplits
) -> None:
    """A polynomial of what each reading predicts, later t too; visible pixels stay as they are."""
    corrupted = task.corrupt(to_pixels(splits.test[:5]), range(5), seed=0)
    short = Recollection(neighbours=50, steps=1)
    long = Recollection(neighbours=80, reach=3.0, pull=6.0, common=1, limit=3, steps=3)
    alone = [list(network.predictions(corrupted, reading)) for reading in (short, long)]
    readout = (0.01, 0.3, 0.2, 0.4, -0.1, 0.15)  # of 1, y, y^2, x, x y, x^2
    found = list(network.predictions(corrupted, Heads((short, long), 2, readout, steps=3)))
    assert [len(each) for each in (*alone, found)] == [1, 3, 3]
    x = alone[0][0]
    for y, pixels in zip(alone[1], found, strict=True):
        expected = (0.01 + 0.3 * y + 0.2 * y**2 + 0.4 * x - 0.1 * x * y + 0.15 * x**2).clamp(0, 1)
        if corrupted.pixel_mask is not None:
            expected = torch.where(corrupted.pixel_mask, expected, corrupted.original)
        torch.testing.assert_close(pixels, expected)


def test_a_readout_is_a_polynomial_near_its_first_head(splits: ImageSplits) -> None:
    """Least squares with a ridge, of hidden pixels alone, as NumPy has it by further rows of data."""
    corrupted = Masked(patch=2).corrupt(to_pixels(splits.test[:6]), range(6), seed=0)
    draws = torch.Generator().manual_seed(0)
    x, y = (torch.rand(corrupted.original.shape, generator=draws) for _ in range(2))
    clean = 0.1 + 0.3 * x + 0.5 * x**2 * y
    some = torch.arange(6) < 4
    counted = corrupted.pixel_mask & some.view(-1, 1, 1, 1)
    asked = replace(corrupted, original=torch.where(counted, clean, 7.0))
    found = fit_readout([x, y], asked, some, degree=3)

    first, second, target = (each[counted.expand_as(clean)].double().numpy() for each in (x, y, clean))
    powers = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)]
    rows = np.stack([first**e * second**f for e, f in powers], 1)
    start = np.array([float(power == (1, 0)) for power in powers])
    ridge = np.sqrt(1e-4 * len(rows)) * np.eye(len(powers))
    both = np.concatenate([rows, ridge]), np.concatenate([target - rows @ start, np.zeros(len(powers))])
    assert found == pytest.approx(tuple(np.linalg.lstsq(*both)[0] + start), abs=1e-8)
    heads = Heads((Recollection(neighbours=1),) * 2, 3, found)
    torch.testing.assert_close(heads.predict([x, y]), clean, rtol=0, atol=0.03)
    constant = torch.full_like(x, 0.5)
    level = Heads((Recollection(neighbours=1),), 4, fit_readout([constant], asked, some, degree=4))
    assert float(level.predict([constant])[0, 0, 0, 0]) == pytest.approx(target.mean(), abs=1e-4)


def test_a_readout_of_dark_pixels_can_be_asked_for_bright_ones() -> None:
    """Of two heads that all but agree; by plain least squares what they disagree about rules the answer."""
    draws = torch.Generator().manual_seed(0)
    dark, bright = (low + 0.3 * torch.rand(8, 1, 8, 8, generator=draws) for low in (0.0, 0.6))

    def heads(clean: torch.Tensor) -> list[torch.Tensor]:
        return [clean + 0.02 * torch.randn(clean.shape, generator=draws) for _ in range(2)]

    corrupted = replace(Denoise(0.7).corrupt(dark, range(8), seed=0), original=dark)
    seen, every = heads(dark), torch.ones(8, dtype=torch.bool)
    readout = fit_readout(seen, corrupted, every, degree=3)
    features = torch.stack([each.flatten() for each in monomials(seen, degree=3)], 1).double()
    plain = np.linalg.lstsq(features.numpy(), dark.flatten().double().numpy())[0]

    def error(coefficients: Sequence[float], predictions: Sequence[torch.Tensor]) -> float:
        return float((read_out(predictions, coefficients, degree=3) - bright).square().mean())

    asked = heads(bright)  # one head alone: 0.0004
    assert error(readout, asked) < 0.005
    assert error(plain, asked) > 0.2


def test_heads_join_where_they_help(make_config: Callable[..., Any]) -> None:
    """A choice has the error of images to which its readout was not fitted; without one it is plain."""
    digits = load("digits", root=".").fewer(300)
    network = digits_memory(digits)
    pixels = to_pixels(digits.validation[:100])
    corrupted = Masked(patch=2).corrupt(pixels, range(len(pixels)), seed=3)
    found = []
    for words in (["model.heads=1", "model.readout=0"], ["model.heads=1"], ["model.heads=3"]):
        model = make_config(*SMALL, "model.reaches=[1.5,3.0,9.0]", *words, "folder=unused").model
        choice = choose_recollection(network, model, Masked(patch=2), corrupted, steps=1)
        found.append((choice, [*network.predictions(corrupted, choice.retrieval)][-1]))
    errors = [float(corrupted.squared_error(pixels).mean()) for _, pixels in found]
    plain, one, several = (choice for choice, _ in found)
    assert isinstance(plain.retrieval, Recollection)
    assert errors[0] == pytest.approx(plain.error, rel=1e-6)
    assert isinstance(several.retrieval, Heads)
    assert 1 < len(several.retrieval.readings) <= 3
    assert several.retrieval.readings[0] == plain.retrieval
    assert several.error < 0.997 * one.error
    assert one.error <= plain.error
    assert errors[2] < several.error  # that of all images to which it was fitted


def digits_memory(digits: ImageSplits) -> MemoryNetwork:
    encoding = PixelEncoding(1, 8, patch=2, mean=pixel_mean(digits.train))
    made = MemoryNetwork(encoding, descriptions=[], grain=None, candidates=None, device=torch.device("cpu"))
    made.store(digits.train)
    return made


def test_the_choice_is_no_worse_than_regression_and_memory(
    network: MemoryNetwork, splits: ImageSplits, make_config: Callable[..., Any]
) -> None:
    """On the images that choose it beats both references: they are among what is tried."""
    from attractor.lab.experiment.assessment import references

    model = make_config(*SMALL, "folder=unused").model
    pixels = to_pixels(splits.validation[:20])
    for task in (Masked(patch=2), Denoise(0.7)):
        corrupted = task.corrupt(pixels, range(len(pixels)), seed=3)
        said: list[str] = []
        choice = choose_recollection(network, model, task, corrupted, steps=4, progress=said.append)
        assert said[-1] == f"{len(said)} settings tried"
        models = references(splits, [task], validation_images=20, seed=0)
        errors = {
            name: float(corrupted.squared_error(next(iter(each.reconstruct(corrupted)))).mean())
            for name, each in models.items()
        }
        # the reference memory of noisy pixels compares them as they are, not by the clipped parabola
        assert choice.error <= min(errors.values()) * 1.01


@pytest.mark.parametrize("task", [Masked(patch=2), Denoise(0.7)], ids=lambda task: task.name)
def test_without_a_reach_the_image_attends_as_one(
    task: Any, network: MemoryNetwork, splits: ImageSplits, make_config: Callable[..., Any]
) -> None:
    """model.reaches=[]: nothing that is tried has an attention for every token, which takes longer."""
    model = make_config(*SMALL, "model.reaches=[]", "folder=unused").model
    pixels = to_pixels(splits.validation[:10])
    corrupted = task.corrupt(pixels, range(len(pixels)), seed=3)
    tried: list[Recollection] = []
    attend = network.attention
    network.attention = lambda reading, t: tried.append(reading) or attend(reading, t)  # type: ignore
    choose_recollection(network, model, task, corrupted, steps=4)
    assert any(reading.neighbours and not reading.softening for reading in tried)
    assert {reading.reach for reading in tried} == {None}


@pytest.mark.parametrize("task", [Masked(patch=2), Denoise(0.7)], ids=lambda task: task.name)
def test_where_nothing_adapts_the_memory_is_among_what_is_tried(
    task: Any, make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On digits the softmax memory beats regression: were its limit not tried, this would fail."""
    from attractor.baselines import DenseMemory, LinearRegression
    from attractor.lab.experiment import recollection_choice

    digits = load("digits", root=".").fewer(300)
    made = digits_memory(digits)
    model = make_config(*SMALL, "model.neighbours=[1]", "folder=unused").model
    monkeypatch.setattr(recollection_choice, "_alternatives", lambda *_: ())
    pixels = to_pixels(digits.validation[:60])
    corrupted = task.corrupt(pixels, range(len(pixels)), seed=3)
    memory = DenseMemory(digits.train)
    memory.select(pixels, [task], seed=3)
    errors = [
        float(corrupted.squared_error(next(each.reconstruct(corrupted))).mean())
        for each in (memory, LinearRegression(digits.train))
    ]
    choice = choose_recollection(made, model, task, corrupted, steps=4)
    assert errors[0] < errors[1]
    assert choice.error <= 1.01 * errors[0]


def test_a_chosen_t_is_within_the_iterations_that_are_evaluated(
    train_run: Callable[..., Any], tmp_path: Path
) -> None:
    """eval.steps limits what is chosen; and few images need no neighbours= of their own."""
    small = ("data.train_images=50", "model.neighbours=[]", "eval.steps=1", "task=denoise")
    run = train_run(tmp_path / "run", *SMALL, *small)
    assert run.results["selection"]["denoise"]["local_linear_memory"]["steps"] == 1
    chosen = run.results["selection"]["denoise"]["local_linear_memory"]["validation_mse"]
    assert run.score == pytest.approx(chosen)
    assert run.results["cost"]["choose_seconds"] > 0


def test_the_first_iterations_attend_in_common(network: MemoryNetwork) -> None:
    """t = 1 has no state to look at; `common` iterations have one attention; then tokens have their own."""
    reading = Recollection(neighbours=50, reach=3.0, pull=6.0, shrinkage=0.1, common=2, limit=4)
    first, second, third, fourth = (reading.attention(t) for t in (1, 2, 3, 4))
    assert (first.reach, first.pull, first.shrinkage) == (None, 0.0, 0.0)
    assert (second.reach, second.pull) == (None, 6.0)
    assert (third.reach, third.pull, third.shrinkage) == (3.0, 6.0, 0.1)
    assert third == fourth


def test_runs_are_compared_with_others(
    memory_run: Any, trained: Any, make_comparison: Callable[..., Any], tmp_path: Path
) -> None:
    """evaluate.py puts a memory beside bare self-attention, on the same corruptions, with its figures."""
    from attractor.lab.run.folder import RunFolder

    config = make_comparison([memory_run.path, trained.path], f"folder={tmp_path / 'both'}", "figures=true")
    compare(config, RunFolder(tmp_path / "both", ""))
    results = json.loads((tmp_path / "both" / "results.json").read_text())
    models = results["tasks"]["masked"]["models"]
    (key,) = (name for name in models if name.endswith("/local_linear_memory"))
    said = memory_run.results["tasks"]["masked"]["models"]["local_linear_memory"]["best"]["mse"]
    assert models[key]["best"]["mse"] == pytest.approx(said, rel=1e-6)
    assert (tmp_path / "both" / "report.html").is_file()


def test_other_images_are_no_memory_of_the_run(train_run: Callable[..., Any], tmp_path: Path) -> None:
    """The images of a memory are read again: others are refused, and missing ones are missing data."""
    generator = np.random.default_rng(0)
    file = tmp_path / "own.npz"
    np.savez(file, x=generator.integers(0, 256, (80, 8, 8), dtype=np.uint8))
    path = tmp_path / "run"
    train_run(path, *SMALL, "data=npz", f"data.root={file}", "model.neighbours=[40]", "task=masked")
    assert load_run(path).step == 1
    np.savez(file, x=generator.integers(0, 256, (80, 8, 8), dtype=np.uint8))
    with pytest.raises(ConfigError, match="stored other images: the SHA-256"):
        load_run(path)
    file.unlink()
    with pytest.raises(DataError, match=r"own\.npz"):
        load_run(path)


def test_more_than_the_machine_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before any work, with the number of images that would fit."""
    monkeypatch.setattr(memory_network, "available_bytes", lambda: 200_000_000)
    with pytest.raises(
        ConfigError, match=r"60,000 images with 8 copies each need .* GB.*would fit: use"
    ) as e:
        memory_network.refuse_more_than_fits(60_000, 784, copies=9)
    fit = int(str(e.value).split("data.train_images=")[1].split(",")[0])
    memory_network.refuse_more_than_fits(fit, 784, copies=9)
    with pytest.raises(ConfigError):
        memory_network.refuse_more_than_fits(fit + 2, 784, copies=9)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.neighbours=[20000]"], r"model\.neighbours has 20,000, but an image is compared with 300"),
        (["model.copies=[turn 3]"], r"'turn 3' is no symmetry; use 'shift 1'"),
        (["model.copies=[shift 8]"], r"'shift 8' has 8; use amounts above 0, at most 7"),
        (["rule=pseudo_likelihood"], r"a memory stores its images"),
        (["model.ridges=[]"], r"model\.ridges is empty"),
        (["model.reaches=[-1]"], r"each of model\.reaches is -1"),
        (["model.inverse_temperatures=[0]"], r"each of model\.inverse_temperatures is 0"),
        (["model.pulls=[-2]"], r"model\.pulls has -2"),
        (["model.shrinkages=[inf]"], r"model\.shrinkages has inf"),
        (["model.ridges=[1e-9]"], r"model\.ridges has 1e-09; float32 needs 1e-5"),
        (["model.softenings=[]"], r"model\.softenings is empty"),
        (["model.grain=3"], r"patch size 3 does not divide image side 8"),
        (["model.grain=0"], r"model\.grain is 0"),
        (["model.candidates=0"], r"model\.candidates is 0"),
        (["model.heads=0"], r"model\.heads is 0"),
        (["model.heads=5"], r"model\.heads is 5; use 1 to 4$"),
        (["model.readout=0"], r"model\.heads is 2 and model\.readout 0, .* use model\.heads=1, or"),
        (["model.readout=12"], r"model\.readout is 12; use a degree of 0 to 5"),
        (["model.common=9"], r"model\.common is 9; it must be 0 to model\.iterations, 4"),
        (["objective=log_pl"], r"objective is log_pl"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_any_work(
    overrides: list[str], words: str, train_run: Callable[..., Any], tmp_path: Path
) -> None:
    """A sentence, and no folder."""
    with pytest.raises(ConfigError, match=words):
        train_run(tmp_path / "run", *SMALL, *overrides)
    assert not (tmp_path / "run").exists()


def test_an_empty_memory_does_not_answer(splits: ImageSplits) -> None:
    """Nothing stored is an error, not a black image."""
    encoding = PixelEncoding(1, splits.side, patch=2, mean=pixel_mean(splits.train))
    empty = MemoryNetwork(
        encoding, descriptions=[], grain=None, candidates=None, device=torch.device("cpu")
    )
    corrupted = Denoise(0.7).corrupt(to_pixels(splits.test[:2]), range(2), seed=0)
    with pytest.raises(ValueError, match="the memory is empty"):
        next(empty.predictions(corrupted, Recollection(neighbours=5)))


def test_rule_store_is_for_memories(train_run: Callable[..., Any], tmp_path: Path) -> None:
    """The other way round it is refused too."""
    with pytest.raises(ConfigError, match=r"rule=store is for memories"):
        train_run(tmp_path / "run", "rule=store")
