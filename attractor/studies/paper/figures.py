"""The paper's figures 1 and 2, of a `Comparison`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from attractor.lab.config.schema import REFERENCES
from attractor.lab.config.titles import TASK_WORDS, title
from attractor.lab.experiment.examples import seen, visible
from attractor.lab.show.figures import (
    MODEL_COLOURS,
    PAGE,
    REFERENCE_STYLES,
    STYLE,
    legend_below,
    reference_line,
    save,
    show,
)
from attractor.studies.paper.comparison import Comparison, Row

TIMES = (1, 2, 5, 20, 100)  # of the pictures, and the last one of a model that ends before


def times(last: int) -> list[int]:
    """Of the pictures of a model that ends at `last`."""
    return sorted({t for t in TIMES if t <= last} | {min(last, TIMES[-1])})


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Both figures; their PNGs."""
    return [_figure_1(comparison, folder), _figure_2(comparison, folder)]


def _colours(comparison: Comparison) -> dict[str, str]:
    names = dict.fromkeys(name for rows in comparison.rows.values() for name in rows)
    learned = [name for name in names if name not in REFERENCES]
    return dict(zip(learned, MODEL_COLOURS * len(learned), strict=False))


def _figure_1(comparison: Comparison, folder: Path) -> Path:
    """Error against t, a panel for each task, above pictures of the states at some t."""
    colours = _colours(comparison)
    shown = max(len(rows) for rows in comparison.rows.values()) - len(REFERENCES) + 1
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 3.0 + 0.5 * shown), layout="constrained")
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.0, 0.5 * shown))[:, 0]
        panels = above.subplots(1, len(comparison.rows), squeeze=False)[0]
        for axes, (task, rows) in zip(panels, comparison.rows.items(), strict=True):
            for name, row in rows.items():
                _curve(axes, name, row, colours.get(name))
            axes.set_xscale("log")
            axes.set_ylim(0, None)
            axes.set_xlabel("iteration $t$")
            axes.set_ylabel("mean squared error (pixel$^2$)")
            count, patch = comparison.images["curves"], comparison.patch
            axes.set_title(f"{TASK_WORDS[task]}, {patch}x{patch} patches, {count:,} test images")
        legend_below(above, panels)
        parts = below.subfigures(1, len(comparison.rows), squeeze=False)[0]
        for part, task in zip(parts, comparison.rows, strict=True):
            _pictures(part, comparison, task)
        return save(figure, folder, "figure_1")


def _curve(axes: Axes, name: str, row: Row, colour: str | None) -> None:
    curve = torch.stack(row.curves).mean(0)  # over seeds, (images, T)
    mean, std = curve.mean(0).numpy(), curve.std(0, correction=0).numpy()
    if colour is None:
        reference_line(axes, name, mean[0])
        return
    if len(mean) == 1:
        axes.axhline(mean[0], color=colour, linestyle="--", label=f"{title(name)}, one pass")
        return
    t = np.arange(1, len(mean) + 1)
    axes.plot(t, mean, color=colour, label=title(name))
    axes.fill_between(t, mean - std, mean + std, color=colour, alpha=0.08, linewidth=0)
    for chosen in sorted(set(row.chosen)):
        axes.plot(chosen, mean[chosen - 1], "o", color=colour, markersize=4)


def _pictures(part: SubFigure, comparison: Comparison, task: str) -> None:
    """A row for each model: the original, what is seen, and states at some t, of the first test image."""
    batch = comparison.few[task]
    names = sorted(comparison.rows[task], key=REFERENCES.__contains__)
    names = [name for name in names if name not in REFERENCES or name == "memory"]
    cells = part.subplots(len(names), 2 + len(TIMES), squeeze=False)
    for axes in cells.flat:
        axes.set_axis_off()
    for line, name in zip(cells, names, strict=True):
        states = comparison.rows[task][name].examples
        pictures = [("original", batch.original), ("seen", seen(batch))]
        pictures += [(f"$t={t}$", visible(states[t - 1], batch)) for t in times(len(states))]
        for axes, (text, pixels) in zip(line, pictures, strict=False):
            show(axes, pixels[0])
            axes.set_title(text, fontsize=5, pad=1)
        words = title(name).replace(" ", "\n")
        place: Any = {"ha": "right", "va": "center", "transform": line[0].transAxes}
        line[0].text(-0.15, 0.5, words, fontsize=5, **place)


def _figure_2(comparison: Comparison, folder: Path) -> Path:
    """Distribution of the variance within predicted patches, with that of the original ones."""
    colours = _colours(comparison)
    bins = np.linspace(0, 0.25, 51)  # 1/4 is the most that pixels in [0, 1] can have
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
        panels = figure.subplots(1, len(comparison.rows), squeeze=False)[0]
        for axes, (task, rows) in zip(panels, comparison.rows.items(), strict=True):
            original = comparison.originals[task].numpy()
            axes.hist(original, bins, density=True, color="0.85", label="original")
            for name, row in rows.items():
                values = torch.cat(row.variances).numpy()
                style: Any = {"color": colours.get(name, "0.45"), "linewidth": 1}
                style["linestyle"] = REFERENCE_STYLES.get(name, "-")
                axes.hist(values, bins, density=True, histtype="step", label=title(name), **style)
            axes.set_yscale("log")
            axes.set_xlabel("variance within a patch (pixel$^2$)")
            axes.set_ylabel("density")
            which = "masked patches" if task == "masked" else "all patches"
            axes.set_title(f"{TASK_WORDS[task]}, {which} of {comparison.patch}x{comparison.patch} pixels")
        legend_below(figure, panels)
        return save(figure, folder, "figure_2")
