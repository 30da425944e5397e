"""Linear attention is a Hopfield network: what a memory of fixed size holds, forgets and overwrites.

Retrieval against the number of stored pairs for every write rule and separation, the sign network and its
0.138 N, forgetting, overwriting, the normaliser, and memory in the length of a sequence. All that is random
is drawn `theory.seeds` times; images of the training set are the values of the normaliser's part.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch

from attractor.images import ImageSplits
from attractor.lab.config.schema import Config
from attractor.lab.errors import ConfigError, configuring
from attractor.studies.config import FastWeightsConfig
from attractor.studies.fast_weights import memory
from attractor.studies.fast_weights.choices import RULES, SEPARATIONS, delta_name
from attractor.studies.fast_weights.figures import draw
from attractor.studies.fast_weights.report import headline, table
from attractor.studies.fast_weights.retrieval import forgetting, generators, retrieval, summary
from attractor.studies.fast_weights.rewriting import normaliser, overwriting
from attractor.studies.study import Results, Tell
from attractor.theory.sign_network import CRITICAL_LOAD, SignNetwork, overlap, random_patterns

__all__ = ["check", "check_data", "draw", "measure", "table"]  # a `study.Study`

RETRIEVED = 0.95  # overlap of a pattern that counts as retrieved
_LEAST = {
    "seeds": 1,
    "dim": 4,
    "sequences": 1,
    "random_features": 1,
    "rounds": 1,
    "patterns": 1,
    "chunk": 2,
}
# exp(-beta) of two random features of unit tokens is far from underflow, with what a normal projection adds
_COLDEST = 100.0


def check(config: Config) -> None:
    """Refuse names, numbers and sizes that cannot be used: every field, before any work."""
    theory = _theory(config)
    _check_names("separations", theory.separations, SEPARATIONS)
    _check_names("rules", theory.rules, RULES)
    for field, least in _LEAST.items():
        if getattr(theory, field) < least:
            raise ConfigError(f"theory.{field} is {getattr(theory, field)}; it must be at least {least}")
    for field in ("stored", "neurons", "loads", "lengths"):
        _check_ascending(field, getattr(theory, field))
    if theory.neurons[0] < 2 or theory.stored[0] < 2 or theory.lengths[0] < 2:
        raise ConfigError("theory.stored, theory.neurons and theory.lengths start at 2 or more")
    if round(theory.loads[0] * theory.neurons[0]) < 1:
        raise ConfigError(
            f"theory.loads: {theory.loads[0]} of {theory.neurons[0]} neurons is no pattern; use more"
        )
    _check_rates(theory.delta_rates)
    if not 0 < theory.retention < 1:
        raise ConfigError(f"theory.retention is {theory.retention}; it must be between 0 and 1")
    if not 0 < theory.inverse_temperature <= _COLDEST:
        raise ConfigError(
            f"theory.inverse_temperature is {theory.inverse_temperature}; it must be positive and at most "
            f"{_COLDEST:g}, above which random features may underflow"
        )
    with configuring():
        for name in theory.separations:
            SEPARATIONS[name](theory, torch.Generator()).features(theory.dim)


def check_data(config: Config, splits: ImageSplits) -> None:
    """Any images are values; of fewer than theory.stored asks for, there are as many as there are."""


def _check_names(field: str, given: Sequence[str], known: Collection[str]) -> None:
    """Some names, all of them known, each once."""
    if unknown := [name for name in given if name not in known]:
        raise ConfigError(f"theory.{field} has {', '.join(unknown)}; known are {', '.join(known)}")
    if not given or len(set(given)) < len(given):
        raise ConfigError(f"theory.{field} is {list(given)}; name at least one, and each once")


def _check_ascending(field: str, numbers: Sequence[float]) -> None:
    usable = numbers and all(math.isfinite(number) and number > 0 for number in numbers)
    if not usable or list(numbers) != sorted(set(numbers)):
        raise ConfigError(f"theory.{field} is {list(numbers)}; use positive, finite numbers, ascending")


def _check_rates(rates: Sequence[float]) -> None:
    names = {delta_name(rate) for rate in rates}
    if not rates or len(names) < len(rates) or not all(0 < rate < 2 for rate in rates):
        raise ConfigError(
            f"theory.delta_rates is {list(rates)}; use different rates between 0 and 2, from where on the "
            "delta rule diverges"
        )


def measure(config: Config, splits: ImageSplits, tell: Tell) -> Results:
    """See `study.Study`."""
    theory = _theory(config)
    found = retrieval(theory, config.seed, tell)
    signs = _sign_networks(theory, config.seed, tell)
    tell("forgetting")
    faded = forgetting(theory, config.seed)
    tell("overwriting")
    written = overwriting(theory, config.seed)
    tell("the normaliser")
    normalised = normaliser(theory, splits.train, config.seed)
    tell("memory and time")
    held = memory.measure(theory, config.seed)
    results: Results = {
        "dim": theory.dim,
        "seeds": theory.seeds,
        "inverse_temperature": theory.inverse_temperature,
        "retrieval": found,
        "signs": signs,
        "forgetting": faded,
        "overwriting": written,
        "normaliser": normalised,
        "memory": held,
    }
    return results | {"headline": headline(results)}


def _sign_networks(config: FastWeightsConfig, seed: int, tell: Tell) -> dict[str, Any]:
    """Share of patterns with an overlap over 0.95 with the state they run into, started at the pattern."""
    curves = {}
    for neurons in config.neurons:
        tell(f"sign networks, N = {neurons}")
        shares, crossings = [], []
        for generator in generators(config, seed):
            share = []
            for load in config.loads:
                patterns = random_patterns(round(load * neurons), neurons, generator=generator)
                asked = patterns[: config.patterns]
                rest = SignNetwork(patterns).settle(asked, generator=generator)
                share.append(float((overlap(rest, asked) > RETRIEVED).double().mean()))
            shares.append(share)
            crossings.append([_crossing(config.loads, share)])
        curves[str(neurons)] = {"retrieved": summary(shares), "half": summary(crossings)}
    return {
        "loads": list(config.loads),
        "critical": CRITICAL_LOAD,
        "threshold": RETRIEVED,
        "curves": curves,
    }


def _crossing(loads: Sequence[float], share: Sequence[float]) -> float:
    """The load where half of the patterns are retrieved, between loads by a straight line; nan for none."""
    for i in range(1, len(loads)):
        if share[i] < 0.5 <= share[i - 1]:
            part = (share[i - 1] - 0.5) / (share[i - 1] - share[i])
            return loads[i - 1] + part * (loads[i] - loads[i - 1])
    return float("nan")


def _theory(config: Config) -> FastWeightsConfig:
    assert isinstance(config.theory, FastWeightsConfig)
    return config.theory
