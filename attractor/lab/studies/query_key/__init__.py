"""Is W_Q^T W_K the inverse covariance of its tokens? Does whitening help? What is its rank? docs/theory.md.

Networks are trained here, bare self-attention and a transformer for each task, or loaded (`theory.runs`);
then the ablation of whitening, which trains networks of its own, is left out.
"""

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attractor.images import ImageSplits
from attractor.lab.config import AttractorConfig, Config, CouplingsName, MeasureName
from attractor.lab.errors import ConfigError
from attractor.lab.network import AttractorNetwork
from attractor.lab.rule_config import PseudoLikelihoodConfig
from attractor.lab.studies.networks import Trained, check_networks, load, networks
from attractor.lab.studies.query_key.ablation import ablation
from attractor.lab.studies.query_key.covariance import couplings, layers
from attractor.lab.studies.query_key.figures import draw_covariance, draw_learning
from attractor.lab.studies.query_key.matrices import (
    blocks_of,
    check_run,
    head_matrices,
    mean_errors,
    query_key,
    ranks_up_to,
    set_head_rank,
)
from attractor.lab.studies.query_key.tables import headline, table
from attractor.lab.studies.study import Results, Tell
from attractor.theory.query_key import effective_rank, factors

__all__ = ["check", "draw", "measure", "table"]


def check(config: Config) -> None:
    """Refuse runs that are no such networks, and what networks cannot be made of."""
    fields = query_key(config)
    for name in ("images", "test_images", "draws", "steps", "seeds"):
        if getattr(fields, name) < 1:
            raise ConfigError(f"theory.{name} is {getattr(fields, name)}; it must be at least 1")
    if fields.draws < 2:
        raise ConfigError("theory.draws is 1; the deviation of the random controls needs at least 2")
    for name in ("ridges", "adam_rates", "sgd_rates"):
        values = getattr(fields, name)
        if not values or not all(0 < value < math.inf for value in values):
            raise ConfigError(f"theory.{name} is {values}; give one or more positive numbers")
    if not 0 < fields.ridge < math.inf:
        raise ConfigError(f"theory.ridge is {fields.ridge}; it must be positive")
    check_networks(config)
    if fields.runs:
        for folder in fields.runs:
            check_run(folder, load(folder, data=config.data.name))
        return
    model = config.model
    if not (
        isinstance(model, AttractorConfig)
        and model.couplings is CouplingsName.pairwise
        and model.measure is not MeasureName.gaussian
        and model.radius is None
        and isinstance(config.rule, PseudoLikelihoodConfig)
    ):
        raise ConfigError(
            "the study trains model=bare_attention by rule=pseudo_likelihood; leave both as they are"
        )


def measure(config: Config, splits: ImageSplits, tell: Tell) -> Results:
    """networks: one entry for each; ablation: one for each way of learning, none with given runs."""
    results: Results = {
        "networks": [_network(one, config, splits, tell) for one in networks(config, splits, tell)],
        "ablation": [] if query_key(config).runs else ablation(config, splits, tell),
    }
    return results | {"headline": headline(results)}


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """What M is compared with its targets; what whitening and ranks do."""
    return {
        "query_key_covariance": draw_covariance(results, folder),
        "query_key_learning": draw_learning(results, folder),
    }


def _network(one: Trained, config: Config, splits: ImageSplits, tell: Tell) -> dict[str, Any]:
    fields = query_key(config)
    images, test = splits.train[: fields.images], splits.test[: fields.test_images]
    tell(f"{one.label}: against the covariance of its tokens")
    attractor = isinstance(one.network, AttractorNetwork)
    compared = couplings(one, images, config) if attractor else layers(one, images, config)
    tell(f"{one.label}: at every rank")
    return {
        "label": one.label,
        "kind": "bare_attention" if attractor else "transformer",
        "patch": one.config.model.patch,
        "seed": one.config.seed,
        "validation": {task: choice.error for task, choice in one.choices.items()},
        "compared": compared,
        "ranks": _ranks(one, test),
    }


def _ranks(one: Trained, test: Tensor) -> dict[str, Any]:
    """Test errors with all query-key matrices at rank r, their share of the parameters, effective ranks."""
    network = copy.deepcopy(one.network)
    measured = partial(mean_errors, network, one.config, one.tasks, one.choices, test)
    full = measured()
    if isinstance(network, AttractorNetwork):
        stored = network.energy.couplings.weights["couplings"]
        original = stored.clone()
        matrices = original[~torch.eye(len(original), dtype=torch.bool)].double().cpu()
        largest = matrices.shape[-1]
        whole = largest**2 / (2 * largest)  # the rank of which two factors are as large as J_ij
    else:
        matrices = torch.cat([head_matrices(block)[:, :-1] for block in blocks_of(network)])
        largest = matrices.shape[-1] // blocks_of(network)[0].heads
        whole = largest
    ranks, errors = ranks_up_to(largest), []
    for rank in ranks:
        if isinstance(network, AttractorNetwork):
            queries, keys = factors(original, rank)
            stored.copy_(queries.mT @ keys)
        else:
            for block, whole_block in zip(blocks_of(network), blocks_of(one.network), strict=True):
                block.load_state_dict(whole_block.state_dict())
                set_head_rank(block, rank)
        errors.append(measured())
    counts = effective_rank(matrices).double()
    return {
        "full": full,
        "ranks": ranks,
        "errors": errors,
        "parameters": [rank / whole for rank in ranks],
        "effective": [float(counts.quantile(q)) for q in (0.1, 0.5, 0.9)],
    }
