"""Figures of results, for a paper: one column (3.4 in) or two (7 in) wide, PNG and PDF.

Colours are Okabe and Ito's, which stay distinct for colour-blind readers; line styles differ too.
Pictures of the network itself are in `portraits`.
"""

import json
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from attractor.lab.config.schema import REFERENCES
from attractor.lab.config.titles import TASK_WORDS, title

COLUMN, PAGE = 3.4, 7.0  # inches
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
}
MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_OBJECTIVES = {
    "train/log_pseudo_likelihood": "log pseudo-likelihood (nats/token)",
    "train/negative_energy": "negative energy",
}
REFERENCE_STYLES = {"training_mean": ":", "regression": "--", "memory": "-."}


def reference_line(axes: Axes, name: str, error: float) -> None:
    """A grey line behind the curves, in the style of the reference `name`."""
    axes.axhline(error, color="0.45", linestyle=REFERENCE_STYLES[name], label=title(name), zorder=0)


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write name.png and name.pdf, without empty margins; returns the PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    # laid out once for both: with "constrained" and "tight" alone each of them is drawn four times
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    inches = figure.get_tightbbox().padded(0.1)
    figure.savefig(folder / f"{name}.pdf", bbox_inches=inches)
    figure.savefig(folder / f"{name}.png", dpi=220, bbox_inches=inches)
    return folder / f"{name}.png"


def error_curves(tasks: dict[str, Any], folder: Path) -> Path:
    """Test error against iteration, a panel for each task; references as grey lines.

    A colour for each run, dashed with evidence. The circle is the t chosen on validation images. The bands
    of one run are the standard deviation over test images, which is no measure of how well models differ:
    that is the paired standard error in results.json. A model of one shot is a line.
    """
    models = [name for values in tasks.values() for name in values["models"] if name not in REFERENCES]
    runs = list(dict.fromkeys(name.partition("+")[0] for name in models))
    colours = {run: MODEL_COLOURS[index % len(MODEL_COLOURS)] for index, run in enumerate(runs)}
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE if len(tasks) > 1 else COLUMN, 2.9), layout="constrained")
        panels = figure.subplots(1, len(tasks), squeeze=False)[0]
        for axes, (task, values) in zip(panels, tasks.items(), strict=True):
            _error_panel(axes, values, colours, banded=runs[0] if "/" not in runs[0] else None)
            axes.set_title(f"{TASK_WORDS[task]}, {values['images']:,} test images")
        legend_below(figure, panels)
        return save(figure, folder, "error_curves")


def legend_below(figure: FigureBase, panels: Iterable[Axes]) -> None:
    """One legend for all panels, each label once, as it is drawn first."""
    entries: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            entries.setdefault(label, handle)
    figure.legend(list(entries.values()), list(entries), frameon=False, ncols=4, loc="outside lower center")


def _error_panel(
    axes: Axes, values: dict[str, Any], colours: dict[str, str], *, banded: str | None
) -> None:
    top = 0.0
    for name, entry in values["models"].items():
        if name in REFERENCES:
            continue
        mean, std = np.array(entry["mse"]), np.array(entry["std"])
        t = np.arange(1, len(mean) + 1)
        run, _, variant = name.partition("+")
        colour = colours[run]
        top = max(top, float(mean.max()))
        if len(mean) == 1:
            axes.axhline(mean[0], color=colour, label=title(name), zorder=1)
            continue
        axes.plot(t, mean, color=colour, linestyle="--" if variant else "-", label=title(name))
        if run == banded:
            band = "standard deviation over images"
            style: Any = {"facecolor": colour, "alpha": 0.12, "linewidth": 0}
            axes.fill_between(t, mean - std, mean + std, label=band, **style)
            top = max(top, float((mean + std).max()))
        chosen = entry["best"]
        marker: Any = {"marker": "o", "color": colour, "markersize": 4, "linestyle": "none"}
        axes.plot(chosen["t"], chosen["mse"], label="$t$ chosen on validation", **marker)
    for name in REFERENCES:
        error = values["models"][name]["mse"][0]
        reference_line(axes, name, error)
        top = max(top, error)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.08 * top)
    axes.set_xlabel("iteration $t$")
    axes.set_ylabel("mean squared error (pixel$^2$)")


