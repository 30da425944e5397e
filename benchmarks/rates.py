"""How fast an arm of the paper's experiment trains and is validated on this machine.

A time is the best of several: what else the machine does makes some of them longer, and none shorter.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import compose, initialize_config_dir

from attractor.images import ImageSplits, pixel_mean
from attractor.lab.config.rules import BackpropConfig, PrecisionName
from attractor.lab.config.schema import Config, register, typed
from attractor.lab.experiment import assessment
from attractor.lab.experiment.build import build_network, build_tasks, validation_candidates
from attractor.lab.experiment.build_rule import training
from attractor.lab.experiment.network import Network
from attractor.lab.experiment.selection import best_step, choose

CONF = Path(__file__).resolve().parents[1] / "conf"
_WINDOW = 5  # updates in a row, the best mean of which is their rate


@dataclass(frozen=True)
class Rate:
    """Seconds of an update, of a validation in training, of choosing at the end, of an image at t = 1."""

    precision: str
    update: float
    validation: float
    choosing: float
    image: float

    def updates(self, seconds: float, *, validations: int, images: int) -> int:
        """How many there is time for beside validations, choosing and answers to `images`."""
        rest = self.validation * validations + self.choosing + self.image * images
        return max(1, int((seconds - rest) / self.update))


def configuration(overrides: list[str]) -> Config:
    """That of train.py with these overrides."""
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = typed(compose("config", overrides=overrides))
    assert isinstance(config, Config)
    return config


def measure(config: Config, splits: ImageSplits, *, seconds: float = 30) -> Rate:
    """Train for some seconds; backpropagation in the precision of which a few updates take less time."""
    if isinstance(config.rule, BackpropConfig):
        options = [replace(config, rule=replace(config.rule, precision=name)) for name in PrecisionName]
        config = min(options, key=lambda option: _update(option, splits, seconds=seconds / 10))
    network = _network(config, splits)
    tasks = build_tasks(config.task, patch=config.model.patch, side=splits.side)
    candidates = validation_candidates(config)
    steps, images = config.train.validation_steps, config.train.validation_images
    batches = [
        assessment.validation_batch(splits, task, images=images, seed=config.eval.seed)
        for task in tasks.values()
    ]
    once = best(lambda: best_step(network, candidates[0], batches[0], 1))
    return Rate(
        config.rule.precision.value if isinstance(config.rule, BackpropConfig) else "float32",
        _update(config, splits, seconds=seconds),
        best(
            lambda: [
                choose(network, candidates, batch, screening_steps=steps, steps=steps) for batch in batches
            ]
        ),
        best(lambda: assessment.choose_retrievals(config, network, splits, tasks)),
        once / images,
    )


def best(action: Callable[[], object], *, repeats: int = 3) -> float:
    """The least of the seconds that it takes."""
    return min(_seconds(action) for _ in range(repeats))


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _network(config: Config, splits: ImageSplits) -> Network:
    return build_network(
        config.model,
        pixel_mean(splits.train),
        seed=config.seed,
        device=config.device,
        backend=config.backend,
    )


def _update(config: Config, splits: ImageSplits, *, seconds: float) -> float:
    """Seconds of an update, the mean of the best few in a row."""
    network = _network(config, splits)
    tasks = build_tasks(config.task, patch=config.model.patch, side=splits.side)
    taken: list[float] = []
    for step in training(config, network, tasks, splits.train):
        taken.append(step.seconds)
        if len(taken) > _WINDOW and sum(taken) > seconds:
            break
    windows = [taken[start : start + _WINDOW] for start in range(1, len(taken) - _WINDOW + 1)]
    return min(sum(window) for window in windows) / _WINDOW
