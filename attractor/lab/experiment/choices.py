"""How the rows of a table are read, task by task, and how that stands in results.json."""

from collections.abc import Iterable
from typing import Any

from attractor.lab.experiment.network import Reading, Retrieval
from attractor.lab.experiment.recollection import Heads, Recollection
from attractor.lab.experiment.selection import Choice
from attractor.lab.experiment.slot_network import SlotReading
from attractor.lab.experiment.transformers import Passes

Choices = dict[str, dict[str, Choice]]  # task -> row of the table -> how to retrieve


def together(parts: Iterable[Choices]) -> Choices:
    """The rows of all parts, task by task."""
    found: Choices = {}
    for part in parts:
        for task, rows in part.items():
            found.setdefault(task, {}).update(rows)
    return found


def of_run(run: str, choices: Choices) -> Choices:
    """The rows of one of several runs, prefixed with its name and a slash."""
    return {
        task: {f"{run}/{row}": choice for row, choice in rows.items()} for task, rows in choices.items()
    }


def choices_to_json(choices: Choices) -> dict[str, Any]:
    """Plain values, for results.json."""
    return {
        task: {
            row: choice.retrieval.to_json() | {"validation_mse": choice.error}
            for row, choice in rows.items()
        }
        for task, rows in choices.items()
    }


def choices_from_json(values: dict[str, Any]) -> Choices:
    """The inverse of `choices_to_json`."""
    return {
        task: {
            row: Choice(
                _reading({k: v for k, v in entry.items() if k != "validation_mse"}), entry["validation_mse"]
            )
            for row, entry in rows.items()
        }
        for task, rows in values.items()
    }


def _reading(values: dict[str, Any]) -> Reading:
    if "neighbours" in values:
        return Recollection.from_json(values)
    if "readings" in values:
        return Heads.from_json(values)
    if "candidates" in values:
        return SlotReading.from_json(values)
    return Retrieval.from_json(values) if "map" in values else Passes(**values)
