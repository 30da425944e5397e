"""Attention as the gradient of a log-normaliser: what is measured of the theory, and in which networks.

sampling: softmax attention over n draws of a Gaussian, against mu + Sigma eta.
shapes, limits: populations under update and renormalisation; growth: of their small cumulants.
bound: exact log Z of Gaussian mixtures against the lower bound.
networks: expansion by attention, contraction by normalisation; weightless: the theory's own layer on
their tokens.
"""

from attractor.images import ImageSplits
from attractor.lab.config.names import CouplingsName, MeasureName
from attractor.lab.config.schema import (
    AttractorConfig,
    Config,
    LocalLinearMemoryConfig,
    ModelConfig,
    SlotsConfig,
)
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.assessment import validation_batch
from attractor.lab.experiment.network import AttractorNetwork
from attractor.lab.experiment.transformers import TransformerNetwork
from attractor.studies.config import LogNormaliserConfig
from attractor.studies.log_normaliser import expansion, populations
from attractor.studies.log_normaliser.figures import draw
from attractor.studies.log_normaliser.report import headline, table
from attractor.studies.networks import check_networks, networks
from attractor.studies.study import Results, Tell

__all__ = ["check", "check_data", "draw", "measure", "table"]

# of repetitions a standard deviation is taken, and fewer particles are no population
_LEAST = {"repetitions": 2, "particles": 10, "iterations": 1, "seeds": 1, "images": 1}
_SCALES = [1.0, 4.0, 16.0]  # of the variance of tokens


def check(config: Config) -> None:
    """Refuse what cannot be measured, networks of another kind and runs that cannot be loaded included."""
    theory = _theory(config)
    for name, least in _LEAST.items():
        if getattr(theory, name) < least:
            raise ConfigError(f"theory.{name} is {getattr(theory, name)}; it must be {least} or more")
    if not theory.draws or min(theory.draws) < 1:
        raise ConfigError(f"theory.draws is {theory.draws}; give numbers of draws, each 1 or more")
    runs = check_networks(config)
    if not runs and not _is_bare(config.model):
        raise ConfigError(
            f"the study trains bare self-attention on the sphere, and {_describe(config.model)}; leave "
            "model as it is, or give theory.runs"
        )
    for folder, run in zip(theory.runs, runs, strict=True):
        model = run.config.model
        if isinstance(model, AttractorConfig | LocalLinearMemoryConfig | SlotsConfig) and not _is_bare(
            model
        ):
            raise ConfigError(
                f"{folder}: {_describe(model)}; the study measures bare self-attention on the sphere and "
                "transformers"
            )


def check_data(config: Config, splits: ImageSplits) -> None:
    """Refuse networks of a single token, which is no cloud."""
    if not _theory(config).runs and config.model.patch == splits.side:
        raise ConfigError(
            f"model.patch is {splits.side}, which makes an image one token; use a smaller one"
        )


def _is_bare(model: ModelConfig) -> bool:
    return (
        isinstance(model, AttractorConfig)
        and model.couplings is CouplingsName.pairwise
        and model.measure is MeasureName.sphere
        and model.radius is None
    )


def _describe(model: ModelConfig) -> str:
    if not isinstance(model, AttractorConfig):
        return f"model={model.name}"
    fields = f"couplings={model.couplings.value}, measure={model.measure.value}, radius={model.radius}"
    return f"model={model.name} has {fields}"


def measure(config: Config, splits: ImageSplits, tell: Tell) -> Results:
    """See the module; plain values. `headline` has the numbers that the text is about."""
    theory = _theory(config)
    tell("softmax attention over samples")
    results: Results = {
        "sampling": [
            populations.sampling(dim, strength, theory, seed=config.seed)
            for dim in (1, 2, 3)
            for strength in populations.STRENGTHS
        ]
    }
    shapes = []
    for variance in populations.VARIANCES:
        for shape in ("equilibrium", *populations.SHAPES):
            tell(f"update and renormalisation, {shape}, variance {variance:g}")
            shapes.append(populations.trajectories(shape, variance, theory, seed=config.seed))
    tell("limits of populations, growth of cumulants")
    limits = [
        populations.limit(shape, variance, theory, seed=config.seed)
        for variance in populations.VARIANCES
        for shape in populations.SHAPES
    ]
    results |= {
        "shapes": shapes,
        "limits": limits,
        "growth": populations.growth(2 * theory.particles),
        "bound": populations.bound(seed=config.seed),
    }
    results |= measure_networks(config, splits, tell)
    return results | {"headline": headline(results)}


def measure_networks(config: Config, splits: ImageSplits, tell: Tell) -> Results:
    """Expansion in each network and its controls, and in the theory's own layer on their tokens."""
    theory = _theory(config)
    found, tokens_of = [], {}
    for one in networks(config, splits, tell):
        tell(f"expansion in {one.label}")
        name, task = next(iter(one.tasks.items()))
        batch = validation_batch(splits, task, images=theory.images, seed=config.eval.seed)
        network, before = one.network, one.untrained
        row = {"name": one.label, "task": name, "error": one.choices[name].error}
        if isinstance(network, TransformerNetwork):
            assert isinstance(before, TransformerNetwork)
            random = expansion.permuted(network, seed=config.seed)
            row["kind"] = "transformer"
            for state, seen in (("trained", network), ("permuted", random), ("untrained", before)):
                row[state] = expansion.transformer(seen, batch, seed=config.seed)
        else:
            assert isinstance(network, AttractorNetwork)
            assert isinstance(before, AttractorNetwork)
            drawn = expansion.shuffled(before, network, seed=config.seed)
            row |= {"kind": "bare", "trained": expansion.bare(network, batch)}
            row |= {"untrained": expansion.bare(drawn, batch)}
            tokens = network.encode(batch.original).flatten(0, 1)
            tokens_of[f"D = {tokens.shape[1]}"] = tokens
        found.append(row)
    free = {
        name: expansion.weightless(tokens, scales=_SCALES, seed=config.seed)
        for name, tokens in tokens_of.items()
    }
    return {"networks": found, "weightless": free}


def _theory(config: Config) -> LogNormaliserConfig:
    assert isinstance(config.theory, LogNormaliserConfig)
    return config.theory
