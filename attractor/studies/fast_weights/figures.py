"""Figures of the study `fast_weights`: three pages wide, from its results alone."""

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attractor.lab.show.figures import MODEL_COLOURS, PAGE, STYLE, legend_below, save

_COLOURS = dict(zip(("hebbian", "decay", "gate"), MODEL_COLOURS, strict=False))
_DELTA = ("#CC79A7", "#882255", "#8C7BC8")  # of the delta rule, one rate after the other
_WORDS = {
    "hebbian": "Hebbian",
    "decay": "decay",
    "gate": "gate",
    "softmax": "softmax, all pairs kept",
    "elu": "elu + 1",
    "polynomial_2": "polynomial, $n = 2$",
    "polynomial_3": "polynomial, $n = 3$",
    "random_features": "random features",
}
_GREY: Any = {"color": "0.45", "linestyle": "-.", "zorder": 0}


def draw(results: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Every figure: name -> PNG."""
    with rc_context(STYLE):
        return {
            "fast_weights": _retrieval(results, folder),
            "fast_weights_rules": _rules(results, folder),
            "fast_weights_memory": _memory(results["memory"], folder),
        }


def _styles(rules: Iterable[str]) -> dict[str, Any]:
    """Colour and label of every rule, in their order."""
    styles: dict[str, Any] = {}
    shades = cycle(_DELTA)
    for rule in rules:
        name, _, rate = rule.partition(" ")
        if name == "delta":
            styles[rule] = {"color": next(shades), "label": rf"delta rule, $\eta$ = {rate}", "marker": "s"}
        else:
            styles[rule] = {"color": _COLOURS[rule], "label": _WORDS[rule], "marker": "o"}
        styles[rule] |= {"markersize": 2, "linestyle": "--" if rule == "gate" else "-"}
    return styles


def _band(axes: Axes, x: Any, curve: dict[str, Any], **style: Any) -> None:
    """A line of means and a band of a standard deviation over seeds, where there are several."""
    mean = np.array(curve["mean"], dtype=float)
    (line,) = axes.plot(x, mean, **style)
    spread = np.array([np.nan if each is None else each for each in curve["std"]], dtype=float)
    axes.fill_between(x, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, linewidth=0)


def _retrieval(results: dict[str, Any], folder: Path) -> Path:
    """Cosine, with predictions, above accuracy; a column for each separation.

    Of the delta rule the first two rates, so that the lines can be told apart; the table has all.
    """
    found, dim = results["retrieval"], results["dim"]
    separations = [name for name in found["curves"] if name != "softmax"]
    load = np.array(found["stored"]) / dim
    figure = Figure(figsize=(PAGE, 3.6), layout="constrained")
    panels = figure.subplots(2, len(separations), sharex=True, sharey=True, squeeze=False)
    for column, separation in zip(panels.T, separations, strict=True):
        words = _WORDS.get(separation, separation)
        column[0].set_title(f"{words}\n$F$ = {found['features'][separation]:,}")
        for axes, kind in zip(column, ("cosine", "accuracy"), strict=True):
            softmax = found["curves"]["softmax"]["all pairs kept"][kind]["mean"]
            axes.plot(load, softmax, label=_WORDS["softmax"], **_GREY)
            curves = found["curves"][separation]
            left_out = [rule for rule in curves if rule.startswith("delta")][2:]
            for rule, style in _styles(curves).items():
                if rule not in left_out:
                    _band(axes, load, curves[rule][kind], **style)
        if separation in found["predicted"]:
            dotted: Any = {"color": "black", "linestyle": ":", "linewidth": 1.0, "zorder": 5}
            column[0].plot(load, found["predicted"][separation], label="Hebbian, predicted", **dotted)
            for axes in column:
                axes.axvline(found["capacity"][separation] / dim, color="0.8", linewidth=0.8, zorder=-1)
        column[1].set_xlabel("pairs $P / D$")
        column[1].set_xscale("log")
        column[1].set_ylim(0, 1.05)
    panels[0, 0].set_ylabel("cosine to the value")
    panels[1, 0].set_ylabel("nearest value right")
    legend_below(figure, panels.flat)
    return save(figure, folder, "fast_weights")


def _rules(results: dict[str, Any], folder: Path) -> Path:
    """The sign network, forgetting twice, overwriting, and the normaliser twice."""
    figure = Figure(figsize=(PAGE, 4.4), layout="constrained")
    panels = figure.subplots(2, 3)
    _signs(panels[0, 0], results["signs"])
    _forgetting(panels[0, 1], results["forgetting"], "cosine")
    _forgetting(panels[0, 2], results["forgetting"], "accuracy")
    _overwriting(panels[1, 0], results["overwriting"])
    _normaliser(panels[1, 1], results["normaliser"], "scale")
    _normaliser(panels[1, 2], results["normaliser"], "error")
    for axes, letter in zip(panels.flat, "abcdef", strict=True):
        axes.set_title(f"({letter}) {axes.get_title()}")
    legend_below(figure, (panels[0, 1], panels[1, 0], panels[1, 1]))
    return save(figure, folder, "fast_weights_rules")


def _signs(axes: Axes, signs: dict[str, Any]) -> None:
    shades = np.linspace(0.75, 0.0, len(signs["curves"]))
    for shade, (neurons, curves) in zip(shades, signs["curves"].items(), strict=True):
        style: Any = {"color": str(shade), "marker": "o", "markersize": 2, "label": f"$N$ = {neurons}"}
        _band(axes, signs["loads"], curves["retrieved"], **style)
    axes.axvline(signs["critical"], color=MODEL_COLOURS[1], linestyle="--", linewidth=1)
    text: Any = {"color": MODEL_COLOURS[1], "fontsize": 6.5, "ha": "left", "va": "top"}
    axes.text(signs["critical"] + 0.003, 1.04, f"{signs['critical']} $N$", **text)
    axes.set_title("sign network")
    axes.set_xlabel("patterns $P / N$")
    axes.set_ylabel("share with overlap > 0.95")
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, loc="lower left")


def _forgetting(axes: Axes, faded: dict[str, Any], kind: str) -> None:
    ages = np.array(faded["ages"]) + 1
    for rule, style in _styles(faded["curves"]).items():
        _band(axes, ages, faded["curves"][rule][kind], **style)
    for curve in faded["predicted"].values() if kind == "cosine" else ():
        axes.plot(ages, curve, color="black", linestyle=":", linewidth=1, zorder=5, label="predicted")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.05)
    axes.set_title(f"forgetting, {faded['pairs']} pairs stored")
    axes.set_xlabel("age (1: the newest)")
    axes.set_ylabel("cosine to the value" if kind == "cosine" else "nearest value right")


def _overwriting(axes: Axes, written: dict[str, Any]) -> None:
    rounds = written["rounds"]
    softmax = {"softmax": {"label": _WORDS["softmax"], **_GREY}}
    for rule, style in (_styles(rule for rule in written["curves"] if rule != "softmax") | softmax).items():
        _band(axes, rounds, written["curves"][rule]["newest"], **style)
    chance: Any = {"color": "black", "linestyle": ":", "linewidth": 0.8, "zorder": 0}
    axes.plot(rounds, [1 / r for r in rounds], label="one of its values at random", **chance)
    axes.set_ylim(0, 1.05)
    axes.set_title(f"overwriting, {written['keys']} keys")
    axes.set_xlabel("times that each key was written")
    axes.set_ylabel("newest value returned")


def _normaliser(axes: Axes, normalised: dict[str, Any], kind: str) -> None:
    colours = {"elu": MODEL_COLOURS[4], "random_features": MODEL_COLOURS[5]}
    for name, curves in normalised["curves"].items():
        separation, _, kind_of = name.partition(", ")
        if (kind, kind_of) == ("error", "without Z"):
            continue  # thousands of times larger
        words = name.replace(separation, _WORDS.get(separation, separation)).replace("Z", "$Z$")
        style: Any = dict(_GREY)
        if separation in colours:
            dashes = "-" if kind_of == "with Z" else "--"
            style = {"color": colours[separation], "linestyle": dashes, "marker": "o", "markersize": 2}
        _band(axes, normalised["stored"], curves[kind], label=words, **style)
    axes.set_xscale("log")
    if kind == "scale":
        axes.set_yscale("log")
        axes.set_title("normaliser, images as values")
    else:
        axes.set_ylim(0, None)
        axes.set_title("the same, with $Z$")
    axes.set_xlabel("pairs $P$")
    axes.set_ylabel("length $|y| / |v|$" if kind == "scale" else "squared error (pixel$^2$)")


def _memory(held: dict[str, Any], folder: Path) -> Path:
    """Most bytes held, and seconds, against the length of a sequence."""
    figure = Figure(figsize=(PAGE, 2.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    lengths = held["lengths"]
    words = {"chunked": f"chunked, {held['chunk']} tokens", "step": "recurrent, as a stream"}
    words["chunk"] = "chunked, as a stream"
    colours = dict(zip(held["forms"], MODEL_COLOURS, strict=False))
    for name, form in held["forms"].items():
        style: Any = {
            "color": colours[name],
            "marker": "o",
            "markersize": 2.5,
            "label": words.get(name, name),
        }
        left.plot(lengths, np.array(form["work"]) / 2**20, **style)
        right.plot(lengths, form["seconds"], **style)
    for (name, stream), colour in zip(held["streams"].items(), colours.values(), strict=False):
        style = {"color": colour, "linestyle": "--", "label": words[name]}
        left.plot(lengths, np.array(stream["work"]) / 2**20, **style)
    first = next(iter(held["forms"].values()))
    for what, label, line in (
        (first["state"], "state: $M$ and $Z$", ":"),
        (first["outputs"], "outputs, of any form", (0, (1, 1, 4, 1))),
    ):
        left.plot(lengths, np.array(what) / 2**20, color="black", linestyle=line, label=label)
    kept = np.array(held["keys_and_values"]) / 2**20
    left.plot(lengths, kept, label="keys and values of softmax (computed)", **_GREY)
    left.set_ylabel("most bytes of tensors (MiB)")
    right.set_ylabel("processor time (s)")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("length of the sequence $T$")
    legend_below(figure, (left,))
    return save(figure, folder, "fast_weights_memory")
