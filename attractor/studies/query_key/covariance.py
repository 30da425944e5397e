"""M of transformers and J of bare self-attention against covariances: `query_key`, part one."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from attractor.lab.config.schema import Config
from attractor.lab.experiment.network import AttractorNetwork
from attractor.physics.spectrum import second_moments, spectrum
from attractor.studies.networks import Trained
from attractor.studies.query_key.matrices import (
    blocks_of,
    head_matrices,
    normalised_states,
    query_key,
    trained_tokens,
)
from attractor.theory.query_key import (
    beyond,
    conjugated,
    cosine,
    in_eigenbasis,
    log_likelihood,
    log_slope,
    pair_targets,
    permuted_sources,
    rank_correlation,
    rotated,
    symmetric,
    without_direction,
)

Draw = Callable[[], Tensor]
_RIDGE = (
    0.1  # mean eigenvalues: the smallest ones are most of an inverse, and no trained matrix could know them
)


def layers(one: Trained, images: Tensor, config: Config) -> list[dict[str, Any]]:
    """M of every layer, trained or not, against the inverse covariance of its tokens, centred two ways."""
    rows = []
    for state, network in (("trained", one.network), ("untrained", one.untrained)):
        for layer, (z, block) in enumerate(
            zip(normalised_states(one, network, images), blocks_of(network), strict=True), start=1
        ):
            for centred, tokens in (("mean", z), ("positions", z - z.mean(0))):
                rows.append(
                    {"state": state, "layer": layer, "centred": centred}
                    | _layer(tokens.flatten(0, 1), head_matrices(block)[:, :-1].cpu(), config)
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
            "inverse with a ridge": cosine(
                total, torch.diag(1 / (found.values + _RIDGE * found.values.mean()))
            ),
            "inverse, symmetric part": cosine(symmetric(total), inverse),
            "identity": cosine(total, torch.eye(found.rank, dtype=total.dtype)),
            "covariance": cosine(total, torch.diag(found.values)),
            "identity to inverse": cosine(torch.eye(found.rank, dtype=total.dtype), inverse),
            "heads": [cosine(head, inverse) for head in each],
            "heads, reachable": [cosine(head, reached) for head in each],
        },
        "controls": _controls(controls, {"inverse": inverse}, config),
    }


def couplings(one: Trained, images: Tensor, validation: Tensor, config: Config) -> list[dict[str, Any]]:
    """J against its targets: from second moments, and from covariances without the means.

    At every ridge of the targets, with the log-likelihood of validation images, as J saw the others, under
    the Gaussian field that has it (nats per dimension).
    """
    assert isinstance(one.network, AttractorNetwork)
    tokens, held_out = (
        trained_tokens(one.network, one.config, given).double().cpu() for given in (images, validation)
    )
    stored = one.network.energy.couplings.weights["couplings"].double().cpu()
    mean = tokens.mean(0)
    rows = []
    for centred in ("no", "mean"):
        x, y, j = tokens, held_out, stored
        if centred == "mean":
            x, y, j = tokens - mean, held_out - mean, without_direction(stored, mean)
        targets, likelihoods = {}, []
        for ridge in query_key(config).target_ridges:
            for name, target in pair_targets(x, ridge=ridge).items():
                projected = without_direction(target, mean) if centred == "mean" else target
                targets["hebb" if name == "hebb" else f"{name} {ridge:g}"] = projected
            moments = second_moments(x.flatten(1))
            scale = float(moments.diagonal().mean())
            likelihoods.append(log_likelihood(y, spectrum(moments, ridge=ridge * scale)))
        rows.append(
            {
                "centred": centred,
                "ridges": list(query_key(config).target_ridges),
                "likelihoods": likelihoods,
            }
            | _against(j, targets, x, config)
        )
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
        each: Tensor = blocks.flatten(2).norm(dim=2)[off]
        return each

    found = spectrum(second_moments(tokens.flatten(1)))

    def gains(blocks: Tensor) -> Tensor:
        whole = blocks.transpose(1, 2).reshape(n * d, n * d)
        along: Tensor = in_eigenbasis(whole, found).diagonal()
        return along

    cosines = {name: cosine(j, target) for name, target in targets.items()}
    to_hebb = {name: cosine(target, targets["hebb"]) for name, target in targets.items()}
    return {
        "norm": float(j.norm()),
        "values": found.values.tolist(),
        "gains": gains(j).tolist(),
        "slopes": {"J": log_slope(found.values, gains(j))}
        | {name: log_slope(found.values, gains(target)) for name, target in targets.items()},
        "cosines": cosines,
        "to hebb": to_hebb,
        "beyond hebb": {
            name: beyond(cosines[name], cosines["hebb"], to_hebb[name])
            for name in targets
            if name != "hebb"
        },
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
