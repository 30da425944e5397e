"""Is W_Q^T W_K the inverse covariance of its tokens? Does whitening help? What is its rank? docs/theory.md.

Networks are trained here, bare self-attention and a transformer for each task, or loaded (`theory.runs`);
then the ablation of whitening, which trains networks of its own, is left out.
"""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attractor.images import ImageSplits
from attractor.lab.config.names import CouplingsName, MeasureName
from attractor.lab.config.rules import PseudoLikelihoodConfig
from attractor.lab.config.schema import AttractorConfig, Config
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.network import AttractorNetwork
from attractor.studies.networks import Trained, check_networks, networks
from attractor.studies.query_key.ablation import ablation, check_ways
from attractor.studies.query_key.covariance import couplings, layers
from attractor.studies.query_key.figures import draw_covariance, draw_learning, draw_ridges
from attractor.studies.query_key.matrices import (
    blocks_of,
    check_positive,
    check_run,
    head_matrices,
    mean_errors,
    query_key,
    ranks_up_to,
    set_head_rank,
)
from attractor.studies.query_key.tables import headline, table
from attractor.studies.study import Results, Tell
from attractor.theory.query_key import effective_rank, factors

__all__ = ["check", "check_data", "draw", "measure", "table"]


def check(config: Config) -> None:
    """Refuse runs that are no such networks, and what networks cannot be made of."""
    fields = query_key(config)
    # 2 for a covariance, and for a deviation
    least = {"images": 2, "test_images": 1, "draws": 2, "steps": 1, "seeds": 1}
    for name, count in least.items():
        if getattr(fields, name) < count:
            raise ConfigError(f"theory.{name} is {getattr(fields, name)}; it must be at least {count}")
    check_positive("target_ridges", fields.target_ridges)
    if len(set(fields.target_ridges)) < len(fields.target_ridges):
        raise ConfigError(f"theory.target_ridges is {fields.target_ridges}; give each ridge once")
    check_ways(fields)
    runs = check_networks(config)
    for folder, one in zip(fields.runs, runs, strict=True):
        check_run(folder, one)
    if runs:
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


def check_data(config: Config, splits: ImageSplits) -> None:
    """Refuse a single training image, of which there is no covariance."""
    if len(splits.train) < 2:
        raise ConfigError("there is 1 training image; a covariance needs 2 or more: see data.train_images")


def measure(config: Config, splits: ImageSplits, tell: Tell) -> Results:
    """networks: one entry for each; ablation: one for each way of learning, none with given runs."""
    results: Results = {
        "networks": [_network(one, config, splits, tell) for one in networks(config, splits, tell)],
        "ablation": [] if query_key(config).runs else ablation(config, splits, tell),
    }
    return results | {"headline": headline(results)}


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """M against its targets; J against its own, at every ridge; what whitening and ranks do."""
    kinds = {network["kind"] for network in results["networks"]}
    drawn = {"query_key_learning": draw_learning(results, folder)}
    if "transformer" in kinds:
        drawn["query_key_covariance"] = draw_covariance(results, folder)
    if "bare_attention" in kinds:
        drawn["query_key_ridges"] = draw_ridges(results, folder)
    return drawn


def _network(one: Trained, config: Config, splits: ImageSplits, tell: Tell) -> dict[str, Any]:
    fields = query_key(config)
    images, test = splits.train[: fields.images], splits.test[: fields.test_images]
    validation = splits.validation[: fields.images]
    tell(f"{one.label}: against the covariance of its tokens")
    attractor = isinstance(one.network, AttractorNetwork)
    compared = couplings(one, images, validation, config) if attractor else layers(one, images, config)
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
