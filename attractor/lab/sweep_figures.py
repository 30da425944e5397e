"""Figures of a sweep: error against each swept field, and a heat map where two fields are swept."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attractor.lab.collect import Row, Table
from attractor.lab.figures import COLUMN, MODEL_COLOURS, PAGE, STYLE, save
from attractor.lab.jobs import shown
from attractor.lab.report import TASK_WORDS

_LOGARITHMIC = 8  # an axis on which the largest value is so many times the smallest


def draw(table: Table) -> list[Path]:
    """PNG and PDF in SWEEP_DIR/figures; the paths of the PNGs. None of a sweep without results."""
    rows = [row for row in table.rows if row.done]
    if not rows:
        return []
    folder = table.sweep / "figures"
    with rc_context(STYLE):
        drawn = [save(_against(table, rows, name), folder, f"error_{name}") for name in table.fields]
        if len(table.fields) == 2:
            drawn.append(save(_heat_map(table, rows), folder, "heat_map"))
    return drawn


def _against(table: Table, rows: list[Row], name: str) -> Figure:
    """A panel for each task: validation error against the field, a line for each setting of the others."""
    tasks = [task for task in TASK_WORDS if task in table.metrics]
    figure = Figure(figsize=(PAGE if len(tasks) > 1 else COLUMN, 2.6), layout="constrained")
    others = [field for field in table.fields if field != name]
    lines: dict[str, list[Row]] = {}
    for row in rows:
        label = ", ".join(f"{field.split('.')[-1]} {shown(row.settings[field])}" for field in others)
        lines.setdefault(label, []).append(row)
    named = len(lines) <= len(MODEL_COLOURS)
    place, ticks = _axis([row.settings[name] for row in rows])
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for index, (label, members) in enumerate(sorted(lines.items())):
            points = sorted(
                (place[shown(row.settings[name])], row.mean(task), row.deviation(task)) for row in members
            )
            x, y, spread = (np.array(values) for values in zip(*points, strict=True))
            axes.errorbar(
                x,
                y,
                yerr=np.nan_to_num(spread),
                marker="o",
                markersize=3,
                capsize=2,
                label=label if named and others else None,
                color=MODEL_COLOURS[index] if named else "0.6",
            )
        _label(axes, name, ticks)
        axes.set_ylabel("validation error")
        axes.set_title(TASK_WORDS[task])
        if named and others:
            axes.legend(frameon=False)
    return figure


def _heat_map(table: Table, rows: list[Row]) -> Figure:
    """The metric that the table is sorted by, over both fields; empty where no job is done."""
    across, down = sorted(table.fields, key=lambda name: -len({shown(row.settings[name]) for row in rows}))
    (columns, _), (lines, _) = (_order([row.settings[name] for row in rows]) for name in (across, down))
    metric = table.metrics[0]
    values = np.full((len(lines), len(columns)), np.nan)
    for row in rows:
        mean = row.mean(metric)
        place = lines.index(shown(row.settings[down])), columns.index(shown(row.settings[across]))
        values[place] = mean if math.isfinite(mean) else np.nan
    figure = Figure(figsize=(1.4 + 0.62 * len(columns), 1.1 + 0.42 * len(lines)), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(values, cmap="viridis", aspect="auto")
    middle = (np.nanmax(values) + np.nanmin(values)) / 2 if np.isfinite(values).any() else 0.0
    for (i, j), value in np.ndenumerate(values):
        empty = math.isnan(value)
        colour = "black" if empty or value > middle else "white"
        axes.text(
            j, i, "-" if empty else f"{value:.4f}", ha="center", va="center", color=colour, fontsize=6.5
        )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(lines)), lines)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, label=metric if metric == "log_pl" else f"{metric}, validation error")
    return figure


def _order(values: list[Any]) -> tuple[list[str], bool]:
    """The values as they are typed, each once and in order; whether they are numbers."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return list(dict.fromkeys(map(shown, sorted(values, key=None if numbers else shown)))), numbers


def _axis(values: list[Any]) -> tuple[dict[str, float], list[str] | bool]:
    """Value -> place on the axis, and the labels of places 0, 1, ...; of numbers: logarithmic or not."""
    names, numbers = _order(values)
    if not numbers:
        return {name: float(index) for index, name in enumerate(names)}, names
    places = {shown(value): float(value) for value in values}
    return places, min(places.values()) > 0 and max(places.values()) >= _LOGARITHMIC * min(places.values())


def _label(axes: Axes, name: str, ticks: list[str] | bool) -> None:
    axes.set_xlabel(name)
    if isinstance(ticks, list):
        axes.set_xticks(range(len(ticks)), ticks)
    elif ticks:
        axes.set_xscale("log")
