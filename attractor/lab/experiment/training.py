"""Training: a generator of steps, and early stopping on the error of retrieval.

`fit` does no I/O and decides nothing: train.py loops over it in plain sight. What a step draws depends on
(seed, step) alone, so training goes on from any step as if it had never stopped.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from attractor.images import to_pixels
from attractor.lab.errors import configuring
from attractor.lab.experiment.memory_network import MemoryNetwork, Storing
from attractor.lab.experiment.network import AttractorNetwork, Network
from attractor.lab.experiment.slot_network import ClosedForm, SlotNetwork
from attractor.lab.experiment.transformers import TaskDescent, TransformerNetwork
from attractor.physics import IterativeRule, NonFiniteError, OneShotRule

_BLOCK = 128  # images encoded at a time

Rule = IterativeRule | OneShotRule | TaskDescent | Storing | ClosedForm
ONE_SHOT = (OneShotRule, Storing, ClosedForm)  # rules that see the images once
CHOSEN_BY = (Storing, ClosedForm)  # whose score is that of the reading that is chosen afterwards


@dataclass(frozen=True)
class Step:
    """One update of the weights. objective: what the rule climbs, before the update; None in one shot.

    It is the mean over the rows that this process holds. A transformer's is an error, which falls.
    """

    index: int  # 1, 2, ...
    objective: float | None
    rate: float
    seconds: float
    last: bool  # no other follows


def fit(
    network: Network,
    rule: Rule,
    *,
    images: Tensor,
    steps: int,
    batch_size: int,
    learning_rate: float,
    jitter: float,
    seed: int,
    done: int = 0,
    max_seconds: float | None = None,
    seconds: float = 0.0,
) -> Iterator[Step]:
    """Train on uint8 images (P, C, H, W); yields after every update, but for the first `done` of them.

    Batches are drawn epoch by epoch without replacement. Gaussian noise of standard deviation `jitter` is
    added to the pixels before they are encoded. The rate of a local rule falls linearly from
    `learning_rate` to 0, that of backpropagation as it says itself. Training ends after `steps`, or as soon
    as updates have taken `max_seconds`, of which the first `done` took `seconds`; the rate then follows the
    clock, so that no two runs are the same. A one-shot rule yields once. Raises NonFiniteError, naming step
    and row.
    """
    if isinstance(rule, ONE_SHOT):
        if not done:
            yield Step(1, None, 0.0, _once(network, rule, images), last=True)
        return
    batches = _batches(images, batch_size, seed, done)
    limit = float("inf") if max_seconds is None else max_seconds
    for index in range(done + 1, steps + 1):
        if seconds >= limit:
            return
        begin = time.perf_counter()
        progress = max((index - 1) / steps, seconds / limit)
        noise = _generator(seed, "jitter", index)
        try:
            if isinstance(rule, TaskDescent):
                assert isinstance(network, TransformerNetwork)
                rate = rule.backprop.rate(index, progress)
                clean = to_pixels(next(batches))
                seen = _jittered(clean, jitter, noise)
                objective = rule.step(network, seen, clean, index=index, rate=rate)
            else:
                assert isinstance(network, AttractorNetwork)
                rate = learning_rate * (1 - progress)
                tokens = _tokens(network, next(batches), jitter, noise)
                objective = rule.step(network.energy, tokens.to(network.device), rate=rate)
        except ArithmeticError as error:  # a NonFiniteError too
            raise NonFiniteError(f"at step {index}: {error}") from error
        taken = time.perf_counter() - begin
        seconds += taken
        yield Step(index, objective, rate, taken, last=index == steps or seconds >= limit)


def _once(network: Network, rule: OneShotRule | Storing | ClosedForm, images: Tensor) -> float:
    """The seconds that it took."""
    if isinstance(rule, Storing):
        assert isinstance(network, MemoryNetwork)
        return rule.learn(network, images)
    if isinstance(rule, ClosedForm):
        assert isinstance(network, SlotNetwork)
        return rule.learn(network, images)
    begin = time.perf_counter()
    assert isinstance(network, AttractorNetwork)
    _solve(network, rule, images)
    return time.perf_counter() - begin


def _solve(network: AttractorNetwork, rule: OneShotRule, images: Tensor) -> None:
    """In float64, on the CPU, wherever the couplings are."""
    device, couplings = network.device, network.energy.couplings
    unused = Generator()
    couplings.to("cpu")
    with configuring():
        rule.solve(network.energy, (_tokens(network, batch, 0.0, unused) for batch in images.split(1000)))
    couplings.to(device)


def cursor(done: int, *, images: int, batch_size: int) -> dict[str, int]:
    """The place of the batch after the first `done`: epoch, number in it, batches in an epoch."""
    batches = images // min(batch_size, images)
    epoch, batch = divmod(done, batches)
    return {"epoch": epoch, "batch": batch, "batches": batches}


def _batches(images: Tensor, batch_size: int, seed: int, done: int) -> Iterator[Tensor]:
    """The batches of the steps after the first `done`, without end."""
    size = min(batch_size, len(images))
    place = cursor(done, images=len(images), batch_size=batch_size)
    epoch, first = place["epoch"], place["batch"]
    while True:
        order = torch.randperm(len(images), generator=_generator(seed, "order", epoch))
        for batch in order.split(size)[first:]:
            if len(batch) == size:
                yield images[batch]
        epoch, first = epoch + 1, 0


def _generator(seed: int, what: str, index: int) -> Generator:
    key = hashlib.blake2b(f"{seed}/{what}/{index}".encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(key, "big"))


def _tokens(network: AttractorNetwork, images: Tensor, jitter: float, generator: Generator) -> Tensor:
    """Jittered and encoded a block at a time, so that a large batch needs little beside its tokens."""
    with torch.inference_mode():
        tokens = torch.empty(len(images), network.encoding.tokens, network.encoding.dim)
        for block, out in zip(images.split(_BLOCK), tokens.split(_BLOCK), strict=True):
            out.copy_(network.encoding.encode(_jittered(to_pixels(block), jitter, generator)))
        return tokens


def _jittered(pixels: Tensor, jitter: float, generator: Generator) -> Tensor:
    return pixels + jitter * torch.randn(pixels.shape, generator=generator) if jitter else pixels


@dataclass
class EarlyStopping:
    """Keeps the couplings with the lowest validation error, and says when to give up.

    The score of a validation is the geometric mean of its tasks' errors, so that one training serves all
    tasks and none of them counts more because its errors are larger.
    """

    patience: int | None
    best_score: float = float("inf")
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    failures: int = 0

    def update(
        self, step: int, errors: dict[str, float], weights: dict[str, Tensor], *, last: bool = False
    ) -> bool:
        """Take a validation into account; True if it is the best so far.

        After the `last` update the weights change no more, and are kept without a copy.
        """
        score = torch.tensor(list(errors.values()), dtype=torch.float64).log().mean().exp().item()
        improved = score < self.best_score
        if improved:
            self.best_score, self.best_step, self.failures = score, step, 0
            self.best_weights = {name: w if last else w.clone() for name, w in weights.items()}
        else:
            self.failures += 1
        return improved

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.failures >= self.patience

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Put the best couplings back; NonFiniteError if no validation had a finite error."""
        if not self.best_weights:
            raise NonFiniteError(
                "no validation during training had a finite error; a smaller rate may help"
            )
        with torch.inference_mode():
            for name, weight in weights.items():
                weight.copy_(self.best_weights[name])
