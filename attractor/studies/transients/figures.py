"""Figures of transients: curves against t, what changes with P, and what the attractors look like."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attractor.lab.show.figures import MODEL_COLOURS, PAGE, STYLE, save, show
from attractor.studies.transients.tables import ATTRACTORS, TRANSIENT, Get, Row, rows

_COLOURS = {"training": MODEL_COLOURS[0], "test": MODEL_COLOURS[1]}
_LINES = {"training": "-", "test": "--"}
_QUANTITIES = {
    "overlap": "overlap",
    "centred": "centred overlap",
    "error": "error (pixel$^2$)",
}


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """PNG and PDF; the paths of the PNGs."""
    found = rows(results)
    with rc_context(STYLE):
        return [
            save(_curves(found), folder, "curves"),
            save(_against_count(found, results), folder, "against_P"),
            save(_examples(found, results), folder, "examples"),
            save(_attractors(found, results), folder, "attractors"),
        ]


def _curves(found: list[Row]) -> Figure:
    """A column for each P: mean over seeds and images, the band is the deviation over images."""
    counts = sorted({row.count for row in found})
    figure = Figure(figsize=(PAGE, 4.6), layout="constrained")
    panels = figure.subplots(3, len(counts), sharex=True, sharey="row", squeeze=False)
    for row in found:
        column = panels[:, counts.index(row.count)]
        column[0].set_title(f"$P = {row.count:,}$".replace(",", "{,}"))
        colour, line = _COLOURS[row.images], _LINES[row.images]
        for axes, quantity in zip(column, _QUANTITIES, strict=True):
            curves = [entry[quantity] for entry in row.entries]
            mean = np.mean([curve["mean"] for curve in curves], 0)
            std = np.mean([curve["std"] for curve in curves], 0)
            t = row.entries[0]["t"]
            axes.plot(t, mean, color=colour, linestyle=line, label=f"{row.images} images")
            axes.fill_between(t, mean - std, mean + std, color=colour, alpha=0.1, linewidth=0)
            if quantity in row.entries[0]["baseline"] and row.images == "test":
                base = np.mean([entry["baseline"][quantity] for entry in row.entries])
                axes.axhline(
                    base,
                    color="0.45",
                    linestyle=":",
                    label="mean of training images, with test images",
                    zorder=0,
                )
            if quantity == "centred":
                axes.axhline(0, color="0.45", linestyle=":", zorder=0)
    for axes, name in zip(panels[:, 0], _QUANTITIES.values(), strict=True):
        axes.set_ylabel(name)
    last = max(entry["t"][-1] for row in found for entry in row.entries)
    for axes in panels[-1]:
        # t = 0, the corrupted image, has a place on the logarithmic axis too
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(0, last)
        axes.set_xticks([0, *(10**k for k in range(7) if 10**k <= last)])
        axes.set_xlabel("iteration $t$")
    panels[2, 0].set_ylim(0, None)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    return figure


def _against_count(found: list[Row], results: dict[str, Any]) -> Figure:
    """Six panels against P, with error bars over seeds."""
    figure = Figure(figsize=(PAGE, 4.2), layout="constrained")
    panels = figure.subplots(2, 3)
    (error, overlap, life), (original, distinct, near) = panels
    steps, starts = results["asked"]["steps"], results["asked"]["images"]
    _points(error, found, TRANSIENT["of the mean's"])
    error.axhline(1, color="0.45", linestyle=":", zorder=0)
    error.set_title("lowest error / that of the mean image")
    error.set_ylim(0, 1.1)
    _points(overlap, found, TRANSIENT["centred at best"])
    _points(overlap, found, TRANSIENT["centred at T"], faint=f"at $t = {steps}$")
    overlap.axhline(0, color="0.45", linestyle=":", zorder=0)
    overlap.set_title("centred overlap at the best $t$")
    overlap.set_ylim(-0.05, 1)
    _lifetimes(life, found)
    _points(original, found, ATTRACTORS["original is nearest"])
    original.set_title(f"original nearest of all at $t = {steps}$")
    original.set_ylim(-0.05, 1.05)
    _points(distinct, found, lambda entry: ATTRACTORS["distinct"](entry) / starts)
    distinct.set_title(f"distinct attractors / {starts} starts")
    distinct.set_ylim(0, 1.05)
    _points(near, found, ATTRACTORS["nearest"])
    _points(near, found, ATTRACTORS["original's other"], faint="of the original")
    near.set_title("overlap with nearest training image")
    for axes in panels.flat:
        axes.set_xscale("log")
        axes.set_xlabel("training images $P$")
    for axes in (overlap, near):
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[2:3], labels[2:3], frameon=False, loc="lower right")
    figure.legend(*error.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _lifetimes(axes: Axes, found: list[Row]) -> None:
    """A point for each seed, a triangle where it lasts to T or beyond; lines join their medians."""
    for images, colour in _COLOURS.items():
        chosen = [row for row in found if row.images == images]
        lives = [(row.count, entry["lifetime"]) for row in chosen for entry in row.entries]
        medians = [np.median([entry["lifetime"]["iterations"] for entry in row.entries]) for row in chosen]
        axes.plot([row.count for row in chosen], medians, color=colour, linestyle=_LINES[images])
        for censored, marker in ((False, "o"), (True, "^")):
            points = [(count, life["iterations"]) for count, life in lives if life["censored"] == censored]
            if points:
                axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=3.5)
    axes.set_yscale("log")
    axes.set_ylim(0.8, None)
    axes.set_title("lifetime, each seed (iterations)")


def _points(axes: Axes, found: list[Row], get: Get, *, faint: str = "") -> None:
    """A line for each set of images; `faint` is what a second pair of lines in the same axes is."""
    for images, colour in _COLOURS.items():
        chosen = [row for row in found if row.images == images]
        axes.errorbar(
            [row.count for row in chosen],
            [row.mean(get) for row in chosen],
            yerr=np.nan_to_num([row.deviation(get) for row in chosen]),
            color=colour,
            alpha=0.5 if faint else 1,
            linestyle=_LINES[images],
            marker="s" if faint else "o",
            markersize=3.5,
            markerfacecolor="white" if faint else None,
            capsize=2,
            label=faint or f"{images} images",
        )


def _examples(found: list[Row], results: dict[str, Any]) -> Figure:
    """The first starts of the first seed: training images left, test images right."""
    counts = sorted({row.count for row in found})
    first = [row.entries[0]["pictures"]["examples"] for row in found]
    lines, parts = len(first[0]["original"]), list(first[0])
    size = PAGE / (2 * len(parts) + 0.6)
    figure = Figure(figsize=(PAGE, size * (1.05 * lines * len(counts) + 1.2)), layout="constrained")
    widths = [*[1.0] * len(parts), 0.15, *[1.0] * len(parts)]
    cells = figure.subplots(lines * len(counts), len(widths), gridspec_kw={"width_ratios": widths})
    for axes in cells.flat:
        axes.set_axis_off()
    for row, pictures in zip(found, first, strict=True):
        left = 0 if row.images == "training" else len(parts) + 1
        titles = ("original", "noisy", "best $t$", f"$t = {results['asked']['steps']}$", "nearest")
        if results["asked"]["task"] == "masked":
            titles = ("original", "masked", *titles[2:])
        for place, part in enumerate(parts):
            for line in range(lines):
                axes = cells[counts.index(row.count) * lines + line, left + place]
                show(axes, _picture(pictures[part][line]))
                if row.count == counts[0] and line == 0:
                    axes.set_title(titles[place], fontsize=7)
        if left == 0:
            _name(cells[counts.index(row.count) * lines, 0], row.count)
    figure.suptitle("training images" + " " * 70 + "test images", fontsize=8)
    return figure


def _attractors(found: list[Row], results: dict[str, Any]) -> Figure:
    """The attractors that most test images end in, first seed, each above its nearest training image."""
    chosen = [row for row in found if row.images == "test"]
    most = max(len(row.entries[0]["pictures"]["common"]["share"]) for row in chosen)
    width = min(PAGE, 0.75 * most + 1)
    figure = Figure(figsize=(width, 2.05 * width / (most + 0.6) * len(chosen) + 0.3), layout="constrained")
    cells = figure.subplots(2 * len(chosen), most, squeeze=False)
    for axes in cells.flat:
        axes.set_axis_off()
    for line, row in enumerate(chosen):
        common = row.entries[0]["pictures"]["common"]
        for place, share in enumerate(common["share"]):
            for offset, part in enumerate(("final", "nearest")):
                show(cells[2 * line + offset, place], _picture(common[part][place]))
            starts = round(share * results["asked"]["images"])
            if starts > 1:
                cells[2 * line, place].set_title(f"{starts} starts", fontsize=6.5, pad=2)
        _name(cells[2 * line, 0], row.count)
        _name(cells[2 * line + 1, 0], "nearest")
    steps = results["asked"]["steps"]
    figure.suptitle(f"states of test images at $t = {steps}$, the most common first", fontsize=8)
    return figure


def _name(axes: Axes, what: int | str) -> None:
    """Beside the first picture of a line."""
    text = what if isinstance(what, str) else f"$P = {what:,}$".replace(",", "{,}")
    axes.text(-0.15, 0.5, text, transform=axes.transAxes, ha="right", va="center", rotation=90, fontsize=7)


def _picture(levels: Any) -> torch.Tensor:
    return torch.tensor(levels).float() / 255
