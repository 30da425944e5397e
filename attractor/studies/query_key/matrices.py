"""Tokens and query-key matrices of networks, and their errors when these are changed, for `query_key`."""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from attractor.baselines import Transformer
from attractor.baselines.transformer import Block
from attractor.images import Task, to_pixels
from attractor.lab.config.schema import Config
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.build_rule import jitter_of
from attractor.lab.experiment.evaluation import corruptions, evaluate
from attractor.lab.experiment.network import AttractorNetwork, Network, Recall
from attractor.lab.experiment.selection import Choice
from attractor.lab.experiment.transformers import TransformerNetwork
from attractor.physics import Pairwise
from attractor.studies.config import QueryKeyConfig
from attractor.studies.networks import Trained
from attractor.theory.query_key import factors


def query_key(config: Config) -> QueryKeyConfig:
    """The fields of this study."""
    assert isinstance(config.theory, QueryKeyConfig)
    return config.theory


def check_positive(name: str, values: Sequence[float]) -> None:
    """ConfigError unless `theory.name` has values, all of them positive numbers."""
    if not values or not all(0 < value < math.inf for value in values):
        raise ConfigError(f"theory.{name} is {values}; give one or more positive numbers")


def check_run(folder: str, one: Trained) -> None:
    """ConfigError unless the run is of bare self-attention or of a transformer of several blocks."""
    network = one.network
    if isinstance(network, AttractorNetwork):
        couplings = network.energy.couplings
        fits = isinstance(couplings, Pairwise) and couplings.dense
    else:
        fits = isinstance(network, TransformerNetwork) and isinstance(network.module, Transformer)
    if not fits:
        raise ConfigError(
            f"{folder} is a {one.config.model.name}; the study is of transformers and bare self-attention "
            "whose tokens listen to all others"
        )


def trained_tokens(network: AttractorNetwork, config: Config, images: Tensor) -> Tensor:
    """Tokens (B, N, D) of uint8 images as bare self-attention saw them: with the jitter of training."""
    pixels = to_pixels(images)
    noise = torch.randn(pixels.shape, generator=Generator().manual_seed(config.seed))
    return network.encode(pixels + jitter_of(config) * noise)


def normalised_states(one: Trained, network: Network, images: Tensor) -> list[Tensor]:
    """z = norm(h) before the attention of every block, float64 (B, N, W), on the CPU: what it is made of.

    The images are corrupted as in the task of the transformer.
    """
    assert isinstance(network, TransformerNetwork)
    module = copy.deepcopy(network.module).double()
    (task,) = one.tasks.values()
    corrupted = task.corrupt(to_pixels(images), range(len(images)), seed=one.config.eval.seed)
    tokens = network.encoding.encode(corrupted.corrupted).double().to(network.device)
    mask = None if corrupted.mask is None else corrupted.mask.to(network.device)
    states = []
    with torch.inference_mode():
        h = module.embed(tokens, mask)
        for block in module.blocks:
            assert isinstance(block, Block)
            states.append(block.attention_norm(h).cpu())
            h = block(h)
    return states


def blocks_of(network: Network) -> list[Block]:
    """The blocks of a transformer."""
    assert isinstance(network, TransformerNetwork)
    return [block for block in network.module.blocks if isinstance(block, Block)]


def head_matrices(block: Block) -> Tensor:
    """M_h = [W_Q b_Q]^T W_K / sqrt(head dimension) (heads, W + 1, W), float64; the last row is of b_Q.

    The bias of the keys adds the same number to all scores of a query, which a softmax does not see.
    """
    weight, bias = (p.detach().double() for p in block.queries_keys_values.parameters())
    queries, keys, _ = weight.view(3, block.heads, -1, weight.shape[1])  # (H, W/H, W)
    own = bias.view(3, block.heads, -1, 1)[0]
    scale = math.sqrt(queries.shape[1])
    matrices: Tensor = torch.cat([queries, own], -1).mT @ keys / scale
    return matrices


def set_head_rank(block: Block, rank: int) -> None:
    """Replace W_Q, b_Q and W_K of every head by the factors of its M_h at rank r, the rest by zeros."""
    left, right = factors(head_matrices(block), rank)
    weight, bias = block.queries_keys_values.parameters()
    scale = (weight.shape[1] // block.heads) ** 0.25
    with torch.no_grad():
        parts = weight.view(3, block.heads, -1, weight.shape[1])
        biases = bias.view(3, block.heads, -1)
        parts[:2] = 0
        biases[:2] = 0
        parts[0, :, :rank] = left[..., :-1] * scale
        biases[0, :, :rank] = left[..., -1] * scale
        parts[1, :, :rank] = right * scale


def mean_errors(
    network: Network,
    config: Config,
    tasks: Mapping[str, Task],
    choices: Mapping[str, Choice],
    images: Tensor,
) -> dict[str, float]:
    """task -> mean squared error, pixel^2, at the t that was chosen, of uint8 images."""
    found = {}
    for name, task in tasks.items():
        reading = choices[name].retrieval
        steps = reading.steps or 1
        batches = corruptions(task, images, seed=config.eval.seed, batch_size=config.eval.batch_size)
        result = evaluate({"": Recall(network, reading)}, batches, steps=steps)
        found[name] = float(result.errors[""][:, steps - 1].mean())
    return found


def ranks_up_to(largest: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... and the largest."""
    steps = [k for p in range(12) for k in (2**p, 3 * 2**p // 2)]
    return sorted({k for k in steps if 1 <= k < largest} | {largest})
