"""Dynamics: the trained network as a recurrent map on the tokens.

    y_i   = map_i(x) + gamma x_i                      map and inertia
    x_i <- project( (1 - damping) y_i + damping x_i ) all tokens at once, or token by token

with three maps: `Attention` (the force of e_i, the paper's), `MeanField` (the conditional mean) and
`Gibbs` (a draw from the conditional). Clamped tokens keep their value; evidence acts through the energy.
The dynamics has its own inverse temperature, apart from that of training.

`step` is pure, `iterate` drives it, `run` records what it is asked to record.

Source: D'Amico & Negri 2024, arXiv 2409.16112, eq. 6 (attention map, inertia, projection).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from attractor.physics.energies import LocalEnergy
from attractor.physics.evidence import Evidence
from attractor.physics.measures import Measure


class System(Protocol):
    """What can be iterated: an energy, or a memory, which has conditional means and nothing else.

    A map asks for what it needs, with the evidence that the system takes.
    """

    @property
    def measure(self) -> Measure: ...

    def at(self, inverse_temperature: float) -> Any:
        """The same system at another temperature."""
        ...


class Known(Protocol):
    """Evidence of any kind, of B images."""

    def of(self, images: Tensor) -> Any:
        """That of some of the images, by their places."""
        ...


class Map(Protocol):
    """Where the dynamics sends the tokens `rows` (B, R, D), given all tokens x (B, N, D)."""

    projected: bool
    deterministic: bool

    def __call__(self, energy: Any, x: Tensor, *, evidence: Any, rows: range | None) -> Tensor: ...


class Attention:
    """f_i = -d e_i/d x_i, then projected: bare self-attention. Unprojected it would diverge."""

    projected = True
    deterministic = True

    def __call__(
        self, energy: LocalEnergy, x: Tensor, *, evidence: Evidence | None, rows: range | None
    ) -> Tensor:
        return energy.force(x, evidence=evidence, rows=rows)


class MeanField:
    """E[x_i | x_others]. Left unprojected, its length carries the certainty of the token."""

    deterministic = True

    def __init__(self, *, projected: bool = False) -> None:
        self.projected = projected

    def __call__(self, energy: Any, x: Tensor, *, evidence: Known | None, rows: range | None) -> Tensor:
        mean: Tensor = energy.conditional_mean(x, evidence=evidence, rows=rows)
        return mean


class Gibbs:
    """A draw from p(x_i | x_others); token by token it samples the pseudo-likelihood's Gibbs chain."""

    projected = True
    deterministic = False

    def __init__(self, *, generator: Generator) -> None:
        self.generator = generator

    def __call__(
        self, energy: LocalEnergy, x: Tensor, *, evidence: Evidence | None, rows: range | None
    ) -> Tensor:
        return energy.sample_conditional(x, generator=self.generator, evidence=evidence, rows=rows)


class Synchronous:
    """All tokens at once, from the same old state."""

    def sweep(self, tokens: int) -> Iterator[range]:
        """The groups of rows to update, one after the other."""
        yield range(tokens)


class Sequential:
    """Token by token, each seeing the new state of those before it; shuffled if given a generator."""

    def __init__(self, *, generator: Generator | None = None) -> None:
        self.generator = generator

    def sweep(self, tokens: int) -> Iterator[range]:
        """The groups of rows to update, one after the other."""
        order = torch.arange(tokens)
        if self.generator is not None:
            order = torch.randperm(tokens, generator=self.generator)
        for i in order.tolist():
            yield range(i, i + 1)


@dataclass(frozen=True)
class Dynamics:
    """Everything that defines one iteration, but the energy.

    inverse_temperature: of retrieval; None keeps the one of the energy. inertia: gamma >= 0.
    damping: in [0, 1), the share of the old state that is kept. Where the length means something (an
    unprojected map, or the Gaussian measure), inertia averages: y = (map + gamma x)/(1 + gamma).
    """

    map: Map
    order: Synchronous | Sequential = field(default_factory=Synchronous)
    inverse_temperature: float | None = None
    inertia: float = 0.0
    damping: float = 0.0

    def __post_init__(self) -> None:
        if self.inertia < 0:
            raise ValueError(f"inertia must not be negative, got {self.inertia}")
        if not 0 <= self.damping < 1:
            raise ValueError(f"damping must be in [0, 1), got {self.damping}")

    def step(
        self,
        energy: System,
        x: Tensor,
        *,
        clamped: Tensor | None = None,
        evidence: Known | None = None,
    ) -> Tensor:
        """One iteration over all tokens x (B, N, D); `clamped` (B, N) marks tokens that stay."""
        if self.inverse_temperature is not None:
            energy = energy.at(self.inverse_temperature)
        for rows in self.order.sweep(x.shape[1]):
            here = slice(rows.start, rows.stop)
            old = x[:, here]
            new = self.map(energy, x, evidence=evidence, rows=rows) + self.inertia * old
            if not (self.map.projected and energy.measure.fixed_norm):
                new = new / (1 + self.inertia)  # no projection will restore the length
            if self.damping:
                new = torch.lerp(new, old, self.damping)
            if self.map.projected:
                new = energy.measure.project(new)
            if clamped is not None:
                new = torch.where(clamped[:, here, None], old, new)
            x = (
                new
                if len(rows) == x.shape[1]
                else torch.cat((x[:, : here.start], new, x[:, here.stop :]), 1)
            )
        return x


