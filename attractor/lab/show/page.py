"""report.html: a finished run as one page to look at and to pass on. Nothing in it is fetched.

Its numbers are those of results.json; its pictures are the figures, and one sheet of states for each row
of the table, over which a slider moves t. templates/ holds what it looks like (page.html, page.css) and the
slider (page.js). Text is escaped by the template engine: a configuration may hold anything.
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from attractor.lab.config.schema import REFERENCES
from attractor.lab.config.titles import TASK_WORDS, title
from attractor.lab.experiment.choices import choices_from_json, together
from attractor.lab.experiment.examples import Trajectories, Trajectory, times
from attractor.lab.experiment.numbers import headline
from attractor.lab.run.files import relative
from attractor.lab.run.folder import RunFolder
from attractor.lab.show import terminal

# bytes of all states together, before they are compressed and grow by a third in base64
_STATES = 2_000_000
_FEWEST_TIMES = 24

_COSTS = {
    "train_seconds": "training, seconds",
    "steps": "steps trained",
    "selected_step": "step whose couplings were kept",
    "parameters": "couplings",
    "peak_memory_mb": "peak memory of the process, MB",
}
_CAPTIONS = {
    "error_curves": "Test error against iteration t, on a logarithmic axis. Lines are means over the test "
    "images; the circle is the t chosen on validation images; grey lines are the references.",
    "training": "Training: what the rule climbs, and the error on validation images with a few iterations. "
    "The dotted line is the step whose couplings were kept.",
    "overlap": "Overlap (cosine) of the state with the original, for training and test images.",
    "couplings": "Learned couplings of one token with others near it, on one colour scale.",
    "attention": "Attention of four tokens of a test image on all tokens; grey is what is no source.",
}


def write(
    folder: RunFolder,
    results: dict[str, Any],
    *,
    heading: str,
    figures: Mapping[str, Path],
    trajectories: Trajectories,
) -> None:
    """Write report.html, whole or not at all, and say where it is. See `render`."""
    configuration = (folder.path / "config.yaml").read_text()
    text = render(
        results, heading=heading, configuration=configuration, figures=figures, trajectories=trajectories
    )
    folder.write_text("report.html", text)
    folder.say(f"to look at   {relative(folder.path / 'report.html')}")


def render(
    results: dict[str, Any],
    *,
    heading: str,
    configuration: str,
    figures: Mapping[str, Path],
    trajectories: Trajectories,
) -> str:
    """The page as text. heading: `title: details`, more lines of details; configuration: YAML."""
    name, _, details = heading.partition(": ")
    environment = Environment(
        loader=PackageLoader("attractor.lab.show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["title"] = title
    environment.globals["task_words"] = TASK_WORDS
    pictures = [
        {"name": name, "caption": _caption(name), "source": data_uri(path.read_bytes())}
        for name, path in figures.items()
        if path.suffix == ".png"
    ]
    return environment.get_template("page.html").render(
        name=name,
        details=details.splitlines(),
        tasks=results["tasks"],
        rows=_rows(results),
        warnings=terminal.warnings(results["tasks"]),
        runs=results.get("runs", {}),
        cost=_cost(results),
        choices=together(choices_from_json(part["selection"]) for part in (results, results["beside"])),
        scenes=scenes(results["tasks"], trajectories),
        curves=[picture for picture in pictures if not picture["name"].startswith("grid_")],
        grids=[picture for picture in pictures if picture["name"].startswith("grid_")],
        configuration=configuration,
    )


def scenes(tasks: dict[str, Any], trajectories: Trajectories) -> list[dict[str, Any]]:
    """What the slider moves over: for each row of each task a sheet of states and its errors.

    The times are the same for all, so that one t can be compared between rows; one that takes fewer
    iterations stays as it is after them. errors: example -> error at each time, of the very states shown.
    mean: the curve of results.json at these times, t = 0 the corrupted images.
    """
    every = [(task, row, shown) for task, rows in trajectories.items() for row, shown in rows.items()]
    if not every:
        return []
    steps = max(shown.steps for *_, shown in every)
    # states that stay as they are take no room
    size = sum(shown.images.original.numel() for *_, shown in every if shown.steps == steps)
    shown_times = times(
        steps,
        most=max(_STATES // size, _FEWEST_TIMES),
        chosen={shown.chosen for *_, shown in every},
    )
    return [
        {
            "task": TASK_WORDS[task],
            "row": title(row),
            "how": trajectory.retrieval.describe(),
            "times": shown_times,
            "chosen": tasks[task]["models"][row]["best"]["t"],
            "side": trajectory.images.original.shape[-1],
            "errors": torch.stack([trajectory.error(t) for t in shown_times], 1).tolist(),
            "mean": [
                tasks[task]["models"][row]["mse"][min(t, trajectory.steps) - 1]
                if t
                else tasks[task]["corrupted_mse"]
                for t in shown_times
            ],
            "images": tasks[task]["images"],
            "sheet": sheet(trajectory, shown_times),
        }
        for task, row, trajectory in every
    ]


def sheet(trajectory: Trajectory, shown_times: list[int]) -> str:
    """A PNG, pixel for pixel: a column for each image; originals in row 0, then a row for each t."""
    rows = torch.stack([trajectory.images.original, *map(trajectory.shown, shown_times)])  # (R, B, C, H, W)
    levels = (rows.clamp(0, 1) * 255).round().byte().permute(0, 3, 1, 4, 2)  # (R, H, B, W, C)
    height, width = levels.shape[0] * levels.shape[1], levels.shape[2] * levels.shape[3]
    pixels = levels.reshape(height, width, -1)
    picture = Image.fromarray((pixels[..., 0] if pixels.shape[-1] == 1 else pixels).numpy())
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return data_uri(stream.getvalue())


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _caption(name: str) -> str:
    if name.startswith("grid_"):
        _, task, *variant = name.split("_")
        words = " with ".join([TASK_WORDS[task], *variant])
        return (
            f"Test images, {words}: original, corrupted, states, the best reference, other models if any."
        )
    return _CAPTIONS.get(name, name)


def _rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The printed table, cell by cell: error, what stands behind it, whether it is the task's lowest."""
    tasks, errors = results["tasks"], headline(results)
    lowest = {
        min((key for key in errors if key.startswith(f"{task}/")), key=errors.__getitem__) for task in tasks
    }
    rows = []
    for model, texts in terminal.table_rows(tasks).items():
        cells = []
        for task, text in zip(tasks, texts, strict=True):
            error, _, behind = text.partition(" ")
            cells.append({"error": error, "behind": behind, "lowest": f"{task}/{model}" in lowest})
        rows.append({"model": model, "reference": model in REFERENCES, "cells": cells})
    return rows


def _cost(results: dict[str, Any]) -> dict[str, str]:
    """What a run cost and its pseudo-likelihood, as words; empty for a comparison, which has none."""
    values = {
        _COSTS.get(key, key.replace("_", " ")): value for key, value in results.get("cost", {}).items()
    }
    for images, value in (results.get("pseudo_likelihood") or {}).items():
        values[f"log pseudo-likelihood, {images} images, nats per token"] = value
    return {key: _number(value) for key, value in values.items()}


def _number(value: Any) -> str:
    match value:
        case bool() | str():
            return str(value)
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
        case _:
            return "-" if value is None else str(value)
