"""Ways to read a memory of images: one `Recollection`, or several of them as `Heads`."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from attractor.physics import LocalAttention


@dataclass(frozen=True)
class Recollection:
    """One way to read a memory: see `physics.LocalAttention` for the fields that it shares.

    common: so many iterations attend once for the whole image, before every token attends for itself; the
    first one does not look at the state, which is not yet an answer. coupled: from then on. limit:
    iterations at most. ridge: the variance up to which visible pixels of a masked image are taken at their
    word. noise_variance: of noisy images, which have no mask. steps: the t at which the prediction is read.
    """

    neighbours: int | None
    inverse_temperature: float = 4.0
    relative: bool = True
    reach: float | None = None
    pull: float = 0.0
    softening: float = 0.0
    shrinkage: float = 0.0
    window: int | None = 256
    coupled: bool = False
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
            coupled=self.coupled and not whole,
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
            words += ["tokens coupled"] * self.coupled
        words += [f"pull {self.pull:g}"] * bool(self.pull)
        words += [f"shrinkage {self.shrinkage:g}"] * bool(self.shrinkage and self.reach)
        words += [f"softening {self.softening:g}"] * bool(0 < self.softening < float("inf"))
        return ", ".join(words)


@dataclass(frozen=True)
class Heads:
    """One or more ways to read a memory, and what their predictions x_h stand for.

        x = sum_k a_k prod_h x_h^e_kh,        all exponents with sum_h e_kh <= degree

    A local Gaussian does not know that most pixels are black or white; and where a narrow and a wide
    attention disagree, the truth depends on both. readings: each with its t (`steps`), after which its
    prediction stays. readout: a_k, in the order of `monomials`. steps: the t of the prediction.
    """

    readings: tuple[Recollection, ...]
    degree: int
    readout: tuple[float, ...]
    steps: int | None = None

    @property
    def limit(self) -> int:
        """Iterations at most."""
        return max(reading.last for reading in self.readings)

    def predict(self, answers: Sequence[Tensor]) -> Tensor:
        """Pixels, from those of each head."""
        return read_out(answers, self.readout, degree=self.degree)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for results.json."""
        readings = [reading.to_json() for reading in self.readings]
        return asdict(self) | {"readings": readings, "readout": list(self.readout)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Heads":
        """The inverse of `to_json`."""
        readings = tuple(Recollection.from_json(reading) for reading in values["readings"])
        return Heads(**(values | {"readings": readings, "readout": tuple(values["readout"])}))

    def describe(self) -> str:
        """For tables and legends."""
        words = "; and ".join(reading.describe() for reading in self.readings)
        return f"{words}; read out by a polynomial of degree {self.degree}"


def exponents(heads: int, *, degree: int) -> list[tuple[int, ...]]:
    """All e with sum_h e_h <= degree, the last head's counting up first."""
    every = itertools.product(range(degree + 1), repeat=heads)
    return [found for found in every if sum(found) <= degree]


def monomials(values: Sequence[Tensor], *, degree: int) -> Iterator[Tensor]:
    """prod_h x_h^e_h of tensors x_h of one shape, in the order of `exponents`."""
    for powers in exponents(len(values), degree=degree):
        product = torch.ones_like(values[0])
        for value, power in zip(values, powers, strict=True):
            product *= value**power
        yield product


def read_out(values: Sequence[Tensor], readout: Sequence[float], *, degree: int) -> Tensor:
    """sum_k a_k prod_h x_h^e_kh within [0, 1], with the a_k in the order of `monomials`."""
    total = torch.zeros_like(values[0])
    for coefficient, product in zip(readout, monomials(values, degree=degree), strict=True):
        total.add_(product, alpha=coefficient)
    return total.clamp_(0, 1)
