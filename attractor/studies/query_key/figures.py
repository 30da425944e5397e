"""The figures of the study `query_key`, drawn from its results alone."""

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attractor.lab.show.figures import MODEL_COLOURS, PAGE, STYLE, legend_below, save
from attractor.studies.query_key.tables import likeliest, trained_layers
from attractor.studies.study import Results

_TARGETS = {
    "precision": "$-K_{ij}$",
    "regression": "$-K_{ii}^{-1}K_{ij}$",
    "pair": "$-K'_{ij}$",
}


def draw_covariance(results: Results, folder: Path) -> Path:
    """Transformers: gains along the eigenvectors of the tokens' covariance; cosines, with controls."""
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 3.3), layout="constrained")
        for axes, panel in zip(figure.subplots(1, 2), (_gains, _layer_cosines), strict=True):
            panel(axes, results)
        return save(figure, folder, "query_key_covariance")


def draw_ridges(results: Results, folder: Path) -> Path:
    """Cosines of J to its targets against their ridge, a row of panels for each network."""
    networks = [n for n in results["networks"] if n["kind"] == "bare_attention"]
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 0.6 + 2.3 * len(networks)), layout="constrained")
        panels = figure.subplots(len(networks), 2, squeeze=False, sharey=True)
        for line, network in zip(panels, networks, strict=True):
            for axes, row in zip(line, network["compared"], strict=True):
                _ridge_panel(axes, row)
                name = f"bare self-attention {network['patch']}x{network['patch']}"
                axes.set_title(
                    f"{name}, " + ("second moments" if row["centred"] == "no" else "without the means")
                )
            line[0].set_ylabel("cosine of $J$ to")
        for axes in panels[-1]:
            axes.set_xlabel("ridge (mean eigenvalues)")
        legend_below(figure, panels.flat)
        return save(figure, folder, "query_key_ridges")


