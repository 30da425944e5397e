"""Training: what `fit` draws and yields, and which couplings early stopping keeps."""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attractor.images import ImageSplits, from_patches, to_pixels
from attractor.lab.config.names import MapName
from attractor.lab.experiment.network import AttractorNetwork, Retrieval
from attractor.lab.experiment.selection import Choice
from attractor.lab.experiment.training import EarlyStopping, Step, fit
from attractor.physics import (
    SGD,
    Adam,
    Hebb,
    IterativeRule,
    LocalEnergy,
    NonFiniteError,
    PseudoLikelihood,
)

MakeNetwork = Callable[..., AttractorNetwork]


class Recorder(IterativeRule):
    """A rule that only writes down what it is given."""

    objective = "nothing"

    def __init__(self) -> None:
        super().__init__(SGD(), decay=None, rows_per_step=None, generator=None)
        self.tokens: list[Tensor] = []
        self.rates: list[float] = []

    def step(self, energy: LocalEnergy, x: Tensor, *, rate: float) -> float:
        self.tokens.append(x)
        self.rates.append(rate)
        return -float(len(self.rates))

    def _direction(
        self, energy: LocalEnergy, x: Tensor, gradient: dict[str, Tensor], rows: Sequence[int]
    ) -> Tensor:
        raise NotImplementedError


def fitted(
    network: AttractorNetwork,
    rule: object,
    images: Tensor,
    *,
    steps: int = 5,
    batch_size: int = 8,
    learning_rate: float = 0.1,
    jitter: float = 0.2,
    seed: int = 0,
    done: int = 0,
) -> list[Step]:
    return list(
        fit(
            network,
            rule,
            images=images,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            jitter=jitter,
            seed=seed,
            done=done,
        )
    )


