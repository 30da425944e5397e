"""Going on with a run that was interrupted: its configuration, and the state of its training.

A resumed run ends where it would have ended: what a step draws depends on the seed and the step alone
(see `training`), and a checkpoint holds whatever else a step depends on.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from attractor.lab import checkpoints
from attractor.lab.checkpoints import Checkpoint, Position
from attractor.lab.config import Config
from attractor.lab.errors import ConfigError
from attractor.lab.network import AttractorNetwork
from attractor.lab.runs import config_from
from attractor.lab.training import EarlyStopping
from attractor.physics import IterativeRule, OneShotRule

# What may change on the way: where and how the run is computed and shown, not what it computes
_FREE = ("data.root", "data.download", "device", "backend", "threads", "figures", "wandb")
_ROWS = "rows"  # the generator of a rule that draws rows


def continued(raw: DictConfig, overrides: Sequence[str]) -> tuple[Config, Path]:
    """The configuration and the folder of the run that `raw.resume` names.

    raw: what was composed; overrides: what of it was given on the command line. Raises ConfigError for a
    folder that holds no unfinished run, and for overrides that would make it another run.
    """
    path = Path(raw.resume)
    try:
        status = json.loads((path / "status.json").read_text())["status"]
        saved = OmegaConf.load(path / "config.yaml")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"resume={path}: there is no run in this folder ({error})") from error
    if status == "done":
        raise ConfigError(f"resume={path}: this run is done; there is nothing to go on with")
    given, before = _leaves(raw), _leaves(saved)
    changed: list[str] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key == "resume":
            continue
        if _free(key):
            OmegaConf.update(saved, key, OmegaConf.select(raw, key), force_add=True)
            continue
        # an experiment is no field, but may set any of them
        within = [name for name in given if name == key or name.startswith(f"{key}.")]
        within = within or [name for name in given if name not in ("folder", "resume")]
        changed += [name for name in within if not _free(name) and given[name] != before.get(name)]
    if changed:
        values = ", ".join(f"{n} ({before.get(n)}, now {given[n]})" for n in dict.fromkeys(changed))
        why = ""
        if "train.steps" in changed:
            why = "; the rate falls to 0 at the last step, so with more steps all of them differ"
        raise ConfigError(f"resume={path} goes on as it began, and cannot change {values}{why}")
    OmegaConf.update(saved, "resume", None, force_add=True)
    settings = OmegaConf.to_container(saved, resolve=True)
    assert isinstance(settings, dict)
    return config_from({str(name): value for name, value in settings.items()}), path


def snapshot(
    network: AttractorNetwork,
    rule: IterativeRule | OneShotRule,
    stopping: EarlyStopping,
    *,
    step: int,
    errors: dict[str, float],
    train_seconds: float,
    mean: Tensor,
    settings: dict[str, Any],
) -> Checkpoint:
    """Everything that the steps after `step` depend on, of the rows of this process."""
    couplings = network.energy.couplings
    optimiser: dict[str, Tensor] = {}
    generators: dict[str, Tensor] = {}
    if isinstance(rule, IterativeRule):
        optimiser = rule.optimiser.state
        if rule.generator is not None:
            generators[_ROWS] = rule.generator.get_state()
    return Checkpoint(
        step=step,
        rows=couplings.rows,
        weights=couplings.weights,
        mean=mean,
        config=settings,
        validation=errors,
        optimiser=optimiser,
        generators=generators,
        position=Position(stopping.best_step, stopping.best_score, stopping.failures, train_seconds),
    )


def restore(
    folder: Path,
    network: AttractorNetwork,
    rule: IterativeRule | OneShotRule,
    stopping: EarlyStopping,
    *,
    mean: Tensor,
) -> Checkpoint:
    """Put everything in its place from the newest checkpoint below `folder`, which is returned.

    Raises CheckpointError, and ConfigError if `mean` is not that of the images it was trained on.
    """
    couplings = network.energy.couplings
    checkpoint = checkpoints.load(folder, rows=couplings.rows)
    if checkpoint.mean.shape != mean.shape or not torch.allclose(checkpoint.mean, mean, atol=1e-6):
        raise ConfigError("these are not the images that the run was trained on; check data.root")
    checkpoints.fill(couplings.weights, checkpoint, folder)
    if isinstance(rule, IterativeRule):
        for name, value in checkpoint.optimiser.items():
            if value.is_floating_point():  # laid out like its weight; counters are kept on the CPU
                value = torch.empty_like(couplings.weights[name.rpartition(".")[0]]).copy_(value)
            rule.optimiser.state[name] = value
        if rule.generator is not None and _ROWS in checkpoint.generators:
            rule.generator.set_state(checkpoint.generators[_ROWS])
    position = checkpoint.position
    stopping.best_step, stopping.best_score = position.best_step, position.best_score
    stopping.failures = position.failures
    if position.best_step:
        best = checkpoints.load(folder, step=position.best_step, rows=couplings.rows)
        stopping.best_weights = {name: value.to(network.device) for name, value in best.weights.items()}
    return checkpoint


def _free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in _FREE)


def _leaves(config: Any) -> dict[str, Any]:
    """name.of.field -> plain value."""

    def walk(values: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(values, dict):
            return {prefix: values}
        inner: dict[str, Any] = {}
        for name, value in values.items():
            inner |= walk(value, f"{prefix}.{name}" if prefix else str(name))
        return inner

    return walk(OmegaConf.to_container(config, resolve=True, enum_to_str=True), "")