def training_curves(metrics: Path, folder: Path, *, selected: int) -> Path:
    """What training climbs, and the validation errors, against the step, from metrics.jsonl.

    The dotted line is the step whose couplings were kept. A one-shot rule climbs nothing and has one panel.
    """
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    climbed = {key: name for key, name in _OBJECTIVES.items() if any(key in line for line in lines)}
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE if climbed else COLUMN, 2.3), layout="constrained")
        *left, right = figure.subplots(1, 2 if climbed else 1, squeeze=False)[0]
        for axes, (key, name) in zip(left, climbed.items(), strict=True):
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            axes.plot(*zip(*points, strict=True), color=MODEL_COLOURS[0], linewidth=0.8)
            axes.set_title("objective, on the jittered images of each batch")
            axes.set_ylabel(name)
        for task, colour in zip(TASK_WORDS, MODEL_COLOURS, strict=False):
            points = [(line["step"], line[f"val/{task}"]) for line in lines if f"val/{task}" in line]
            if points:
                style: Any = {"color": colour, "marker": "o", "markersize": 2.5}
                right.plot(*zip(*points, strict=True), label=TASK_WORDS[task], **style)
        right.set_ylim(0, None)
        right.set_title("error on validation images")
        right.set_ylabel("mean squared error (pixel$^2$)")
        for axes in (*left, right):
            axes.axvline(selected, color="0.45", linestyle=":", label=f"step {selected:,}, kept", zorder=0)
            axes.set_xlabel("step")
        right.legend(frameon=False)
        return save(figure, folder, "training")


def overlap_curves(
    curves: dict[str, dict[str, Tensor]], folder: Path, *, corruption: str, mean_overlap: float
) -> Path:
    """Overlap with the original against t, for rows of the table, on training and test images.

    curves: row -> "training" or "test" -> (images, T + 1). Lines are means, bands standard deviations.
    mean_overlap: that of the training mean with test images, which is high too: pixels fill one quadrant.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 2.5), layout="constrained")
        axes = figure.subplots()
        for index, (row, sets) in enumerate(curves.items()):
            for (images, values), style in zip(sets.items(), ("-", "--"), strict=True):
                mean, std = values.mean(0).numpy(), values.std(0, correction=0).numpy()
                t = np.arange(len(mean))
                colour = MODEL_COLOURS[index]
                axes.plot(t, mean, color=colour, linestyle=style, label=f"{title(row)}, {images}")
                axes.fill_between(t, mean - std, mean + std, color=colour, alpha=0.08, linewidth=0)
        axes.axhline(mean_overlap, color="0.45", linestyle=":", label="training mean, test", zorder=0)
        # t = 0, the corrupted image, has a place on the logarithmic axis too
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(0, None)
        axes.set_xlabel("iteration $t$")
        axes.set_ylabel("overlap with the original (cosine)")
        axes.set_title(f"{corruption} images")
        axes.legend(frameon=False)
        return save(figure, folder, "overlap")


def image_grid(columns: Sequence[tuple[str, Tensor]], folder: Path, name: str, *, heading: str) -> Path:
    """Images in columns with a title each: (title, pixels (rows, C, H, W) in [0, 1])."""
    rows = len(columns[0][1])
    with rc_context(STYLE):
        size = PAGE / 9
        figure = Figure(figsize=(size * len(columns), size * rows + 0.4), layout="constrained")
        figure.suptitle(heading, fontsize=8)
        strips = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, (text, pixels) in zip(strips, columns, strict=True):
            # as wide as an image
            axes.set_title(textwrap.fill(text, 14) if "$" not in text else text, fontsize=7)
            show(axes, below_each_other(pixels))
        return save(figure, folder, name)


def below_each_other(images: Tensor) -> Tensor:
    """Images (rows, C, H, W) as one (C, rows (H + gap) - gap, W), the gaps white."""
    gap = max(1, images.shape[-1] // 10)
    padded = torch.nn.functional.pad(images.clamp(0, 1), (0, 0, 0, gap), value=1.0)
    return padded.movedim(0, 1).flatten(1, 2)[:, :-gap]


def show(axes: Axes, image: Tensor) -> None:
    """Draw pixels (C, H, W), grey or colour, without axes."""
    picture = image.clamp(0, 1).movedim(0, -1).numpy()
    if picture.shape[-1] == 1:
        picture = picture[..., 0]
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
