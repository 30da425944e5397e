"""Choosing how to read a memory, on validation images, task by task.

What is tried first are the two limits, linear regression and the softmax memory (of the candidates), so
that on these images the choice is no worse than the better of them; then what lies between them, with one
attention for the image and with one for every token. Of that, one field after the other gets its other
values, and keeps the best. Then a polynomial reads out the best one, and other readings join it as heads,
as long as that helps.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attractor.baselines.memory import BETAS
from attractor.images import Corrupted, Denoise, Task
from attractor.lab.config.schema import LocalLinearMemoryConfig
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.memory_network import Answers, MemoryNetwork
from attractor.lab.experiment.recollection import Heads, Recollection, exponents, monomials, read_out
from attractor.lab.experiment.selection import Choice, best_of

_NEIGHBOURS = (150, 400, 1000)  # tried where there are more patterns
_WORTH = 0.997  # of the error before, at most, is what a readout or a further head must reach
_RIDGE = 1e-4  # of a readout: that of noise of a hundredth of the range of a pixel


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
    return _with_heads(answers, tried.values(), corrupted, most=config.heads, degree=config.readout)


def _with_heads(
    answers: Answers, tried: Iterable[Choice], corrupted: Corrupted, *, most: int, degree: int
) -> Choice:
    """The best of what was tried; with a readout, and other readings in it, as long as that helps.

    Whether it helps is seen on the half of the images to which the readout was not fitted.
    """
    best, *others = sorted(tried, key=lambda choice: choice.error)
    if not degree or len(corrupted.original) < 2:
        return best

    def predictions(readings: Sequence[Recollection]) -> list[Tensor]:
        return [answers.at(reading, reading.last) for reading in readings]

    kept: tuple[Recollection, ...] = ()
    error = best.error
    joining: list[tuple[Recollection, ...]] = [(_reading(best),)]
    while joining:
        errors = [cross_validated(predictions(each), corrupted, degree=degree).mean() for each in joining]
        least, readings = min(zip(map(float, errors), joining, strict=True), key=lambda pair: pair[0])
        if least < _WORTH * error:
            kept, error = readings, least
        joining = []
        if len(readings) < most:
            joining = [(*readings, _reading(o)) for o in others if _reading(o) not in readings]
    if not kept:
        return best
    every = torch.ones(len(corrupted.original), dtype=torch.bool)
    heads = Heads(kept, degree, fit_readout(predictions(kept), corrupted, every, degree=degree))
    return Choice(replace(heads, steps=heads.limit), error)


def cross_validated(predictions: Sequence[Tensor], corrupted: Corrupted, *, degree: int) -> Tensor:
    """Errors (B,) of a readout of these predictions, of each half of the images fitted to the other one."""
    even = torch.arange(len(corrupted.original)) % 2 == 0
    errors = torch.zeros(len(even), dtype=torch.float64)
    for part in (even, ~even):
        fitted = fit_readout(predictions, corrupted, part, degree=degree)
        pixels = read_out(predictions, fitted, degree=degree)
        errors[~part] = corrupted.squared_error(pixels).double()[~part]
    return errors


def fit_readout(
    predictions: Sequence[Tensor], corrupted: Corrupted, images: Tensor, *, degree: int
) -> tuple[float, ...]:
    """a_k, from the clean pixels of some images: least squares with a ridge towards the first prediction.

        min_a  mean (pixel - sum_k a_k m_k)^2 + ridge |a - a_0|^2,      a_0: 1 for m = x_1, 0 for the others

    as if every monomial m_k had noise of this variance. Without it the little that two heads disagree about
    gets coefficients of 30, and other images than these worse answers than by one head (docs/beyond.md).
    Of masked images hidden pixels count. images: (B,) bool.
    """
    counted = torch.ones_like(corrupted.original, dtype=torch.bool)
    if corrupted.pixel_mask is not None:
        counted = corrupted.pixel_mask.expand_as(counted).clone()
    counted[~images] = False
    values = [each[counted].double() for each in predictions]
    features = torch.stack(list(monomials(values, degree=degree)), 1)
    gram = features.T @ features / len(features)
    gram.diagonal().add_(_RIDGE)
    missing = features.T @ (corrupted.original[counted].double() - values[0]) / len(features)
    found = torch.linalg.solve(gram, missing)
    found[exponents(len(values), degree=degree).index((1, *[0] * (len(values) - 1)))] += 1
    return tuple(found.tolist())


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
        yield "coupled", [True]
        yield "softening", config.softenings
    else:
        yield "ridge", config.ridges


def _matters(name: str, reading: Recollection) -> bool:
    """Whether a reading heeds a field: one attention for all has no reach, a single t no state."""
    if reading.reach is None and name in ("shrinkage", "common", "coupled"):
        return False
    return reading.limit > 1 or name not in ("pull", "common", "coupled")


def _untimed(choice: Choice) -> Recollection:
    return replace(_reading(choice), steps=None)


def _reading(choice: Choice) -> Recollection:
    assert isinstance(choice.retrieval, Recollection)
    return choice.retrieval


def _middle(values: Sequence[Any]) -> Any:
    return values[len(values) // 2]
