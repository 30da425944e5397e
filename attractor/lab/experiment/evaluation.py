"""Evaluation: any list of models on the same corruptions, and what is reported of it.

Errors are kept image by image, so that models can be compared in pairs: the standard error of a
difference is much smaller than that of either error, since hard images are hard for all.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from attractor.images import Corrupted, Reconstructor, Task, to_pixels
from attractor.lab.experiment.network import AttractorNetwork, Retrieval
from attractor.physics import NonFiniteError


@dataclass(frozen=True)
class TaskErrors:
    """Squared errors of one task. errors: model -> (images, T), float64; corrupted: (images,), t = 0."""

    errors: dict[str, Tensor]
    corrupted: Tensor


def corruptions(
    task: Task, images: Tensor, *, seed: int, batch_size: int, first: int = 0
) -> list[Corrupted]:
    """Batches of corrupted images from uint8 (P, C, H, W). `first` is the index of images[0]."""
    return [
        task.corrupt(to_pixels(batch), range(first + start, first + start + len(batch)), seed=seed)
        for start, batch in zip(range(0, len(images), batch_size), images.split(batch_size), strict=True)
    ]


def evaluate(
    models: Mapping[str, Reconstructor],
    batches: list[Corrupted],
    *,
    steps: int,
    progress: Callable[[str], Any] = lambda text: None,
) -> TaskErrors:
    """Squared error per image and iteration of every model.

    `progress` hears, after each batch, of its model: images done, their rate and the time left for it.

    Raises NonFiniteError, naming model and iteration, if a prediction is not finite.
    """
    errors: dict[str, list[Tensor]] = {name: [] for name in models}
    seconds = dict.fromkeys(models, 0.0)
    images, done = sum(len(batch.original) for batch in batches), 0
    for batch in batches:
        done += len(batch.original)
        for name, model in models.items():
            begin = time.perf_counter()
            curve = []
            for t, prediction in enumerate(islice(model.reconstruct(batch), steps), start=1):
                error = batch.squared_error(prediction)
                if not torch.isfinite(error).all():
                    raise NonFiniteError(f"the prediction of {name} is not finite at iteration {t}")
                curve.append(error)
            errors[name].append(torch.stack(curve, 1))
            seconds[name] += time.perf_counter() - begin
            rate = done / max(seconds[name], 1e-9)
            left = (images - done) / rate
            progress(f"{name}, {done:,} of {images:,} images, {rate:,.0f}/s, {left:.0f} s left")
    return TaskErrors(
        {name: torch.cat(parts) for name, parts in errors.items()},
        torch.cat([batch.squared_error(batch.corrupted) for batch in batches]),
    )


def of_task(progress: Callable[[str], Any], task: str) -> Callable[[str], Any]:
    """`progress` that says the task first."""
    return lambda text: progress(f"{task}, {text}")


def summarise(result: TaskErrors, chosen: Mapping[str, int]) -> dict[str, Any]:
    """The entry of a task in results.json. chosen: model -> the t that validation chose."""
    models: dict[str, Any] = {}
    for name, errors in result.errors.items():
        mean = errors.mean(0)
        oracle = int(mean.argmin())
        entry: dict[str, Any] = {"mse": mean.tolist(), "std": _spread(errors).tolist()}
        if errors.shape[1] > 1 or name in chosen:
            t = chosen[name]
            entry["best"] = {"t": t, "mse": float(mean[t - 1])}
            entry["oracle_best"] = {"t": oracle + 1, "mse": float(mean[oracle])}
        models[name] = entry
    return {
        "images": len(result.corrupted),
        "corrupted_mse": float(result.corrupted.mean()),
        "models": models,
        "differences": _differences(result, chosen),
    }


def _differences(result: TaskErrors, chosen: Mapping[str, int]) -> dict[str, Any]:
    """model -> other -> mean of (model - other) over images, with its paired standard error."""
    at_best = {name: errors[:, chosen.get(name, 1) - 1] for name, errors in result.errors.items()}
    table: dict[str, Any] = {}
    for name in chosen:
        table[name] = {}
        for other, errors in at_best.items():
            if other != name:
                difference = at_best[name] - errors
                standard_error = _spread(difference[:, None])[0] / len(difference) ** 0.5
                table[name][other] = {
                    "mse": float(difference.mean()),
                    "standard_error": float(standard_error),
                }
    return table


def _spread(errors: Tensor) -> Tensor:
    """Standard deviation over images (axis 0); 0 for a single image."""
    return errors.std(0, correction=1 if len(errors) > 1 else 0)


def overlaps(
    network: AttractorNetwork, retrieval: Retrieval, batches: list[Corrupted], *, steps: int
) -> Tensor:
    """Cosine between the state and the original, per image (images, T + 1), t = 0 first.

    Of the whole state as one vector of N D components. A state of zeros has overlap 0.
    """
    curves = []
    for batch in batches:
        original = network.encode(batch.original)
        states = chain([network.start(batch)], islice(network.states(batch, retrieval), steps))
        curves.append(torch.stack([cosine(x, original) for x in states], 1))
    return torch.cat(curves)


def cosine(state: Tensor, original: Tensor) -> Tensor:
    """Overlap of whole states (..., N, D), each as one vector, (...)."""
    return torch.nn.functional.cosine_similarity(state.flatten(-2), original.flatten(-2), dim=-1)
