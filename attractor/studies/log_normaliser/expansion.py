"""Expansion by attention and contraction by normalisation, in networks: a part of `log_normaliser`.

A map is taken down as after over before: see `theory.expansion`. In a pre-norm transformer each layer has
attention and MLP, which add to the stream h, and two normalisations, of which only the branches see the
result. In bare self-attention an iteration is x + force, and the projection to the sphere.
"""

from collections import defaultdict
from copy import deepcopy
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from attractor.baselines.transformer import Block
from attractor.images import Corrupted
from attractor.lab.experiment.network import AttractorNetwork
from attractor.lab.experiment.transformers import TransformerNetwork
from attractor.physics import random_start
from attractor.studies.study import Results
from attractor.theory.expansion import (
    Expansion,
    covariance,
    deviations,
    expansion,
    explained,
    gaussian_surrogate,
    linear_response,
)
from attractor.theory.log_normaliser import Discrete, attention_update

ITERATIONS = 8  # of bare self-attention, and of a recycled block
_PARTS = ("attention_norm", "queries_keys_values", "attention_out", "hidden_norm", "hidden_out")
_TOKENS = 2000  # of the population in `weightless`


def transformer(network: TransformerNetwork, corrupted: Corrupted, *, seed: int) -> Results:
    """The stages of every layer, in float64, on the corrupted images of its task; layers in order.

    regression_share: of attention's output over tokens, what the moments of keys and values in each image
    and head explain, as they would all of it for many Gaussian ones. surrogate_share: the same where keys
    and values are as many Gaussian draws, by `seed`, under the same queries.
    """
    module = deepcopy(network.module).double()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    heads = 0
    for block in module.blocks:
        assert isinstance(block, Block)
        heads = block.heads
        for part in _PARTS:
            block.get_submodule(part).register_forward_hook(partial(_record, seen[part]))
    x = network.encoding.encode(corrupted.corrupted).double().to(network.device)
    mask = None if corrupted.mask is None else corrupted.mask.to(network.device)
    with torch.inference_mode():
        for _ in islice(module.predictions(x, mask), ITERATIONS):
            pass
    stages: dict[str, list[Results]] = defaultdict(list)
    generator = Generator().manual_seed(seed)
    shares = []
    for layer in range(len(seen["attention_norm"])):
        (h, normed), (_, projected), (mixed, attended), (between, again), (_, fed) = (
            seen[part][layer] for part in _PARTS
        )
        stages["attention"].append(_plain(expansion(h, h + attended)))
        stages["MLP"].append(_plain(expansion(between, between + fed)))
        stages["normalisation"].append(_plain(expansion(h, normed)))
        stages["normalisation before MLP"].append(_plain(expansion(between, again)))
        shares.append(_shares(projected, mixed, heads, generator))
    return {
        "stages": dict(stages),
        "regression_share": [share for share, _ in shares],
        "surrogate_share": [share for _, share in shares],
        "stream": [_size(h) for h, _ in seen["attention_norm"]],
        "normalised": [_size(normed) for _, normed in seen["attention_norm"]],
    }


def _record(into: list[tuple[Tensor, Tensor]], module: nn.Module, given: Any, output: Tensor) -> None:
    into.append((given[0], output))


def _shares(projected: Tensor, mixed: Tensor, heads: int, generator: Generator) -> tuple[float, float]:
    """See `transformer`; projected (B, N, 3 W), mixed (B, N, W)."""
    queries, keys, values = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, d)
    queries = queries / queries.shape[-1] ** 0.5
    attended = mixed.unflatten(-1, (heads, -1)).transpose(1, 2)
    share = explained(attended, linear_response(queries, keys, values))
    pairs = zip(keys.unbind(1), values.unbind(1), strict=True)
    drawn = [gaussian_surrogate(*pair, generator=generator) for pair in pairs]
    keys, values = (torch.stack(heads_of, 1) for heads_of in zip(*drawn, strict=True))
    attended = scaled_dot_product_attention(queries, keys, values, scale=1.0)
    return share, explained(attended, linear_response(queries, keys, values))


def permuted(network: TransformerNetwork, *, seed: int) -> TransformerNetwork:
    """`network` with blocks that have learned nothing but sizes: every row of weights in random order."""
    random = deepcopy(network)
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in random.module.blocks.parameters():
            order = torch.rand(parameter.shape, generator=generator).argsort(-1).to(parameter.device)
            parameter.copy_(parameter.gather(-1, order))
    return random


def bare(network: AttractorNetwork, corrupted: Corrupted) -> Results:
    """Iterations from clean images: x to x + force, and from there to the sphere."""
    stages: dict[str, list[Results]] = defaultdict(list)
    sizes = []
    with torch.inference_mode():
        x = network.encode(corrupted.original)
        for _ in range(ITERATIONS):
            moved = x + network.energy.force(x)
            projected = network.energy.measure.project(moved)
            stages["attention"].append(_plain(expansion(x, moved)))
            stages["normalisation"].append(_plain(expansion(moved, projected)))
            sizes.append(_size(x))
            x = projected
    return {"stages": dict(stages), "stream": sizes}


def shuffled(network: AttractorNetwork, trained: AttractorNetwork, *, seed: int) -> AttractorNetwork:
    """`network` with Gaussian couplings of the size of the trained ones: at J = 0 there is no attention."""
    weight = next(iter(trained.weights.values()))
    size = float(weight.double().square().sum() / trained.parameters) ** 0.5
    random_start(network.energy.couplings, size, generator=Generator().manual_seed(seed))
    return network


def weightless(tokens: Tensor, *, scales: list[float], seed: int) -> list[Results]:
    """x + softmax(x . x) x over a population of tokens (n, D), for tokens times the root of each scale.

    The theory's own layer: queries, keys and values are the tokens, about their mean.
    """
    generator = Generator().manual_seed(seed)
    chosen = torch.randperm(len(tokens), generator=generator)[:_TOKENS]
    population = tokens[chosen].double()
    population = population - population.mean(0)
    found = []
    for scale in scales:
        x = scale**0.5 * population
        found.append({"scale": scale} | _plain(expansion(x[None], attention_update(Discrete(x), x)[None])))
    return found


def _plain(found: Expansion) -> Results:
    return {
        "variance": found.variance,
        "distance": found.distance,
        "eigenvalues": found.eigenvalues.tolist(),
        "gains": found.gains.tolist(),
        "slopes": found.slopes.tolist(),
    }


def _size(tokens: Tensor) -> float:
    """Total variance within images."""
    return float(covariance(deviations(tokens)).trace())
