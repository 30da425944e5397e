"""Is W_Q^T W_K the inverse covariance of its tokens? Does whitening help? What is its rank? docs/theory.md.

Networks are trained here, bare self-attention and a transformer for each task, or loaded (`theory.runs`);
then the ablation of whitening, which trains networks of its own, is left out.
"""

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from attractor.images import ImageSplits
from attractor.lab.config import AttractorConfig, Config, CouplingsName, MeasureName
from attractor.lab.errors import ConfigError
from attractor.lab.network import AttractorNetwork
from attractor.lab.rule_config import PseudoLikelihoodConfig
from attractor.lab.studies.query_key_ablation import ablation
from attractor.lab.studies.query_key_figures import draw_covariance, draw_learning
from attractor.lab.studies.query_key_networks import (
    Studied,
    blocks_of,
    head_matrices,
    loaded,
    mean_errors,
    normalised_states,
    query_key,
    ranks_up_to,
    score_spectra,
    set_head_rank,
    trained_here,
    trained_tokens,
    transformer_config,
)
from attractor.lab.studies.query_key_tables import headline, table
from attractor.lab.studies.study import Results, Tell
from attractor.physics.whitened import token_spectra
from attractor.physics.whitening import spectrum
from attractor.theory.query_key import (
    conjugated,
    cosine,
    effective_rank,
    in_eigenbasis,
    log_slope,
    low_rank,
    pair_targets,
    permuted_sources,
    rank_correlation,
    rotated,
    symmetric,
    without_direction,
)

__all__ = ["check", "draw", "measure", "table"]

_TINY = 1e-9  # ridge of moments that only weigh an approximation, in units of their mean eigenvalue
Draw = Callable[[], Tensor]


def check(config: Config) -> None:
    """Refuse runs that are no such networks, and what networks cannot be made of."""
    fields = query_key(config)
    for name in (
        "images",
        "test_images",
        "draws",
        "steps",
        "seeds",
        "transformer_steps",
        "transformer_batch",
    ):
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
    if fields.runs:
        for run in fields.runs:
            loaded(run, config.data.name)
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
    if fields.width % fields.heads:
        raise ConfigError(f"theory.heads is {fields.heads}; it must divide theory.width={fields.width}")
    transformer_config(config, config.task.names[0].value)


def measure(config: Config, splits: ImageSplits, tell: Tell) -> Results:
    """networks: one entry for each; ablation: one for each way of learning, none with given runs."""
    runs = query_key(config).runs
    studied = (loaded(run, splits.name) for run in runs) if runs else trained_here(config, splits, tell)
    networks = [_network(one, config, splits, tell) for one in studied]
    results: Results = {"networks": networks, "ablation": [] if runs else ablation(config, splits, tell)}
    return results | {"headline": headline(results)}


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """What M is compared with its targets; what whitening and ranks do."""
    return {
        "query_key_covariance": draw_covariance(results, folder),
        "query_key_learning": draw_learning(results, folder),
    }


def _network(one: Studied, config: Config, splits: ImageSplits, tell: Tell) -> dict[str, Any]:
    fields = query_key(config)
    images, test = splits.train[: fields.images], splits.test[: fields.test_images]
    tell(f"{one.label}: against the covariance of its tokens")
    attractor = isinstance(one.network, AttractorNetwork)
    compared = _couplings(one, images, config) if attractor else _layers(one, images, config)
    tell(f"{one.label}: at every rank")
    return {
        "label": one.label,
        "kind": one.kind,
        "seed": one.config.seed,
        "validation": one.validation,
        "compared": compared,
        "ranks": _ranks(one, images, test),
    }


def _layers(one: Studied, images: Tensor, config: Config) -> list[dict[str, Any]]:
    """M of every layer, trained or not, against the inverse covariance of its tokens, centred two ways."""
    rows = []
    for state, network in (("trained", one.network), ("untrained", one.untrained)):
        for layer, (z, block) in enumerate(
            zip(normalised_states(one, network, images), blocks_of(network), strict=True), start=1
        ):
            for centred, tokens in (("mean", z), ("positions", z - z.mean(0))):
                rows.append(
                    {"state": state, "layer": layer, "centred": centred}
                    | _layer(tokens.flatten(0, 1), head_matrices(block)[:, :-1], config)
                )
    return rows


