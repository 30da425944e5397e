"""From a trained network to its results: choose how to retrieve, evaluate, summarise.

train.py and evaluate.py both come through here, so they agree on the same checkpoint.
"""

import math
import resource
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from attractor.baselines import DenseMemory, LinearRegression, TrainingMean
from attractor.images import Corrupted, Denoise, ImageSplits, Reconstructor, Task, to_pixels
from attractor.lab.config.schema import REFERENCES, Config, LocalLinearMemoryConfig, SlotsConfig
from attractor.lab.experiment.build import build_candidates
from attractor.lab.experiment.choices import Choices, choices_to_json
from attractor.lab.experiment.evaluation import TaskErrors, corruptions, evaluate, of_task, summarise
from attractor.lab.experiment.memory_network import MemoryNetwork
from attractor.lab.experiment.network import AttractorNetwork, Network, Recall, log_pseudo_likelihood
from attractor.lab.experiment.recollection_choice import choose_recollection
from attractor.lab.experiment.selection import choose
from attractor.lab.experiment.slot_choice import choose_slot_reading
from attractor.lab.experiment.slot_network import SlotNetwork

SCHEMA = 1
# validation images are corrupted with other draws than test images
_VALIDATION_SEED = 1_000_003


@dataclass(frozen=True)
class Assessment:
    """Errors and corruptions of every task, and what is behind them: row -> its network, its retrievals."""

    errors: dict[str, TaskErrors]
    batches: dict[str, list[Corrupted]]
    choices: Choices
    networks: dict[str, Network]

    def choices_of(self, network: Network) -> Choices:
        """Those of the rows of one network."""
        return {
            task: {row: choice for row, choice in rows.items() if self.networks[row] is network}
            for task, rows in self.choices.items()
        }

    def instead(self, shared: Network, whole: Network) -> "Assessment":
        """The same with another network, that holds all rows of the couplings, in the place of one."""
        networks = {row: whole if found is shared else found for row, found in self.networks.items()}
        return replace(self, networks=networks)


def validation_batch(
    splits: ImageSplits, task: Task, *, images: int, seed: int, first: int = 0
) -> Corrupted:
    """The `images` validation images from the `first` on, corrupted."""
    pixels = to_pixels(splits.validation[first : first + images])
    return task.corrupt(pixels, range(first, first + len(pixels)), seed=seed + _VALIDATION_SEED)


def choose_retrievals(
    config: Config,
    network: Network,
    splits: ImageSplits,
    tasks: Mapping[str, Task],
    *,
    progress: Callable[[str], Any] = lambda text: None,
) -> Choices:
    """Select map, temperature, inertia, evidence and t on validation images, for every task."""
    dynamics = config.dynamics
    choices: Choices = {}
    for name, task in tasks.items():
        batch = validation_batch(splits, task, images=dynamics.validation_images, seed=config.eval.seed)
        if isinstance(network, MemoryNetwork):
            assert isinstance(config.model, LocalLinearMemoryConfig)
            tell = of_task(progress, name)
            chosen = choose_recollection(
                network, config.model, task, batch, steps=config.eval.steps, progress=tell
            )
            choices[name] = {config.model.name: chosen}
            continue
        if isinstance(network, SlotNetwork):
            assert isinstance(config.model, SlotsConfig)
            progress(name)
            variance = config.task.noise_variance
            chosen = choose_slot_reading(network, config.model, batch, noise_variance=variance)
            choices[name] = {config.model.name: chosen}
            continue
        rows = {config.model.name: False}
        if name == Denoise.name and dynamics.evidence and isinstance(network, AttractorNetwork):
            rows[f"{config.model.name}+evidence"] = True
        choices[name] = {}
        for row, evidence in rows.items():
            progress(f"{name}, {row}")
            choices[name][row] = choose(
                network,
                build_candidates(config, evidence=evidence),
                batch,
                screening_steps=dynamics.screening_steps,
                steps=config.eval.steps,
                finalists=dynamics.finalists,
            )
    return choices


def score(choices: Choices) -> float:
    """Geometric mean over tasks of the lowest validation error: of a rule that sees the images once."""
    errors = [min(choice.error for choice in rows.values()) for rows in choices.values()]
    return math.exp(statistics.fmean(map(math.log, errors)))


