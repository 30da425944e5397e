"""Models without a training loop as further rows of the table, beside the model of the run.

A memory and slots see the training images once. Each row is what a run of that model alone would make of
`beside`, without its folder: the same builders, the same rule, the same choice on validation images.
train.py chooses how they are read; evaluate.py lets them see the images again, and reads them as before.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol

from attractor.images import ImageSplits, Task, pixel_mean
from attractor.images.symmetries import copies
from attractor.lab.config.beside import configurations, names_of
from attractor.lab.config.names import DeviceName
from attractor.lab.config.schema import Config
from attractor.lab.config.titles import title
from attractor.lab.errors import ConfigError, called, configuring
from attractor.lab.experiment.assessment import choose_retrievals
from attractor.lab.experiment.build import build_network, refuse_memory
from attractor.lab.experiment.build_rule import training
from attractor.lab.experiment.choices import Choices, choices_to_json, together
from attractor.lab.experiment.network import Network


class Evaluated(Protocol):
    """A finished run, as far as its rows are concerned: `beside` says how they are read."""

    @property
    def config(self) -> Config: ...

    @property
    def beside(self) -> Choices: ...


@dataclass(frozen=True)
class Row:
    """A model that has seen the training images. choices: how it is read; seconds: of both together."""

    network: Network
    choices: Choices
    seconds: float


def possible(config: Config, splits: ImageSplits) -> tuple[dict[str, Config], list[str]]:
    """The rows that these images and this machine allow, and why others are left out.

    Raises ConfigError for what no images would allow.
    """
    rows, reasons = {}, []
    for name, alone in configurations(config).items():
        with called(names_of(name)), configuring():
            copies(getattr(alone.model, "copies", []), side=splits.side)
        try:
            with called(names_of(name)):
                build_network(alone.model, pixel_mean(splits.train), seed=alone.seed, device=alone.device)
                refuse_memory(alone.model, splits)
        except ConfigError as error:
            reasons.append(_no_row(alone, error))
        else:
            rows[name] = alone
    return rows, reasons


def choose(
    rows: Mapping[str, Config],
    splits: ImageSplits,
    tasks: Mapping[str, Task],
    *,
    progress: Callable[[str], Any] = lambda text: None,
) -> tuple[list[Row], list[str]]:
    """Let every model see the training images, and choose on validation images how it is read.

    Returns the rows, and why others are left out: some images make no slots. Those of the last call are
    kept, as `assessment.references` are.
    """
    settings = [
        (
            run.model,
            run.rule,
            run.task,
            run.device,
            run.seed,
            run.eval.steps,
            run.dynamics.validation_images,
        )
        for run in rows.values()
    ]
    found, reasons = _chosen(_Asked(splits.fingerprint, repr(settings), rows, splits, tasks, progress))
    return list(found), list(reasons)


@dataclass(frozen=True)
class _Asked:
    """What rows follow from: the fingerprint stands for the images, the settings for all the rest."""

    fingerprint: str
    settings: str
    rows: Mapping[str, Config] = field(compare=False)
    splits: ImageSplits = field(compare=False)
    tasks: Mapping[str, Task] = field(compare=False)
    progress: Callable[[str], Any] = field(compare=False)


@lru_cache(maxsize=1)
def _chosen(asked: _Asked) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    found, reasons = [], []
    for name, alone in asked.rows.items():
        words = title(alone.model.name)

        def tell(text: str, words: str = words) -> None:
            asked.progress(f"{words}, {text}")

        begin = time.perf_counter()
        tell("training images")
        try:
            network = _learned(name, alone, asked.splits, asked.tasks)
        except ConfigError as error:
            reasons.append(_no_row(alone, error))
            continue
        choices = choose_retrievals(alone, network, asked.splits, asked.tasks, progress=tell)
        found.append(Row(network, choices, time.perf_counter() - begin))
    return tuple(found), tuple(reasons)


def _no_row(alone: Config, error: ConfigError) -> str:
    return f"the table has no row of {title(alone.model.name)}: {error}"


def again(
    runs: Sequence[Evaluated],
    splits: ImageSplits,
    tasks: Mapping[str, Task],
    *,
    device: DeviceName,
) -> list[Row]:
    """The rows of the first run that has some, as it chose them; none of a model that a run is itself.

    None at all where runs have seen other numbers of images: they would be those of one of them.
    """
    run = next((run for run in runs if any(run.beside.values())), None)
    if run is None or len({run.config.data.train_images for run in runs}) > 1:
        return []
    kinds = {type(run.config.model) for run in runs}
    found = []
    for name, alone in configurations(replace(run.config, device=device)).items():
        chosen = {
            task: {row: choice for row, choice in rows.items() if row == alone.model.name}
            for task, rows in run.beside.items()
        }
        if type(alone.model) not in kinds and any(chosen.values()):
            begin = time.perf_counter()
            network = _learned(name, alone, splits, tasks)
            found.append(Row(network, chosen, time.perf_counter() - begin))
    return found


def to_json(rows: Iterable[Row]) -> dict[str, Any]:
    """The "beside" of results.json: seconds of each row, and how it is read."""
    rows = list(rows)
    seconds = {name: row.seconds for row in rows for chosen in row.choices.values() for name in chosen}
    return {"seconds": seconds, "selection": choices_to_json(together(row.choices for row in rows))}


def _learned(name: str, alone: Config, splits: ImageSplits, tasks: Mapping[str, Task]) -> Network:
    with called(names_of(name)):
        network = build_network(alone.model, pixel_mean(splits.train), seed=alone.seed, device=alone.device)
        for _ in training(alone, network, tasks, splits.train):  # once
            pass
    return network
