"""Values that have the right type, and that no run can use."""

from typing import Any

from attractor.lab.config.beside import configurations, names_of
from attractor.lab.config.names import CouplingsName, Objective
from attractor.lab.config.rules import BackpropConfig, EnergyDescentConfig, PseudoLikelihoodConfig
from attractor.lab.config.schema import (
    REFERENCES,
    AttractorConfig,
    CompareConfig,
    Config,
    LocalLinearMemoryConfig,
    SlotsConfig,
)
from attractor.lab.errors import ConfigError, called


def validate(config: Config) -> None:
    """Refuse values that no run can use (ConfigError), before any work is done."""
    if config.model.name in REFERENCES or not config.model.name.isidentifier():
        raise ConfigError(
            f"model.name is {config.model.name!r}; it must be letters, digits and _, and none of "
            f"{', '.join(REFERENCES)}"
        )
    train, dynamics, evaluation = config.train, config.dynamics, config.eval
    model = config.model
    if isinstance(model, AttractorConfig):
        _positive("model.inverse_temperature", model.inverse_temperature)
        if model.radius is not None and model.couplings is not CouplingsName.pairwise:
            raise ConfigError(
                f"model.radius is {model.radius}, but {model.couplings.value} couplings have no "
                "neighbourhoods; use model.couplings=pairwise or model.radius=null"
            )
    if isinstance(model, LocalLinearMemoryConfig):
        _check_memory(model)
    if isinstance(model, SlotsConfig):
        _check_slots(model)
    numbers: list[tuple[str, float | None]] = [
        *((f"model.{name}", getattr(model, name, None)) for name in ("radius", "width", "heads", "depth")),
        ("rule.warmup", getattr(config.rule, "warmup", None)),
        ("rule.clip", getattr(config.rule, "clip", None)),
        ("rule.rows_per_step", getattr(config.rule, "rows_per_step", None)),
        ("rule.iterations", getattr(config.rule, "iterations", None)),
        ("train.steps", train.steps),
        ("train.max_seconds", train.max_seconds),
        ("train.batch_size", train.batch_size),
        ("train.validate_every", train.validate_every),
        ("train.validation_images", train.validation_images),
        ("train.validation_steps", train.validation_steps),
        ("train.patience", train.patience),
        ("train.stop_after", train.stop_after),
        ("dynamics.screening_steps", dynamics.screening_steps),
        ("dynamics.finalists", dynamics.finalists),
        ("dynamics.validation_images", dynamics.validation_images),
        ("eval.images", evaluation.images),
        ("eval.steps", evaluation.steps),
        ("eval.batch_size", evaluation.batch_size),
        ("eval.overlap_images", evaluation.overlap_images),
        ("threads", config.threads),
        ("data.train_images", config.data.train_images),
        ("wandb.wait_seconds", config.wandb.wait_seconds),
        *(("each of dynamics.inverse_temperatures", c) for c in dynamics.inverse_temperatures),
        *(("each of dynamics.evidence", strength) for strength in dynamics.evidence),
    ]
    for name, value in numbers:
        if value is not None:
            _positive(name, value)
    if isinstance(config.rule, PseudoLikelihoodConfig | EnergyDescentConfig | BackpropConfig):
        _positive("rule.learning_rate", config.rule.learning_rate)
        if config.rule.learning_rate > 1e37:
            raise ConfigError(f"rule.learning_rate is {config.rule.learning_rate}; float32 ends at 3e38")
    sizes = ("momentum", "decay", "rate", "ridge", "start", "weight_decay")
    for field_name in (*sizes, "parent_images", "root_images"):
        value = getattr(config.rule, field_name, None)
        if value is not None and not 0 <= value < float("inf"):
            raise ConfigError(f"rule.{field_name} is {value}; it must be 0 or more, and finite")
    if train.jitter is not None and not 0 <= train.jitter < float("inf"):
        raise ConfigError(f"train.jitter is {train.jitter}; it must be 0 or more")
    tasks = [task.value for task in config.task.names]
    if not tasks:
        raise ConfigError("task.names is empty; give masked, denoise or both")
    if config.objective.value in ("masked", "denoise") and config.objective.value not in tasks:
        raise ConfigError(
            f"objective is {config.objective.value}, but task.names is {tasks}; use objective=val, "
            f"objective={tasks[0]} or objective=log_pl"
        )
    if config.objective is Objective.log_pl and not isinstance(model, AttractorConfig):
        raise ConfigError(f"objective is log_pl, which {model.name} has not; use objective=val")
    lists: list[tuple[str, list[Any]]] = [
        ("dynamics.maps", dynamics.maps),
        ("dynamics.inverse_temperatures", dynamics.inverse_temperatures),
        ("dynamics.inertias", dynamics.inertias),
    ]
    for name, values in lists:
        if not values:
            raise ConfigError(f"{name} is empty; give at least one value")
    for inertia in dynamics.inertias:
        if not 0 <= inertia < float("inf"):
            raise ConfigError(f"dynamics.inertias has {inertia}; 0 or more is allowed")
    if not 0 <= dynamics.damping < 1:
        raise ConfigError(f"dynamics.damping is {dynamics.damping}; it must be in [0, 1)")
    for name, seed in (("seed", config.seed), ("eval.seed", evaluation.seed)):
        if seed < 0:
            raise ConfigError(f"{name} is {seed}; it must be 0 or more")
    _check_beside(config)