def references(
    splits: ImageSplits, tasks: Iterable[Task], *, validation_images: int, seed: int
) -> dict[str, Reconstructor]:
    """Training mean, linear regression and softmax memory (its temperature chosen on validation).

    Those of the last call are kept: the jobs of a sweep that run one after the other mostly ask for the
    same, and on MNIST they take longer to fit than couplings to learn.
    """
    return dict(_fitted(_Asked(splits.fingerprint, tuple(tasks), validation_images, seed, splits)))


@dataclass(frozen=True)
class _Asked:
    """What references follow from; the fingerprint stands for the images."""

    fingerprint: str
    tasks: tuple[Task, ...]
    validation_images: int
    seed: int
    splits: ImageSplits = field(compare=False)


@lru_cache(maxsize=1)
def _fitted(asked: _Asked) -> dict[str, Reconstructor]:
    splits, tasks = asked.splits, asked.tasks
    denoise = next((task for task in tasks if isinstance(task, Denoise)), None)
    memory = DenseMemory(splits.train)
    pixels = to_pixels(splits.validation[: asked.validation_images])
    memory.select(pixels, tasks, seed=asked.seed + _VALIDATION_SEED)
    regression = LinearRegression(splits.train, denoise=denoise, seed=asked.seed)
    return dict(zip(REFERENCES, (TrainingMean(splits.train), regression, memory), strict=True))


def assess(
    rows: Iterable[tuple[Network, Choices]],
    reference_models: Mapping[str, Reconstructor],
    splits: ImageSplits,
    tasks: Mapping[str, Task],
    *,
    images: int | None,
    steps: int,
    batch_size: int,
    seed: int,
    progress: Callable[[str], Any] = lambda text: None,
) -> Assessment:
    """Evaluate networks, each with its choices, and the references on the same corrupted test images.

    A row is called as in its choices.
    """
    test = splits.test if images is None else splits.test[:images]
    errors: dict[str, TaskErrors] = {}
    batches: dict[str, list[Corrupted]] = {}
    choices: Choices = {}
    networks: dict[str, Network] = {}
    for name, task in tasks.items():
        models: dict[str, Reconstructor] = {}
        choices[name] = {}
        for network, chosen in rows:
            for row, choice in chosen.get(name, {}).items():
                models[row] = Recall(network, choice.retrieval)
                choices[name][row] = choice
                networks[row] = network
        models |= reference_models
        batches[name] = corruptions(task, test, seed=seed, batch_size=batch_size)
        errors[name] = evaluate(
            models,
            batches[name],
            steps=steps,
            progress=of_task(progress, name),
        )
    return Assessment(errors, batches, choices, networks)


def task_results(assessment: Assessment) -> dict[str, Any]:
    """The "tasks" of results.json."""
    return {
        name: summarise(
            errors,
            {row: choice.retrieval.steps or 1 for row, choice in assessment.choices[name].items()},
        )
        for name, errors in assessment.errors.items()
    }


def run_results(
    config: Config,
    network: Network,
    splits: ImageSplits,
    assessment: Assessment,
    *,
    train_seconds: float,
    choose_seconds: float,
    peak_memory: float,
    steps: int,
    selected_step: int,
    score: float,
) -> dict[str, Any]:
    """results.json of a training run: what it cost, how retrieval was chosen, errors.

    score: the validation error by which the step was selected.

    train_seconds and steps are those of all updates, without validation; choose_seconds are those of
    choosing how to retrieve, all the training that a memory has. The couplings that are evaluated are those
    of `selected_step`. Time and memory are those of this process.
    """
    ranks = network.ranks
    count = min(1000, len(splits.test), len(splits.train))
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    likelihood = None  # which a transformer has not
    if isinstance(network, AttractorNetwork):
        likelihood = {
            name: log_pseudo_likelihood(network, to_pixels(images[:count]), batch_size=256)
            for name, images in parts.items()
        }
    return {
        "schema": SCHEMA,
        "model": config.model.name,
        "data": splits.name,
        "patch": config.model.patch,
        "seed": config.seed,
        "cost": {
            "train_seconds": train_seconds,
            "choose_seconds": choose_seconds,
            "steps": steps,
            "selected_step": selected_step,
            "parameters": network.parameters,
            "peak_memory_mb": peak_memory,
            "processes": ranks.count if ranks else 1,
            "device": network.device.type,
            "backend": network.backend_name,
        },
        "pseudo_likelihood": likelihood,
        "validation": {"score": score},
        "selection": choices_to_json(assessment.choices_of(network)),
        "tasks": task_results(assessment),
    }


def peak_memory() -> float:
    """The most memory this process has held, MB, libraries and earlier jobs of a sweep included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kibibytes on Linux
