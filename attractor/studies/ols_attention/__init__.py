"""Least squares as one forward pass of linear attention, on real images, and whether descent finds it.

Hidden pixels are predicted from the visible ones. Measured are the gap between the constructed layer and
scikit-learn; what descent from random starts finds: the error, the predictions, the weights; and what
constructed and trained layers say when the context changes, which their slow memory does not know.
"""

import math
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch import Generator, Tensor

from attractor.images import ImageSplits
from attractor.lab.config.schema import Config
from attractor.lab.errors import ConfigError
from attractor.physics import NonFiniteError
from attractor.studies.config import OlsAttentionConfig
from attractor.studies.ols_attention.contexts import errors_in_contexts
from attractor.studies.ols_attention.descent import Descent, Regime, regimes, smaller_starts
from attractor.studies.ols_attention.figure import draw_figure
from attractor.studies.ols_attention.measures import (
    controls,
    flatness,
    gains,
    label_overlap,
    map_gains,
    overlap,
    whitened,
)
from attractor.studies.ols_attention.problem import Problem, build_problem
from attractor.studies.ols_attention.tables import table
from attractor.studies.study import SEEDS, Results, Tell
from attractor.theory.ols_attention import LinearTransformer, best_similarity, least_squares_layer
from attractor.theory.query_key import cosine

__all__ = ["check", "check_data", "draw", "measure", "table"]


def check(config: Config) -> None:
    """See `Study`."""
    theory = _theory(config)
    # one image, less its own mean, has nothing left
    for name, least in (("images", 2), ("side", 1), ("steps", 1), ("seeds", 1), ("short_context", 1)):
        if (value := getattr(theory, name)) < least:
            raise ConfigError(f"theory.{name} is {value}; it must be at least {least}")
    if theory.short_context > theory.images:
        raise ConfigError(
            f"theory.short_context={theory.short_context} exceeds theory.images={theory.images}"
        )
    for name in ("ridges", "adam_rates", "plain_rates", "start_scales"):
        values: list[float] = getattr(theory, name)
        allowed = [value for value in values if 0 < value < math.inf or (value == 0 and name == "ridges")]
        needed = name != "start_scales"
        if allowed != values or (needed and not values):
            said = "it needs at least one value, all" if needed else "values must be"
            sign = "0 or more" if name == "ridges" else "positive"
            raise ConfigError(f"theory.{name} is {values}; {said} finite and {sign}")


def check_data(config: Config, splits: ImageSplits) -> None:
    """Refuse too few training images, and pixels of which none can be hidden or seen."""
    _problem(config, splits)


def _problem(config: Config, splits: ImageSplits) -> Problem:
    theory = _theory(config)
    return build_problem(
        splits,
        images=theory.images,
        side=theory.side,
        fraction=config.task.mask_fraction,
        test_images=config.eval.images,
        seed=config.seed,
    )


def measure(config: Config, splits: ImageSplits, tell: Tell) -> Results:
    """See `Study`. Raises NonFiniteError where every rate diverges."""
    theory, problem = _theory(config), _problem(config, splits)
    tell("the constructed layer")
    construction = [_construction(problem, ridge) for ridge in theory.ridges]
    found = regimes(
        problem,
        adam_rates=theory.adam_rates,
        plain_rates=theory.plain_rates,
        count=theory.short_context,
    )
    best = best_similarity(theory.images**0.5 * problem.context[0], context=theory.short_context)
    descents: dict[str, list[Descent]] = {}
    trained: dict[str, Any] = {}
    for key, regime in found.items():
        descents[key], rate = _descents(config, problem, regime, tell)
        trained[key] = {"rate": rate} | _described(problem, descents[key], best)
    starts = _smaller_starts(config, problem, tell)
    tell("other contexts")
    values = problem.spectrum.values
    results: Results = {
        "images": theory.images,
        "short_context": theory.short_context,
        "steps": theory.steps,
        "seeds": theory.seeds,
        "test_images": len(problem.test[0]),
        "visible": problem.context[0].shape[1],
        "hidden": problem.context[1].shape[1],
        "rank": len(values),
        "condition": (values[0] / values[-1]).item(),
        "training_mean_mse": problem.squared_error(torch.zeros_like(problem.test[1]), problem.test),
        "ols_mse": problem.squared_error(problem.test[0] @ problem.least_squares, problem.test),
        "ols_share": 1 - (problem.rows[1].square().sum() / problem.context[1].square().sum()).item(),
        "construction": construction,
        "spectrum": values.tolist(),
        "controls": controls(problem, seeds=theory.seeds, seed=config.seed),
        "best": {"gains": gains(problem, best), "overlap": overlap(problem, best)},
        "trained": trained,
        "smaller_starts": starts,
        "contexts": errors_in_contexts(problem, descents, count=theory.short_context, ridges=theory.ridges),
    }
    return results | {"headline": _headline(results)}


def _theory(config: Config) -> OlsAttentionConfig:
    assert isinstance(config.theory, OlsAttentionConfig)
    return config.theory


