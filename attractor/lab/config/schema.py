"""The typed configuration: every field that a run has, with its type and its meaning.

conf/*.yaml holds the values; these dataclasses are their schema, so an unknown field or a wrong type is
refused by Hydra before anything runs, and `checks` refuses values that make no sense.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from attractor.lab.config.names import (
    CouplingsName,
    DeviceName,
    MapName,
    MeasureName,
    Objective,
    OnError,
    OrderName,
    TaskName,
    WandbMode,
)
from attractor.lab.config.rules import RULE_SCHEMAS, ClosedFormConfig, RuleConfig
from attractor.lab.errors import ConfigError
from attractor.physics import Backend

REFERENCES = ("training_mean", "regression", "memory")  # rows of every result table


@dataclass
class ModelConfig:
    """Which kind of model it is, is the class of its node; see conf/model."""

    name: str = MISSING  # the key of the model in results.json
    patch: int = 2  # side of a patch, pixels


@dataclass
class AttractorConfig(ModelConfig):
    couplings: CouplingsName = MISSING
    measure: MeasureName = MISSING
    inverse_temperature: float = 1.0  # lambda of training
    span: float = 0.5  # white is at the angle pi * span; not used by the Gaussian measure
    projection: int | None = None  # dimension of a frozen random projection of the tokens
    radius: int | None = None  # tokens at most so many patches away are sources; null: all others


@dataclass
class TransformerConfig(ModelConfig):
    width: int = MISSING
    heads: int = MISSING
    depth: int = MISSING  # blocks


@dataclass
class TransformerBlockConfig(ModelConfig):
    width: int = MISSING
    heads: int = MISSING
    # how often the block is applied in training, drawn for every batch
    min_iterations: int = MISSING
    max_iterations: int = MISSING


@dataclass
class LocalLinearMemoryConfig(ModelConfig):
    """The lists hold what is tried on validation images, task by task; see `lab.recollection`."""

    copies: list[str] = field(default_factory=list)  # of stored images: see images/symmetries.py
    # side of the squares that attend for themselves, pixels; null: model.patch, at which masks hide
    grain: int | None = None
    candidates: int | None = MISSING  # stored images whose copies are compared with an image; null: all
    iterations: int = MISSING  # at most
    common: int = MISSING  # first iterations with one attention for the whole image, of noisy images
    neighbours: list[int] = field(default_factory=list)  # K; empty: what suits the number of patterns
    inverse_temperatures: list[float] = field(default_factory=list)  # tau, of 1 / (best - K-th score)
    reaches: list[float] = field(default_factory=list)  # rho, pixels; empty: one attention for the image
    pulls: list[float] = field(default_factory=list)  # kappa, of noisy images
    shrinkages: list[float] = field(default_factory=list)  # towards the covariance of all patterns
    ridges: list[float] = field(default_factory=list)  # variance of a visible pixel, of masked images
    softenings: list[float] = field(default_factory=list)  # rho_0, of noisy images
    window: int = MISSING  # components (of all channels) that answer for a token, the nearest observed
    heads: int = MISSING  # readings at most, of those that were tried, that the readout puts together
    readout: int = MISSING  # degree of the polynomial that turns their predictions into pixels; 0: none


@dataclass
class SlotsConfig(ModelConfig):
    """A mixture of Hopfield networks; see `lab.slot_network`."""

    heads: int = 1  # mixtures with draws of their own, of which the predictions are averaged
    slots: int = MISSING  # of each head
    parents: int = MISSING  # clusters of slots, towards which their covariances are shrunk
    rank: int = MISSING  # directions of a slot that answer noise
    screening_rank: int = MISSING  # directions of a slot by which those that answer are found
    copies: list[str] = field(default_factory=list)  # of training images: see images/symmetries.py
    candidates: int = MISSING  # slots of a head that answer for an image
    inverse_temperatures: list[float] = field(default_factory=list)  # tau, tried on validation images


@dataclass
class BesideConfig:
    """Models without a training loop as further rows of the table (`experiment.beside`); null: no row."""

    memory: LocalLinearMemoryConfig | None = None
    slots: SlotsConfig | None = None
    rule: ClosedFormConfig | None = None  # of slots
    validation_images: int = 100  # by which it is chosen how they are read


@dataclass
class DataConfig:
    name: str = MISSING
    root: str = "data"  # torchvision root, or the file of npz
    download: bool = False
    validation: int | None = None  # images held out of the training images; null: the dataset's default
    train_images: int | None = None  # P, the first of the others in a fixed random order; null: all


@dataclass
class TaskConfig:
    names: list[TaskName] = field(default_factory=list)
    mask_fraction: float = 0.3
    noise_variance: float = 0.7  # per pixel, pixels in [0, 1]


@dataclass
class TrainConfig:
    steps: int = 2000  # the learning rate falls to 0 at the last one
    max_seconds: float | None = (
        None  # of updates, after which training ends if not after `steps`; null: none
    )
    batch_size: int = 128
    jitter: float | None = None  # deviation of the noise added to training pixels; null: that of the rule
    validate_every: int = 100  # steps
    validation_images: int = 100
    validation_steps: int = 3  # iterations that every candidate gets
    patience: int | None = None  # validations without improvement before training ends; null: never
    stop_after: int | None = None  # the run pauses after this step, to be gone on with; null: it does not


@dataclass
class DynamicsConfig:
    """The candidates among which retrieval is chosen on validation images, task by task."""

    maps: list[MapName] = field(default_factory=list)
    inverse_temperatures: list[float] = field(default_factory=list)  # times that of training
    inertias: list[float] = field(default_factory=list)
    evidence: list[float] = field(default_factory=list)  # strengths; empty: no row with evidence
    damping: float = 0.0
    order: OrderName | None = None  # null: token by token for the Gaussian measure, else all at once
    screening_steps: int = 5  # iterations that every candidate gets
    finalists: int = 3  # candidates that get eval.steps iterations
    validation_images: int = 200


@dataclass
class EvalConfig:
    images: int | None = 1000  # the first ones of the test set; null: all
    steps: int = 100  # iterations T
    batch_size: int = 256
    overlap_images: int = 200  # of the training and of the test set each
    seed: int = 0  # of the corruptions: the same for every model and every training seed


@dataclass
class WandbConfig:
    mode: WandbMode = WandbMode.offline
    project: str = "attractor"
    entity: str | None = None
    group: str | None = None  # null: the folder of the sweep, in a multirun
    tags: list[str] = field(default_factory=list)
    wait_seconds: float = 30.0  # a run waits for wandb at most, in all


@dataclass
class TheoryConfig:
    """A study in place of a training, named by the class of the node, see conf/theory. This one: none."""


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    rule: RuleConfig = field(default_factory=RuleConfig)
    beside: BesideConfig = field(default_factory=BesideConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    theory: TheoryConfig = field(default_factory=TheoryConfig)  # a study in place of a training
    train: TrainConfig = field(default_factory=TrainConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    seed: int = 0  # of training: batches, jitter, random starts and projections
    device: DeviceName = DeviceName.auto
    backend: Backend = Backend.auto  # how the sums over sources are computed
    threads: int = 1  # of torch, in each process; more rarely pay on a busy machine
    figures: bool = True
    objective: Objective = Objective.val  # what a sweeper is told
    on_error: OnError = OnError["continue"]  # of a job in a sweep
    resume: str | None = None  # a run folder whose run goes on from its newest checkpoint, or one of these
    folder: str = MISSING  # the run folder; in a multirun Hydra's own


@dataclass
class CompareConfig:
    """evaluate.py: runs to put into one table and one figure."""

    runs: list[str] = field(default_factory=list)
    root: str | None = None  # of the data; null: where the first run found it
    images: int | None = 1000
    steps: int = 100
    batch_size: int = 256
    seed: int = 0
    wandb: WandbConfig = field(default_factory=WandbConfig)
    device: DeviceName = DeviceName.auto
    backend: Backend = Backend.auto
    threads: int = 1
    figures: bool = True
    folder: str = MISSING


def register() -> None:
    """Make the schema known to Hydra, under the names that conf/*.yaml uses."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="compare_schema", node=CompareConfig)
    for group, schemas in GROUPS.items():
        add(group, schemas)


def add(group: str, schemas: Mapping[str, type[Any]]) -> None:
    """Make further options of a group known to Hydra."""
    for name, node in schemas.items():
        ConfigStore.instance().store(group=group, name=name, node=node)


MODEL_SCHEMAS: dict[str, type[ModelConfig]] = {
    "attractor": AttractorConfig,
    "transformer": TransformerConfig,
    "transformer_block": TransformerBlockConfig,
    "local_linear_memory": LocalLinearMemoryConfig,
    "slots": SlotsConfig,
}
# groups whose options are classes of their own
GROUPS: dict[str, Mapping[str, type[Any]]] = {
    "model_schema": MODEL_SCHEMAS,
    "rule_schema": RULE_SCHEMAS,
    "theory_schema": {"none": TheoryConfig},  # studies add their own, see `add`
}


def typed(config: DictConfig) -> Any:
    """The resolved configuration as dataclasses. Missing values and unknown fields are a ConfigError."""
    if unknown := _unknown(config):
        raise ConfigError("; ".join(unknown))
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise ConfigError(f"no value was given for {', '.join(sorted(missing))}")
    return OmegaConf.to_object(config)


def _unknown(config: DictConfig, path: str = "") -> list[str]:
    """Fields that the schema does not have: Hydra adds those given with +, and nothing would read them."""
    schema = OmegaConf.get_type(config)
    known = [field.name for field in fields(schema)] if is_dataclass(schema) else None
    found = []
    for key in map(str, config):
        if known is not None and key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {path}{near[0]}?" if near else f"known are {', '.join(known)}"
            found.append(f"{path}{key} is no field; {hint}")
        elif not OmegaConf.is_missing(config, key) and isinstance(config._get_node(key), DictConfig):
            found += _unknown(config[key], f"{path}{key}.") if config[key] is not None else []
    return found
