"""The results of the study `ols_attention` as text."""

from collections.abc import Sequence
from statistics import mean, stdev

from attractor.studies.ols_attention.figure import TITLES
from attractor.studies.study import Results


def table(results: Results) -> str:
    """See `Study`."""
    lines = [
        f"{results['hidden']} hidden from {results['visible']} visible pixels, {results['images']} images, "
        f"rank {results['rank']}, condition {results['condition']:.1e}; error on "
        f"{results['test_images']} test images",
        f"training mean {results['training_mean_mse']:.5f}   least squares {results['ols_mse']:.5f}",
        "",
        "constructed layer: largest gap to scikit-learn, relative",
        f"{'ridge':>8}{'gap':>10}{'by labels':>11}{'naive':>10}{'error':>10}{'validation':>12}",
    ]
    lines += [
        f"{row['ridge']:8g}{row['gap']:10.1e}{row['labels_gap']:11.1e}{row['naive_gap']:10.1e}"
        f"{row['mse']:10.5f}{row['validation_mse']:12.5f}"
        for row in results["construction"]
    ]
    lines += ["", f"{results['steps']} steps, {results['seeds']} starts, mean ± deviation; A against G^+"]
    lines.append(
        _row("", ("excess error", "gap to OLS", "overlap", "on the labels", "spectrum", "test error"))
    )
    for key, entry in results["trained"].items():
        errors, overlaps = ([start[-1] for start in entry[name]] for name in ("errors", "overlaps"))
        columns = (errors, entry["prediction_gap"], overlaps, entry["label_overlap"], entry["spectrum"])
        said = [_spread(column) for column in (*columns, entry["mse"])]
        lines.append(_row(f"{TITLES[key]}, rate {entry['rate']:g}", said))
    for entry in results["smaller_starts"]:
        title = f"start times {entry['scale']:g}, {entry['method']}, rate {entry['rate']:g}"
        lines.append(_row(title, [_spread(entry["errors"]), "", _spread(entry["overlaps"])]))
    for name, entry in results["controls"].items():
        said = [_spread(entry[column]) for column in ("overlap", "label_overlap", "spectrum")]
        lines.append(_row(f"{name} A", ["", "", *said]))
    contexts = results["contexts"]
    lines += ["", "test error in other contexts", _row("", list(contexts))]
    lines += [
        _row(TITLES[key], [_spread(found[key]) for found in contexts.values()])
        for key in contexts["training"]
    ]
    return "\n".join(lines)


def _row(title: str, columns: Sequence[str]) -> str:
    return f"{title:46}" + "".join(f"{column:>18}" for column in columns)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3g} ± {stdev(values):.1g}" if len(values) > 1 else f"{values[0]:.3g}"
