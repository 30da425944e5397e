"""What the study of log-normalisers says: headline and table, from its results alone."""

import math
from collections.abc import Iterator
from statistics import mean, median
from typing import Any

import torch

from attractor.studies.study import Results
from attractor.theory import query_key

# Effective draws n exp(-eta^T Sigma eta) above which the delta method is taken to hold.
_ENOUGH = 20.0


def headline(results: Results) -> dict[str, float]:
    """The few numbers that sum it up; of networks, the mean over those of a kind."""
    ratios = _ratios(results, few=False)
    found = {"sampling_error_over_prediction": median(ratios)} if ratios else {}
    for row in results["shapes"]:
        if row["shape"] in ("equilibrium", "Gaussian"):
            name = "exact" if row["shape"] == "equilibrium" else "softmax"
            moved = mean(seed[-1] for seed in row["start"])
            found[f"gaussian_moved_{name}_variance_{row['variance']:g}"] = moved
    found["bound_smallest_gap"] = results["bound"]["smallest_gap"]
    for kind, state, networks in _kinds(results):
        name = kind if state == "trained" else f"{kind}_{state}"
        for stage in ("attention", "normalisation"):
            values = [gain for row in networks for gain in _stage(row, stage, "variance")]
            found[f"{name}_{stage}_variance_ratio"] = math.exp(mean(map(math.log, values)))
        found[f"{name}_rank_correlation"] = mean(rank_correlation(step) for step in _attention(networks))
        found[f"{name}_directions_that_gain"] = mean(_gaining(step) for step in _attention(networks))
        if kind == "transformer":
            for share in ("regression_share", "surrogate_share"):
                found[f"{name}_{share}"] = mean(v for row in networks for v in row[share])
    return found


def _states(row: Results) -> list[str]:
    return [state for state in ("trained", "permuted", "untrained") if state in row]


def _kinds(results: Results) -> Iterator[tuple[str, str, list[Results]]]:
    """Kind of network, state, and what was found in all such."""
    for kind in ("transformer", "bare"):
        rows = [row for row in results["networks"] if row["kind"] == kind]
        for state in _states(rows[0]) if rows else ():
            yield kind, state, [row[state] for row in rows]


def table(results: Results) -> str:
    """The results as text."""
    lines = ["softmax attention over n draws: measured error over the predicted one"]
    for few, word in ((False, "over"), (True, "under")):
        ratios = _ratios(results, few=few)
        if ratios:
            span = f"{min(ratios):.2f} to {max(ratios):.2f}, median {median(ratios):.2f}"
            lines.append(f"  n exp(-eta^T Sigma eta) {word} {_ENOUGH:g}: {span}")
    lines.append("update and renormalisation: distance to the Gaussian and excess kurtosis, first and last")
    for row in results["shapes"]:
        first, last = (mean(seed[t] for seed in row["gaussian"]) for t in (0, -1))
        heavy, heavier = (mean(seed[t] for seed in row["kurtosis"]) for t in (0, -1))
        lines.append(
            f"  variance {row['variance']:<4g} {row['shape']:12} {first:.3f} -> {last:.3f}   "
            f"kurtosis {heavy:6.2f} -> {heavier:6.2f}"
        )
    lines.append("where they go: points that are left, and the shares of the first five")
    for row in results["limits"]:
        count, shares = len(row["shares"]), _numbers(row["shares"][:5])
        lines.append(f"  variance {row['variance']:<4g} {row['shape']:12} {count} points: {shares}")
    growth = results["growth"]
    lines.append("growth of a small skewness and excess kurtosis in an iteration, measured (predicted)")
    for index, variance in enumerate(growth["variances"]):
        pairs = [(growth[m]["measured"][index], growth[m]["predicted"][index]) for m in ("3", "4")]
        words = "   ".join(f"{measured:5.2f} ({predicted:5.2f})" for measured, predicted in pairs)
        lines.append(f"  variance {variance:<5g} {words}")
    bound = results["bound"]
    lines.append(
        f"lower bound: smallest gap {bound['smallest_gap']:.1e} nats, "
        f"median {bound['relative_gap']:.3f} of log Z"
    )
    for name, rows in results["weightless"].items():
        lines.append(f"the layer without weights on the tokens of bare self-attention, {name}")
        for row in rows:
            pairs = list(zip(row["eigenvalues"], row["gains"], strict=True))
            worst = max(abs(gain / (1 + value) - 1) for value, gain in pairs)
            top = f"largest eigenvalue {pairs[0][0]:.2f}, gain {pairs[0][1]:.2f}"
            lines.append(
                f"  variance x {row['scale']:<3g} {top}; gain off 1 + lambda by {worst:.1%} at most"
            )
    for row in results["networks"]:
        lines += _network_lines(row)
    return "\n".join(lines)


def _network_lines(row: Results) -> list[str]:
    lines = [f"{row['name']}: {row['task']}, error {row['error']:.4f} on validation images"]
    for state in _states(row):
        found = row[state]
        for stage in found["stages"]:
            parts = [f"variance {_numbers(_stage(found, stage, 'variance'))}"]
            parts.append(f"distance {_numbers(_stage(found, stage, 'distance'))}")
            lines.append(f"  {state}, {stage}: " + "; ".join(parts))
        attention = _attention([found])
        shares = [_gaining(step) for step in attention]
        lines.append(f"  {state}, share of directions that attention expands: {_numbers(shares)}")
        ranks = [rank_correlation(step) for step in attention]
        lines.append(f"  {state}, rank correlation of slope and eigenvalue: {_numbers(ranks)}")
        sizes = _numbers(found["stream"])
        lines.append(f"  {state}, total variance of the stream: {sizes}")
        if "normalised" in found:
            sizes = _numbers(found["normalised"])
            lines.append(f"  {state}, the same after normalisation: {sizes}")
            for name, words in (
                ("regression_share", "attention"),
                ("surrogate_share", "as many Gaussian draws"),
            ):
                lines.append(f"  {state}, share of {words} that moments explain: {_numbers(found[name])}")
    return lines


def rank_correlation(step: Results) -> float:
    """Spearman's, of slopes and eigenvalues of a stage: 1 if slopes are 1 + lambda, 0 for a single one."""
    slopes, eigenvalues = (torch.tensor(step[name]) for name in ("slopes", "eigenvalues"))
    return query_key.rank_correlation(slopes, eigenvalues) if len(slopes) > 1 else 0.0


def _gaining(step: Results) -> float:
    """The share of the directions whose gain is above 1."""
    gains: list[float] = step["gains"]
    return sum(gain > 1 for gain in gains) / len(gains)


def _attention(networks: list[Results]) -> list[Results]:
    return [step for row in networks for step in row["stages"]["attention"]]


def _stage(network: Results, stage: str, measure: str) -> list[float]:
    return [step[measure] for step in network["stages"][stage]]


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _ratios(results: Results, *, few: bool) -> list[float]:
    """Measured over predicted errors where the effective draws are few, or where they are enough."""
    found: list[float] = []
    rows: list[Any] = results["sampling"]
    for row in rows:
        for draws, error, predicted in zip(row["draws"], row["error"], row["predicted"], strict=True):
            effective = draws * math.exp(-(row["strength"] ** 2))
            if (effective < _ENOUGH) == few:
                found.append(error / predicted)
    return found
