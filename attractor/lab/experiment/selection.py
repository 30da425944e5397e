"""Choosing how to retrieve, on validation images: map, temperature, inertia, evidence and t.

The pseudo-likelihood still rises while retrieval gets worse, so retrieval error is what is chosen by.
Every candidate gets a few iterations; the best of them then get all, so that a late optimum can win.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from attractor.images import Corrupted
from attractor.lab.experiment.network import Network, Reading, Recall


@dataclass(frozen=True)
class Choice:
    """A retrieval with its t (`retrieval.steps`), and its validation error there."""

    retrieval: Reading
    error: float


def choose(
    network: Network,
    candidates: Sequence[Reading],
    corrupted: Corrupted,
    *,
    screening_steps: int,
    steps: int,
    finalists: int = 1,
) -> Choice:
    """The candidate and the t with the lowest mean squared error on `corrupted`."""
    screened = [best_step(network, c, corrupted, min(screening_steps, steps)) for c in candidates]
    screened.sort(key=lambda choice: choice.error)
    if steps <= screening_steps:
        return screened[0]
    finals = [best_step(network, c.retrieval, corrupted, steps) for c in screened[:finalists]]
    return min(finals, key=lambda choice: choice.error)


def best_step(network: Network, candidate: Reading, corrupted: Corrupted, steps: int) -> Choice:
    """One candidate at the best of its first `steps` iterations."""
    return best_of(islice(Recall(network, candidate).reconstruct(corrupted), steps), candidate, corrupted)


def best_of(states: Iterable[Tensor], candidate: Reading, corrupted: Corrupted) -> Choice:
    """The best of the predictions at t = 1, 2, ..."""
    errors = torch.stack([corrupted.squared_error(pixels).mean() for pixels in states])
    if not errors.isfinite().all():
        errors = torch.full_like(errors, torch.inf)  # a dynamics that overflows later is no choice either
    t = int(errors.argmin())
    return Choice(replace(candidate, steps=t + 1), float(errors[t]))
