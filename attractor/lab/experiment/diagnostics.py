"""What the physics of a network looks like while it is trained, on a few validation images.

    log_pl                   mean log p(x_i | x_others), nats per token, of clean images
    coupling_norm            root mean square of the learned couplings: |J| / sqrt(parameters)
    attention_entropy        -sum_s alpha_is log alpha_is, nats, mean over tokens of clean images
    prior_attention_entropy  the same of beta_is; at J = 0 both are the log of the number of sources
    overlap                  cosine of the last state of the dynamics with the original, mean over images
    fixed_point_residual     root mean square, over images and tokens, of |x_i(T) - x_i(T-1)|

They are measured as they stand, with a dynamics that validation has chosen; nothing is drawn that anything
else draws, and nothing is chosen by them. Where several processes share the rows, all must measure at once.
"""

from collections import deque
from itertools import chain, islice

import torch
from torch import Tensor

from attractor.images import Corrupted
from attractor.lab.experiment.evaluation import cosine
from attractor.lab.experiment.examples import first_images
from attractor.lab.experiment.network import (
    AttractorNetwork,
    Network,
    Reading,
    Retrieval,
    log_pseudo_likelihood,
)
from attractor.lab.experiment.processes import Processes

IMAGES = 8  # attention is (images, N, S): with few of them, measuring costs little beside a validation


def measure(
    network: Network,
    retrieval: Reading,
    batch: Corrupted,
    *,
    steps: int,
    processes: Processes | None = None,
) -> dict[str, float]:
    """The scalars above, after `steps` iterations T from the first corrupted images of `batch`.

    A transformer has none of them.
    """
    if not isinstance(network, AttractorNetwork):
        return {}
    assert isinstance(retrieval, Retrieval)
    few = first_images(batch, IMAGES)
    with torch.inference_mode():
        tokens = network.encode(few.original)
        states = chain([network.start(few)], islice(network.states(few, retrieval), steps))
        before, last = deque(states, maxlen=2)
        return {
            "log_pl": log_pseudo_likelihood(network, few.original, batch_size=len(few.original)),
            "coupling_norm": _coupling_norm(network, processes or Processes()),
            "attention_entropy": _entropy(network.energy.attention(tokens)),
            "prior_attention_entropy": _entropy(network.energy.prior_attention(tokens)),
            "overlap": float(cosine(last, tokens).mean()),
            "fixed_point_residual": float((last - before).square().sum(-1).mean().sqrt()),
        }


def _coupling_norm(network: AttractorNetwork, processes: Processes) -> float:
    couplings = network.energy.couplings
    squares = sum(float(weight.double().square().sum()) for weight in couplings.weights.values())
    rows = len(couplings.rows)
    total = processes.row_mean(squares / rows, rows) * couplings.tokens
    return float((total / couplings.parameters) ** 0.5)


def _entropy(attention: Tensor) -> float:
    """Mean over images and tokens; 0 log 0 = 0 for what is no source."""
    return float(torch.special.entr(attention).sum(-1).mean())
