"""Going on with a run that was interrupted: its configuration, and the state of its training.

A resumed run ends where it would have ended: what a step draws depends on the seed and the step alone
(see `training`), and a checkpoint holds whatever else a step depends on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from attractor.images import ImageSplits
from attractor.lab.config.fields import FREE, PLACE, differences, leaves, within
from attractor.lab.config.schema import Config
from attractor.lab.errors import CheckpointError, ConfigError, OutputError
from attractor.lab.experiment.memory_network import MemoryNetwork, refill
from attractor.lab.experiment.network import Network
from attractor.lab.experiment.training import ONE_SHOT, EarlyStopping, Rule, cursor
from attractor.lab.experiment.transformers import TaskDescent
from attractor.lab.run import checkpoints, manifest
from attractor.lab.run.checkpoints import Checkpoint, Position
from attractor.lab.run.finished import config_from
from attractor.lab.run.status import holder, occupied, read_status
from attractor.physics import IterativeRule

_ROWS = "rows"  # the generator of a rule that draws rows


def continued(raw: DictConfig, overrides: Sequence[str]) -> tuple[Config, Path]:
    """The configuration and the folder of the run that `raw.resume` names.

    raw: what was composed; overrides: what of it was given on the command line. Raises ConfigError for a
    folder that holds no unfinished run, and for overrides that would make it another run; OutputError for a
    run that another process has.
    """
    path, _ = named(raw.resume)
    status = read_status(path)
    try:
        saved = OmegaConf.load(path / "config.yaml")
    except (OSError, ValueError) as error:
        raise ConfigError(f"resume={path}: there is no run in this folder ({error})") from error
    if not (path / "status.json").exists():
        raise ConfigError(f"resume={path}: there is no run in this folder (no status.json)")
    if status.get("status") == "done":
        raise ConfigError(f"resume={path}: this run is done; there is nothing to go on with")
    if OmegaConf.select(saved, "theory"):
        raise ConfigError(
            f"resume={path}: a study keeps no checkpoints, and begins anew; remove this folder, or give "
            "its command with another one"
        )
    if occupied(path):
        raise OutputError(f"resume={path}: the run is still going on in {holder(status)}")
    # a limit is that of one start: kept, the run would never get beyond it
    OmegaConf.update(saved, "train.stop_after", None, force_add=True)
    given, before = leaves(raw), leaves(saved)
    different = differences(before, given, free=(*FREE, "resume"))
    changed: dict[str, tuple[Any, Any]] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if within(key, FREE):
            OmegaConf.update(saved, key, OmegaConf.select(raw, key), force_add=True)
            continue
        # an experiment is no field, but may set any of them
        known = any(within(name, (key,)) for name in given)
        changed |= {
            name: values
            for name, values in different.items()
            if (within(name, (key,)) if known else name not in PLACE)
        }
    if changed:
        values = ", ".join(f"{name} ({was}, now {now})" for name, (was, now) in changed.items())
        why = ""
        if "train.steps" in changed:
            why = (
                "; the rate falls to 0 at the last step, so with another number all of them differ. "
                "train.stop_after=N ends this start after step N"
            )
        raise ConfigError(f"resume={path} goes on as it began, and cannot change {values}{why}")
    OmegaConf.update(saved, "resume", None, force_add=True)
    settings = OmegaConf.to_container(saved, resolve=True)
    assert isinstance(settings, dict)
    return config_from({str(name): value for name, value in settings.items()}), path


def named(resume: str) -> tuple[Path, int | None]:
    """The run folder, and the step if it is RUN_DIR/checkpoints/step-N and not RUN_DIR that is named."""
    path = Path(resume)
    if path.parent.name == "checkpoints" and (step := manifest.step_of(path)) is not None:
        return path.parent.parent, step
    return path, None


def snapshot(
    network: Network,
    rule: Rule,
    stopping: EarlyStopping,
    *,
    step: int,
    errors: dict[str, float],
    train_seconds: float,
    mean: Tensor,
    settings: dict[str, Any],
    splits: ImageSplits,
) -> Checkpoint:
    """Everything that the steps after `step` depend on, of the rows of this process."""
    optimiser: dict[str, Tensor] = {}
    generators: dict[str, Tensor] = {}
    if isinstance(rule, IterativeRule):
        optimiser = rule.optimiser.state
        if rule.generator is not None:
            generators[_ROWS] = rule.generator.get_state()
    elif isinstance(rule, TaskDescent):
        optimiser = rule.state
    return Checkpoint(
        step=step,
        rows=network.rows,
        weights=network.weights,
        mean=mean,
        config=settings,
        validation=errors,
        optimiser=optimiser,
        generators=generators,
        position=Position(stopping.best_step, stopping.best_score, stopping.failures, train_seconds),
        cursor=_cursor(step, rule, settings, splits),
        data=splits.fingerprint,
    )


@dataclass(frozen=True)
class Start:
    """Where a run goes on, and what the person who resumed it should know about that."""

    checkpoint: Checkpoint
    warnings: list[str]


def restore(
    folder: Path,
    network: Network,
    rule: Rule,
    stopping: EarlyStopping,
    *,
    settings: dict[str, Any],
    splits: ImageSplits,
    step: int | None = None,
) -> Start:
    """Put everything in its place, from the newest whole checkpoint below `folder` or from that of `step`.

    Nothing is written. Raises CheckpointError if there is none, or if that of `step` is not whole, and
    ConfigError if `splits` are not the images it was trained on.
    """
    if step is None:
        step, damaged = checkpoints.newest_whole(folder)
    else:
        checkpoints.verify(folder, step)
        damaged = []
    checkpoint = checkpoints.load(folder, step=step, rows=network.rows)
    if checkpoint.data != splits.fingerprint:
        raise ConfigError(
            "these are not the images that the run was trained on: the SHA-256 of "
            f"{splits.name} is {splits.fingerprint[:12]}..., that of the run's images "
            f"{checkpoint.data[:12]}...; check data.root"
        )
    if checkpoint.cursor != (expected := _cursor(step, rule, settings, splits)):
        raise CheckpointError(
            f"{folder}: step {step} is followed by batch {checkpoint.cursor}, not {expected}"
        )
    if isinstance(network, MemoryNetwork):
        refill(network, checkpoint.weights["stored"], splits)
    weights = network.weights
    checkpoints.fill(weights, checkpoint, folder)
    if isinstance(rule, IterativeRule):
        for name, value in checkpoint.optimiser.items():
            weight = weights[name.rpartition(".")[0]]
            # counters, which are no floating-point numbers, are kept on the CPU
            rule.optimiser.state[name] = _laid_out(value, weight) if value.is_floating_point() else value
        if rule.generator is not None and _ROWS in checkpoint.generators:
            rule.generator.set_state(checkpoint.generators[_ROWS])
    elif isinstance(rule, TaskDescent):
        rule.restore(checkpoint.optimiser)
    position = checkpoint.position
    stopping.best_step, stopping.best_score = position.best_step, position.best_score
    stopping.failures = position.failures
    if position.best_step and isinstance(rule, ONE_SHOT):
        stopping.best_weights = weights  # which change no more
    elif position.best_step:
        best = checkpoints.load(folder, step=position.best_step, rows=network.rows)
        stopping.best_weights = {
            name: _laid_out(value, weights[name]) for name, value in best.weights.items()
        }
    warnings = [f"{reason}; going on from step-{step}, the newest that is whole" for reason in damaged]
    was, now = checkpoint.versions, manifest.versions()
    if changed := [
        f"{name} {was.get(name)}, now {now[name]}" for name in now if was.get(name) != now[name]
    ]:
        warnings.append(f"other versions may change last bits: {'; '.join(changed)}")
    return Start(checkpoint, warnings)


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """`value` on the device and in the memory layout of `like`: another one may change last bits."""
    return torch.empty_like(like).copy_(value)


def _cursor(step: int, rule: Rule, settings: dict[str, Any], splits: ImageSplits) -> dict[str, int]:
    """Which batch follows `step`; a one-shot rule has none."""
    if isinstance(rule, ONE_SHOT):
        return {}
    return cursor(step, images=len(splits.train), batch_size=settings["train"]["batch_size"])


def refuse_pause(config: Config, done: int) -> None:
    """Refuse a train.stop_after that is behind (ConfigError)."""
    limit = config.train.stop_after
    if limit is not None and limit <= done:
        raise ConfigError(
            f"train.stop_after is {limit}, but the run has done {done} steps; give more, or null"
        )
