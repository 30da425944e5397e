"""Choosing how to read a memory, on validation images, task by task.

What is tried first are the two limits, linear regression and the softmax memory (of the candidates), so
that on these images the choice is no worse than the better of them; then what lies between them, with one
attention for the image and with one for every token. Of that, one field after the other gets its other
values, and keeps the best. Then other readings join the best one as heads, and a polynomial is fitted to
their mean, as long as that helps.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attractor.baselines.memory import BETAS
from attractor.images import Corrupted, Denoise, Task
from attractor.lab.config import LocalLinearMemoryConfig
from attractor.lab.errors import ConfigError
from attractor.lab.memory_network import Answers, MemoryNetwork
from attractor.lab.recollection import Heads, Recollection
from attractor.lab.selection import Choice, best_of

_NEIGHBOURS = (150, 400, 1000)  # tried where there are more patterns
_WORTH = 0.997  # of the error before, at most, is what a further head or a readout must reach


def first_recollection(config: LocalLinearMemoryConfig, *, noise_variance: float) -> Recollection:
    """The middle of every list, in one iteration: by it a memory is validated when it has been stored."""
    return Recollection(
        neighbours=_middle(config.neighbours or _NEIGHBOURS),
        inverse_temperature=_middle(config.inverse_temperatures),
        reach=_middle(config.reaches) if config.reaches else None,
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
    answers = Answers(network, corrupted)

    def attempt(readings: Sequence[Recollection]) -> Choice:
        for reading in readings:
            if reading not in tried:
                progress(f"{len(tried) + 1} settings tried")
                found = (answers.at(reading, t + 1) for t in range(min(reading.limit, steps)))
                tried[reading] = best_of(found, reading, corrupted)
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
    chosen = _with_heads(answers, tried.values(), corrupted, most=config.heads)
    return _with_readout(answers, chosen, corrupted, degree=config.readout)


def _with_heads(answers: Answers, tried: Iterable[Choice], corrupted: Corrupted, *, most: int) -> Choice:
    """The best of what was tried, and others that lower the error of the mean, one after the other."""
    choices = sorted(tried, key=lambda choice: choice.error)
    best = choices[0]
    readings: tuple[Recollection, ...] = (_reading(best),)
    while len(readings) < most:
        options = []
        for choice in choices[1:]:
            if choice.retrieval not in readings:
                heads = Heads((*readings, _reading(choice)))
                heads = replace(heads, steps=heads.limit)
                error = corrupted.squared_error(answers.at(heads, heads.limit)).mean()
                options.append(Choice(heads, float(error)))
        found = min(options, key=lambda choice: choice.error, default=best)
        if not found.error < _WORTH * best.error:
            break
        assert isinstance(found.retrieval, Heads)
        best, readings = found, found.retrieval.readings
    return best


def _with_readout(answers: Answers, choice: Choice, corrupted: Corrupted, *, degree: int) -> Choice:
    """The same with a readout, if that helps on the half of the images to which it was not fitted."""
    count = len(corrupted.original)
    if not degree or count < 2:
        return choice
    found = choice.retrieval
    heads = found if isinstance(found, Heads) else Heads((_reading(choice),), steps=found.steps)
    assert heads.steps is not None
    mean = answers.at(heads, heads.steps)
    even = torch.arange(count) % 2 == 0
    errors = torch.zeros(count, dtype=torch.float64)
    for part in (even, ~even):
        readout = fit_readout(mean, corrupted, part, degree=degree)
        pixels = replace(heads, readout=readout).predict([mean])
        errors[~part] = corrupted.squared_error(pixels).double()[~part]
    if not errors.mean() < _WORTH * choice.error:
        return choice
    everything = torch.ones(count, dtype=torch.bool)
    readout = fit_readout(mean, corrupted, everything, degree=degree)
    return Choice(replace(heads, readout=readout), float(errors.mean()))


def fit_readout(mean: Tensor, corrupted: Corrupted, images: Tensor, *, degree: int) -> tuple[float, ...]:
    """a_0, ..., a_degree: least squares of the clean pixels of some images on powers of their prediction.

    Of masked images hidden pixels count. images: (B,) bool. Powers that say nothing new have a_k near 0.
    """
    counted = torch.ones_like(mean, dtype=torch.bool)
    if corrupted.pixel_mask is not None:
        counted = corrupted.pixel_mask.expand_as(mean).clone()
    counted[~images] = False
    powers = mean[counted].double().unsqueeze(1) ** torch.arange(degree + 1)
    target = corrupted.original[counted].double().unsqueeze(1)
    # an answer that is constant has powers that are multiples of each other: the least a then
    return tuple(torch.linalg.lstsq(powers, target, driver="gelsd").solution.squeeze(1).tolist())


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
    return replace(_reading(choice), steps=None)


def _reading(choice: Choice) -> Recollection:
    assert isinstance(choice.retrieval, Recollection)
    return choice.retrieval


def _middle(values: Sequence[Any]) -> Any:
    return values[len(values) // 2]
