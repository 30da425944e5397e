"""The course of states from corrupted images: what they pass by, for how long, and where they end."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from attractor.images import Corrupted, Encoding, to_pixels
from attractor.lab.experiment.evaluation import cosine
from attractor.lab.experiment.network import AttractorNetwork, Retrieval

WITHIN = 0.1  # a transient lives while the error is within 10 % of its best
_LONGEST = 12  # the longest cycle that is looked for
_STILL = 1e-4  # largest change of a component, of at most 1, of a state that has come back
_CHUNK = 2000  # training images encoded at a time
_EXAMPLES = 8  # images whose states are kept as pixels


@dataclass(frozen=True)
class Course:
    """Of a batch of images, t = 0 first: the corrupted image.

    overlap: cosine between the state and the original, (B, T + 1). centred: the same after the mean state
    of training images is taken from both. error: as it is evaluated, in squared pixels. final: the state at
    T, (B, N, D). period: 1 for a fixed point, k for a cycle of k iterations, 0 where none was seen, (B,).
    examples: pixels of the first images at each t, until all images have arrived.
    """

    overlap: Tensor
    centred: Tensor
    error: Tensor
    final: Tensor
    period: Tensor
    examples: list[Tensor]

    @property
    def finite(self) -> bool:
        return bool(self.final.isfinite().all() and self.error.isfinite().all())


@dataclass(frozen=True)
class Lifetime:
    """Where an error is lowest, t = `best`, and the iterations around it that are nearly as good.

    They are those from `first` to `last` without a gap, t = 0 left out, of which each has an error of at
    most 1 + `WITHIN` times the lowest. `censored`: they go on to T, and so perhaps beyond.
    """

    best: int
    error: float
    first: int
    last: int
    censored: bool

    @property
    def iterations(self) -> int:
        return self.last - self.first + 1


def follow(
    network: AttractorNetwork,
    retrieval: Retrieval,
    batch: Corrupted,
    *,
    steps: int,
    centre: Tensor,
    progress: Callable[[], Any] = lambda: None,
) -> Course:
    """Iterate a batch `steps` times. centre: the mean state, (N, D). `progress` hears of each iteration."""
    original = network.encode(batch.original)
    away = original - centre
    x = network.start(batch)
    overlap, centred = [cosine(x, original)], [cosine(x - centre, away)]
    error, examples = [batch.squared_error(batch.corrupted)], [batch.corrupted[:_EXAMPLES]]
    past: deque[Tensor] = deque([x], maxlen=_LONGEST + 1)
    for state in islice(network.states(batch, retrieval), steps):
        # the error of t = 0 is that of pixels, not of a decoded state, and is not to be held
        arrived = len(error) > 1 and torch.equal(state, past[-1])
        past.append(state)
        progress()
        if arrived:  # all images, and they stay
            break
        pixels = network.encoding.decode(state).cpu()
        overlap.append(cosine(state, original))
        centred.append(cosine(state - centre, away))
        error.append(batch.squared_error(pixels))
        examples.append(pixels[:_EXAMPLES])
    return Course(
        overlap=_curve(overlap, steps),
        centred=_curve(centred, steps),
        error=_curve(error, steps),
        final=past[-1].cpu(),
        period=_period(list(past)).cpu(),
        examples=examples,
    )


def _curve(values: list[Tensor], steps: int) -> Tensor:
    """(B, steps + 1), the last one held."""
    values = values + values[-1:] * (steps + 1 - len(values))
    return torch.stack(values, 1).double().cpu()


def _period(past: list[Tensor]) -> Tensor:
    """The smallest k of which the last state is that of k iterations ago; 0 for none."""
    *earlier, last = past
    period = torch.zeros(len(last), dtype=torch.long, device=last.device)
    for k, state in reversed(list(enumerate(reversed(earlier), start=1))):
        period[(last - state).abs().amax((1, 2)) <= _STILL] = k
    return period


def lifetime(error: Tensor) -> Lifetime:
    """Of a curve (T + 1,), t = 0 first."""
    best = int(error[1:].argmin()) + 1
    good = (error <= (1 + WITHIN) * error[best]).tolist()
    first = last = best
    while first > 1 and good[first - 1]:
        first -= 1
    while last + 1 < len(good) and good[last + 1]:
        last += 1
    return Lifetime(best, float(error[best]), first, last, censored=last == len(good) - 1)


def clusters(states: Tensor, *, overlap: float) -> Tensor:
    """Which attractor each state (B, N, D) is, 0, 1, ...: those linked by such an overlap are one.

    Links go through other states, so that the order of the states does not matter.
    """
    flat = torch.nn.functional.normalize(states.flatten(1).double())
    linked = flat @ flat.T >= overlap
    linked.fill_diagonal_(True)
    labels = torch.arange(len(states))
    while True:
        lowest = torch.where(linked, labels, len(states)).amin(1)
        if torch.equal(lowest, labels):
            found: Tensor = labels.unique(return_inverse=True)[1]
            return found
        labels = lowest


def nearest(states: Tensor, images: Tensor, encoding: Encoding, *, count: int = 1) -> tuple[Tensor, Tensor]:
    """Overlaps with, and indices of, the nearest of `images` (P, C, H, W), uint8, to each state (B, N, D).

    (B, count) each, the nearest first.
    """
    flat = torch.nn.functional.normalize(states.flatten(1))
    best, index = torch.empty(len(states), 0), torch.empty(len(states), 0, dtype=torch.long)
    for start in range(0, len(images), _CHUNK):
        stored = torch.nn.functional.normalize(encode(encoding, images[start : start + _CHUNK]).flatten(1))
        places = torch.arange(start, start + len(stored)).expand(len(states), -1)
        best, index = torch.cat((best, flat @ stored.T), 1), torch.cat((index, places), 1)
        best, order = best.topk(min(count, best.shape[1]), 1)
        index = index.gather(1, order)
    return best, index


def mean_state(encoding: Encoding, images: Tensor) -> Tensor:
    """Mean of the encoded images (P, C, H, W), uint8: (N, D)."""
    parts = [encode(encoding, chunk).double().sum(0) for chunk in images.split(_CHUNK)]
    return (torch.stack(parts).sum(0) / len(images)).float()


def encode(encoding: Encoding, images: Tensor) -> Tensor:
    """uint8 (P, C, H, W) to tokens (P, N, D)."""
    return encoding.encode(to_pixels(images))
