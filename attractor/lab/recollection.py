"""Ways to read a memory of images: one `Recollection`, or several of them as `Heads`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from attractor.physics import LocalAttention


@dataclass(frozen=True)
class Recollection:
    """One way to read a memory: see `physics.LocalAttention` for the fields that it shares.

    common: so many iterations attend once for the whole image, before every token attends for itself; the
    first one does not look at the state, which is not yet an answer. limit: iterations at most. ridge: the
    variance up to which visible pixels of a masked image are taken at their word. noise_variance: of noisy
    images, which have no mask. steps: the t at which the prediction is read.
    """

    neighbours: int | None
    inverse_temperature: float = 4.0
    relative: bool = True
    reach: float | None = None
    pull: float = 0.0
    softening: float = 0.0
    shrinkage: float = 0.0
    window: int | None = 256
    common: int = 0
    ridge: float = 1e-3
    noise_variance: float = 0.7
    limit: int = 1
    steps: int | None = None

    @property
    def last(self) -> int:
        """The chosen t, or before that the last one."""
        return self.steps or self.limit

    def to_json(self) -> dict[str, Any]:
        """Plain values, for results.json; JSON has no infinity."""
        return asdict(self) | {"softening": None if self.softening == float("inf") else self.softening}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Recollection":
        """The inverse of `to_json`."""
        softening = values["softening"]
        return Recollection(**(values | {"softening": float("inf") if softening is None else softening}))

    def attention(self, t: int) -> LocalAttention:
        """How iteration t = 1, 2, ... attends."""
        whole = t <= self.common or self.reach is None
        return LocalAttention(
            neighbours=self.neighbours,
            inverse_temperature=self.inverse_temperature,
            relative=self.relative,
            reach=None if whole else self.reach,
            pull=0.0 if t == 1 else self.pull,
            softening=self.softening,
            shrinkage=0.0 if whole else self.shrinkage,
            window=self.window,
        )

    def describe(self) -> str:
        """For tables and legends."""
        if self.neighbours is None:
            near = "" if self.reach is None else f", ridge growing with a reach of {self.reach:g} pixels"
            return f"linear regression on all patterns, ridge {self.ridge:g}{near}"
        unit = "" if self.relative else " absolute"
        words = [
            f"{self.neighbours:,} neighbours",
            f"inverse temperature {self.inverse_temperature:g}{unit}",
        ]
        if self.softening == float("inf"):
            words.append("no regression (softmax memory)")
        if self.reach is not None:
            words.append(f"reach of a token {self.reach:g} pixels")
            words += [f"{self.common} iterations in common first"] * bool(self.common)
        words += [f"pull {self.pull:g}"] * bool(self.pull)
        words += [f"shrinkage {self.shrinkage:g}"] * bool(self.shrinkage and self.reach)
        words += [f"softening {self.softening:g}"] * bool(0 < self.softening < float("inf"))
        return ", ".join(words)


@dataclass(frozen=True)
class Heads:
    """Several ways to read a memory, whose predictions x_h are averaged, and what a mean stands for.

        x = sum_k a_k m^k,        m = mean_h x_h

    readings: each with its t (`steps`), after which its prediction stays. readout: a_0, a_1, ..., the least
    squares of clean pixels on powers of m, since most pixels are black or white and a local Gaussian does
    not know that; empty: x = m. steps: the t at which the prediction is read.
    """

    readings: tuple[Recollection, ...]
    readout: tuple[float, ...] = ()
    steps: int | None = None

    @property
    def limit(self) -> int:
        """Iterations at most."""
        return max(reading.last for reading in self.readings)

    def predict(self, answers: Sequence[Tensor]) -> Tensor:
        """Pixels, from those of each head."""
        mean = torch.stack(list(answers)).mean(0)
        if not self.readout:
            return mean
        value = torch.zeros_like(mean)
        for coefficient in reversed(self.readout):
            value.mul_(mean).add_(coefficient)
        return value.clamp_(0, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for results.json."""
        readings = [reading.to_json() for reading in self.readings]
        return {"readings": readings, "readout": list(self.readout), "steps": self.steps}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Heads":
        """The inverse of `to_json`."""
        readings = tuple(Recollection.from_json(reading) for reading in values["readings"])
        return Heads(readings, tuple(values["readout"]), values["steps"])

    def describe(self) -> str:
        """For tables and legends."""
        words = "; ".join(reading.describe() for reading in self.readings)
        if len(self.readings) > 1:
            words = f"mean of {len(self.readings)} heads: {words}"
        return words + "; calibrated pixels" * bool(self.readout)
