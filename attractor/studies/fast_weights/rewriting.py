"""What the write rules do with a key that is written again, and what the normaliser does to a readout."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from attractor.images import to_pixels
from attractor.studies.config import FastWeightsConfig
from attractor.studies.fast_weights.choices import POSITIVE, SEPARATIONS, memory_of, rules_of, unit
from attractor.studies.fast_weights.retrieval import generators, softmax_memory, summary
from attractor.theory.fast_weights import FastWeights
from attractor.theory.feature_maps import Identity
from attractor.theory.write_rules import Gate, sigmoid_gates

_CLOSED = 20.0  # the field on a gate that closes or opens it, to 2e-9


def overwriting(config: FastWeightsConfig, seed: int) -> dict[str, Any]:
    """D/2 keys, written in rounds with fresh values: how often a key returns its newest, or an older one.

    A marked token, of value 0, stands before each round. The gate here reads that mark and erases, what a
    trained gate could learn to do; the others take it as one more pair.
    """
    keys_count = max(1, config.dim // 2)
    mark = torch.zeros(config.dim, dtype=torch.float64)
    mark[0] = 1
    rules = rules_of(config)
    if "gate" in rules:
        # open for keys, which are orthogonal to the mark, and closed for the mark
        rules["gate"] = lambda config, generator: Gate(
            sigmoid_gates(-2 * _CLOSED * mark[None], torch.tensor([_CLOSED], dtype=torch.float64))
        )
    kept = "softmax"
    scores: dict[str, list[list[list[float]]]] = {name: [] for name in (*rules, kept)}
    for generator in generators(config, seed):
        keys = unit(config.sequences, keys_count, config.dim - 1, generator=generator)
        keys = torch.cat([torch.zeros_like(keys[..., :1]), keys], -1)
        values = unit(config.rounds, *keys.shape, generator=generator)
        marks = mark.expand(config.sequences, 1, -1)
        written_keys = torch.cat([marks, keys], 1)
        for name in scores:
            state, curve = None, []
            for r in range(1, config.rounds + 1):
                if name == kept:
                    pairs = keys.repeat(1, r, 1), torch.cat([*values[:r]], 1)
                    outputs = softmax_memory(keys, *pairs, inverse_temperature=config.inverse_temperature)
                else:
                    memory = memory_of(config, Identity(), rules[name](config, generator))
                    round_values = torch.cat([torch.zeros_like(marks), values[r - 1]], 1)
                    state = memory.store(written_keys, round_values, state=state)
                    outputs = memory.recall(state, keys)
                curve.append(_newest(outputs, values[:r]))
            scores[name].append(curve)
    return {
        "keys": keys_count,
        "rounds": list(range(1, config.rounds + 1)),
        "curves": {
            name: {
                kind: summary([[point[i] for point in curve] for curve in drawn])
                for i, kind in enumerate(("newest", "older", "cosine"))
            }
            for name, drawn in scores.items()
        },
    }


def _newest(outputs: Tensor, values: Tensor) -> list[float]:
    """Of outputs (B, K, Dv) and the values of all rounds (R, B, K, Dv).

    Shares of keys whose nearest value is their newest and an older one of theirs; cosine with the newest.
    """
    rounds, _, count, _ = values.shape
    directions = torch.einsum("bkd,rbld->bkrl", normalize(outputs, dim=-1), values).flatten(2)
    nearest = directions.argmax(-1)  # r K + l
    own = nearest % count == torch.arange(count)
    newest = own & (nearest // count == rounds - 1)
    cosine = cosine_similarity(outputs, values[-1], dim=-1)
    return [float(each.double().mean()) for each in (newest, own & ~newest, cosine)]


def normaliser(config: FastWeightsConfig, images: Tensor, seed: int) -> dict[str, Any]:
    """Readouts with and without Z against the number of pairs: random keys, images (M, C, H, W) for values.

    For both positive separations, with the Hebbian rule. Error is per pixel, in squared pixel units;
    "found" the share whose nearest stored image (Euclidean) is their own, "found by direction" the same by
    cosine, which a scale does not change. The reference is the mean of the stored images.
    """
    stored = sorted({min(pairs, len(images)) for pairs in config.stored})
    scores: dict[str, list[list[list[float]]]] = {}
    for generator in generators(config, seed):
        order = torch.randperm(len(images), generator=generator)[: stored[-1]]
        values = to_pixels(images[order], torch.float64).flatten(1)[None]  # (1, P, pixels)
        keys = unit(1, values.shape[1], config.dim, generator=generator)
        memories = {
            f"{separation}, {word} Z": FastWeights(
                config.dim, values.shape[-1], feature_map=feature_map, normalised=word == "with"
            )
            for separation in POSITIVE
            for feature_map in [SEPARATIONS[separation](config, generator)]
            for word in ("without", "with")
        }
        for name, memory in memories.items():
            pairs = [(keys[:, :p], values[:, :p]) for p in stored]
            curve = [_closeness(memory.recall(memory.store(k, v), k), v) for k, v in pairs]
            scores.setdefault(name, []).append(curve)
        means = [values[:, :p].mean(1, keepdim=True).expand(1, p, -1) for p in stored]
        curve = [_closeness(mean, values[:, : mean.shape[1]]) for mean in means]
        scores.setdefault("mean image", []).append(curve)
    return {
        "stored": stored,
        "curves": {
            kind: {
                measure: summary([[point[i] for point in curve] for curve in drawn])
                for i, measure in enumerate(("error", "scale", "found", "found by direction"))
            }
            for kind, drawn in scores.items()
        },
    }


def _closeness(outputs: Tensor, values: Tensor) -> list[float]:
    """Squared error, |y| / |v|, shares found by distance and by direction; both are (1, P, pixels)."""
    own = torch.arange(values.shape[1])
    by_distance = torch.cdist(outputs, values).argmin(-1)
    by_direction = (normalize(outputs, dim=-1) @ normalize(values, dim=-1).mT).argmax(-1)
    return [
        float((outputs - values).square().mean()),
        float((outputs.norm(dim=-1) / values.norm(dim=-1)).mean()),
        float((by_distance == own).double().mean()),
        float((by_direction == own).double().mean()),
    ]
