"""The figure of the study `ols_attention`, drawn from its results alone."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attractor.lab.show.figures import MODEL_COLOURS, PAGE, STYLE, legend_below, save
from attractor.studies.study import Results

TITLES = {
    "refit": "least squares of the context",
    "refit_ridge": "the same with the best ridge",
    "constructed": "constructed, labels in weights",
    "constructed_in_context": "constructed, labels in context",
    "in_weights": "trained, labels in weights",
    "in_weights_narrow": "the same, narrow",
    "in_weights_plain": "the same, plain gradient descent",
    "in_context": "trained, labels in context",
    "any_task": "trained for any task",
    "any_context": "trained for any task and context",
}
_CONTEXTS = {
    "training": "that of\ntraining",
    "other": "as many\nother images",
    "few": "{} other\nimages",
    "half": "half of\nthe images",
    "exchanged": "labels\nexchanged",
}
_BLACK, _GREY = "0.1", "0.45"
_BLUE, _RED, _GREEN, _PINK, _LIGHT, _YELLOW = MODEL_COLOURS
_COLOURS = {
    "in_weights": _BLUE,
    "in_weights_narrow": _YELLOW,
    "in_weights_plain": _LIGHT,
    "in_context": _RED,
    "any_task": _GREEN,
    "any_context": _PINK,
}


def draw_figure(results: Results, folder: Path) -> Path:
    """Excess error, overlap with the inverse, gain along each eigenvector, errors in other contexts."""
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 5.8), layout="constrained")
        panels = figure.subplots(2, 2).flatten()
        _excess(panels[0], results)
        _overlaps(panels[1], results)
        _gains(panels[2], results)
        _contexts(panels[3], results)
        legend_below(figure, panels)
        return save(figure, folder, "ols_attention")


def _curves(axes: Axes, results: Results, quantity: str, keys: tuple[str, ...]) -> None:
    """A line for each start."""
    for key in keys:
        entry = results["trained"][key]
        steps = np.array(entry["steps"]) + 1  # so that the start has a place on the logarithmic axis
        for place, values in enumerate(entry[quantity]):
            label = TITLES[key] if place == 0 else None
            axes.plot(steps, values, linewidth=0.8, color=_COLOURS[key], label=label)
    axes.set_xscale("log")
    axes.set_xlabel("step of descent, plus 1")


def _excess(axes: Axes, results: Results) -> None:
    keys = ("in_weights", "in_weights_narrow", "in_weights_plain", "in_context")
    _curves(axes, results, "errors", keys)
    axes.set_yscale("log")
    axes.set_ylabel("training error above least squares\n(share of the variance of the labels)")
    axes.set_title("a) the error: close to its optimum")


def _overlaps(axes: Axes, results: Results) -> None:
    _curves(axes, results, "overlaps", ("in_weights", "in_context", "any_task", "any_context"))
    identity = results["controls"]["identity"]["overlap"][0]
    random = np.array(results["controls"]["random"]["overlap"])
    axes.axhline(1, color=_BLACK, linewidth=0.8, zorder=0)
    axes.axhline(identity, color=_GREY, linestyle="--", linewidth=0.8, zorder=0)
    axes.axhspan(random.min(), random.max(), color="0.85", linewidth=0, label="random $A$, range", zorder=0)
    axes.set_ylabel("overlap of $A = W_Q W_K^T$ with $G^+$\n(cosine, whitened)")
    axes.set_title("b) the weights: $G^+$ only where the tasks ask for it")


def _gains(axes: Axes, results: Results) -> None:
    values = np.array(results["spectrum"])
    axes.plot(values, np.ones_like(values), color=_BLACK, linewidth=0.8, label="constructed, $A = G^+$")
    axes.plot(values, values, color=_GREY, linestyle="--", linewidth=0.8, label="$A = I$")
    best = f"best $A$ for contexts of {results['short_context']}"
    axes.plot(values, results["best"]["gains"], color=_BLACK, linestyle=":", label=best)
    for key, marker in (("in_weights", "x"), ("any_task", "o"), ("any_context", "s")):
        _points(axes, values, results["trained"][key]["gains"], marker=marker, color=_COLOURS[key])
    whole = results["trained"]["in_weights"]["map_gains"]
    style: Any = {
        "marker": "o",
        "color": _BLUE,
        "mfc": "white",
        "label": "the whole map $AGB$",
    }
    _points(axes, values, whole, **style)
    axes.set_xscale("log")
    axes.set_ylim(-0.6, 1.6)
    axes.set_xlabel(r"eigenvalue $\lambda_i$ of $G$ (mean 1)")
    axes.set_ylabel(r"gain $\lambda_i v_i^T A v_i$")
    axes.set_title("c) gain along the eigenvectors of $G$")


def _points(axes: Axes, places: Any, values: list[list[float]], **style: Any) -> None:
    """The mean over starts, with bars from the lowest to the highest."""
    mean, low, high = (reduce(np.array(values), axis=0) for reduce in (np.mean, np.min, np.max))
    fixed: Any = {"linestyle": "none", "markersize": 3, "elinewidth": 0.6, "markeredgewidth": 0.7}
    axes.errorbar(places, mean, [mean - low, high - mean], **fixed | style)


def _contexts(axes: Axes, results: Results) -> None:
    shown: dict[str, Any] = {
        "refit": {"color": _BLACK, "mfc": "white", "marker": "D"},
        "refit_ridge": {"color": _BLACK, "marker": "D"},
        "constructed": {"color": _BLUE, "mfc": "white", "marker": "o"},
        "in_weights": {"color": _BLUE, "marker": "o"},
        "constructed_in_context": {"color": _PINK, "mfc": "white", "marker": "s"},
        "any_context": {"color": _PINK, "marker": "s"},
    }
    names = [name for name in _CONTEXTS if name in results["contexts"]]
    contexts = [results["contexts"][name] for name in names]
    for place, (key, style) in enumerate(shown.items()):
        label = {} if key in _COLOURS else {"label": TITLES[key]}  # the trained ones have their lines
        where = np.arange(len(contexts)) + 0.13 * (place - 2.5)
        starts = np.array([found[key] for found in contexts]).T
        _points(axes, where, starts.tolist(), **style | label | {"markersize": 3.5})
    mean = results["training_mean_mse"]
    axes.axhline(mean, color=_GREY, linestyle=":", label="training mean", zorder=0)
    count = results["short_context"]
    axes.set_xticks(range(len(contexts)), [_CONTEXTS[name].format(count) for name in names], fontsize=6)
    axes.set_ylim(0, None)
    axes.set_xlabel("context")
    axes.set_ylabel("test error (pixel$^2$)")
    axes.set_title("d) other contexts: what the weights do not know")
