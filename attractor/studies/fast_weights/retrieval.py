"""What a memory of fixed size returns of random pairs: retrieval and forgetting, for `fast_weights`.

Keys and values are uniform unit vectors of `dim` = D components. A pair counts as retrieved where the value
nearest in direction to the readout is its own. Predictions are those of `theory.signal_to_noise`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from attractor.baselines.separations import Softmax
from attractor.baselines.similarities import Dot
from attractor.baselines.universal import UniversalMemory
from attractor.lab.experiment.numbers import deviation
from attractor.studies.config import FastWeightsConfig
from attractor.studies.fast_weights.choices import (
    DEGREES,
    SEPARATIONS,
    delta_name,
    memory_of,
    rules_of,
    unit,
)
from attractor.studies.study import SEEDS
from attractor.theory.fast_weights import FastWeights, State
from attractor.theory.feature_maps import Identity
from attractor.theory.signal_to_noise import (
    cosine,
    decayed_noise,
    exponential_noise,
    overwritten_noise,
    polynomial_noise,
)

_SEQUENCES = 2  # of a seed, where many pairs of each are read
_READ = 128  # pairs, at most, that are read of a sequence


def summary(values: list[list[float]]) -> dict[str, list[float | None]]:
    """Mean and standard deviation over seeds of curves [seed][point]; None where there is none."""
    points = list(zip(*values, strict=True))
    spread = [deviation(point) for point in points]
    means = [sum(point) / len(point) for point in points]
    return {
        "mean": [None if math.isnan(each) else each for each in means],
        "std": [None if math.isnan(each) else each for each in spread],
    }


def softmax_memory(queries: Tensor, keys: Tensor, values: Tensor, *, inverse_temperature: float) -> Tensor:
    """The memory that keeps all pairs: queries (B, Q, D), keys (B, P, D), values (B, P, Dv), one by one."""
    kept = (
        UniversalMemory(k, v, similarity=Dot(), separation=Softmax(), beta=inverse_temperature)
        for k, v in zip(keys, values, strict=True)
    )
    return torch.stack([memory.retrieve(q) for memory, q in zip(kept, queries, strict=True)])


def _score(outputs: Tensor, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine with the own value (B, Q), and whether that of all (B, P, Dv) is the nearest in direction."""
    directions = normalize(outputs, dim=-1) @ normalize(values, dim=-1).mT
    own = directions[:, torch.arange(len(places)), places]
    return own, directions.argmax(-1) == places


def generators(config: FastWeightsConfig, seed: int) -> Iterator[Generator]:
    """One for each draw of a measurement."""
    for draw in range(config.seeds):
        yield Generator().manual_seed(SEEDS * seed + draw)


def retrieval(config: FastWeightsConfig, seed: int, tell: Callable[[str], Any]) -> dict[str, Any]:
    """Cosine and accuracy against the number of pairs, for every separation and rule, and for softmax."""
    scores: dict[tuple[str, str], list[list[tuple[float, float]]]] = {}
    features = {}
    for draw, generator in enumerate(generators(config, seed)):
        keys = unit(_SEQUENCES, max(config.stored), config.dim, generator=generator)
        values = unit(*keys.shape, generator=generator)
        for separation in config.separations:
            tell(f"retrieval, {separation.replace('_', ' ')}, draw {draw + 1} of {config.seeds}")
            feature_map = SEPARATIONS[separation](config, generator)
            features[separation] = feature_map.features(config.dim)
            for name, rule_of in rules_of(config).items():
                memory = memory_of(config, feature_map, rule_of(config, generator))
                scores.setdefault((separation, name), []).append(
                    _against_stored(config, memory, keys, values)
                )
        curve = []
        for pairs in config.stored:
            k, v, places = keys[:, :pairs], values[:, :pairs], _places(pairs)
            outputs = softmax_memory(k[:, places], k, v, inverse_temperature=config.inverse_temperature)
            curve.append(_means(*_score(outputs, v, places)))
        scores.setdefault(("softmax", "all pairs kept"), []).append(curve)
    curves: dict[str, Any] = {}
    for (separation, name), drawn in scores.items():
        curves.setdefault(separation, {})[name] = {
            kind: summary([[point[i] for point in curve] for curve in drawn])
            for i, kind in enumerate(("cosine", "accuracy"))
        }
    noise = {name: polynomial_noise(degree, config.dim) for name, degree in DEGREES.items()}
    noise |= {"softmax": exponential_noise(config.inverse_temperature, config.dim)}
    predicted = {
        name: [cosine((pairs - 1) * noise[name]) for pairs in config.stored]
        for name in curves
        if name in noise
    }
    return {
        "stored": list(config.stored),
        "features": features,
        "curves": curves,
        "predicted": predicted,
        "capacity": {name: 1 / each for name, each in noise.items()},
    }


def _places(pairs: int) -> Tensor:
    """Evenly spread over a sequence, so that no age is preferred."""
    return torch.linspace(0, pairs - 1, min(pairs, _READ)).round().long()


def _means(own: Tensor, found: Tensor) -> tuple[float, float]:
    return float(own.mean()), float(found.double().mean())


def _against_stored(
    config: FastWeightsConfig, memory: FastWeights, keys: Tensor, values: Tensor
) -> list[tuple[float, float]]:
    """The pairs are stored once; the memory is read each time that it has come to a number of `stored`."""
    state: State | None = None
    done, curve = 0, []
    for pairs in config.stored:
        state = memory.store(keys[:, done:pairs], values[:, done:pairs], state=state, chunk=config.chunk)
        done, places = pairs, _places(pairs)
        outputs = memory.recall(state, keys[:, places])
        curve.append(_means(*_score(outputs, values[:, :pairs], places)))
    return curve


def forgetting(config: FastWeightsConfig, seed: int) -> dict[str, Any]:
    """Cosine and accuracy of the pair stored a tokens ago, after 8 D pairs, with identity features."""
    pairs = 8 * config.dim
    ages = sorted({round(2 ** (step / 2)) - 1 for step in range(2 * int(math.log2(pairs)) + 1)})
    places = torch.tensor([pairs - 1 - age for age in ages])
    scores: dict[str, list[tuple[list[float], list[float]]]] = {name: [] for name in rules_of(config)}
    for generator in generators(config, seed):
        keys = unit(config.sequences, pairs, config.dim, generator=generator)
        values = unit(*keys.shape, generator=generator)
        for name, rule_of in rules_of(config).items():
            memory = memory_of(config, Identity(), rule_of(config, generator))
            outputs = memory.recall(memory.store(keys, values), keys[:, places])
            own, found = _score(outputs, values, places)
            scores[name].append((own.mean(0).tolist(), found.double().mean(0).tolist()))
    curves = {
        name: {"cosine": summary([c for c, _ in drawn]), "accuracy": summary([a for _, a in drawn])}
        for name, drawn in scores.items()
    }
    size: Any = {"pairs": pairs, "dim": config.dim}
    predictions: dict[str, list[float]] = {
        "hebbian": [cosine(decayed_noise(1.0, age, **size)) for age in ages],
        "decay": [cosine(decayed_noise(config.retention, age, **size)) for age in ages],
    }
    for rate in config.delta_rates:
        predictions[delta_name(rate)] = [cosine(overwritten_noise(age, rate=rate, **size)) for age in ages]
    predicted = {name: curve for name, curve in predictions.items() if name in curves}
    return {"pairs": pairs, "ages": ages, "curves": curves, "predicted": predicted}
