"""The two figures of the study of log-normalisers, from its results alone."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from attractor.lab.show.figures import MODEL_COLOURS, PAGE, STYLE, legend_below, save
from attractor.studies.study import Results

_LETTERS = "abcdef"
_SEEN = 1e-3  # smaller eigenvalues are not drawn: their slopes are noise


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """log_normaliser: the theory on populations; log_normaliser_expansion: networks, first of each kind."""
    drawn = {"log_normaliser": _theory(results, folder)}
    if results["networks"]:
        drawn["log_normaliser_expansion"] = _expansion(results, folder)
    return drawn


def _theory(results: Results, folder: Path) -> Path:
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 4.9), layout="constrained")
        panels = figure.subplots(2, 3).flat
        axes = list(panels)
        _sampling(axes[0], results["sampling"])
        variances = sorted({row["variance"] for row in results["shapes"]})
        for panel, variance in zip(axes[1:3], variances, strict=True):
            _shapes(panel, [row for row in results["shapes"] if row["variance"] == variance])
            panel.set_title(f"shapes, $\\Sigma = {variance:g}\\,I$")
        style: Any = {"ncols": 2, "handlelength": 1.1, "columnspacing": 0.7, "handletextpad": 0.4}
        axes[1].legend(frameon=False, loc="lower center", **style)
        _growth(axes[3], results["growth"])
        _bound(axes[4], results["bound"])
        _weightless(axes[5], results["weightless"])
        _letter([panel for panel in axes if panel.has_data()])
        return save(figure, folder, "log_normaliser")


def _letter(panels: list[Axes]) -> None:
    for letter, axes in zip(_LETTERS, panels, strict=False):
        axes.set_title(f"({letter}) {axes.get_title()}", loc="left")
        axes.set_title("")


def _sampling(axes: Axes, rows: list[Results]) -> None:
    for row, colour in zip((row for row in rows if row["dim"] == 2), MODEL_COLOURS, strict=False):
        axes.plot(row["draws"], row["predicted"], color=colour, linewidth=0.9)
        style: Any = {"color": colour, "marker": "o", "markersize": 2.5, "linestyle": "none"}
        label = f"{row['strength']:g}"
        axes.errorbar(row["draws"], row["error"], yerr=row["standard_error"], label=label, **style)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="draws $n$",
        ylabel="error (standard deviations)",
        ylim=(0.0007, 30),
    )
    axes.set_title("softmax against $\\mu+\\Sigma\\eta$")
    title = "$(\\eta^T\\Sigma\\,\\eta)^{1/2}$"
    axes.legend(
        frameon=False,
        title=title,
        title_fontsize=6.5,
        ncols=3,
        loc="lower left",
        columnspacing=0.7,
        handletextpad=0.1,
    )


def _shapes(axes: Axes, rows: list[Results]) -> None:
    colours = ("0.3", *MODEL_COLOURS)
    for row, colour in zip(rows, colours, strict=False):
        values = np.array(row["gaussian"])
        t = np.arange(values.shape[1])
        exact = row["shape"] == "equilibrium"
        label = "Gaussian, exact" if exact else row["shape"]
        axes.plot(t, values.mean(0), color=colour, linestyle="--" if exact else "-", label=label)
        band: Any = {"facecolor": colour, "alpha": 0.15, "linewidth": 0}
        axes.fill_between(t, values.min(0), values.max(0), **band)
    axes.set(xlabel="iteration", ylabel="distance to the Gaussian (std)", yscale="log", ylim=(0.003, 1))


def _growth(axes: Axes, growth: Results) -> None:
    for order, name, colour in (("3", "skewness", MODEL_COLOURS[0]), ("4", "kurtosis", MODEL_COLOURS[1])):
        values = growth[order]
        axes.plot(growth["variances"], values["predicted"], color=colour, linewidth=0.9)
        style: Any = {"color": colour, "marker": "o", "markersize": 3, "linestyle": "none"}
        axes.plot(growth["variances"], values["measured"], label=name, **style)
    axes.axhline(1, color="0.45", linestyle=":", zorder=0)
    axes.set(xlabel="variance $v$", ylabel="growth in one iteration", xscale="log")
    axes.set_title("the equilibrium repels")
    axes.legend(frameon=False, loc="upper left")


def _bound(axes: Axes, bound: Results) -> None:
    lines = (
        ("exact", "exact", "0.1", "-"),
        ("lower_bound", "lower bound", MODEL_COLOURS[1], "--"),
        ("shared", "one covariance", MODEL_COLOURS[2], "-."),
        ("means", "means alone", MODEL_COLOURS[0], ":"),
    )
    for name, label, colour, style in lines:
        axes.plot(bound["eta"], bound[name], color=colour, linestyle=style, label=label)
    axes.set(xlabel="$\\eta$ along a ray", ylabel="$\\log Z$ (nats)", ylim=(-1, None))
    axes.set_title("three Gaussians in $D=2$")
    axes.legend(frameon=False, loc="upper center")


def _weightless(axes: Axes, populations: dict[str, list[Results]]) -> None:
    rows = next(iter(populations.values()), None)
    if rows is None:  # no bare self-attention whose tokens they are
        axes.set_axis_off()
        return
    for row, colour, marker in zip(rows, MODEL_COLOURS, "os^", strict=False):
        style: Any = {"color": colour, "marker": marker, "markersize": 3, "linestyle": "none"}
        axes.plot(row["eigenvalues"], row["gains"], label=f"x {row['scale']:g}", **style)
    _one_plus(axes)
    axes.set(xlabel="eigenvalue $\\lambda$ of the tokens", ylabel="gain", ylim=(0.95, 3))
    axes.set_title("no weights; line: $1+\\lambda$")
    axes.legend(frameon=False, title="variance", title_fontsize=6.5, loc="upper left")


def _one_plus(axes: Axes) -> None:
    """The prediction 1 + lambda, over what is drawn."""
    axes.set_xscale("log")
    span = np.geomspace(*axes.get_xlim(), 100)
    axes.plot(span, 1 + span, color="0.3", linewidth=0.9, zorder=0)


def _expansion(results: Results, folder: Path) -> Path:
    first = {row["kind"]: row for row in reversed(results["networks"])}
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 4.6), layout="constrained")
        panels = list(figure.subplots(2, 3).flat)
        if "transformer" in first:
            row = first["transformer"]
            _ratios(panels[0], row, ("attention", "MLP", "normalisation"), "layer")
            panels[0].set_title("transformer")
            _slopes(panels[1], row["trained"]["stages"]["attention"], "layer")
            panels[1].set_title("transformer; line: $1+\\lambda$")
            _sizes(panels[2], row)
            _shares(panels[3], row)
        if "bare" in first:
            row = first["bare"]
            _ratios(panels[4], row, ("attention", "normalisation"), "iteration")
            panels[4].set_title("bare self-attention")
            _slopes(panels[5], row["trained"]["stages"]["attention"][:4], "iteration")
            panels[5].set_title("bare; line: $1+\\lambda$")
        shown = [panel for panel in panels if panel.has_data()]
        for panel in panels:
            panel.set_visible(panel in shown)
        _letter(shown)
        legend_below(figure, (panels[0], panels[4]))
        return save(figure, folder, "log_normaliser_expansion")


def _ratios(axes: Axes, row: Results, stages: tuple[str, ...], over: str) -> None:
    colours = dict(zip(("attention", "MLP", "normalisation"), MODEL_COLOURS, strict=False))
    for state, line in (("trained", "-"), ("untrained", ":")):
        for stage in stages:
            values = [step["variance"] for step in row[state]["stages"][stage]]
            style: Any = {"color": colours[stage], "linestyle": line, "marker": "o", "markersize": 2.5}
            axes.plot(range(1, len(values) + 1), values, label=f"{stage}, {state}", **style)
    axes.axhline(1, color="0.45", linewidth=0.8, zorder=0)
    axes.set(yscale="log", xlabel=over, ylabel="total variance, after/before")
    _plain(axes)
    _whole(axes)


def _slopes(axes: Axes, layers: list[Results], over: str) -> None:
    for layer, (step, colour) in enumerate(zip(layers, MODEL_COLOURS, strict=False), start=1):
        style: Any = {"color": colour, "marker": ".", "markersize": 2.5, "linestyle": "none"}
        axes.plot(step["eigenvalues"], step["slopes"], label=f"{layer}", **style)
    axes.set_xscale("log")
    axes.set_xlim(max(_SEEN, axes.get_xlim()[0]), None)
    _one_plus(axes)
    shown = [v for s in layers for e, v in zip(s["eigenvalues"], s["slopes"], strict=True) if e > _SEEN]
    low, high = min(shown), max(shown)
    axes.set_ylim(min(0.5, low) - 0.05 * (high - low), high + 0.45 * (high - low))
    axes.set(xlabel="eigenvalue $\\lambda$ of the cloud", ylabel="slope under attention")
    compact: Any = {"columnspacing": 0.7, "handletextpad": 0.1, "markerscale": 2.5}
    axes.legend(frameon=False, loc="lower right", ncols=5, title=over, title_fontsize=6.5, **compact)


def _sizes(axes: Axes, row: Results) -> None:
    for state, line in (("trained", "-"), ("untrained", ":")):
        for name, label, colour in (
            ("stream", "stream", "0.3"),
            ("normalised", "normalised", MODEL_COLOURS[2]),
        ):
            style: Any = {"color": colour, "linestyle": line, "marker": "o", "markersize": 2.5}
            values = row[state][name]
            axes.plot(range(1, len(values) + 1), values, label=f"{label}, {state}", **style)
    axes.set(yscale="log", xlabel="layer", ylabel="total variance before the layer")
    axes.set_title("transformer")
    axes.legend(frameon=False, loc="upper left")
    axes.set_ylim(None, 3 * axes.get_ylim()[1])
    _plain(axes)
    _whole(axes)


def _shares(axes: Axes, row: Results) -> None:
    low = 0.0
    for state, name, label, colour, line in (
        ("trained", "regression_share", "trained", MODEL_COLOURS[0], "-"),
        ("trained", "surrogate_share", "its Gaussian surrogate", "0.3", "--"),
        ("untrained", "regression_share", "untrained", MODEL_COLOURS[0], ":"),
    ):
        values = row[state][name]
        style: Any = {"color": colour, "linestyle": line, "marker": "o", "markersize": 2.5}
        axes.plot(range(1, len(values) + 1), values, label=label, **style)
        low = min(low, *values)
    axes.set(xlabel="layer", ylabel="explained share of attention", ylim=(1.05 * low, 1.05))
    axes.set_title("$\\langle v\\rangle+\\mathrm{Cov}(v,k)\\,q$")
    axes.legend(frameon=False, loc="best")
    _whole(axes)


def _plain(axes: Axes) -> None:
    """A logarithmic axis of a decade or two, in plain numbers."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _whole(axes: Axes) -> None:
    """Layers and iterations are whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