def _check_beside(config: Config) -> None:
    """What stands beside the run's own model is checked as a run of its own would be."""
    if config.beside.slots is not None and config.beside.rule is None:
        raise ConfigError("beside.slots has no beside.rule to learn by; use beside=digits, or beside=none")
    names = {config.model.name: "model"}
    for name, alone in configurations(config).items():
        with called(names_of(name)):
            validate(alone)
        if alone.model.name in names:
            other = names[alone.model.name]
            raise ConfigError(
                f"beside.{name}.name is {alone.model.name!r}, as {other}.name is; give it another one"
            )
        names[alone.model.name] = f"beside.{name}"
        if alone.model.patch != config.model.patch:
            raise ConfigError(
                f"beside.{name}.patch is {alone.model.patch}, but masks hide patches of model.patch="
                f"{config.model.patch}; leave it as it is"
            )


def _check_memory(model: LocalLinearMemoryConfig) -> None:
    """Every list has values, each in its range."""
    lists: list[tuple[str, list[float]]] = [
        ("inverse_temperatures", model.inverse_temperatures),
        ("ridges", model.ridges),
    ]
    softenings = ("softenings", model.softenings)
    for name, values in [*lists, ("pulls", model.pulls), ("shrinkages", model.shrinkages), softenings]:
        if not values:
            raise ConfigError(f"model.{name} is empty; give at least one value")
    may_be_empty = [("reaches", model.reaches), ("neighbours", list(map(float, model.neighbours)))]
    for name, values in [*lists, *may_be_empty]:
        for value in values:
            _positive(f"each of model.{name}", value)
    if min(model.ridges) < 1e-5:
        raise ConfigError(
            f"model.ridges has {min(model.ridges):g}; float32 needs 1e-5 or more to solve for the pixels"
        )
    for name, values in (("pulls", model.pulls), ("shrinkages", model.shrinkages), softenings):
        for value in values:
            if not 0 <= value < float("inf"):
                raise ConfigError(f"model.{name} has {value}; 0 or more is allowed")
    for name in ("candidates", "iterations", "window", "grain", "heads"):
        count = getattr(model, name)
        if count is not None:
            _positive(f"model.{name}", count)
    if not 0 <= model.readout <= 5:
        raise ConfigError(
            f"model.readout is {model.readout}; use a degree of 0 to 5; 0 leaves pixels as they are"
        )
    if model.heads > 4:
        raise ConfigError(f"model.heads is {model.heads}; use 1 to 4")
    if model.heads > 1 and not model.readout:
        raise ConfigError(
            f"model.heads is {model.heads} and model.readout 0, but a readout puts heads together; "
            "use model.heads=1, or a model.readout of 1 or more"
        )
    if not 0 <= model.common <= model.iterations:
        raise ConfigError(
            f"model.common is {model.common}; it must be 0 to model.iterations, {model.iterations}"
        )


def _check_slots(model: SlotsConfig) -> None:
    for name in ("slots", "parents", "rank", "screening_rank", "candidates"):
        _positive(f"model.{name}", getattr(model, name))
    if model.parents > model.slots:
        raise ConfigError(
            f"model.parents is {model.parents}, but there are {model.slots} slots to cluster; use fewer"
        )
    if not model.inverse_temperatures:
        raise ConfigError("model.inverse_temperatures is empty; give at least one value")
    for value in model.inverse_temperatures:
        _positive("each of model.inverse_temperatures", value)


def validate_comparison(config: CompareConfig) -> None:
    """The same for evaluate.py."""
    if not config.runs:
        raise ConfigError("runs is empty; give run folders: uv run evaluate.py 'runs=[DIR,DIR]'")
    for name, value in (
        ("images", config.images),
        ("steps", config.steps),
        ("batch_size", config.batch_size),
        ("threads", config.threads),
        ("wandb.wait_seconds", config.wandb.wait_seconds),
    ):
        if value is not None:
            _positive(name, value)
    if config.seed < 0:
        raise ConfigError(f"seed is {config.seed}; it must be 0 or more")


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name} is {value}; it must be positive and finite")
