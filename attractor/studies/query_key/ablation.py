"""Whitened keys and queries in bare self-attention, ablated: the study `query_key`, part two.

Every way of learning has the same steps, batches and jitter. Its rate, and the ridge of its whitening, are
those with the lowest validation error at the last step, of a seed that is not reported.
"""

import math
from dataclasses import dataclass, replace
from statistics import geometric_mean
from typing import Any

import torch

from attractor.images import ImageSplits, pixel_mean
from attractor.lab.config.schema import Config
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.assessment import validation_batch
from attractor.lab.experiment.build import build_network, build_tasks, validation_candidates
from attractor.lab.experiment.build_rule import jitter_of
from attractor.lab.experiment.network import AttractorNetwork
from attractor.lab.experiment.selection import choose
from attractor.lab.experiment.training import fit
from attractor.physics import SGD, Adam, NonFiniteError, PseudoLikelihood
from attractor.physics.optimisers import Optimiser
from attractor.studies.config import QueryKeyConfig
from attractor.studies.networks import best_choices
from attractor.studies.query_key.matrices import check_positive, mean_errors, query_key, trained_tokens
from attractor.studies.study import SEEDS, Tell
from attractor.theory.whitened import Whitened, token_spectra

_ROTATED_RIDGE = 1e-9  # eigenvectors do not depend on it; it keeps those of eigenvalue 0
# "rotated" has the eigenvectors and not the scale: what Adam gains from axes alone, and SGD cannot gain
VARIANTS = {
    "adam": ("plain", "rotated", "whitened keys", "whitened keys and queries"),
    "sgd": ("plain", "whitened keys", "whitened keys and queries"),
}


def rates(fields: QueryKeyConfig, optimiser: str) -> dict[str, list[float]]:
    """What is whitened -> the rates that are tried."""
    found = fields.adam_rates if optimiser == "adam" else fields.sgd_rates
    return {name.replace("_", " "): list(values) for name, values in found.items()}


def check_ways(fields: QueryKeyConfig) -> None:
    """ConfigError unless every way of learning, and no other, has rates, and whitening has ridges."""
    check_positive("ridges", fields.ridges)
    for optimiser, variants in VARIANTS.items():
        given = rates(fields, optimiser)
        if set(given) != set(variants):
            named = " and ".join(repr(name.replace(" ", "_")) for name in variants)
            raise ConfigError(
                f"theory.{optimiser}_rates has rates for {sorted(given)}; give them for {named}"
            )
        for name, values in given.items():
            check_positive(f"{optimiser}_rates.{name.replace(' ', '_')}", values)


@dataclass(frozen=True)
class Setting:
    """One way of learning: an optimiser, what is whitened, with which ridge, and the learning rate."""

    optimiser: str
    variant: str
    ridge: float | None
    rate: float


def settings(config: Config, optimiser: str, variant: str) -> list[Setting]:
    """The candidates of one way of learning."""
    fields = query_key(config)
    tried = rates(fields, optimiser)[variant]
    ridges = fields.ridges if variant.startswith("whitened") else [None]
    return [Setting(optimiser, variant, ridge, rate) for ridge in ridges for rate in tried]


def ablation(config: Config, splits: ImageSplits, tell: Tell) -> list[dict[str, Any]]:
    """For every way of learning: what validation chose, and of every seed its curve and its test errors.

    best: the lowest error of all settings that were tried at each of the steps that are watched, whatever
    they come to at the end: how fast this way can be. It is of the seed of the screening.
    """
    fields = query_key(config)
    reported = range(SEEDS * config.seed, SEEDS * config.seed + fields.seeds)
    rows = []
    for optimiser, variants in VARIANTS.items():
        for variant in variants:
            tried = []
            for setting in settings(config, optimiser, variant):
                tell(f"{optimiser}, {variant}: rate {setting.rate:g}, ridge {setting.ridge or 0:g}")
                found = trained(config, splits, setting, reported.stop, tested=False)
                tried.append((found["curve"], setting))
            best, chosen = min(tried, key=lambda pair: pair[0][-1])
            if not math.isfinite(best[-1]):
                raise NonFiniteError(f"{optimiser}, {variant} diverged at every rate; give smaller ones")
            runs = []
            for seed in reported:
                tell(f"{optimiser}, {variant}: rate {chosen.rate:g}, seed {seed}")
                runs.append(trained(config, splits, chosen, seed, tested=True))
            rows.append(
                {
                    "optimiser": optimiser,
                    "variant": variant,
                    "rate": chosen.rate,
                    "ridge": chosen.ridge,
                    "screened": [[s.rate, s.ridge, curve[-1]] for curve, s in tried],
                    "steps": watched_steps(fields.steps),
                    "best": [min(errors) for errors in zip(*(curve for curve, _ in tried), strict=True)],
                    "runs": runs,
                }
            )
    return rows


def trained(
    config: Config, splits: ImageSplits, setting: Setting, seed: int, *, tested: bool
) -> dict[str, Any]:
    """The validation error (geometric mean over tasks) along the training, and the errors at its end.

    The error of a training that diverges is infinite from there on.
    """
    config = replace(config, seed=seed)
    network = build_network(config.model, pixel_mean(splits.train), seed=seed, device=config.device)
    assert isinstance(network, AttractorNetwork)
    tasks = build_tasks(config.task, patch=config.model.patch, side=splits.side)
    batches = {
        name: validation_batch(splits, task, images=config.train.validation_images, seed=config.eval.seed)
        for name, task in tasks.items()
    }
    candidates = validation_candidates(config)
    iterations = config.train.validation_steps
    watched = watched_steps(query_key(config).steps)
    curve: list[float] = []
    training = fit(
        network,
        PseudoLikelihood(_optimiser(setting, network, config, splits)),
        images=splits.train,
        steps=query_key(config).steps,
        batch_size=config.train.batch_size,
        learning_rate=setting.rate,
        jitter=jitter_of(config),
        seed=seed,
    )
    try:
        for step in training:
            if step.index in watched:
                found = [
                    choose(network, candidates, batch, screening_steps=iterations, steps=iterations).error
                    for batch in batches.values()
                ]
                curve.append(geometric_mean(found))
    except NonFiniteError:
        return {"curve": curve + [math.inf] * (len(watched) - len(curve))}
    if not tested:
        return {"curve": curve}
    choices = best_choices(config, network, splits, tasks)
    images = splits.test[: query_key(config).test_images]
    return {
        "curve": curve,
        "validation": {task: choice.error for task, choice in choices.items()},
        "test": mean_errors(network, config, tasks, choices, images),
    }


def watched_steps(steps: int) -> list[int]:
    """When the validation error is looked at: after about 1/32, 1/16, 1/8, 1/4, 1/2, 3/4 and all steps."""
    return sorted(
        {max(1, round(steps * share)) for share in (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)}
    )


def _optimiser(
    setting: Setting, network: AttractorNetwork, config: Config, splits: ImageSplits
) -> Optimiser:
    optimiser = Adam() if setting.optimiser == "adam" else SGD()
    if setting.variant == "plain":
        return optimiser
    images = splits.train[: query_key(config).images]
    found = token_spectra(trained_tokens(network, config, images), ridge=setting.ridge or _ROTATED_RIDGE)
    rotated = setting.variant == "rotated"
    turns = torch.stack([s.vectors if rotated else s.whitening for s in found]).to(network.device)
    return Whitened(optimiser, queries=None if setting.variant == "whitened keys" else turns, keys=turns)
