"""A finished run, loaded again: for evaluate.py, and for one's own images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from attractor.images import Corrupted, ImageSplits, check_images, token_mask_to_pixels
from attractor.lab.config.names import DeviceName, TaskName
from attractor.lab.config.rules import RULE_SCHEMAS
from attractor.lab.config.schema import MODEL_SCHEMAS, Config, TaskConfig
from attractor.lab.errors import CheckpointError, ConfigError
from attractor.lab.experiment.build import build_data, build_network
from attractor.lab.experiment.choices import Choices, choices_from_json
from attractor.lab.experiment.memory_network import MemoryNetwork, refill
from attractor.lab.experiment.network import Network, Recall
from attractor.lab.experiment.selection import Choice
from attractor.lab.run import checkpoints
from attractor.lab.run.status import read_status
from attractor.physics import Backend, Ranks


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a run has left, but for its network, which may be large."""

    folder: Path
    config: Config
    choices: Choices
    beside: Choices  # how the models beside its own are read, see `experiment.beside`
    results: dict[str, Any]
    step: int  # of the checkpoint
    images: str  # SHA-256 of those it was trained, validated and tested on
    mean: Tensor  # of the pixels of its training images, (C, H, W)

    @property
    def every_choice(self) -> list[Choice]:
        return [choice for rows in self.choices.values() for choice in rows.values()]

    def choice(self, task: str) -> Choice:
        """The best retrieval for a task: with evidence, if that was better on validation images."""
        if task not in self.choices:
            raise ConfigError(
                f"{self.folder} has no retrieval for {task!r}, only for {', '.join(self.choices)}; "
                "train with task=both"
            )
        return min(self.choices[task].values(), key=lambda choice: choice.error)


@dataclass(frozen=True, kw_only=True)
class TrainedModel(FinishedRun):
    """A trained network with the retrievals that its run chose on validation images."""

    network: Network

    def reconstruct(
        self, images: Tensor, mask: Tensor | None = None, *, steps: int | None = None
    ) -> Tensor:
        """Complete masked images, or denoise images if there is no mask; (B, C, H, W) in [0, 1].

        images: pixels in [0, 1], (B, C, H, W). mask: true where a token is hidden, (B, N), tokens row by
        row; what `images` holds there does not matter, and the visible pixels come back as they are.
        steps: iterations, those chosen on validation images unless given; a model that takes
        fewer ends there. Raises ValueError (DataError for
        the images) for what does not fit, and ConfigError for a task that the run did not learn to do.
        """
        encoding = self.network.encoding
        check_images(images, channels=encoding.channels, side=encoding.side)
        images = images.float()
        if mask is not None and (mask.shape != (len(images), encoding.tokens) or mask.dtype != torch.bool):
            expected = f"(B, N) = {(len(images), encoding.tokens)} of bool"
            raise ValueError(f"mask is {tuple(mask.shape)} of {mask.dtype}, expected {expected}")
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        task = "denoise" if mask is None else "masked"
        choice = self.choice(task)
        if mask is None:
            corrupted = Corrupted(task, images, images)
        else:
            pixel_mask = token_mask_to_pixels(mask, patch=encoding.patch)
            hidden = images.masked_fill(pixel_mask, 0)
            corrupted = Corrupted(task, images, hidden, mask, pixel_mask)
        count = steps or choice.retrieval.steps or 1
        *_, last = islice(Recall(self.network, choice.retrieval).reconstruct(corrupted), count)
        if corrupted.pixel_mask is None:
            return last
        return torch.where(corrupted.pixel_mask, last, images)


