"""Choosing how to read a memory, on validation images, task by task.

What is tried first are the two limits, linear regression and the softmax memory (of the candidates), so
that on these images the choice is no worse than the better of them; then what lies between them, with one
attention for the image and with one for every token. Of that, one field after the other gets its other
values, and keeps the best.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from attractor.baselines.memory import BETAS
from attractor.images import Corrupted, Denoise, Task
from attractor.lab.config import LocalLinearMemoryConfig
from attractor.lab.errors import ConfigError
from attractor.lab.recollection import MemoryNetwork, Recollection
from attractor.lab.selection import Choice, best_step

_NEIGHBOURS = (150, 400, 1000)  # tried where there are more patterns


def first_recollection(config: LocalLinearMemoryConfig, *, noise_variance: float) -> Recollection:
    """The middle of every list, in one iteration: by it a memory is validated when it has been stored."""
    return Recollection(
        neighbours=_middle(config.neighbours or _NEIGHBOURS),
        inverse_temperature=_middle(config.inverse_temperatures),
        reach=_middle(config.reaches),
        shrinkage=_middle(config.shrinkages),
        window=config.window,
        ridge=_middle(config.ridges),
        noise_variance=noise_variance,
    )


def choose_recollection(
    network: MemoryNetwork,
    config: LocalLinearMemoryConfig,
    task: Task,
    corrupted: Corrupted,
    *,
    steps: int,
    progress: Callable[[str], Any] = lambda text: None,
) -> Choice:
    """The best reading of `corrupted`, validation images of `task`, and its t, of `steps` at most."""
    tried: dict[Recollection, Choice] = {}

    def attempt(readings: Sequence[Recollection]) -> Choice:
        for reading in readings:
            if reading not in tried:
                progress(f"{len(tried) + 1} settings tried")
                tried[reading] = best_step(network, reading, corrupted, min(reading.limit, steps))
        return min((tried[reading] for reading in readings), key=lambda choice: choice.error)

    rows = _rows(network)
    middle = _for_task(config, task, rows)
    limit = _untimed(attempt([*_limits(middle, task, config, rows)]))
    adapting = replace(  # a softmax memory that regresses too
        middle,
        neighbours=limit.neighbours or middle.neighbours,
        inverse_temperature=limit.inverse_temperature,
        relative=limit.neighbours is None,
        reach=None,
        softening=0.0,
    )
    found = attempt([middle, replace(middle, reach=None), adapting])
    for name, values in _alternatives(config, task, rows):
        best = _untimed(found)
        if not _matters(name, best):
            continue
        if name == "inverse_temperature" and not best.relative:
            values = [best.inverse_temperature * factor for factor in (0.5, 2.0)]
        found = attempt([best, *(replace(best, **{name: value}) for value in values)])
    return min(tried.values(), key=lambda choice: choice.error)


def check_neighbours(config: LocalLinearMemoryConfig, *, stored: int, copies: int) -> None:
    """Refuse more neighbours than there are patterns to choose them from (ConfigError)."""
    rows = copies * min(stored, config.candidates or stored)
    for count in config.neighbours:
        if count > rows:
            raise ConfigError(
                f"model.neighbours has {count:,}, but an image is compared with {rows:,} patterns, copies "
                "included; use that or fewer, more model.candidates, or model.neighbours=[] for what suits"
            )


def _rows(network: MemoryNetwork) -> int:
    """Patterns that an image is compared with, copies included."""
    return network.compared * network.patterns.copies


def _counts(config: LocalLinearMemoryConfig, rows: int) -> list[int]:
    if config.neighbours:
        return config.neighbours
    most = [rows] if rows <= 2 * _NEIGHBOURS[-1] else []
    return [count for count in _NEIGHBOURS if count < rows] + most


def _for_task(config: LocalLinearMemoryConfig, task: Task, rows: int) -> Recollection:
    """The middle of every list, for one task: a mask needs no state, and so no second look."""
    variance = task.variance if isinstance(task, Denoise) else 0.7
    first = first_recollection(config, noise_variance=variance)
    first = replace(first, neighbours=_middle(_counts(config, rows)))
    if not isinstance(task, Denoise):
        return first
    return replace(first, pull=_middle(config.pulls), common=config.common, limit=config.iterations)


def _limits(
    middle: Recollection, task: Task, config: LocalLinearMemoryConfig, rows: int
) -> Iterator[Recollection]:
    """Linear regression at every ridge, and the softmax memory at every beta of the reference."""
    plain = replace(middle, reach=None, pull=0.0, shrinkage=0.0, common=0, limit=1)
    for ridge in {1e-3, *config.ridges} if not isinstance(task, Denoise) else {middle.ridge}:
        yield replace(plain, neighbours=None, ridge=ridge)
    unit = middle.noise_variance if isinstance(task, Denoise) else middle.ridge
    for beta in BETAS:
        yield replace(
            plain,
            neighbours=max(*_counts(config, rows), min(rows, 2 * _NEIGHBOURS[-1])),
            softening=float("inf"),
            relative=False,
            inverse_temperature=beta * unit,
        )


def _alternatives(
    config: LocalLinearMemoryConfig, task: Task, rows: int
) -> Iterator[tuple[str, Sequence[Any]]]:
    yield "reach", config.reaches
    yield "neighbours", _counts(config, rows)
    yield "inverse_temperature", config.inverse_temperatures
    yield "shrinkage", config.shrinkages
    if isinstance(task, Denoise):
        yield "pull", config.pulls
        yield "common", sorted({1, config.common})
        yield "softening", config.softenings
    else:
        yield "ridge", config.ridges


def _matters(name: str, reading: Recollection) -> bool:
    """Whether a reading heeds a field: linear regression has no attention, and a single t no state."""
    if reading.neighbours is None and name in ("inverse_temperature", "shrinkage"):
        return False
    if reading.reach is None and name in ("shrinkage", "common"):
        return False
    return reading.limit > 1 or name not in ("pull", "common")


def _untimed(choice: Choice) -> Recollection:
    reading = choice.retrieval
    assert isinstance(reading, Recollection)
    return replace(reading, steps=None)


def _middle(values: Sequence[Any]) -> Any:
    return values[len(values) // 2]
