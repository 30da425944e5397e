"""Which rule a configuration stands for, the counterpart of `build` for what a network learns by."""

import zlib
from collections.abc import Iterator, Mapping

from torch import Generator, Tensor

from attractor.baselines import Backprop
from attractor.images import Task
from attractor.lab.config.rules import (
    BackpropConfig,
    ClosedFormConfig,
    EnergyDescentConfig,
    HebbConfig,
    OptimiserName,
    PrecisionName,
    PseudoLikelihoodConfig,
    RidgeConfig,
    RuleConfig,
    StoreConfig,
)
from attractor.lab.config.schema import Config
from attractor.lab.errors import ConfigError, configuring
from attractor.lab.experiment.memory_network import MemoryNetwork, Storing
from attractor.lab.experiment.network import AttractorNetwork, Network
from attractor.lab.experiment.slot_network import ClosedForm, SlotNetwork
from attractor.lab.experiment.training import Rule, Step, fit
from attractor.lab.experiment.transformers import TaskDescent, TransformerNetwork
from attractor.physics import (
    SGD,
    Adam,
    EnergyDescent,
    Hebb,
    IterativeRule,
    OneShotRule,
    PseudoLikelihood,
    Ridge,
    Shrinkage,
    random_start,
)


def build_rule(config: RuleConfig, network: Network, tasks: Mapping[str, Task], *, seed: int) -> Rule:
    """The rule, with the start that it needs; refuses a network or tasks that it cannot train."""
    if isinstance(network, MemoryNetwork):
        if not isinstance(config, StoreConfig):
            raise ConfigError("a memory stores its images and learns nothing else; leave rule out")
        return Storing()
    if isinstance(config, StoreConfig):
        raise ConfigError("rule=store is for memories; use model=local_linear_memory, or another rule")
    if isinstance(network, SlotNetwork):
        return _closed_form(config, seed)
    if isinstance(config, ClosedFormConfig):
        raise ConfigError("rule=closed_form is for slots; use model=slots, or another rule")
    if not isinstance(network, AttractorNetwork):
        assert isinstance(network, TransformerNetwork)
        return _task_descent(config, network, tasks, seed)
    if isinstance(config, BackpropConfig):
        raise ConfigError("rule=backprop trains transformers; use model=transformer, or a local rule")
    with configuring():
        rule = _local_rule(config, seed)
        if isinstance(config, EnergyDescentConfig):
            generator = Generator().manual_seed(seed)
            random_start(network.energy.couplings, config.start, generator=generator)
        rule.start(network.energy)
    return rule


def _task_descent(
    config: RuleConfig, network: TransformerNetwork, tasks: Mapping[str, Task], seed: int
) -> TaskDescent:
    if not isinstance(config, BackpropConfig):
        raise ConfigError("a transformer has no local rule; use rule=backprop, or leave rule out")
    if len(tasks) != 1:
        raise ConfigError(
            f"a transformer is trained for one task, not for {' and '.join(tasks)}; give task=masked or "
            "task=denoise"
        )
    backprop = Backprop(
        network.module,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        clip=config.clip,
        bfloat16=config.precision is PrecisionName.bfloat16,
    )
    return TaskDescent(backprop, next(iter(tasks.values())), seed=seed)


def _closed_form(config: RuleConfig, seed: int) -> ClosedForm:
    if not isinstance(config, ClosedFormConfig):
        raise ConfigError("slots learn in closed form and by no other rule here; leave rule out")
    with configuring():
        shrinkage = Shrinkage(parent=config.parent_images, root=config.root_images, ridge=config.ridge)
    return ClosedForm(shrinkage, iterations=config.iterations, seed=seed)


def jitter_of(config: Config) -> float:
    """train.jitter, or what suits the rule: noise keeps couplings from being too sure of themselves."""
    if config.train.jitter is not None:
        return config.train.jitter
    return 0.0 if isinstance(config.rule, BackpropConfig | StoreConfig | ClosedFormConfig) else 0.4


def training(config: Config, network: Network, tasks: Mapping[str, Task], images: Tensor) -> Iterator[Step]:
    """All steps of `config` on uint8 images (P, C, H, W), by its rule."""
    return fit(
        network,
        build_rule(config.rule, network, tasks, seed=config.seed),
        images=images,
        steps=config.train.steps,
        batch_size=config.train.batch_size,
        learning_rate=getattr(config.rule, "learning_rate", 0.0),
        jitter=jitter_of(config),
        seed=config.seed,
    )


def _local_rule(config: RuleConfig, seed: int) -> IterativeRule | OneShotRule:
    match config:
        case PseudoLikelihoodConfig():
            return PseudoLikelihood(
                _optimiser(config),
                decay=config.decay,
                rows_per_step=config.rows_per_step,
                generator=_row_draws(seed),
            )
        case EnergyDescentConfig():
            return EnergyDescent(
                _optimiser(config),
                decay=config.decay,
                rows_per_step=config.rows_per_step,
                generator=_row_draws(seed),
            )
        case HebbConfig():
            return Hebb(rate=config.rate)
        case RidgeConfig():
            return Ridge(ridge=config.ridge)
    raise ConfigError(f"no rule for {type(config).__name__}")


def _row_draws(seed: int) -> Generator:
    """A stream apart from that of the batches, which `seed` itself starts."""
    return Generator().manual_seed(zlib.crc32(f"rows of {seed}".encode()))


def _optimiser(config: PseudoLikelihoodConfig | EnergyDescentConfig) -> SGD | Adam:
    if config.optimiser is OptimiserName.sgd:
        return SGD(momentum=config.momentum)
    if config.momentum:
        raise ConfigError("rule.momentum is for rule.optimiser=sgd; adam has its own")
    return Adam()
