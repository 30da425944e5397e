"""Example images of the tasks, and how their states move: what grids, animations and the page show."""

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from attractor.images import Corrupted
from attractor.lab.experiment.assessment import Assessment
from attractor.lab.experiment.network import Reading, Recall

EXAMPLES = 8


@dataclass(frozen=True)
class Trajectory:
    """A few images of a task under one retrieval. predictions: pixels (B, C, H, W) at t = 1, 2, ... T."""

    images: Corrupted
    predictions: list[Tensor]
    retrieval: Reading

    @property
    def steps(self) -> int:
        """T, the number of iterations."""
        return len(self.predictions)

    @property
    def chosen(self) -> int:
        """The t that validation images chose."""
        return self.retrieval.steps or 1

    def shown(self, t: int) -> Tensor:
        """The state at t, the visible pixels of a masked image put back; the corrupted image at t = 0.

        After T it stays as it was then.
        """
        return visible(self.predictions[min(t, self.steps) - 1], self.images) if t else seen(self.images)

    def error(self, t: int) -> Tensor:
        """Squared error of each image at t, (B,), as it is evaluated."""
        state = self.predictions[min(t, self.steps) - 1] if t else self.images.corrupted
        return self.images.squared_error(state)


Trajectories = dict[str, dict[str, Trajectory]]  # task -> row of the table -> its examples


def watch(assessment: Assessment, *, steps: int) -> Trajectories:
    """The first test images of every task, iterated as every row of the table is."""
    trajectories: Trajectories = {}
    for task, rows in assessment.choices.items():
        few = first_images(assessment.batches[task][0], EXAMPLES)
        trajectories[task] = {}
        for row, choice in rows.items():
            states = Recall(assessment.networks[row], choice.retrieval).reconstruct(few)
            trajectories[task][row] = Trajectory(few, list(islice(states, steps)), choice.retrieval)
    return trajectories


def times(steps: int, *, most: int, chosen: set[int]) -> list[int]:
    """Every t from 0 to `steps` if that is at most `most`, else 0, the chosen ones and log-spaced ones."""
    if steps < most:
        return list(range(steps + 1))
    spaced = np.geomspace(1, steps, max(most, 2)).round().astype(int)
    return sorted({0, *chosen, *spaced.tolist()})


def seen(batch: Corrupted) -> Tensor:
    """What a model sees; hidden pixels grey, so that they do not look black."""
    if batch.pixel_mask is None:
        return batch.corrupted
    return torch.where(batch.pixel_mask, 0.5, batch.corrupted)


def visible(prediction: Tensor, batch: Corrupted) -> Tensor:
    """A prediction with the visible pixels of a masked image put back."""
    if batch.pixel_mask is None:
        return prediction
    return torch.where(batch.pixel_mask, prediction, batch.original)


def first_images(batch: Corrupted, count: int) -> Corrupted:
    """The first images of a batch."""
    return Corrupted(
        batch.task,
        batch.original[:count],
        batch.corrupted[:count],
        None if batch.mask is None else batch.mask[:count],
        None if batch.pixel_mask is None else batch.pixel_mask[:count],
    )
