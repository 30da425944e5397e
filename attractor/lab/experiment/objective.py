"""The one number by which a sweeper tells runs apart: of validation images, never of test images."""

import math
from typing import Any

from attractor.lab.config.names import Objective

MAXIMISED = frozenset({Objective.log_pl})  # of the others less is better


def worst(objective: Objective) -> float:
    """What a job counts that has failed: no other is taken for worse."""
    return -math.inf if objective in MAXIMISED else math.inf


def measured(results: dict[str, Any], objective: Objective) -> float:
    """The objective of a run, from its results.json; the worst there is if that is not finite.

    Raises KeyError for results that lack it.
    """
    if objective is Objective.val:
        value = results["validation"]["score"]
    elif objective is Objective.log_pl:
        value = results["pseudo_likelihood"]["validation"]
    else:
        value = chosen(results, objective.value)["validation"]
    return float(value) if math.isfinite(value) else worst(objective)


def metrics(results: dict[str, Any]) -> dict[str, float]:
    """All that a run has measured: on validation images, and, behind `test`, on test images.

    A transformer has no pseudo-likelihood. A study has the numbers that sum it up.

    Raises KeyError or TypeError for results that lack some of it.
    """
    if "theory" in results:
        return dict(results["headline"])
    values = {Objective.val.value: measured(results, Objective.val)}
    for task in results["tasks"]:
        best = chosen(results, task)
        values |= {task: best["validation"], f"{task} test": best["test"]}
    if results["pseudo_likelihood"] is not None:
        values[Objective.log_pl.value] = measured(results, Objective.log_pl)
    return values


def chosen(results: dict[str, Any], task: str) -> dict[str, Any]:
    """The row of a task that is best on validation images: its name, validation error and test error."""
    rows = results["selection"][task]
    name = min(rows, key=lambda row: rows[row]["validation_mse"])
    return {
        "row": name,
        "validation": rows[name]["validation_mse"],
        "test": results["tasks"][task]["models"][name]["best"]["mse"],
    }
