"""The fields of the studies, one class for each; conf/theory has their values.

Everything else that a study needs, data, model, rule, seed, tracking and folder, is where it always is.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

from attractor.lab.config.schema import TheoryConfig, add


@dataclass
class OlsAttentionConfig(TheoryConfig):
    images: int = MISSING  # of the context; as many other training images are another one
    side: int = MISSING  # pixels; larger images are averaged down to this at most
    ridges: list[float] = field(default_factory=list)  # times the mean eigenvalue of the Gram matrix
    steps: int = MISSING  # of every descent
    # the one that ends lowest, with a seed of its own, is the rate of all the others
    adam_rates: list[float] = field(default_factory=list)
    plain_rates: list[float] = field(default_factory=list)  # of plain gradient descent
    seeds: int = MISSING  # random starts
    start_scales: list[float] = field(default_factory=list)  # of smaller starts, a control; or none
    short_context: int = MISSING  # images of the contexts that are drawn anew at every step


@dataclass
class NetworksConfig(TheoryConfig):
    runs: list[str] = field(default_factory=list)  # trained networks; empty: they are trained here
    # the transformers that are trained here, one for each task
    width: int = MISSING
    heads: int = MISSING
    depth: int = MISSING
    transformer_rate: float = MISSING
    transformer_steps: int = MISSING
    transformer_batch: int = MISSING


@dataclass
class QueryKeyConfig(NetworksConfig):
    images: int = MISSING  # whose tokens are measured, at most
    test_images: int = MISSING  # for the errors at every rank, at most
    draws: int = MISSING  # of every random control
    # of the targets of J, in units of the mean eigenvalue of all tokens
    target_ridges: list[float] = field(default_factory=list)
    # the ablation of whitening, where networks are trained here
    steps: int = MISSING
    seeds: int = MISSING
    ridges: list[float] = field(default_factory=list)  # of the whitening, in units of the mean eigenvalue
    # of each way of learning, those that are tried, by the name of what is whitened
    adam_rates: dict[str, list[float]] = field(default_factory=dict)
    sgd_rates: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class FastWeightsConfig(TheoryConfig):
    seeds: int = MISSING  # draws of every measurement
    dim: int = MISSING  # of keys, queries and values
    sequences: int = MISSING  # of a seed, for forgetting and overwriting
    stored: list[int] = field(default_factory=list)  # numbers of pairs
    separations: list[str] = field(default_factory=list)  # names in SEPARATIONS
    rules: list[str] = field(default_factory=list)  # names in RULES
    delta_rates: list[float] = field(default_factory=list)  # eta of the rule "delta", measured at each
    retention: float = MISSING  # gamma of the decay, and the geometric mean of the random gate
    inverse_temperature: float = MISSING  # beta of the softmax and of its random features
    random_features: int = MISSING
    rounds: int = MISSING  # in which every key is written again
    neurons: list[int] = field(default_factory=list)  # of the sign networks
    loads: list[float] = field(default_factory=list)  # P / N
    patterns: int = MISSING  # of a sign network, at most, that are retrieved
    lengths: list[int] = field(default_factory=list)  # T, where memory and time are measured
    chunk: int = MISSING


@dataclass
class CapacityConfig(TheoryConfig):
    stored: list[int] = field(default_factory=list)  # numbers of stored images, under task.noise_variance
    learned: list[int] = field(default_factory=list)  # those of them that a network is trained on
    fixed: int = MISSING  # number of stored images while the corruption varies
    variances: list[float] = field(default_factory=list)  # of the noise, squared pixels
    fractions: list[float] = field(default_factory=list)  # of the tokens, that are occluded
    similarities: list[str] = field(default_factory=list)  # names in baselines.similarities
    separations: list[str] = field(default_factory=list)  # names in baselines.separations
    powers: list[float] = field(default_factory=list)  # of the polynomial separations
    ridges: list[float] = field(default_factory=list)  # of the Mahalanobis similarity, squared pixels
    queries: int = MISSING  # corrupted images of each measurement
    seeds: int = MISSING  # draws of the images that are stored


@dataclass
class LogNormaliserConfig(NetworksConfig):
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
add("theory_schema", THEORY_SCHEMAS)