def test_training_is_a_function_of_its_seed(make_network: MakeNetwork, splits: ImageSplits) -> None:
    """Same seed, same couplings to the bit, whatever the global seed; another seed, others.

    A draw from the global generator would make runs unrepeatable, and would move it under the caller.
    """
    weights = []
    for global_seed, seed in ((1, 0), (2, 0), (2, 3)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        network = make_network()
        fitted(network, PseudoLikelihood(Adam()), splits.train, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(network.energy.couplings.couplings.clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_training_learns(make_network: MakeNetwork, splits: ImageSplits) -> None:
    """The objective, log p in nats per token, rises from 0 at J = 0; with the sign wrong it would fall."""
    steps = fitted(make_network(), PseudoLikelihood(Adam()), splits.train, steps=40, jitter=0.0)
    assert steps[0].objective == pytest.approx(0, abs=1e-6)
    assert steps[-1].objective > steps[5].objective > 0.01
    assert all(step.seconds > 0 for step in steps)


@pytest.mark.parametrize(("batch_size", "batches"), [(3, 3), (10, 1), (64, 1)])
def test_epochs_draw_without_replacement(batch_size: int, batches: int, make_network: MakeNetwork) -> None:
    """Within an epoch no image is drawn twice, batches are full, and epochs come in different orders.

    A batch larger than the data set is the data set. Drawing with replacement would repeat an image in
    an epoch of 9 of 10 images almost surely.
    """
    images = (torch.arange(10, dtype=torch.uint8) * 25).view(10, 1, 1, 1).expand(10, 1, 4, 4)
    network, rule = make_network(), Recorder()
    fitted(network, rule, images, steps=4 * batches, batch_size=batch_size, jitter=0.0)
    drawn = [
        (network.encoding.decode(x)[:, 0, 0, 0] * 255 / 25).round().int().tolist() for x in rule.tokens
    ]
    assert {len(batch) for batch in drawn} == {min(batch_size, 10)}
    starts = range(0, 4 * batches, batches)
    epochs = [list(chain.from_iterable(drawn[start : start + batches])) for start in starts]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("done", range(10))
def test_steps_do_not_depend_on_those_before(
    done: int, make_network: MakeNetwork, splits: ImageSplits
) -> None:
    """Left after `done` steps and gone on with, training sees the very batches, jitter and rates.

    Three batches of 10 an epoch, and two images over: 3, 6 and 9 are ends of an epoch.
    """
    network, whole, rest = make_network(), Recorder(), Recorder()
    steps = fitted(network, whole, splits.train, steps=10, batch_size=10)
    after = fitted(network, rest, splits.train, steps=10, batch_size=10, done=done)
    assert [step.index for step in after] == [step.index for step in steps[done:]]
    assert rest.rates == whole.rates[done:]
    assert len(rest.tokens) == 10 - done
    assert all(torch.equal(*pair) for pair in zip(rest.tokens, whole.tokens[done:], strict=True))
    assert not torch.equal(whole.tokens[0], whole.tokens[1])


def test_the_rate_falls_linearly(make_network: MakeNetwork, splits: ImageSplits) -> None:
    """eta_k = eta (1 - (k - 1) / steps): the whole rate first, eta / steps last, and never zero.

    What is yielded is what the rule was given, with the objective that it returned.
    """
    rule = Recorder()
    steps = fitted(make_network(), rule, splits.train, steps=4, learning_rate=0.8)
    assert rule.rates == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert [step.rate for step in steps] == rule.rates
    assert [step.index for step in steps] == [1, 2, 3, 4]
    assert [step.objective for step in steps] == [-1, -2, -3, -4]


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_jitter_is_noise_on_the_pixels(
    jitter: float, make_network: MakeNetwork, splits: ImageSplits
) -> None:
    """The pixels that are encoded differ from the images by noise of standard deviation `jitter`.

    Seen through the linear encoding of the Gaussian measure, before any clipping. Noise on the tokens, or a
    variance in place of a deviation (0.3 against 0.09), would be off by far more than 5 %.
    """
    network, rule = make_network(measure="gaussian"), Recorder()
    image = splits.train[:1]
    fitted(network, rule, image, steps=400, jitter=jitter)
    pixels = torch.stack([from_patches(x, patch=2)[0] for x in rule.tokens]) + network.encoding.mean
    noise = pixels - to_pixels(image)
    assert float(noise.std()) == pytest.approx(jitter, rel=0.05, abs=1e-6)
    assert abs(float(noise.mean())) < 0.02


def test_no_mode_leaks_across_a_yield(make_network: MakeNetwork, splits: ImageSplits) -> None:
    """Between steps the caller has the modes it had, and couplings that carry no graph.

    A generator that yields inside inference_mode leaves its caller there: whatever it computes between
    steps could not be differentiated, and a loop that is left early would never get out.
    """
    network = make_network()
    steps = fit(
        network,
        PseudoLikelihood(Adam()),
        images=splits.train,
        steps=5,
        batch_size=8,
        learning_rate=0.1,
        jitter=0.1,
        seed=0,
    )
    for step in steps:
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        (weight,) = network.energy.couplings.weights.values()
        assert not weight.requires_grad
        assert weight.grad_fn is None
        x = torch.ones(2, requires_grad=True)
        (x * weight.flatten()[:2]).sum().backward()
        assert x.grad is not None
        if step.index == 3:
            break
    steps.close()
    assert not torch.is_inference_mode_enabled()


def test_non_finite_couplings_are_named(make_network: MakeNetwork, splits: ImageSplits) -> None:
    """NonFiniteError says at which step and in which row; without the step a long run tells nothing."""
    with pytest.raises(NonFiniteError, match=r"at step 1: .*row \d+"):
        fitted(make_network(), PseudoLikelihood(SGD()), splits.train, learning_rate=float("inf"))


def test_a_one_shot_rule_yields_once_and_sees_every_image(make_network: MakeNetwork) -> None:
    """One step without an objective; J_ij = <x_i x_j^T> / (N - 1) over all images, in blocks or not.

    1,003 images are more than a block: a rule that kept the last block alone would be far off. There is
    no jitter in one shot.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1003, 1, 4, 4), generator=generator, dtype=torch.uint8)
    images[1000:] = 0
    network = make_network()
    (step,) = fitted(network, Hebb(), images, steps=7, jitter=0.5)
    assert (step.index, step.objective) == (1, None)
    x = network.encoding.encode(to_pixels(images)).double()
    expected = torch.einsum("pia,pjb->ijab", x, x) / (len(x) * 3)
    expected[range(4), range(4)] = 0
    torch.testing.assert_close(network.energy.couplings.couplings.double(), expected, rtol=0, atol=1e-6)


def test_early_stopping_scores_by_the_geometric_mean() -> None:
    """The score is sqrt(a b) for two tasks: halving either counts the same.

    By the arithmetic mean the second validation here, 0.001 and 0.5, would be the worse one.
    """
    stopping = EarlyStopping(None)
    weights = {"couplings": torch.zeros(2)}
    assert stopping.update(10, {"masked": 0.1, "denoise": 0.1}, weights)
    assert stopping.update(20, {"masked": 0.001, "denoise": 0.5}, weights)
    assert stopping.best_score == pytest.approx((0.001 * 0.5) ** 0.5)
    assert not stopping.update(30, {"masked": 0.2, "denoise": 0.2}, weights)
    assert stopping.best_step == 20


def test_early_stopping_restores_the_best_couplings() -> None:
    """The couplings of the best validation come back, in place, though training changed them since.

    Keeping a reference instead of a copy would restore the last ones.
    """
    stopping = EarlyStopping(None)
    weights = {"couplings": torch.tensor([1.0, 2.0])}
    stopping.update(1, {"masked": 0.5}, weights)
    weights["couplings"] += 1
    stopping.update(2, {"masked": 0.2}, weights)
    best = weights["couplings"].clone()
    weights["couplings"] *= 7
    stopping.update(3, {"masked": 0.3}, weights)
    place = weights["couplings"]
    stopping.restore(weights)
    assert weights["couplings"] is place
    assert torch.equal(place, best)


def test_patience_counts_validations_since_the_best() -> None:
    """Exhausted after `patience` validations in a row without improvement; an improvement starts anew."""
    weights = {"couplings": torch.zeros(1)}
    stopping = EarlyStopping(2)
    ends = []
    for step, error in enumerate([0.5, 0.6, 0.4, 0.4, 0.45], start=1):
        stopping.update(step, {"masked": error}, weights)
        ends.append(stopping.exhausted)
    assert ends == [False, False, False, False, True]
    forever = EarlyStopping(None)
    for step in range(50):
        forever.update(step, {"masked": 1.0}, weights)
    assert not forever.exhausted


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_validation_is_never_the_best(bad: float) -> None:
    """NaN compares false with everything: taken as the best it could never be beaten."""
    weights = {"couplings": torch.zeros(1)}
    stopping = EarlyStopping(None)
    assert not stopping.update(1, {"masked": bad, "denoise": 0.1}, weights)
    assert stopping.update(2, {"masked": 0.9, "denoise": 0.9}, weights)


def test_a_run_without_any_finite_validation_is_non_finite(
    train_run: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Couplings that are finite but retrieve only NaN end the run with NonFiniteError, exit code 3.

    Nothing was kept that could be restored; a KeyError would be an unexpected error, with exit code 1.
    `choose` answers as it does when nothing is finite (test_only_nan_has_infinite_error).
    """
    nothing = Choice(Retrieval(MapName.attention, steps=1), float("inf"))
    monkeypatch.setattr("train.choose", lambda *given, **settings: nothing)
    with pytest.raises(NonFiniteError):
        train_run(tmp_path / "run")
