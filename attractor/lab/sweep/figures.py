"""Figures of a sweep: error against each swept field, and a heat map where two fields are swept."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attractor.lab.config.titles import TASK_WORDS
from attractor.lab.show.figures import COLUMN, MODEL_COLOURS, PAGE, STYLE, save
from attractor.lab.sweep.jobs import shown
from attractor.lab.sweep.table import Row, Table

_LOGARITHMIC = 8  # an axis on which the largest value is so many times the smallest
_NAMED = 8  # so many numbers at most are each named on their axis
_MARKERS = "os^Dv<"


def draw(table: Table) -> list[Path]:
    """PNG and PDF in SWEEP_DIR/figures; the PNGs. None of a sweep without results, or of studies."""
    rows = [row for row in table.rows if row.done]
    if not rows or not table.ranked:  # a study draws its own
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
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault(tuple(shown(row.settings[field]) for field in others), []).append(row)
    named = len(lines) <= len(MODEL_COLOURS)
    axis = _Axis([row.settings[name] for row in rows])
    ranks = [_order([row.settings[field] for row in rows])[0].index for field in others]
    ordered = sorted(
        lines, key=lambda values: [rank(value) for rank, value in zip(ranks, values, strict=True)]
    )
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for index, values in enumerate(ordered):
            points = sorted(
                (axis.places[shown(row.settings[name])], row.mean(task), row.deviation(task))
                for row in lines[values]
            )
            x, y, spread = (np.array(column) for column in zip(*points, strict=True))
            label = ", ".join(f"{field} {value}" for field, value in zip(others, values, strict=True))
            axes.errorbar(
                x,
                y,
                yerr=np.nan_to_num(spread),
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=3.5,
                capsize=2,
                label=label if named and others else None,
                color=MODEL_COLOURS[index] if named else "0.6",
            )
        axis.draw(axes)
        axes.set_xlabel(name)
        axes.set_ylabel("validation error")
        axes.set_title(TASK_WORDS[task])
    if named and others:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
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
    figure.colorbar(picture, label=metric if metric == "log_pl" else f"{metric}: validation error")
    return figure


def _order(values: list[Any]) -> tuple[list[str], bool]:
    """The values as they are typed, each once and in order; whether they are numbers."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return list(dict.fromkeys(map(shown, sorted(values, key=None if numbers else shown)))), numbers


class _Axis:
    """Where the values of a field stand: numbers at their place, words side by side."""

    def __init__(self, values: list[Any]) -> None:
        self.names, self._numbers = _order(values)
        self.places = {shown(value): float(value) for value in values} if self._numbers else {}
        self.places = self.places or {name: float(index) for index, name in enumerate(self.names)}

    def draw(self, axes: Axes) -> None:
        """Logarithmic where that is easier to see; few values are each named."""
        least, most = min(self.places.values()), max(self.places.values())
        if self._numbers and 0 < _LOGARITHMIC * least <= most:
            axes.set_xscale("log")
        if not self._numbers or len(self.places) <= _NAMED:
            axes.set_xticks([self.places[name] for name in self.names], self.names)
            axes.set_xticks([], minor=True)
