"""Evaluation: errors against a loop over images, statistics against numpy."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from attractor.baselines import TrainingMean
from attractor.images import Corrupted, Denoise, ImageSplits, Masked, to_pixels
from attractor.lab.config.names import MapName
from attractor.lab.experiment.assessment import references, validation_batch
from attractor.lab.experiment.evaluation import TaskErrors, corruptions, evaluate, overlaps, summarise
from attractor.lab.experiment.network import AttractorNetwork, Recall, Retrieval
from attractor.physics import NonFiniteError

TASKS = [Masked(patch=2), Denoise()]
STEPS = 4
MakeNetwork = Callable[..., AttractorNetwork]


class Listener:
    """A one-shot model that keeps what it was shown and answers with it."""

    def __init__(self) -> None:
        self.seen: list[Corrupted] = []

    def reconstruct(self, corrupted: Corrupted) -> Iterator[Tensor]:
        self.seen.append(corrupted)
        yield corrupted.corrupted


class BreaksAt:
    """A model whose prediction is not finite from iteration t on."""

    def __init__(self, t: int) -> None:
        self.t = t

    def reconstruct(self, corrupted: Corrupted) -> Iterator[Tensor]:
        for t in range(1, 100):
            yield corrupted.corrupted + (float("nan") if t >= self.t else 0.0)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_errors_are_those_of_a_loop_over_images(
    task: Masked | Denoise, batch_size: int, make_network: MakeNetwork, splits: ImageSplits
) -> None:
    """Image by image, alone and with its own index: mean of (clip(prediction) - original)^2 where scored.

    Whatever the batch size, 9 images in batches of 4 included: errors in the order of the images, entry
    t - 1 after iteration t. Float32 dynamics agree to 1e-5; an image out of place would be off by 0.01.
    """
    network = make_network(scale=1.0)
    models = {
        "net": Recall(network, Retrieval(MapName.attention, inertia=0.5)),
        "mean": TrainingMean(splits.train),
    }
    found = evaluate(models, corruptions(task, splits.test, seed=3, batch_size=batch_size), steps=STEPS)
    for name, model in models.items():
        assert found.errors[name].shape == (9, STEPS if name == "net" else 1)
        for index, image in enumerate(to_pixels(splits.test)):
            alone = task.corrupt(image[None], [index], seed=3)
            scored = torch.ones_like(image, dtype=torch.bool)
            if alone.pixel_mask is not None:
                scored = alone.pixel_mask[0].expand_as(image)
            for t, prediction in enumerate(islice(model.reconstruct(alone), STEPS)):
                expected = ((prediction[0].clamp(0, 1) - image)[scored].double() ** 2).mean()
                assert float(found.errors[name][index, t]) == pytest.approx(float(expected), abs=1e-5)
            start = ((alone.corrupted[0] - image)[scored].double() ** 2).mean()
            assert float(found.corrupted[index]) == pytest.approx(float(start), abs=1e-6)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_model_sees_the_same_corruption(task: Masked | Denoise, splits: ImageSplits) -> None:
    """Two models get the same pixels and masks, bit for bit, in any batches; another seed, others.

    Without that, paired errors are not paired, and a model may be lucky with its noise.
    """
    first, second, other = Listener(), Listener(), Listener()
    evaluate({"a": first, "b": second}, corruptions(task, splits.test, seed=0, batch_size=4), steps=1)
    evaluate({"c": other}, corruptions(task, splits.test, seed=0, batch_size=9), steps=1)
    whole = other.seen[0]
    for listener in (first, second):
        assert torch.equal(torch.cat([batch.corrupted for batch in listener.seen]), whole.corrupted)
        if whole.mask is not None:
            assert torch.equal(torch.cat([batch.mask for batch in listener.seen]), whole.mask)
    (another,) = corruptions(task, splits.test, seed=1, batch_size=9)
    assert not torch.equal(another.corrupted, whole.corrupted)


def test_indices_count_from_first(splits: ImageSplits) -> None:
    """`first` is the place of images[0]: the tail of a set is corrupted as within the whole set."""
    (whole,) = corruptions(Denoise(), splits.test, seed=0, batch_size=9)
    tail = corruptions(Denoise(), splits.test[5:], seed=0, batch_size=2, first=5)
    assert torch.equal(torch.cat([batch.corrupted for batch in tail]), whole.corrupted[5:])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_validation_has_draws_of_its_own(task: Masked | Denoise, splits: ImageSplits) -> None:
    """The k-th validation image is not corrupted as the k-th test image is, even if they are the same.

    With the same noise or masks, what is chosen on validation images would be chosen on the test's draws.
    """
    same = replace(splits, test=splits.validation)
    seen = validation_batch(same, task, images=6, seed=0)
    (test,) = corruptions(task, same.test[:6], seed=0, batch_size=6)
    assert torch.equal(seen.original, test.original)
    assert all(not torch.equal(*pair) for pair in zip(seen.corrupted, test.corrupted, strict=True)) or (
        task.name == "masked" and not torch.equal(seen.mask, test.mask)
    )


def test_a_non_finite_prediction_is_refused(splits: ImageSplits) -> None:
    """NonFiniteError with the model and the iteration: a NaN must not become a number in a table."""
    batches = corruptions(Denoise(), splits.test, seed=0, batch_size=4)
    models = {"fine": Listener(), "broken": BreaksAt(3)}
    with pytest.raises(NonFiniteError, match=r"broken .*iteration 3"):
        evaluate(models, batches, steps=STEPS)
    assert evaluate(models, batches, steps=2).errors["broken"].shape == (9, 2)


@pytest.fixture
def measured() -> TaskErrors:
    """Errors of 7 images: two networks of five iterations, a one-shot reference."""
    generator = torch.Generator().manual_seed(5)
    errors = {
        name: torch.rand(7, t, generator=generator, dtype=torch.float64)
        for name, t in (("net", 5), ("net+evidence", 5), ("regression", 1))
    }
    return TaskErrors(errors, torch.rand(7, generator=generator, dtype=torch.float64))


def test_summary_is_numpys(measured: TaskErrors) -> None:
    """mse and std (over images, n - 1) for each t; best at the chosen t, oracle_best at the minimum.

    `best` at the minimum of the test curve, as the paper reads it, would be chosen on test images.
    """
    chosen = {"net": 2, "net+evidence": 5}
    summary = summarise(measured, chosen)
    assert summary["images"] == 7
    assert summary["corrupted_mse"] == pytest.approx(measured.corrupted.numpy().mean())
    for name, values in measured.errors.items():
        entry, errors = summary["models"][name], values.numpy()
        np.testing.assert_allclose(entry["mse"], errors.mean(0))
        np.testing.assert_allclose(entry["std"], errors.std(0, ddof=1))
        if name in chosen:
            t = chosen[name]
            assert entry["best"] == {"t": t, "mse": pytest.approx(errors[:, t - 1].mean())}
            oracle = int(errors.mean(0).argmin())
            assert entry["oracle_best"] == {
                "t": oracle + 1,
                "mse": pytest.approx(errors.mean(0)[oracle]),
            }
    assert "best" not in summary["models"]["regression"]


def test_differences_are_paired(measured: TaskErrors) -> None:
    """mean(d) and std(d, n - 1) / sqrt(n) of d = model - other, image by image, at the chosen t.

    The unpaired formula adds the variances, and hides differences that all images agree on.
    """
    chosen = {"net": 2, "net+evidence": 5}
    summary = summarise(measured, chosen)
    at = {name: values[:, chosen.get(name, 1) - 1].numpy() for name, values in measured.errors.items()}
    assert set(summary["differences"]) == set(chosen)
    for name, others in summary["differences"].items():
        assert set(others) == set(at) - {name}
        for other, value in others.items():
            d = at[name] - at[other]
            assert value["mse"] == pytest.approx(d.mean())
            assert value["standard_error"] == pytest.approx(d.std(ddof=1) / 7**0.5)


def test_a_single_image_has_no_spread() -> None:
    """std 0, not NaN: NaN is no JSON, and the file could not be read by others."""
    one = TaskErrors({"net": torch.rand(1, 3), "memory": torch.rand(1, 1)}, torch.rand(1))
    summary = summarise(one, {"net": 1})
    assert summary["models"]["net"]["std"] == [0, 0, 0]
    assert summary["differences"]["net"]["memory"]["standard_error"] == 0


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_overlaps_are_cosines(
    task: Masked | Denoise, make_network: MakeNetwork, splits: ImageSplits
) -> None:
    """x_t . x / (|x_t| |x|) of all tokens as one vector, t = 0 first, image by image.

    A mean of the cosines of tokens is another number as soon as states are not normalised, as here.
    """
    network = make_network(scale=1.0)
    retrieval = Retrieval(MapName.mean_field)
    batches = corruptions(task, splits.test, seed=0, batch_size=4)
    found = overlaps(network, retrieval, batches, steps=3)
    assert found.shape == (9, 4)
    row = 0
    for batch in batches:
        clean = network.encoding.encode(batch.original)
        states = [network.start(batch), *islice(network.states(batch, retrieval), 3)]
        for b in range(len(clean)):
            for t, x in enumerate(states):
                u, v = x[b].double().flatten().numpy(), clean[b].double().flatten().numpy()
                cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
                assert float(found[row, t]) == pytest.approx(cosine, abs=1e-6)
            row += 1


def test_an_empty_state_has_no_overlap(make_network: MakeNetwork, splits: ImageSplits) -> None:
    """With every token masked the state is zero at t = 0, and its overlap 0, not NaN."""
    pixels = to_pixels(splits.test)
    hidden = torch.ones(9, 4, dtype=torch.bool)
    batch = Corrupted("masked", pixels, torch.zeros_like(pixels), hidden, torch.ones(9, 1, 4, 4).bool())
    found = overlaps(make_network(scale=1.0), Retrieval(MapName.attention), [batch], steps=1)
    assert torch.equal(found[:, 0], torch.zeros(9))


def test_references_of_another_job_are_fitted_anew(splits: ImageSplits) -> None:
    """Equal images, tasks and seed get the same ones, whoever asks; other images, noise or seed never do.

    A sweep over P or over the noise would else be held against the references of its first job.
    """
    asked = {"validation_images": 8, "seed": 0}
    first = references(splits, TASKS, **asked)
    again = references(replace(splits), TASKS, **asked)
    assert all(again[name] is first[name] for name in first)
    others = [
        (splits.fewer(16), TASKS, asked),
        (splits, [Masked(patch=2), Denoise(0.1)], asked),
        (splits, TASKS, asked | {"validation_images": 4}),
        (splits, TASKS, asked | {"seed": 1}),
    ]
    for images, tasks, given in others:
        other = references(images, tasks, **given)
        assert all(other[name] is not first[name] for name in first)
        assert torch.equal(other["memory"].train, images.train)
