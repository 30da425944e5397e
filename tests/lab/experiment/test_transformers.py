"""Transformers in the lab: trained, saved, loaded and refused like any other model."""

from collections.abc import Callable
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch import Generator, Tensor

from attractor.baselines import Transformer
from attractor.images import Corrupted, Denoise, ImageSplits, Masked, PixelEncoding, pixel_mean, to_pixels
from attractor.lab import load_run
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.assessment import validation_batch
from attractor.lab.experiment.evaluation import corruptions
from attractor.lab.experiment.network import Recall
from attractor.lab.experiment.training import fit
from attractor.lab.experiment.transformers import Passes, TaskDescent, TransformerNetwork

SMALL = ("model.width=8", "model.heads=2", "train.steps=6")


def network(splits: ImageSplits) -> TransformerNetwork:
    encoding = PixelEncoding(1, splits.side, patch=2, mean=pixel_mean(splits.train))
    sizes = {"tokens": encoding.tokens, "dim": encoding.dim, "width": 8, "depth": 1, "heads": 2}
    return TransformerNetwork(Transformer(generator=Generator().manual_seed(0), **sizes), encoding)


@pytest.fixture(scope="module")
def masked_run(train_run: Callable[..., SimpleNamespace], tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("transformer") / "run"
    return train_run(path, "model=transformer", "task=masked", *SMALL)


def test_a_transformer_is_a_row_of_the_results(masked_run) -> None:
    """One entry in its curve, at t = 1, beside the references; no pseudo-likelihood; what it cost."""
    entry = masked_run.results["tasks"]["masked"]["models"]["transformer"]
    assert len(entry["mse"]) == 1
    assert entry["best"] == entry["oracle_best"] == {"t": 1, "mse": entry["mse"][0]}
    assert masked_run.results["pseudo_likelihood"] is None
    parameters = sum(weight.numel() for weight in load_run(masked_run.path).network.weights.values())
    assert masked_run.results["cost"]["parameters"] == parameters
    assert "transformer on synthetic" in masked_run.output
    assert "backpropagation" in masked_run.output


def test_a_loaded_transformer_predicts_what_was_evaluated(masked_run, splits: ImageSplits) -> None:
    """load_run gives the network that results.json speaks of: its error on the test images is that one."""
    from attractor.lab.experiment.build import build_data

    loaded = load_run(masked_run.path)
    config = loaded.config
    images = build_data(config.data).test[: config.eval.images]
    (batch,) = corruptions(Masked(patch=2), images, seed=config.eval.seed, batch_size=len(images))
    model = Recall(loaded.network, loaded.choice("masked").retrieval)
    error = float(batch.squared_error(next(iter(model.reconstruct(batch)))).mean())
    said = masked_run.results["tasks"]["masked"]["models"]["transformer"]["mse"][0]
    assert error == pytest.approx(said, rel=1e-6)
    completed = loaded.reconstruct(batch.original, batch.mask)
    hidden = batch.pixel_mask.expand_as(completed)
    assert torch.equal(completed[~hidden], batch.original[~hidden])
    with pytest.raises(ConfigError, match="no retrieval for 'denoise'"):
        loaded.reconstruct(batch.original)


def test_a_recycled_block_has_a_curve(train_run, tmp_path) -> None:
    """T entries, and t chosen on validation images among them."""
    run = train_run(tmp_path / "run", "model=transformer_block", "task=denoise", *SMALL)
    entry = run.results["tasks"]["denoise"]["models"]["transformer_block"]
    assert len(entry["mse"]) == run.config.eval.steps
    assert entry["best"]["mse"] == entry["mse"][entry["best"]["t"] - 1]


@pytest.mark.parametrize("task", [Masked(patch=2), Denoise()], ids=lambda task: task.name)
def test_training_descends_the_error_that_is_evaluated(task: Masked | Denoise, splits: ImageSplits) -> None:
    """The error of a batch, before the step, is that of `Corrupted.squared_error` on its own corruption.

    (Where predictions stay in [0, 1], as those of small weights do: evaluation clips them.)
    """
    net = network(splits)
    expected: list[float] = []

    class Spy:
        name = task.name

        def corrupt(self, images: Tensor, indices: range, *, seed: int) -> Corrupted:
            corrupted = task.corrupt(images, indices, seed=seed)
            pixels = next(net.predictions(corrupted, Passes()))
            expected.append(float(corrupted.squared_error(pixels).mean()))
            return corrupted

    steps = fit(net, TaskDescent(_backprop(net), Spy(), seed=0), images=splits.train, **_settings(steps=3))
    assert [step.objective for step in steps] == pytest.approx(expected, rel=1e-4)


def test_corruptions_of_training_are_its_own(splits: ImageSplits) -> None:
    """No two steps share a draw, and none is that of a test or validation image."""
    task = Masked(patch=1)
    images = splits.train[:1].expand(32, -1, -1, -1).contiguous()
    drawn: list[Tensor] = []

    class Spy:
        name = task.name

        def corrupt(self, images: Tensor, indices: range, *, seed: int) -> Corrupted:
            corrupted = task.corrupt(images, indices, seed=seed)
            drawn.append(corrupted.mask)
            return Corrupted(task.name, corrupted.original, corrupted.corrupted)

    net = network(splits)
    list(fit(net, TaskDescent(_backprop(net), Spy(), seed=0), images=images, **_settings(steps=4)))
    masks = {tuple(row) for mask in drawn for row in mask.tolist()}
    assert len(masks) > 100  # of 4,368; 128 draws
    pixels = to_pixels(images)
    test = task.corrupt(pixels, range(32, 64), seed=0).mask
    assert not torch.equal(test, drawn[0])
    assert not torch.equal(validation_batch(splits, task, images=8, seed=0).mask, drawn[0][:8])


def test_training_ends_when_its_seconds_are_spent(splits: ImageSplits) -> None:
    """After the step in which they run out, with the rate near 0; those of an earlier start count."""
    net = network(splits)
    rule = TaskDescent(_backprop(net), Denoise(), seed=0)
    taken = list(fit(net, rule, images=splits.train, **_settings(steps=10**6), max_seconds=0.5))
    assert taken[-1].last
    assert not any(step.last for step in taken[:-1])
    assert sum(step.seconds for step in taken[:-1]) < 0.5 <= sum(step.seconds for step in taken)
    assert taken[-1].rate < 0.1 * max(step.rate for step in taken)
    settings = _settings(steps=10**6) | {"done": 3}
    assert not list(fit(net, rule, images=splits.train, **settings, max_seconds=0.5, seconds=0.6))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=transformer",), "trained for one task, not for masked and denoise; give task=masked"),
        (("model=transformer", "task=masked", "rule=hebb"), "no local rule; use rule=backprop"),
        (("rule=backprop",), "rule=backprop trains transformers"),
        (("model=transformer", "task=masked", "model.heads=5"), "width is 96 and heads are 5"),
        (("model=transformer", "task=masked", "model.patch=3"), "patch size 3 does not divide"),
        (("model=transformer", "task=masked", "objective=log_pl"), "log_pl, which transformer has not"),
        (("model=transformer", "task=masked", "model.depth=0"), "model.depth is 0"),
        (
            ("model=transformer_block", "task=masked", "model.min_iterations=9"),
            "min_iterations is 9, max_iterations 8",
        ),
        (("train.max_seconds=0",), "train.max_seconds is 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    overrides: tuple[str, ...], message: str, train_run, tmp_path
) -> None:
    """With the way out in the message, before the run folder is made."""
    with pytest.raises(ConfigError, match=message):
        train_run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_a_block_goes_on_without_end(splits: ImageSplits, make_config) -> None:
    """Predictions come one by one, as pixels of the images' shape, in [0, 1]."""
    from attractor.lab.experiment.build import build_network

    config = make_config("model=transformer_block", "task=denoise", "folder=x")
    net = build_network(config.model, pixel_mean(splits.train), seed=0)
    batch = Denoise().corrupt(to_pixels(splits.test), range(len(splits.test)), seed=0)
    pixels = list(islice(net.predictions(batch, Passes(recycled=True)), 12))
    assert all(p.shape == batch.original.shape and p.min() >= 0 and p.max() <= 1 for p in pixels)


def _backprop(net: TransformerNetwork):
    from attractor.baselines import Backprop

    return Backprop(net.module, learning_rate=1e-3, weight_decay=0.0, warmup=1, clip=1.0)


def _settings(*, steps: int) -> dict[str, float]:
    return {"steps": steps, "batch_size": 32, "learning_rate": 0.0, "jitter": 0.0, "seed": 0}