def _construction(problem: Problem, ridge: float) -> dict[str, float]:
    """The layer with its weights set, against scikit-learn; `ridge` in mean eigenvalues of the Gram matrix.

    Gaps are the largest of all predictions of test images, as shares of their root mean square.
    """
    (x, y), (x_test, _) = problem.context, problem.test
    layer = least_squares_layer(x, y, ridge=ridge)
    oracle: Any = (
        Ridge(alpha=ridge, fit_intercept=False, solver="svd")
        if ridge
        else LinearRegression(fit_intercept=False)
    )
    reference = x_test.new_tensor(oracle.fit(x.numpy(), y.numpy()).predict(x_test.numpy()))
    size = reference.square().mean().sqrt()
    predicted = layer(x_test, x)
    naive = LinearTransformer(layer.queries, layer.keys, layer.queries, layer.feed_forward, layer.readout)
    return {
        "ridge": ridge,
        "gap": ((predicted - reference).abs().max() / size).item(),
        "labels_gap": ((layer.scores(x_test, x) @ y - reference).abs().max() / size).item(),
        "naive_gap": ((naive(x_test, x) - reference).abs().max() / size).item(),
        "validation_mse": problem.squared_error(layer(problem.validation[0], x), problem.validation),
        "mse": problem.squared_error(predicted, problem.test),
    }


def _descents(config: Config, problem: Problem, regime: Regime, tell: Tell) -> tuple[list[Descent], float]:
    """Every start at one rate: the best of the screening, or the next where a start diverges at it."""
    theory = _theory(config)

    def draws(place: int) -> Generator:
        return Generator().manual_seed(SEEDS * config.seed + place)

    tell(f"{regime.title}: rates")
    # the seed of the rates is none of the others
    for rate in regime.ranked_rates(draws(0), theory.steps):
        done = []
        try:
            for place in range(1, theory.seeds + 1):
                tell(f"{regime.title}: start {place} of {theory.seeds}, rate {rate:g}")
                done.append(regime.descend(draws(place), theory.steps, rate, lambda a: overlap(problem, a)))
        except ArithmeticError:
            continue
        return done, rate
    raise NonFiniteError(
        f"{regime.title}: a start diverges at every rate of {regime.rates}; give lower ones, "
        "theory.adam_rates or, for plain gradient descent, theory.plain_rates"
    )


def _smaller_starts(config: Config, problem: Problem, tell: Tell) -> list[dict[str, Any]]:
    """Where descent from smaller starts ends, with the labels in the weights: lists over starts."""
    theory = _theory(config)
    rates: Any = {"adam_rates": theory.adam_rates, "plain_rates": theory.plain_rates}
    found = []
    for scale in theory.start_scales:
        for method, regime in smaller_starts(problem, scale=scale, **rates).items():
            done, rate = _descents(config, problem, regime, tell)
            errors, overlaps = ([getattr(one, name)[-1] for one in done] for name in ("errors", "overlaps"))
            entry = {"scale": scale, "method": method, "rate": rate, "errors": errors, "overlaps": overlaps}
            found.append(entry)
    return found


def _described(problem: Problem, descents: list[Descent], best: Tensor) -> dict[str, Any]:
    """What was found: a list over starts of everything."""
    found = [_of_one(problem, done, best) for done in descents]
    return {"steps": descents[0].steps} | {name: [one[name] for one in found] for name in found[0]}


def _of_one(problem: Problem, done: Descent, best: Tensor) -> dict[str, Any]:
    (x, y), x_test = problem.context, problem.test[0]
    similarity, values = done.trainee.layer.similarity, done.trainee.layer.value_map
    root = problem.spectrum.power(0.5)
    predicted, reference = done.trainee.predict(x_test, x, y), x_test @ problem.least_squares
    # the layer is linear in its queries, so that the identity reads its coefficients off
    coefficients = done.trainee.predict(torch.eye(x.shape[1], dtype=x.dtype), x, y)
    return {
        "errors": done.errors,
        "overlaps": done.overlaps,
        "label_overlap": label_overlap(problem, similarity),
        "value_overlap": None
        if done.trainee.labels
        else cosine(root @ values, root @ problem.least_squares),
        "mse": problem.squared_error(predicted, problem.test),
        "prediction_gap": ((predicted - reference).norm() / reference.norm()).item(),
        "cosine": cosine(similarity, problem.spectrum.power(-1)),
        "spectrum": flatness(problem, similarity),
        "best_overlap": cosine(whitened(problem, similarity), whitened(problem, best)),
        "gains": gains(problem, similarity),
        "map_gains": map_gains(problem, coefficients, problem.least_squares),
    }


def _headline(results: Results) -> dict[str, float]:
    trained, first = results["trained"], results["construction"][0]
    return {
        "gap of the constructed layer, relative": first["gap"],
        "excess error, labels in the weights": mean(start[-1] for start in trained["in_weights"]["errors"]),
        "overlap with the inverse, labels in the weights": mean(
            start[-1] for start in trained["in_weights"]["overlaps"]
        ),
        "overlap with the inverse, any task": mean(start[-1] for start in trained["any_task"]["overlaps"]),
        "overlap with the inverse, identity": results["controls"]["identity"]["overlap"][0],
        "overlap with its optimum, any context": mean(trained["any_context"]["best_overlap"]),
    }


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """See `Study`."""
    return {"ols_attention": draw_figure(results, folder)}
