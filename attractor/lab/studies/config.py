"""The fields of the studies, one class for each; conf/theory has their values.

Everything else that a study needs, data, model, rule, seed, tracking and folder, is where it always is.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class TheoryConfig:
    """Which study it is, is the class of its node; see conf/theory."""


@dataclass
class OlsAttentionConfig(TheoryConfig):
    steps: int = MISSING  # of gradient descent


@dataclass
class QueryKeyConfig(TheoryConfig):
    runs: list[str] = field(default_factory=list)  # trained networks; empty: they are trained here


@dataclass
class FastWeightsConfig(TheoryConfig):
    seeds: int = MISSING  # draws of every measurement


@dataclass
class CapacityConfig(TheoryConfig):
    stored: list[int] = field(default_factory=list)  # numbers of stored images


@dataclass
class LogNormaliserConfig(TheoryConfig):
    runs: list[str] = field(default_factory=list)  # trained networks; empty: they are trained here
    draws: list[int] = field(default_factory=list)  # n, of the softmax attention over a sample
    repetitions: int = MISSING  # of every sample
    particles: int = MISSING  # of a population under update and renormalisation
    iterations: int = MISSING  # of update and renormalisation
    seeds: int = MISSING  # populations of every shape
    images: int = MISSING  # validation images on which networks are measured


THEORY_SCHEMAS: dict[str, type[TheoryConfig]] = {
    "ols_attention": OlsAttentionConfig,
    "query_key": QueryKeyConfig,
    "fast_weights": FastWeightsConfig,
    "capacity": CapacityConfig,
    "log_normaliser": LogNormaliserConfig,
}
