"""Universal Hopfield networks and bare self-attention as memories: what they retrieve, of what.

uv run train.py experiment=capacity

Against the number of stored images, the variance of the noise, and the fraction that is occluded.
Source: Millidge et al. 2022, arXiv 2202.04557; docs/theory.md says where this departs from it.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from attractor.baselines.universal import similarity
from attractor.images import Denoise, ImageSplits, Masked, Task
from attractor.lab.config.schema import AttractorConfig, Config
from attractor.lab.errors import ConfigError, configuring
from attractor.lab.experiment.build import build_candidates, build_network
from attractor.lab.experiment.build_rule import build_rule
from attractor.lab.experiment.numbers import deviation
from attractor.studies.capacity.retrieval import (
    BETAS,
    Queries,
    draw_queries,
    draw_stored,
    learn,
    memories,
    retrievals,
    scores,
    separations,
)
from attractor.studies.config import CapacityConfig
from attractor.studies.study import SEEDS, Results, Tell

AXES = {"stored": "images stored", "variances": "variance of the noise", "fractions": "fraction occluded"}
METRICS = {
    "nearest": "fraction nearest to the original",
    "within": "fraction within the threshold of the paper's code",
    "mse": "mean squared error (pixel^2)",
}
EXAMPLES = 4  # images of each corruption
_NUMBERS = {  # lists of positive numbers, and what they stay below
    "stored": math.inf,
    "learned": math.inf,
    "variances": math.inf,
    "fractions": 1.0,
    "powers": math.inf,
    "ridges": math.inf,
}


def check(config: Config) -> None:
    """See `Study`."""
    theory = _theory(config)
    if not isinstance(config.model, AttractorConfig):
        raise ConfigError(
            f"capacity needs an attractor network, not {config.model.name}; use bare_attention"
        )
    lists = {name: getattr(theory, name) for name in ("similarities", "separations", *_NUMBERS)}
    for name, values in lists.items():
        if not values and name != "learned":
            raise ConfigError(f"theory.{name} is empty; give at least one value")
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ConfigError(f"theory.{name} has {twice} more than once; give every value once")
    for name, below in _NUMBERS.items():
        for value in lists[name]:
            if not 0 < value < below:
                most = "finite" if below == math.inf else f"below {below:g}"
                raise ConfigError(f"theory.{name} has {value}; every value must be positive and {most}")
    for name in ("fixed", "queries", "seeds"):
        if getattr(theory, name) < 1:
            raise ConfigError(f"theory.{name} is {getattr(theory, name)}; it must be at least 1")
    if other := sorted({*theory.learned} - {*theory.stored, theory.fixed}):
        raise ConfigError(
            f"theory.learned has {other}, which are neither in theory.stored nor theory.fixed"
        )
    with configuring():
        for name in theory.similarities:
            similarity(name)
        separations(theory)
        Denoise(config.task.noise_variance)
    _check_network(config, config.model)


def check_data(config: Config, splits: ImageSplits) -> None:
    """Refuse to store more images than there are, and to occlude none or all of the tokens."""
    theory = _theory(config)
    most = max(*theory.stored, theory.fixed)
    if most > len(splits.train):
        raise ConfigError(
            f"{most} images are to be stored, but {splits.name} has {len(splits.train)} to train on"
        )
    list(_tasks(config, theory.fixed, splits.side))


def measure(config: Config, splits: ImageSplits, tell: Tell) -> Results:
    """See `Study`. curves: axis -> row -> x, and the scores at each x of each seed."""
    theory = _theory(config)
    counts = sorted({*theory.stored, theory.fixed})
    tasks = {count: list(_tasks(config, count, splits.side)) for count in counts}
    curves: dict[str, dict[str, Any]] = {axis: {} for axis in AXES}
    results: Results = {
        "pixels": splits.train[0].numel(),
        "fixed": theory.fixed,
        "noise_variance": config.task.noise_variance,
        "queries": theory.queries,
        "seeds": theory.seeds,
        "betas": list(BETAS),
        "ridges": list(theory.ridges),
        "network": {"name": config.model.name, "steps": config.train.steps, "seconds": {}},
        "curves": curves,
        "examples": {},
    }
    first = SEEDS * config.seed
    for seed in range(first, first + theory.seeds):
        for count in counts:
            stored = draw_stored(splits.train, seed=seed, count=count)
            known, network = memories(stored, theory), None
            if count in theory.learned:
                tell(f"seed {seed}: learning {count} images")
                network, seconds = learn(config, stored, seed=seed)
                results["network"]["parameters"] = network.parameters
                results["network"]["seconds"].setdefault(str(count), []).append(seconds)
            for axis, x, task in tasks[count]:
                tell(f"seed {seed}: retrieving, {count} stored, {AXES[axis]} {x:g}")
                queries = draw_queries(task, stored, count=theory.queries, seed=config.eval.seed)
                predictions = {}
                for row, prediction, choice in retrievals(stored, queries, known, network, config):
                    found = scores(prediction, queries, stored.keys)
                    _add(curves[axis], row, x, {**found, "choice": choice})
                    predictions[row] = prediction
                if seed == first and _is_example(config, axis, x, count):
                    results["examples"][f"{AXES[axis]} {x:g}"] = _examples(queries, predictions)
    return results | {"headline": _headline(results)}


def table(results: Results) -> str:
    """Means over seeds; the last column is the largest standard deviation over seeds of the row."""
    lines = [f"{results['queries']} queries, {results['seeds']} draws of the stored images"]
    for axis, words in AXES.items():
        points = next(iter(results["curves"][axis].values()))["x"]
        condition = f"noise of variance {results['noise_variance']:g}"
        if axis != "stored":
            condition = f"{results['fixed']} stored"
        for metric, meaning in METRICS.items():
            lines += ["", f"{meaning}, {condition}, against {words}"]
            lines += [" " * 36 + "".join(f"{x:>8g}" for x in points) + "   most ±"]
            for row in sorted(results["curves"][axis], key="mean".__eq__):  # that comes last
                curve = results["curves"][axis][row]
                values = dict(zip(curve["x"], curve[metric], strict=True))
                cells = "".join(f"{fmean(values[x]):8.3f}" if x in values else " " * 8 for x in points)
                spread = max(map(deviation, values.values()))
                lines.append(f"  {row:34}{cells}" + ("" if math.isnan(spread) else f"{spread:8.3f}"))
    network, fixed = results["network"], results["fixed"]
    if "parameters" in network:
        equal = network["parameters"] / results["pixels"]
        spent = {count: fmean(seconds) for count, seconds in network["seconds"].items()}
        lines += [
            "",
            f"numbers stored: {network['name']} {network['parameters']:,}, as many as {equal:,.0f} images; "
            f"a memory of {fixed} images {fixed * results['pixels']:,}",
            "seconds of training: " + ", ".join(f"{s:.1f} ({c} images)" for c, s in spent.items()),
        ]
    return "\n".join(lines)


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """See `Study`."""
    from attractor.studies.capacity import figures  # matplotlib takes a second to import

    return figures.draw(results, folder)


def _check_network(config: Config, model: AttractorConfig) -> None:
    """Refuse what training would refuse, on four tokens: how large the images are is not known."""
    build_candidates(config, evidence=bool(config.dynamics.evidence))
    side = 2 * max(model.patch, 1)
    place: Any = {"device": config.device, "backend": config.backend}
    network = build_network(model, torch.zeros(1, side, side), seed=config.seed, **place)
    build_rule(config.rule, network, {}, seed=config.seed)


def _theory(config: Config) -> CapacityConfig:
    assert isinstance(config.theory, CapacityConfig)
    return config.theory


def _tasks(config: Config, count: int, side: int) -> Iterator[tuple[str, float, Task]]:
    """(axis, x, corruption) of everything that is measured of `count` stored images."""
    theory = _theory(config)
    with configuring():
        if count in theory.stored:
            yield "stored", count, Denoise(config.task.noise_variance)
        if count == theory.fixed:
            for variance in theory.variances:
                yield "variances", variance, Denoise(variance)
            for fraction in theory.fractions:
                occluded = Masked(fraction, patch=config.model.patch)
                occluded.masked_tokens(side)
                yield "fractions", fraction, occluded


def _add(curves: dict[str, Any], row: str, x: float, found: dict[str, Any]) -> None:
    """Append what one seed found at x."""
    curve = curves.setdefault(row, {"x": [], **{name: [] for name in found}})
    if x not in curve["x"]:
        curve["x"].append(x)
        for name in found:
            curve[name].append([])
    for name, value in found.items():
        curve[name][curve["x"].index(x)].append(value)


def _is_example(config: Config, axis: str, x: float, count: int) -> bool:
    """The images that are shown: of the middle of both corruptions."""
    theory = _theory(config)
    middle = {name: getattr(theory, name)[len(getattr(theory, name)) // 2] for name in AXES}
    return count == theory.fixed and axis != "stored" and x == middle[axis]


def _examples(queries: Queries, predictions: dict[str, Tensor]) -> dict[str, Any]:
    """Pixels of the first images as 0 to 255, by row."""
    shown = {"original": queries.scored.original, "seen": queries.scored.corrupted} | predictions
    return {
        row: (images[:EXAMPLES].clamp(0, 1) * 255).round().to(torch.uint8).tolist()
        for row, images in shown.items()
    }


def _headline(results: Results) -> dict[str, float]:
    """Scores at the largest number of stored images, means over seeds."""
    found = {}
    rows = ("euclidean, max", "euclidean, softmax", "dot, softmax", results["network"]["name"], "mean")
    for row in rows:
        curve = results["curves"]["stored"].get(row)
        if curve is not None:
            for metric in ("nearest", "mse"):
                found[f"{row}, {metric}, {curve['x'][-1]} stored"] = fmean(curve[metric][-1])
    return found