class Stop(Enum):
    """Why a run ended, as a sentence."""

    CONVERGED = "converged: the state is a fixed point within the tolerance"
    CYCLE = "cycle: the state returns every second iteration within the tolerance"
    STEP_LIMIT = "step limit: the state was still moving after the last iteration"
    NON_FINITE = "non-finite: the state overflowed or became undefined"


@dataclass(frozen=True)
class Trajectory:
    """How a run went: its last state (B, N, D), iterations done, why it stopped, what was recorded."""

    state: Tensor
    steps: int
    stop: Stop
    records: list[Any]


def iterate(
    energy: System,
    x0: Tensor,
    dynamics: Dynamics,
    *,
    clamped: Tensor | None = None,
    evidence: Known | None = None,
    tolerance: float = 0.0,
) -> Iterator[Tensor]:
    """x_1, x_2, ... without end; stop asking to stop. Each step is taken in inference mode.

    Images do not interact, so one whose components all changed by at most `tolerance` is taken to have
    arrived and is not computed again (never under a map that draws).
    """
    x, moving = x0, torch.arange(len(x0), device=x0.device)
    while True:
        with torch.inference_mode():
            old = x[moving]
            new = dynamics.step(
                energy,
                old,
                clamped=None if clamped is None else clamped[moving],
                evidence=None if evidence is None else evidence.of(moving),
            )
            x = x.index_copy(0, moving, new)
            if dynamics.map.deterministic:
                # a NaN has not arrived: it must be seen
                arrived = (new - old).abs().amax((1, 2)) <= tolerance
                moving = moving[~arrived]
        yield x


def run(
    energy: System,
    x0: Tensor,
    steps: int,
    *,
    map: Map | None = None,
    order: Synchronous | Sequential | None = None,
    inverse_temperature: float | None = None,
    inertia: float = 0.0,
    damping: float = 0.0,
    clamped: Tensor | None = None,
    evidence: Known | None = None,
    record: Callable[[int, Tensor], Any] | None = None,
    tolerance: float = 1e-6,
) -> Trajectory:
    """Iterate from x0 (B, N, D) for at most `steps` iterations.

    Unless given, `map` is `Attention()` and all tokens move at once; on the Gaussian measure, where the
    force is unbounded and moving all at once diverges on images, `MeanField()`, token by token.

    `record(t, x)` is called for t = 0, 1, ... and what it returns is kept. The run stops early when the
    largest change of a component is at most `tolerance`, against the last state (a fixed point) or the one
    before (a cycle of period two). Maps that draw are never done.
    An image whose state no longer changes at all is not computed again.
    Raises ValueError for shapes that do not fit, before any iteration.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if clamped is not None and (clamped.shape != x0.shape[:2] or clamped.dtype != torch.bool):
        given = f"{tuple(clamped.shape)} of {clamped.dtype}"
        raise ValueError(f"clamped is {given}, expected (B, N) = {tuple(x0.shape[:2])} of bool")
    fixed_norm = energy.measure.fixed_norm
    chosen = map or (Attention() if fixed_norm else MeanField())
    dynamics = Dynamics(
        map=chosen,
        order=order or (Synchronous() if fixed_norm else Sequential()),
        inverse_temperature=inverse_temperature,
        inertia=inertia,
        damping=damping,
    )
    records = [record(0, x0)] if record else []
    before, now = None, x0
    for t, x in enumerate(iterate(energy, x0, dynamics, clamped=clamped, evidence=evidence), start=1):
        if record:
            records.append(record(t, x))
        stop = _stop(x, now, before, tolerance) if chosen.deterministic else None
        if stop is None and not torch.isfinite(x).all():
            stop = Stop.NON_FINITE
        if stop is None and t == steps:
            stop = Stop.STEP_LIMIT
        if stop is not None:
            return Trajectory(state=x, steps=t, stop=stop, records=records)
        before, now = now, x
    raise AssertionError("iterate never ends by itself")


def _stop(x: Tensor, last: Tensor, before_last: Tensor | None, tolerance: float) -> Stop | None:
    if (x - last).abs().max() <= tolerance:
        return Stop.CONVERGED
    if before_last is not None and (x - before_last).abs().max() <= tolerance:
        return Stop.CYCLE
    return None
