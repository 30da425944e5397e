"""What the study `query_key` found, as text and as a few numbers."""

from collections.abc import Iterator
from statistics import geometric_mean, mean
from typing import Any

from attractor.lab.experiment.numbers import deviation, with_deviation
from attractor.studies.study import Results

Row = dict[str, Any]
MEANS = {"mean": "the mean", "positions": "position means"}


def table(results: Results) -> str:
    """The three questions, one block of lines each."""
    lines = []
    for network in results["networks"]:
        errors = ", ".join(f"{task} {error:.4f}" for task, error in network["ranks"]["full"].items())
        lines.append(f"{network['label']}: test error {errors}")
        describe = _couplings if network["kind"] == "bare_attention" else _layers
        lines += [f"  {line}" for line in (*describe(network["compared"]), *_ranks(network["ranks"]))]
    if results["ablation"]:
        lines += ["", "whitening (validation: geometric mean of the tasks; deviation over seeds)"]
        lines += [f"  {line}" for line in _ablation(results["ablation"])]
    return "\n".join(lines)


def headline(results: Results) -> dict[str, float]:
    """Cosines and slopes, means over layers and networks; the effect of whitening; ranks within 1 %."""
    numbers: dict[str, float] = {}
    layers = trained_layers(results, centred="mean")
    if layers:
        numbers["transformer_cosine_inverse"] = mean(row["cosines"]["inverse"] for row in layers)
        numbers["transformer_slope"] = mean(row["slope"] for row in layers)
    couplings = coupling_rows(results, centred="mean")
    if couplings:
        numbers["couplings_cosine_hebb"] = mean(row["cosines"]["hebb"] for row in couplings)
        numbers["couplings_cosine_precision"] = mean(
            row["cosines"][f"precision {likeliest(row):g}"] for row in couplings
        )
    for row in results["ablation"]:
        name = f"{row['optimiser']}_{row['variant'].replace(' ', '_')}"
        numbers[f"{name}_test"] = mean(scores(row, "test"))
    for kind, name in (("bare_attention", "couplings"), ("transformer", "transformer")):
        found = [n["ranks"] for n in results["networks"] if n["kind"] == kind]
        if found:
            numbers[f"{name}_rank_within_1_percent"] = max(
                rank_within(ranks, task) for ranks in found for task in ranks["full"]
            )
    return numbers


def trained_layers(results: Results, *, centred: str) -> list[Row]:
    """The layers of all transformers, trained."""
    rows = (row for n in results["networks"] if n["kind"] == "transformer" for row in n["compared"])
    return [row for row in rows if row["state"] == "trained" and row["centred"] == centred]


def coupling_rows(results: Results, *, centred: str) -> list[Row]:
    """The comparisons of J of all networks of bare self-attention."""
    rows = (row for n in results["networks"] if n["kind"] == "bare_attention" for row in n["compared"])
    return [row for row in rows if row["centred"] == centred]


def likeliest(row: Row) -> float:
    """The ridge with which the Gaussian field gives validation images the highest likelihood."""
    return float(max(zip(row["likelihoods"], row["ridges"], strict=True))[1])


def scores(row: Row, split: str) -> list[float]:
    """Of every seed, the geometric mean of the tasks' errors."""
    return [geometric_mean(run[split].values()) for run in row["runs"]]


def rank_within(ranks: Row, task: str, *, excess: float = 0.01) -> int:
    """The lowest rank from which on the error stays within 1 + `excess` of that of the full matrices."""
    limit = (1 + excess) * ranks["full"][task]
    kept = ranks["ranks"][-1]
    for rank, errors in zip(reversed(ranks["ranks"]), reversed(ranks["errors"]), strict=True):
        if errors[task] > limit:
            break
        kept = rank
    return int(kept)


def _layers(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        cosines = row["cosines"]
        drawn = ", ".join(
            f"{name} {found['inverse'][0]:+.3f} ± {found['inverse'][1]:.3f}"
            for name, found in row["controls"].items()
        )
        place = f"{row['state']:9} layer {row['layer']}, less {MEANS[row['centred']]:14}"
        yield (
            f"{place}  slope {row['slope']:+.2f}   negative {row['negative']:.0%}   "
            f"cosine to the inverse {cosines['inverse']:+.3f} "
            f"(symmetric part {cosines['inverse, symmetric part']:+.3f}, {drawn}), "
            f"with a ridge {cosines['inverse with a ridge']:+.3f}, "
            f"to I {cosines['identity']:+.3f}, to Sigma {cosines['covariance']:+.3f}   "
            f"heads to the inverse {_range(cosines['heads'])}, "
            f"to what a head can reach of it {_range(cosines['heads, reachable'])}"
        )


def _range(values: list[float]) -> str:
    return f"{min(values):+.3f} to {max(values):+.3f}"


def _couplings(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        moments = "covariances, means projected out" if row["centred"] == "mean" else "second moments"
        yield f"{moments}; slope of J {row['slopes']['J']:+.2f}"
        for target, value in row["cosines"].items():
            drawn = ", ".join(
                f"{name} {found[target][0]:+.3f} ± {found[target][1]:.3f}"
                for name, found in row["controls"].items()
            )
            # every inverse tends to C as its ridge grows: what of the cosine is not that
            beyond = "" if target == "hebb" else f"   beyond hebb {row['beyond hebb'][target]:+.3f}"
            yield (
                f"  J against {target:16}  cosine {value:+.3f} ({drawn}, identity "
                f"{row['identity'][target]:+.3f})   rank correlation {row['norms'][target]:+.2f}   "
                f"slope {row['slopes'][target]:+.2f}   cosine to hebb {row['to hebb'][target]:+.3f}{beyond}"
            )
        found = ", ".join(
            f"{ridge:g}: {value:.4g}"
            for ridge, value in zip(row["ridges"], row["likelihoods"], strict=True)
        )
        yield f"  log-likelihood of validation images by ridge, nats per dimension: {found}"


def _ranks(ranks: Row) -> Iterator[str]:
    low, middle, high = ranks["effective"]
    yield f"99 % of the norm: {middle:g} singular values ({low:g} to {high:g} in 80 % of the matrices)"
    for task in ranks["full"]:
        found = rank_within(ranks, task)
        cost = ranks["parameters"][ranks["ranks"].index(found)]
        yield f"{task}: within 1 % of the full error from rank {found} on, {cost:.0%} of the parameters"


def _ablation(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        ridge = "" if row["ridge"] is None else f", ridge {row['ridge']:g}"
        tests = {task: [run["test"][task] for run in row["runs"]] for task in row["runs"][0]["test"]}
        errors = ", ".join(f"{task} {_spread(values)}" for task, values in tests.items())
        last = _spread([run["curve"][-1] for run in row["runs"]])
        best = ", ".join(f"{step}: {e:.4f}" for step, e in zip(row["steps"], row["best"], strict=True))
        way = f"{row['optimiser']:5}{row['variant']:26}rate {row['rate']:g}{ridge}"
        yield (f"{way}, of {len(row['screened'])}   validation {last}   test {errors}")
        yield f"{'':31}the lowest of any setting at step {best}"


def _spread(values: list[float]) -> str:
    return with_deviation(mean(values), deviation(values))
