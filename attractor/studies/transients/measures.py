"""What one job of a sweep over P shows of its transients, as plain values."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from attractor.images import Corrupted, ImageSplits, Task, pixel_mean, to_pixels
from attractor.lab.experiment.evaluation import cosine
from attractor.lab.experiment.examples import first_images, seen, visible
from attractor.lab.experiment.network import AttractorNetwork, Retrieval
from attractor.lab.run.finished import TrainedModel
from attractor.physics import NonFiniteError
from attractor.studies.transients import courses
from attractor.studies.transients.courses import Course

EXAMPLES = 2  # starts whose pictures are kept
COMMON = 8  # attractors whose pictures are kept, those that most starts end in
_DENSE = 100  # every t up to here is recorded, later ones are spaced logarithmically


def measure(
    run: TrainedModel,
    retrieval: Retrieval,
    splits: ImageSplits,
    task: Task,
    *,
    images: int,
    steps: int,
    same: float,
    progress: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """What one job shows, as plain values. splits: the data set with all its training images."""
    network = run.network
    assert isinstance(network, AttractorNetwork)
    encoding = network.encoding
    count = run.config.data.train_images or len(splits.train)
    # smaller sets lie within larger ones: these are the same images for every P that is large enough
    pools = {"training": splits.fewer(min(count, images)).train, "test": splits.test[:images]}
    train = splits.fewer(count).train
    centre, mean = courses.mean_state(encoding, splits.train), pixel_mean(splits.train)
    sets = {}
    for name, pool in pools.items():
        originals = pool[torch.arange(images) % len(pool)]
        batch = task.corrupt(to_pixels(originals), range(images), seed=run.config.eval.seed)
        course = courses.follow(network, retrieval, batch, steps=steps, centre=centre, progress=progress)
        if not course.finite:
            raise NonFiniteError(f"{run.folder}: the states of {name} images are not finite")
        clean = courses.encode(encoding, originals)
        overlap, index = (found[:, 0] for found in courses.nearest(course.final, train, encoding))
        # the nearest one to a training image is itself
        other = courses.nearest(clean, train, encoding, count=2)[0][:, -1 if name == "training" else 0]
        stored = courses.encode(encoding, train[index])
        labels = courses.clusters(course.final, overlap=same)
        lifetime = _lifetimes(course)
        sets[name] = {
            "images": len(pool),
            **_curves(course),
            "lifetime": lifetime,
            "baseline": {
                "overlap": float(cosine(centre, clean).mean()),
                "error": float(batch.squared_error(mean.expand_as(batch.original)).mean()),
                "nearest": float(other.mean()),
            },
            "attractors": {
                "distinct": int(labels.max()) + 1,
                "largest": float(labels.bincount().max() / images),
                "fixed": float((course.period == 1).double().mean()),
                "cycle": float((course.period > 1).double().mean()),
                "nearest": float(overlap.mean()),
                "nearest_centred": float(cosine(course.final - centre, stored - centre).mean()),
                "nearest_with_original": float(cosine(stored, clean).mean()),
                "nearest_images": len(index.unique()),
                "original_is_nearest": float(_as_near(course.final, clean, stored).double().mean()),
            },
            "pictures": _pictures(network, course, lifetime["best"], batch, train[index], labels),
        }
    return {"train_images": count, "seed": run.config.seed, "retrieval": retrieval.to_json(), "sets": sets}


def _as_near(final: Tensor, clean: Tensor, stored: Tensor) -> Tensor:
    """Whether the original is as near as the nearest training image, which it may be: (B,).

    In float64 and by one and the same sum, so that an image is exactly as near as itself.
    """
    original, nearest = (cosine(final.double(), image.double()) for image in (clean, stored))
    return original >= nearest


def _curves(course: Course) -> dict[str, Any]:
    steps = course.error.shape[1] - 1
    t = recorded(steps)
    entry: dict[str, Any] = {"t": t}
    for name in ("overlap", "centred", "error"):
        values = getattr(course, name)[:, t]
        entry[name] = {
            "mean": _short(values.mean(0)),
            "std": _short(values.std(0, correction=0)),
        }
    return entry


def _lifetimes(course: Course) -> dict[str, Any]:
    """Of the mean error over images, and of each image; what the states are at the best t of the mean."""
    of_mean = courses.lifetime(course.error.mean(0))
    each = [courses.lifetime(error) for error in course.error]
    lengths = torch.tensor([life.iterations for life in each]).double()
    entry: dict[str, Any] = asdict(of_mean) | {"iterations": of_mean.iterations}
    for name in ("overlap", "centred", "error"):
        at_best = getattr(course, name)[:, of_mean.best]
        entry |= {name: float(at_best.mean()), f"{name}_std": float(at_best.std(correction=0))}
    entry["images"] = {
        "quartiles": lengths.quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist(),
        "censored": sum(life.censored for life in each) / len(each),
    }
    return entry


def _pictures(
    network: AttractorNetwork,
    course: Course,
    best: int,
    batch: Corrupted,
    nearest: Tensor,
    labels: Tensor,
) -> dict[str, Any]:
    """Pixels 0 to 255: a few starts and where they end, and the attractors that most starts end in."""
    final = network.encoding.decode(course.final).cpu()
    sizes = labels.bincount()
    common = sizes.argsort(descending=True, stable=True)[:COMMON]
    first = [int((labels == label).nonzero()[0]) for label in common]
    few = first_images(batch, EXAMPLES)
    return {
        "examples": {
            "original": _levels(few.original),
            "corrupted": _levels(seen(few)),
            "best": _levels(visible(course.examples[best][:EXAMPLES], few)),
            "final": _levels(visible(final[:EXAMPLES], few)),
            "nearest": nearest[:EXAMPLES].tolist(),
        },
        "common": {
            "share": (sizes[common] / len(labels)).tolist(),
            "final": _levels(final[first]),
            "nearest": nearest[first].tolist(),
        },
    }


def recorded(steps: int) -> list[int]:
    """The t of the curves: dense at first, then some forty for each factor of ten."""
    later = torch.logspace(2, 6, 161).round().long().tolist()
    return sorted({*range(min(steps, _DENSE) + 1), *(t for t in later if t < steps), steps})


def _levels(pixels: Tensor) -> list[Any]:
    levels: list[Any] = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).tolist()
    return levels


def _short(values: Tensor) -> list[float]:
    """Six digits are enough for a curve."""
    return [float(f"{value:.6g}") for value in values.tolist()]
