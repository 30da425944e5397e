"""Figures of the study of capacity: by similarity, by separation, and what is called up."""

from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attractor.lab.experiment.numbers import deviation
from attractor.lab.show.figures import MODEL_COLOURS, PAGE, STYLE, save, show

_SIMILARITIES = ("dot", "cosine", "euclidean", "manhattan", "mahalanobis")
_METRICS = {
    "nearest": "original is nearest\n(fraction)",
    "within": "within the threshold of\nthe paper's code (fraction)",
    "mse": "mean squared error\n(pixel$^2$)",
}
_AXES = {
    "stored": "images stored",
    "variances": "variance of the noise (pixel$^2$)",
    "fractions": "fraction of tokens occluded",
}
_SHOWN = (  # rows of the examples that are memories
    "dot, max",
    "cosine, max",
    "euclidean, max",
    "manhattan, max",
    "euclidean, softmax",
    "inverse_euclidean, polynomial 10",
    "dot, identity",
)
_EQUAL = "as many numbers stored as the network has"
Line = tuple[str, dict[str, Any]]  # its label and how it is drawn


def draw(results: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Three figures, PNG and PDF; name -> PNG."""
    with rc_context(STYLE):
        figures = {
            "capacity": _curves(results, _by_similarity(results)),
            "capacity_separations": _curves(results, _by_separation(results)),
            "capacity_examples": _examples(results),
        }
        return {name: save(figure, folder, name) for name, figure in figures.items()}


def _by_similarity(results: dict[str, Any]) -> dict[str, Line]:
    """A colour for each similarity: max drawn through, softmax dashed."""
    lines: dict[str, Line] = {}
    for separation, style in (("max", "-"), ("softmax", "--")):
        for name, colour in zip(_SIMILARITIES, MODEL_COLOURS, strict=False):
            row = f"{name}, {separation}"
            lines[row] = (row, {"color": colour, "linestyle": style})
    return lines | _others(results)


def _by_separation(results: dict[str, Any]) -> dict[str, Line]:
    """A colour for each separation: of the dot product drawn through, of the Euclidean distance dashed."""
    rows = [row.split(", ") for row in results["curves"]["stored"] if ", " in row]
    separations = sorted({row[1] for row in rows}, key=_sharpness)
    lines: dict[str, Line] = {}
    for similarity, style in (("dot", "-"), ("euclidean", "--")):
        for index, separation in enumerate(separations):
            inverse = similarity == "euclidean" and separation not in ("max", "softmax")
            row = f"{'inverse_' * inverse}{similarity}, {separation}"
            colour = MODEL_COLOURS[index % len(MODEL_COLOURS)]
            lines[row] = (row.replace("_", " "), {"color": colour, "linestyle": style})
    return lines | _others(results)


def _sharpness(separation: str) -> float:
    """Identity, polynomials by their power, softmax, max."""
    ends = {"identity": 1.0, "softmax": 1e9, "max": 1e10}
    return ends[separation] if separation in ends else float(separation.rpartition(" ")[2])


def _others(results: dict[str, Any]) -> dict[str, Line]:
    name = results["network"]["name"]
    words = name.replace("_", " ").replace("bare attention", "bare self-attention")
    marked = {"color": "black", "marker": "o", "markersize": 2.5}
    return {
        name: (f"{words}, trained", {**marked, "linewidth": 1.6}),
        f"{name}+evidence": ("the same, with evidence", {**marked, "linestyle": "--"}),
        "mean": ("mean of the stored images", {"color": "0.5", "linestyle": ":"}),
    }


def _curves(results: dict[str, Any], lines: dict[str, Line]) -> Figure:
    """A column for each axis, a row for each metric; the bands are the deviation over seeds."""
    figure = Figure(figsize=(PAGE, 6.0), layout="constrained")
    panels = figure.subplots(len(_METRICS), len(_AXES), sharex="col", sharey="row")
    titles = (
        f"noise of variance {results['noise_variance']:g}",
        f"{results['fixed']} images stored",
        f"{results['fixed']} images stored",
    )
    for column, (axis, text) in enumerate(zip(_AXES, titles, strict=True)):
        for row, metric in enumerate(_METRICS):
            _panel(panels[row, column], results["curves"][axis], metric, lines)
            if column == 0:
                panels[row, 0].set_ylabel(_METRICS[metric])
        panels[0, column].set_title(f"({'abc'[column]}) {text}")
        panels[-1, column].set_xlabel(_AXES[axis])
        if axis != "fractions":
            panels[0, column].set_xscale("log")
    for axes in panels[:-1].flat:
        axes.set_ylim(0, 1.03)
    for axes in panels[-1]:
        axes.set_ylim(0, 1.6 * _largest(results, "mean"))
    equal = results["network"].get("parameters", np.inf) / results["pixels"]
    if equal < panels[0, 0].get_xlim()[1]:
        for axes in panels[:, 0]:
            axes.axvline(equal, color="0.8", label=_EQUAL, linewidth=0.8, zorder=0)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=3, loc="outside lower center")
    return figure


def _panel(axes: Axes, curves: dict[str, Any], metric: str, lines: dict[str, Line]) -> None:
    for row, (label, style) in lines.items():
        if row in curves:
            x = curves[row]["x"]
            values = curves[row][metric]  # (x, seeds)
            mean, std = (np.array([of(seeds) for seeds in values]) for of in (fmean, deviation))
            axes.plot(x, mean, label=label, **style)
            axes.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.1, linewidth=0)


def _largest(results: dict[str, Any], row: str) -> float:
    return max(float(np.max(curves[row]["mse"])) for curves in results["curves"].values())


def _examples(results: dict[str, Any]) -> Figure:
    """Columns of images: what was stored, what is seen of it, and what is called up."""
    name = results["network"]["name"]
    blocks = results["examples"]
    first = next(iter(blocks.values()))
    rows = [row for row in ("original", "seen", *_SHOWN, name, f"{name}+evidence") if row in first]
    count = len(first["original"])
    figure = Figure(figsize=(PAGE * 0.85, PAGE * 0.31 * len(rows) / count), layout="constrained")
    panels = figure.subplots(1, len(blocks), squeeze=False)[0]
    for axes, (words, images) in zip(panels, blocks.items(), strict=True):
        picture = _mosaic(torch.tensor([images[row] for row in rows], dtype=torch.float32) / 255)
        show(axes, picture)
        axes.set_title(words)
    height = picture.shape[-2] / len(rows)
    for place, row in enumerate(rows):
        label = row.replace("_", " ").replace("bare attention", "bare self-attention")
        panels[0].text(
            -0.1 * height, (place + 0.5) * height - 1, label, ha="right", va="center", fontsize=7
        )
    return figure


def _mosaic(images: torch.Tensor) -> torch.Tensor:
    """Images (rows, columns, C, H, W) side by side with a white line to the right and below, (C, ., .)."""
    framed = torch.nn.functional.pad(images, (0, 1, 0, 1), value=1.0)
    return framed.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