def read_run(folder: str | Path) -> FinishedRun:
    """What a run has left. Raises ConfigError for a folder that is no finished run, and CheckpointError."""
    folder = Path(folder).resolve()
    if not (folder / "results.json").is_file():
        raise ConfigError(f"{folder} holds no finished run: {_unfinished(folder)}; give a run folder")
    try:
        results = json.loads((folder / "results.json").read_text())
        if "theory" in results:
            raise ConfigError(f"{folder} holds a study, {results['theory']}, and no trained network")
        choices = choices_from_json(results["selection"])
        others = results.get("beside", {})  # which earlier runs have not
        beside = choices_from_json(others.get("selection", {}))
        step = int(results["cost"]["selected_step"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'results.json'} is damaged: {error}") from error
    manifest = checkpoints.load(folder / "checkpoints", step=step, rows=range(0))
    return FinishedRun(
        folder=folder,
        # the rows beside the run at its end; when it was resumed, it may have been given others
        config=config_from(manifest.config | {"beside": others.get("settings", {})}),
        choices=choices,
        beside=beside,
        results=results,
        step=step,
        images=manifest.data,
        mean=manifest.mean,
    )


def load_run(
    folder: str | Path,
    *,
    device: DeviceName = DeviceName.auto,
    backend: Backend = Backend.auto,
    ranks: Ranks | None = None,
    root: str | None = None,
) -> TrainedModel:
    """Load the couplings that a run has chosen on validation images; the data set is not needed.

    But for a memory, whose images are read again, from data.root of the run unless `root` is given. With
    `ranks` only the rows of this process. Raises ConfigError for a folder that is no finished run, or
    a device or backend that cannot be used, DataError for the images of a memory, and CheckpointError.
    """
    run = read_run(folder)
    config = run.config
    network = build_network(
        config.model, run.mean, seed=config.seed, device=device, backend=backend, ranks=ranks
    )
    found = checkpoints.load(run.folder / "checkpoints", step=run.step, rows=network.rows)
    if isinstance(network, MemoryNetwork):
        splits = build_data(replace(config.data, root=root or config.data.root))
        if splits.fingerprint != run.images:
            raise ConfigError(
                f"{run.folder} stored other images: the SHA-256 of {splits.name} is "
                f"{_short(splits.fingerprint)}, that of its own {_short(run.images)}; give the root of "
                "the data that it stored"
            )
        refill(network, found.weights["stored"], splits)
    checkpoints.fill(network.weights, found, run.folder)
    return TrainedModel(**vars(run), network=network)


def _unfinished(folder: Path) -> str:
    if not folder.is_dir():
        return "it does not exist"
    status = folder / "status.json"
    if not status.is_file():
        return "there is no results.json"
    found = read_status(folder)
    return f"its status is {found.get('status', 'damaged')}" + (
        f" ({found['error']})" if "error" in found else ""
    )


def config_from(values: dict[str, Any]) -> Config:
    """A typed configuration from the plain values of a checkpoint."""
    schema = OmegaConf.structured(Config)
    try:
        schema.model = _schema(MODEL_SCHEMAS, values["model"])
        schema.rule = _schema(RULE_SCHEMAS, values["rule"])
        config = OmegaConf.to_object(OmegaConf.merge(schema, values))
    except (OmegaConfBaseException, KeyError) as error:
        raise CheckpointError(
            f"the configuration in the checkpoint is not of this version: {error}"
        ) from error
    assert isinstance(config, Config)
    return config


def _schema(schemas: Mapping[str, type[Any]], values: dict[str, Any]) -> type[Any]:
    """A kind of rule or model is known by its fields, which no two kinds share."""
    for schema in schemas.values():
        if set(schema.__dataclass_fields__) == set(values):
            return schema
    raise CheckpointError(f"none of {', '.join(schemas)} has the fields {sorted(values)}")


def same_data(runs: Sequence[FinishedRun]) -> TaskConfig:
    """Refuse runs that cannot be compared: other data, corruptions, or patch size (the grain of the mask).

    Images of one name may still be other images, which two runs on as many of them show; `same_images` sees
    the rest. Returns their tasks, all that any of them has learned.
    """
    first = runs[0]
    likes: dict[int | None, FinishedRun] = {}
    for run in runs[1:]:
        for name, mine, other in (
            ("data.name", run.config.data.name, first.config.data.name),
            ("data.validation", run.config.data.validation, first.config.data.validation),
            ("model.patch", run.config.model.patch, first.config.model.patch),
            ("task.mask_fraction", run.config.task.mask_fraction, first.config.task.mask_fraction),
            ("task.noise_variance", run.config.task.noise_variance, first.config.task.noise_variance),
        ):
            if mine != other:
                raise ConfigError(
                    f"{run.folder} has {name}={mine}, {first.folder} has {other}: their errors cannot be "
                    "compared; evaluate them apart"
                )
    for run in runs:
        like = likes.setdefault(run.config.data.train_images, run)
        if run.images != like.images:
            raise ConfigError(
                f"{run.folder} has the images of data.root={run.config.data.root}, {like.folder} others, "
                f"of {like.config.data.root} (SHA-256 {_short(run.images)} and {_short(like.images)}): "
                "their errors cannot be compared; evaluate them apart"
            )
    learned = {name for run in runs for name in run.config.task.names}
    return replace(first.config.task, names=[name for name in TaskName if name in learned])


def same_images(runs: Sequence[FinishedRun], splits: ImageSplits) -> None:
    """Refuse images that are not those of the runs (ConfigError); `splits` has all that any of them saw."""
    for run in runs:
        count = run.config.data.train_images
        found = (splits if count is None else splits.fewer(count)).fingerprint
        if found != run.images:
            raise ConfigError(
                f"{run.folder} was trained on other images than these of {splits.name}: their SHA-256 is "
                f"{_short(found)}, that of the run's images {_short(run.images)}; give the root "
                "where these are"
            )


def _short(digest: str) -> str:
    return f"{digest[:12]}..."


def enough_steps(runs: Sequence[FinishedRun], steps: int) -> None:
    """Refuse to stop before a t that a run chose on validation images."""
    for run in runs:
        for task, rows in chain(run.choices.items(), run.beside.items()):
            for row, choice in rows.items():
                if (choice.retrieval.steps or 1) > steps:
                    raise ConfigError(
                        f"{run.folder} chose t={choice.retrieval.steps} for {task}, {row}, but steps is "
                        f"{steps}; give steps={choice.retrieval.steps} or more"
                    )