def _layer(tokens: Tensor, heads: Tensor, config: Config) -> dict[str, Any]:
    """Tokens (B N, W), matrices (heads, W, W): in the eigenbasis of the covariance, within its range."""
    found = spectrum(tokens.T.cov(correction=0))
    generator = Generator().manual_seed(config.seed)
    total = in_eigenbasis(heads.sum(0), found)
    each = [in_eigenbasis(head, found) for head in heads]
    inverse = torch.diag(1 / found.values)
    # the best approximation of Sigma^-1 that a head can be: its largest eigenvalues, the smallest of Sigma
    rank = min(heads.shape[1] // len(heads), found.rank)
    reached = torch.diag(torch.where(torch.arange(found.rank) >= found.rank - rank, 1 / found.values, 0.0))
    controls = {
        "rotated": partial(rotated, total, generator=generator),
        "conjugated": partial(conjugated, total, generator=generator),
    }
    gains = total.diagonal()
    return {
        "rank": found.rank,
        "values": found.values.tolist(),
        "gains": gains.tolist(),
        "slope": log_slope(found.values, gains),
        "negative": float((gains < 0).double().mean()),
        "cosines": {
            "inverse": cosine(total, inverse),
            "inverse, symmetric part": cosine(symmetric(total), inverse),
            "identity": cosine(total, torch.eye(found.rank, dtype=total.dtype)),
            "covariance": cosine(total, torch.diag(found.values)),
            "identity to inverse": cosine(torch.eye(found.rank, dtype=total.dtype), inverse),
            "heads": [cosine(head, inverse) for head in each],
            "heads, reachable": [cosine(head, reached) for head in each],
        },
        "controls": _controls(controls, {"inverse": inverse}, config),
    }


def _couplings(one: Studied, images: Tensor, config: Config) -> list[dict[str, Any]]:
    """J against its targets: from second moments, and from covariances without the means."""
    assert isinstance(one.network, AttractorNetwork)
    tokens = trained_tokens(one.network, one.config, images).double().cpu()
    couplings = one.network.energy.couplings.weights["couplings"].double().cpu()
    mean = tokens.mean(0)
    rows = []
    for centred in ("no", "mean"):
        x, j = tokens, couplings
        if centred == "mean":
            x, j = tokens - mean, without_direction(couplings, mean)
        targets = pair_targets(x, ridge=query_key(config).ridge)
        if centred == "mean":
            targets = {name: without_direction(target, mean) for name, target in targets.items()}
        rows.append({"centred": centred} | _against(j, targets, x, config))
    return rows


def _against(j: Tensor, targets: dict[str, Tensor], tokens: Tensor, config: Config) -> dict[str, Any]:
    n, _, d, _ = j.shape
    off = ~torch.eye(n, dtype=torch.bool)
    generator = Generator().manual_seed(config.seed)
    identity = torch.eye(d, dtype=j.dtype) * off[..., None, None]
    controls = {
        "permuted": partial(permuted_sources, j, generator=generator),
        "rotated": partial(rotated, j, generator=generator),
    }

    def norms(blocks: Tensor) -> Tensor:
        return blocks.flatten(2).norm(dim=2)[off]

    flat = tokens.flatten(1)
    found = spectrum(flat.T @ flat / len(flat))

    def gains(blocks: Tensor) -> Tensor:
        whole = blocks.transpose(1, 2).reshape(n * d, n * d)
        along: Tensor = in_eigenbasis(whole, found).diagonal()
        return along

    return {
        "norm": float(j.norm()),
        "values": found.values.tolist(),
        "gains": gains(j).tolist(),
        "slopes": {"J": log_slope(found.values, gains(j))}
        | {name: log_slope(found.values, gains(target)) for name, target in targets.items()},
        "cosines": {name: cosine(j, target) for name, target in targets.items()},
        "identity": {name: cosine(identity, target) for name, target in targets.items()},
        "norms": {name: rank_correlation(norms(j), norms(target)) for name, target in targets.items()},
        "controls": _controls(controls, targets, config),
    }


def _controls(draws: Mapping[str, Draw], targets: dict[str, Tensor], config: Config) -> dict[str, Any]:
    """control -> target -> mean and deviation of the cosine over the draws."""
    table: dict[str, Any] = {}
    for control, make in draws.items():
        drawn = torch.tensor(
            [
                [cosine(m, target) for target in targets.values()]
                for m in (make() for _ in range(query_key(config).draws))
            ]
        )
        table[control] = {
            name: [float(values.mean()), float(values.std())]
            for name, values in zip(targets, drawn.T, strict=True)
        }
    return table


def _ranks(one: Studied, images: Tensor, test: Tensor) -> dict[str, Any]:
    """Test errors with all query-key matrices at rank r, their share of the parameters, effective ranks."""
    network = copy.deepcopy(one.network)
    measured = partial(mean_errors, network, one.config, one.tasks, one.readings, test)
    full = measured()
    largest, matrices, cost, at_rank = (
        _coupling_ranks(one, network, images)
        if isinstance(network, AttractorNetwork)
        else _head_ranks(one, network, images)
    )
    ranks = ranks_up_to(largest)
    errors: dict[str, list[dict[str, float]]] = {"plain": [], "weighted": []}
    for rank in ranks:
        for weighting, found in errors.items():
            at_rank(rank, weighting == "weighted")
            found.append(measured())
    counts = effective_rank(matrices).double()
    return {
        "full": full,
        "ranks": ranks,
        "errors": errors,
        "parameters": [cost(rank) for rank in ranks],
        "effective": [float(counts.quantile(q)) for q in (0.1, 0.5, 0.9)],
    }


AtRank = tuple[int, Tensor, Callable[[int], float], Callable[[int, bool], None]]


def _coupling_ranks(one: Studied, network: AttractorNetwork, images: Tensor) -> AtRank:
    stored = network.energy.couplings.weights["couplings"]
    couplings = stored.double().cpu()
    keys = token_spectra(trained_tokens(network, one.config, images).cpu(), ridge=_TINY)
    n, dim = couplings.shape[1:3]

    def at_rank(rank: int, weighted: bool) -> None:
        stored.copy_(low_rank(couplings, rank, keys=keys if weighted else None))

    off = couplings[~torch.eye(n, dtype=torch.bool)]
    return dim, off, lambda rank: 2 * rank * dim / dim**2, at_rank


def _head_ranks(one: Studied, network: Any, images: Tensor) -> AtRank:
    originals = blocks_of(one.network)
    spectra = [score_spectra(z) for z in normalised_states(one, one.network, images)]
    largest = head_matrices(originals[0]).shape[2] // originals[0].heads

    def at_rank(rank: int, weighted: bool) -> None:
        for block, original, (queries, keys) in zip(blocks_of(network), originals, spectra, strict=True):
            block.load_state_dict(original.state_dict())
            if weighted:
                set_head_rank(block, rank, queries=queries, keys=keys)
            else:
                set_head_rank(block, rank, queries=None, keys=None)

    matrices = torch.cat([head_matrices(block)[:, :-1] for block in originals])
    return largest, matrices, lambda rank: rank / largest, at_rank