def draw_learning(results: Results, folder: Path) -> Path:
    """Validation error against steps for every way of learning; test error against the rank."""
    optimisers = list(dict.fromkeys(row["optimiser"] for row in results["ablation"]))
    kinds = list(dict.fromkeys(network["kind"] for network in results["networks"]))
    count = len(optimisers) + len(kinds)
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 2.4 * ((count + 1) // 2)), layout="constrained")
        rows = figure.subplots((count + 1) // 2, 2, squeeze=False)
        panels = list(rows.flat)
        for axes, optimiser in zip(panels, optimisers, strict=False):
            _curves(axes, [row for row in results["ablation"] if row["optimiser"] == optimiser])
        for axes, kind in zip(panels[len(optimisers) :], kinds, strict=False):
            _rank_panel(axes, [n for n in results["networks"] if n["kind"] == kind])
        for axes in panels[count:]:
            axes.set_axis_off()
        return save(figure, folder, "query_key_learning")


def _gains(axes: Axes, results: Results) -> None:
    """The first transformer, a colour for each layer."""
    network = next(n for n in results["networks"] if n["kind"] == "transformer")
    rows = [row for row in network["compared"] if row["centred"] == "mean"]
    for row in rows:
        values, gains = np.array(row["values"]), np.array(row["gains"])
        positive = gains > 0
        if row["state"] == "untrained":
            style: Any = {"color": "0.75", "s": 5, "zorder": 0}
            axes.scatter(
                values, abs(gains), label="untrained, all layers" if row["layer"] == 1 else None, **style
            )
            continue
        colour = MODEL_COLOURS[(row["layer"] - 1) % len(MODEL_COLOURS)]
        style = {"s": 9, "linewidths": 0.6, "edgecolors": colour}
        axes.scatter(
            values[positive], gains[positive], label=f"layer {row['layer']}", facecolors=colour, **style
        )
        axes.scatter(values[~positive], -gains[~positive], facecolors="none", **style)
    everything = np.concatenate([row["values"] for row in rows if row["state"] == "trained"])
    line = np.geomspace(everything.min(), everything.max(), 20)
    middle = np.sqrt(line[0] * line[-1])
    level = np.median([abs(g) for row in rows if row["state"] == "trained" for g in row["gains"]])
    axes.plot(
        line,
        level * middle / line,
        color="black",
        linestyle="--",
        label=r"predicted, $\propto 1/\lambda_k$",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(r"eigenvalue $\lambda_k$ of the tokens' covariance")
    axes.set_ylabel(r"gain $|v_k\cdot M v_k|$ (hollow: negative)")
    trained = everything.min(), everything.max()
    axes.set_xlim(trained[0] / 3, trained[1] * 3)  # before training some eigenvalues are far smaller
    axes.set_title(network["label"].partition(" seed")[0])
    _below(axes, 2)


def _layer_cosines(axes: Axes, results: Results) -> None:
    """Of all transformers and layers, and of one head at a time."""
    rows = trained_layers(results, centred="mean")
    columns = {
        r"$\Sigma^{-1}$": [row["cosines"]["inverse"] for row in rows],
        r"$\Sigma^{-1}$," + "\nridge": [row["cosines"]["inverse with a ridge"] for row in rows],
        r"$\Sigma^{-1}$," + "\nheads": [value for row in rows for value in row["cosines"]["heads"]],
        "$I$": [row["cosines"]["identity"] for row in rows],
        r"$\Sigma$": [row["cosines"]["covariance"] for row in rows],
    }
    _dots(axes, list(columns.values()), MODEL_COLOURS[0], "trained $M$")
    for shift, (control, colour, label) in enumerate(
        (
            ("rotated", "0.45", "$M$'s singular values, random axes"),
            ("conjugated", MODEL_COLOURS[4], "$M$'s eigenvalues, random axes"),
        )
    ):
        drawn = np.array([row["controls"][control]["inverse"] for row in rows])
        spread = float(np.sqrt((drawn[:, 1] ** 2).mean() + drawn[:, 0].var()))
        style: Any = {"color": colour, "marker": "s", "markersize": 3, "capsize": 2, "linestyle": "none"}
        axes.errorbar(0.28 + 0.14 * shift, drawn[:, 0].mean(), spread, label=label, **style)
    axes.plot(
        0,
        mean(row["cosines"]["identity to inverse"] for row in rows),
        "x",
        color="black",
        label=r"$I$ to $\Sigma^{-1}$",
    )
    axes.set_xticks(range(len(columns)), list(columns))
    axes.axhline(0, color="0.8", linewidth=0.6, zorder=0)
    axes.set_ylim(-0.3, 0.8)
    axes.set_ylabel("cosine to")
    axes.set_title("transformers, all layers")
    _below(axes, 1)


def _ridge_panel(axes: Axes, row: dict[str, Any]) -> None:
    """Lines: J; bands: its sources permuted, mean and deviation; vertical: the likeliest ridge."""
    ridges, permuted = row["ridges"], row["controls"]["permuted"]
    for (target, label), colour, marker in zip(_TARGETS.items(), MODEL_COLOURS, "osD", strict=False):
        names = [f"{target} {ridge:g}" for ridge in ridges]
        style: Any = {"color": colour, "marker": marker, "markersize": 3}
        axes.plot(ridges, [row["cosines"][name] for name in names], label=label, **style)
        drawn = np.array([permuted[name] for name in names])
        axes.plot(ridges, drawn[:, 0], color=colour, linestyle="--", linewidth=0.8)
        low, high = drawn[:, 0] - drawn[:, 1], drawn[:, 0] + drawn[:, 1]
        axes.fill_between(ridges, low, high, color=colour, alpha=0.2, linewidth=0)
    style = {"color": "black", "zorder": 0}
    axes.axhline(row["cosines"]["hebb"], label="$C_{ij}$ (Hebb)", **style)
    axes.axhline(permuted["hebb"][0], linestyle="--", linewidth=0.8, **style)
    axes.plot([], [], color="0.45", linestyle="--", linewidth=0.8, label="sources of $J$ permuted")
    axes.axvline(likeliest(row), color="0.45", linestyle=":", label="likeliest ridge", zorder=0)
    axes.axhline(0, color="0.8", linewidth=0.6, zorder=0)
    axes.set_xscale("log")


def _dots(axes: Axes, columns: list[list[float]], colour: str, label: str, *, shift: float = 0.0) -> None:
    for place, values in enumerate(columns):
        style: Any = {"color": colour, "s": 8, "alpha": 0.7, "linewidths": 0}
        axes.scatter([place + shift] * len(values), values, label=label if place == 0 else None, **style)


def _curves(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """The mean over seeds; the bars are their standard deviation. Dotted: the best setting at each step."""
    for row, colour, marker in zip(rows, MODEL_COLOURS, "osD^", strict=False):
        curves = np.array([run["curve"] for run in row["runs"]])
        spread = curves.std(0, ddof=1) if len(curves) > 1 else None
        style: Any = {"color": colour, "marker": marker, "markersize": 3, "capsize": 2, "elinewidth": 0.7}
        axes.errorbar(row["steps"], curves.mean(0), spread, label=row["variant"], **style)
        axes.plot(row["steps"], row["best"], color=colour, linestyle=":", linewidth=0.9)
    axes.plot(
        [], [], color="0.45", linestyle=":", linewidth=0.9, label="any setting, the best at each step"
    )
    axes.set_xscale("log")
    axes.set_xticks(rows[0]["steps"], [str(step) for step in rows[0]["steps"]])
    axes.minorticks_off()
    axes.set_xlabel("step")
    axes.set_ylabel("validation error (pixel$^2$)")
    name = {"adam": "Adam", "sgd": "SGD"}[rows[0]["optimiser"]]
    axes.set_title(f"bare self-attention, {name}, {len(rows[0]['runs'])} seeds")
    axes.legend(frameon=False, loc="upper right")


def _rank_panel(axes: Axes, networks: list[dict[str, Any]]) -> None:
    """A colour for each task and patch, a line for each network."""
    styles: dict[str, str] = {}
    for network in networks:
        ranks = network["ranks"]
        for task, full in ranks["full"].items():
            name = f"{task}, {network['patch']}x{network['patch']} patches"
            label = None if name in styles else name
            colour = styles.setdefault(name, MODEL_COLOURS[len(styles) % len(MODEL_COLOURS)])
            errors = [found[task] / full for found in ranks["errors"]]
            style: Any = {"color": colour, "marker": "o", "markersize": 2.5}
            axes.plot(ranks["ranks"], errors, label=label, **style)
    axes.axhline(1.01, color="0.45", linestyle=":", label="1 % above full rank", zorder=0)
    axes.set_xscale("log", base=2)
    ticks = sorted({rank for network in networks for rank in network["ranks"]["ranks"]})
    axes.set_xticks(ticks, [str(rank) for rank in ticks])
    bare = networks[0]["kind"] == "bare_attention"
    axes.set_xlabel("rank of every " + ("$J_{ij}$" if bare else "head's $M_h$"))
    axes.set_ylabel("test error / that at full rank")
    axes.set_title("bare self-attention" if bare else "transformers")
    axes.legend(frameon=False)


def _below(axes: Axes, columns: int) -> None:
    style: Any = {"frameon": False, "ncols": columns, "handletextpad": 0.4, "columnspacing": 0.9}
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), **style)
