"""One measurement of the study of capacity: what is stored, how it is corrupted, called up and scored.

All choices, of beta, ridge, map, temperature and t, are made on other corruptions of the stored images
than those that are scored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor

from attractor.baselines import UniversalMemory
from attractor.baselines.separations import Max, Polynomial, Separation, Softmax
from attractor.baselines.similarities import Euclidean, Inverse
from attractor.baselines.universal import separation, similarity
from attractor.images import Corrupted, Task, pixel_mean, to_pixels
from attractor.lab.config.schema import Config
from attractor.lab.experiment.build import build_candidates, build_network
from attractor.lab.experiment.build_rule import training
from attractor.lab.experiment.network import AttractorNetwork, Recall
from attractor.lab.experiment.selection import choose
from attractor.studies.config import CapacityConfig

DISTANCES = ("euclidean", "manhattan", "mahalanobis")  # whose scores are negative
BETAS = tuple(2.0**k for k in range(-5, 11))
# An image counts as retrieved, in the code of the paper, if the summed squared error of its 784 pixels is
# at most a threshold: 60 by default, and 50 where a figure of fractions against thresholds marks one.
THRESHOLD = 50 / 784
_TIE = 1e-4  # squared pixels; float32 predictions of 784 pixels are off by less
_CHOOSING = 1_000_003  # added to the seed of the corruptions that are chosen by


@dataclass(frozen=True)
class Stored:
    """P images (P, C, H, W), uint8, and their places in the training set, by which draws are keyed."""

    images: Tensor
    places: list[int]

    @property
    def keys(self) -> Tensor:
        """(P, pixels)."""
        return to_pixels(self.images).flatten(1)


def draw_stored(train: Tensor, *, seed: int, count: int) -> Stored:
    """The first `count` of the training images in an order drawn by `seed`: larger sets hold smaller."""
    order = torch.randperm(len(train), generator=Generator().manual_seed(seed))[:count]
    return Stored(train[order], order.tolist())


@dataclass(frozen=True)
class Queries:
    """Corrupted stored images; nobody is told which pixels are occluded. own (B,): which image it was."""

    scored: Corrupted
    choosing: Corrupted
    own: Tensor


def draw_queries(task: Task, stored: Stored, *, count: int, seed: int) -> Queries:
    """`count` of the stored images, the first ones; each several times if there are fewer."""
    own = torch.arange(count) % len(stored.images)
    pixels = to_pixels(stored.images)

    def drawn(seed: int) -> Corrupted:
        parts = []
        for again, own_part in enumerate(own.split(len(pixels))):
            places = [stored.places[index] for index in own_part.tolist()]
            parts.append(task.corrupt(pixels[own_part], places, seed=seed + again))
        original, corrupted = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("original", "corrupted")
        )
        return Corrupted(task.name, original, corrupted)

    return Queries(drawn(seed), drawn(seed + _CHOOSING), own)


def separations(theory: CapacityConfig) -> dict[str, Separation]:
    """Those that are named, polynomials by their power; the weights of all of them sum to 1.

    Raises ValueError for an unknown name.
    """
    found: dict[str, Separation] = {}
    for name in theory.separations:
        if name == "polynomial":
            for power in theory.powers:
                found[f"{name} {power:g}"] = separation(name, power=power, normalised=True)
        else:
            found[name] = separation(name, **({"normalised": True} if name == "identity" else {}))
    return found


def memories(stored: Stored, theory: CapacityConfig) -> dict[str, list[UniversalMemory]]:
    """Row, "similarity, separation" -> the memories to choose from: one, or one for every ridge.

    Identity and polynomials need scores of 0 or more, and get the inverse of a distance. Of Mahalanobis
    and max the least ridge has a row of its own, where it is one of several.
    """
    found: dict[str, list[UniversalMemory]] = {}
    for name in theory.similarities:
        ridges = [{"ridge": ridge} for ridge in sorted(theory.ridges)] if name == "mahalanobis" else [{}]
        fitted = [similarity(name, **ridge).fitted(stored.keys) for ridge in ridges]
        for kind, separate in separations(theory).items():
            inverse = name in DISTANCES and isinstance(separate, Polynomial)
            similar = [Inverse(one) if inverse else one for one in fitted]
            row = f"{'inverse_' * inverse}{name}, {kind}"
            found[row] = [
                UniversalMemory(stored.keys, similarity=one, separation=separate) for one in similar
            ]
            if len(ridges) > 1 and isinstance(separate, Max):
                found[f"{row}, ridge {ridges[0]['ridge']:g}"] = found[row][:1]
    return found


def recall(candidates: Sequence[UniversalMemory], queries: Queries) -> tuple[Tensor, dict[str, Any]]:
    """Predictions (B, C, H, W) of the memory and the beta with the least error, and what they are."""
    betas = BETAS if isinstance(candidates[0].separation, Softmax) else (1.0,)  # else it changes nothing
    readings = [(memory, beta) for memory in candidates for beta in betas]
    errors = [0.0]
    if len(readings) > 1:
        seen = queries.choosing.corrupted
        errors = []
        for memory in candidates:
            similar = memory.scores(seen.flatten(1))
            predictions = (memory.read(similar, beta=beta).view_as(seen) for beta in betas)
            errors += [float(queries.choosing.squared_error(p).mean()) for p in predictions]
    memory, beta = readings[min(range(len(readings)), key=errors.__getitem__)]
    seen = queries.scored.corrupted
    found = memory.read(memory.scores(seen.flatten(1)), beta=beta).view_as(seen)
    chosen = {"candidate": candidates.index(memory), "beta": beta if len(betas) > 1 else None}
    return found, chosen


def learn(config: Config, stored: Stored, *, seed: int) -> tuple[AttractorNetwork, float]:
    """A network trained on the stored images as config says, and the seconds of its updates."""
    network = build_network(
        config.model, pixel_mean(stored.images), seed=seed, device=config.device, backend=config.backend
    )
    assert isinstance(network, AttractorNetwork)
    steps = training(replace(config, seed=seed), network, {}, stored.images)
    return network, sum(step.seconds for step in steps)


def recall_network(
    network: AttractorNetwork, config: Config, queries: Queries, *, evidence: bool
) -> tuple[Tensor, dict[str, Any]]:
    """The same of a network: by its dynamics, free or with evidence, read at the t that was chosen."""
    choice = choose(
        network,
        build_candidates(config, evidence=evidence),
        queries.choosing,
        screening_steps=config.dynamics.screening_steps,
        steps=config.eval.steps,
        finalists=config.dynamics.finalists,
    )
    states = Recall(network, choice.retrieval).reconstruct(queries.scored)
    last = (choice.retrieval.steps or 1) - 1
    return next(islice(states, last, None)), choice.retrieval.to_json()


def scores(prediction: Tensor, queries: Queries, keys: Tensor) -> dict[str, float]:
    """Means over the queries.

    nearest: the original is nearer to the prediction than every other stored image, by more than rounding:
    the mean of two images is no retrieval of either. within: its squared error is within `THRESHOLD`.
    mse: the squared error of a pixel.
    """
    error = queries.scored.squared_error(prediction)
    closeness = Euclidean().relative(prediction.flatten(1).double(), keys.double())
    own = queries.own.unsqueeze(1)
    others = closeness.scatter(1, own, -torch.inf).amax(1)
    return {
        "nearest": float((closeness.gather(1, own).squeeze(1) > others + _TIE).double().mean()),
        "within": float((error <= THRESHOLD).double().mean()),
        "mse": float(error.mean()),
    }


def retrievals(
    stored: Stored,
    queries: Queries,
    memories: dict[str, list[UniversalMemory]],
    network: AttractorNetwork | None,
    config: Config,
) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """Row, prediction and choice of everything that retrieves; "mean" is that of the stored images."""
    for name, candidates in memories.items():
        yield (name, *recall(candidates, queries))
    if network is not None:
        name = config.model.name
        yield (name, *recall_network(network, config, queries, evidence=False))
        if config.dynamics.evidence:
            yield (f"{name}+evidence", *recall_network(network, config, queries, evidence=True))
    yield "mean", pixel_mean(stored.images).expand_as(queries.scored.original), {}
