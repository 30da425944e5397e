"""The separations and write rules that `fast_weights` measures, by name, and memories made of them."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from attractor.studies.config import FastWeightsConfig
from attractor.theory.fast_weights import FastWeights
from attractor.theory.feature_maps import (
    EluPlusOne,
    FeatureMap,
    Identity,
    Polynomial,
    PositiveRandomFeatures,
    UnitNorm,
)
from attractor.theory.write_rules import (
    Decay,
    Delta,
    Gate,
    Hebbian,
    WriteRule,
    matched_bias,
    sigmoid_gates,
)

RuleOf = Callable[[FastWeightsConfig, Generator], WriteRule]


def _polynomial(degree: int) -> Callable[[FastWeightsConfig, Generator], FeatureMap]:
    return lambda config, generator: Polynomial(degree)


SEPARATIONS: dict[str, Callable[[FastWeightsConfig, Generator], FeatureMap]] = {
    "identity": lambda config, generator: Identity(),
    "elu": lambda config, generator: EluPlusOne(scale=math.sqrt(config.dim)),
    "polynomial_2": _polynomial(2),
    "polynomial_3": _polynomial(3),
    "random_features": lambda config, generator: PositiveRandomFeatures.draw(
        config.random_features,
        config.dim,
        generator=generator,
        inverse_temperature=config.inverse_temperature,
    ),
}
DEGREES = {"identity": 1, "polynomial_2": 2, "polynomial_3": 3}
POSITIVE = ("elu", "random_features")


def _random_gate(config: FastWeightsConfig, generator: Generator) -> WriteRule:
    """sigmoid(w . k + b) of a random w: fields of variance 1 on unit keys, geometric mean `retention`."""
    weights = math.sqrt(config.dim) * unit(1, config.dim, generator=generator)
    bias = matched_bias(config.retention, config.dim)
    return Gate(sigmoid_gates(weights, torch.tensor([bias], dtype=torch.float64)))


_UNRATED: dict[str, RuleOf] = {
    "hebbian": lambda config, generator: Hebbian(),
    "decay": lambda config, generator: Decay(config.retention),
    "gate": _random_gate,
}
RULES = (*_UNRATED, "delta")


def rules_of(config: FastWeightsConfig) -> dict[str, RuleOf]:
    """Name of a curve -> rule: those of `rules`, "delta" once for each of `delta_rates`."""
    made: dict[str, RuleOf] = {}
    for name in config.rules:
        if name == "delta":
            made |= {delta_name(rate): _delta(rate) for rate in config.delta_rates}
        else:
            made[name] = _UNRATED[name]
    return made


def delta_name(rate: float) -> str:
    """Of the curves of the delta rule at a rate."""
    return f"delta {rate:g}"


def _delta(rate: float) -> RuleOf:
    return lambda config, generator: Delta(rate)


def memory_of(config: FastWeightsConfig, feature_map: FeatureMap, rule: WriteRule) -> FastWeights:
    """Features of unit length for the delta rule, so that a rate of 1 overwrites exactly."""
    if isinstance(rule, Delta):
        feature_map = UnitNorm(feature_map)
    return FastWeights(config.dim, config.dim, feature_map=feature_map, rule=rule)


def unit(*shape: int, generator: Generator) -> Tensor:
    """Uniform unit vectors."""
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)
