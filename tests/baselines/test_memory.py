"""The softmax memory against a loop, its limits, and the selection of beta against a search."""

import math

import pytest
import torch

from attractor.baselines import DenseMemory, UniversalMemory, memory
from attractor.baselines.separations import Softmax
from attractor.baselines.similarities import Euclidean
from attractor.images import Corrupted, Denoise, Masked, Task, synthetic, to_pixels

SPLITS = synthetic(side=6, channels=2, train=90, test=5, validation=20)
TEST = to_pixels(SPLITS.test)
TASKS: list[Task] = [Masked(patch=2), Denoise()]


def brute_force(train: torch.Tensor, corrupted: Corrupted, *, beta: float) -> torch.Tensor:
    """sum_m softmax_m(-beta |y - m|^2 / 2) m, one image and one memory at a time, in float64."""
    predictions = []
    for index, y in enumerate(corrupted.corrupted.double()):
        visible = torch.ones_like(y, dtype=torch.bool)
        if corrupted.pixel_mask is not None:
            visible = ~corrupted.pixel_mask[index].expand_as(y)
        memories = [m.double() / 255 for m in train]
        logits = [-beta * ((y - m)[visible] ** 2).sum().item() / 2 for m in memories]
        weights = [math.exp(logit - max(logits)) for logit in logits]
        total = sum(w * m for w, m in zip(weights, memories, strict=True))
        predictions.append(total / sum(weights))
    return torch.stack(predictions)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("beta", [0.01, 1.0, 30.0])
def test_memory_is_the_softmax_average(task: Task, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop over images and memories, whatever the blocks: 17 memories, 2 images at a time.

    Forgetting the 1/2, the mask, or the memories of the last, shorter block shows here.
    """
    corrupted = task.corrupt(TEST, range(5), seed=0)
    expected = brute_force(SPLITS.train, corrupted, beta=beta).float()
    for scores, chunk in ((2**23, 4096), (140, 17)):
        monkeypatch.setattr(memory, "_SCORES", scores)
        monkeypatch.setattr(memory, "_CHUNK", chunk)
        (prediction,) = DenseMemory(SPLITS.train, beta={task.name: beta}).reconstruct(corrupted)
        # float32: scores of order 30 beta with relative error 1e-6
        torch.testing.assert_close(prediction, expected, rtol=0, atol=1e-3 if beta > 1 else 1e-5)


def test_memory_is_a_universal_hopfield_network() -> None:
    """Euclidean and softmax: what leaves |y|^2 out, and comes in chunks, is the same memory."""
    corrupted = Denoise().corrupt(TEST, range(5), seed=0)
    keys = to_pixels(SPLITS.train).flatten(1)
    universal = UniversalMemory(keys, similarity=Euclidean(), separation=Softmax(), beta=0.9)
    (prediction,) = DenseMemory(SPLITS.train, beta={"denoise": 0.9}).reconstruct(corrupted)
    found = universal.retrieve(corrupted.corrupted.flatten(1)).view_as(prediction)
    # float32: scores of order 30 with relative error 1e-7
    torch.testing.assert_close(found, prediction, rtol=0, atol=1e-5)


def test_limits_of_beta() -> None:
    """beta to 0: the training mean; beta to infinity: the nearest memory, with no NaN on the way."""
    stored = to_pixels(SPLITS.train[7:8])
    for beta, expected in ((1e-9, to_pixels(SPLITS.train).mean(0, keepdim=True)), (1e6, stored)):
        seen = Corrupted("denoise", stored, stored)
        (prediction,) = DenseMemory(SPLITS.train, beta={"denoise": beta}).reconstruct(seen)
        torch.testing.assert_close(prediction, expected, rtol=0, atol=1e-5)


def test_what_is_masked_does_not_count() -> None:
    """Masked pixels may hold anything: they are in no distance."""
    corrupted = Masked(patch=2).corrupt(TEST, range(5), seed=0)
    assert corrupted.pixel_mask is not None
    filled = corrupted.corrupted.masked_fill(corrupted.pixel_mask, 9)
    other = Corrupted("masked", TEST, filled, corrupted.mask, corrupted.pixel_mask)
    model = DenseMemory(SPLITS.train, beta={"masked": 2.0})
    assert torch.equal(next(model.reconstruct(corrupted)), next(model.reconstruct(other)))


def test_selection_finds_the_best_beta_of_each_task() -> None:
    """The beta whose validation error, by separate reconstructions, is least; one for each task."""
    pixels = to_pixels(SPLITS.validation)
    betas = (0.01, 0.3, 1.0, 3.0, 10.0, 100.0)
    model = DenseMemory(SPLITS.train)
    model.select(pixels, TASKS, seed=4, betas=betas)
    for task in TASKS:
        corrupted = task.corrupt(pixels, range(len(pixels)), seed=4)
        errors = {}
        for beta in betas:
            (prediction,) = DenseMemory(SPLITS.train, beta={task.name: beta}).reconstruct(corrupted)
            errors[beta] = corrupted.squared_error(prediction).mean().item()
        best = min(errors, key=errors.__getitem__)
        assert best not in (betas[0], betas[-1])
        assert model.beta[task.name] == best


def test_task_without_a_beta_is_refused() -> None:
    """No silent default: the beta of one task is wrong for another."""
    model = DenseMemory(SPLITS.train, beta={"masked": 1.0})
    with pytest.raises(ValueError, match=r"'denoise'.*'masked'"):
        next(model.reconstruct(Denoise().corrupt(TEST, range(5), seed=0)))
    with pytest.raises(ValueError, match="positive"):
        DenseMemory(SPLITS.train, beta={"masked": 0.0})
