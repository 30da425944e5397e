"""The typed configuration of learning rules, a class each; conf/rule has their values."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class OptimiserName(Enum):
    sgd = "sgd"
    adam = "adam"


@dataclass
class RuleConfig:
    """Which rule it is, is the class of its node; see conf/rule."""


@dataclass
class PseudoLikelihoodConfig(RuleConfig):
    learning_rate: float = MISSING
    optimiser: OptimiserName = OptimiserName.adam
    momentum: float = 0.0  # of sgd
    decay: float = 0.0
    rows_per_step: int | None = None  # rows of J drawn at random for a step; null: all


@dataclass
class EnergyDescentConfig(RuleConfig):
    learning_rate: float = MISSING
    optimiser: OptimiserName = OptimiserName.sgd
    momentum: float = 0.0
    decay: float | None = None  # null: the norm of each row is held
    start: float = 0.01  # standard deviation of the random start
    rows_per_step: int | None = None  # rows of J drawn at random for a step; null: all


@dataclass
class HebbConfig(RuleConfig):
    rate: float = 1.0


@dataclass
class RidgeConfig(RuleConfig):
    ridge: float = 1e-3


@dataclass
class StoreConfig(RuleConfig):
    """All training images are stored; there is nothing to set."""


@dataclass
class ClosedFormConfig(RuleConfig):
    """Of slots; see `physics.slot_learning`."""

    parent_images: float = MISSING  # n_0: as many of its parent's images count for a slot
    root_images: float = MISSING  # n_1: as many of all images count for a parent
    ridge: float = MISSING  # variance added to every pixel
    iterations: int = MISSING  # of k-means


class PrecisionName(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"  # of the products of matrices, in training


@dataclass
class BackpropConfig(RuleConfig):
    learning_rate: float = MISSING
    weight_decay: float = 0.05  # of the matrices
    warmup: int = 200  # steps, a fifth of training at most
    clip: float = 1.0  # of the norm of the gradient
    precision: PrecisionName = PrecisionName.float32


RULE_SCHEMAS: dict[str, type[RuleConfig]] = {
    "pseudo_likelihood": PseudoLikelihoodConfig,
    "energy_descent": EnergyDescentConfig,
    "hebb": HebbConfig,
    "ridge": RidgeConfig,
    "backprop": BackpropConfig,
    "store": StoreConfig,
    "closed_form": ClosedFormConfig,
}
