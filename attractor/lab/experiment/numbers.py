"""The numbers of results.json as tables and trackers show them."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from attractor.lab.config.schema import REFERENCES


def deviation(values: Sequence[float]) -> float:
    """The standard deviation (of n - 1) over seeds; nan for fewer than two, or if one is not finite."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def with_deviation(mean: float, deviation: float, *, digits: int = 4) -> str:
    """0.0336 ± 0.0001, or 1.90e-11 ± 2.3e-11; the mean alone where there is no deviation."""
    if 0 < abs(mean) < 10**-digits:
        return f"{mean:.2e}" + ("" if math.isnan(deviation) else f" ± {deviation:.1e}")
    return f"{mean:.{digits}f}" + ("" if math.isnan(deviation) else f" ± {deviation:.{digits}f}")


def in_order(names: Iterable[str]) -> list[str]:
    """Each once: learned models first, a model's rows together, references last."""
    once = list(dict.fromkeys(names))
    bases = [name.partition("+")[0] for name in once]
    return sorted(once, key=lambda name: (name in REFERENCES, bases.index(name.partition("+")[0])))


class Score(NamedTuple):
    """The test error of a model, and the t that validation images chose; None for a model of one pass."""

    mse: float
    t: int | None


def score(entry: dict[str, Any]) -> Score:
    """That of an entry of results.json."""
    return (
        Score(entry["best"]["mse"], entry["best"]["t"]) if "best" in entry else Score(entry["mse"][0], None)
    )


def headline(results: dict[str, Any]) -> dict[str, float]:
    """The numbers of a run that a tracker shows first: task/model -> test error."""
    return {
        f"{task}/{name}": score(entry).mse
        for task, values in results["tasks"].items()
        for name, entry in values["models"].items()
    }


def rows(tasks: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The table as plain values, (columns, rows): a row for each model, error and chosen t of each task."""
    names = in_order(name for task in tasks.values() for name in task["models"])
    columns = ["model", *(f"{task} {what}" for task in tasks for what in ("mse", "t"))]
    lines: list[list[Any]] = []
    for name in names:
        entries = [values["models"].get(name) for values in tasks.values()]
        lines.append(
            [name, *(value for entry in entries for value in (score(entry) if entry else (None, None)))]
        )
    return columns, lines
