"""The trained networks that studies of the weights and the states look at: trained here, or loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attractor.images import ImageSplits, pixel_mean
from attractor.lab.assessment import validation_batch
from attractor.lab.build import build_candidates, build_network, build_tasks
from attractor.lab.build_rule import build_rule, jitter_of
from attractor.lab.config import Config, ModelConfig, TransformerConfig
from attractor.lab.errors import ConfigError
from attractor.lab.network import Network
from attractor.lab.rule_config import BackpropConfig
from attractor.lab.runs import load_run
from attractor.lab.selection import Choice, choose
from attractor.lab.studies.study import Tell
from attractor.lab.training import fit


@dataclass(frozen=True)
class Trained:
    """A trained network, and how it is read best on validation images, with its error there (pixels^2)."""

    name: str
    network: Network
    model: ModelConfig
    task: str  # of the choice
    choice: Choice
    seed: int


def trained(config: Config, splits: ImageSplits, tell: Tell, *, runs: Sequence[str]) -> list[Trained]:
    """The networks of the run folders `runs`; without any, two that are trained here, by `train_both`.

    Raises ConfigError for a folder that holds no finished run, or a run on other data.
    """
    return load(runs, data=splits.name) if runs else train_both(config, splits, tell)


def load(runs: Sequence[str], *, data: str) -> list[Trained]:
    """Finished runs on the data set `data`, read as they chose on validation images: see `trained`."""
    found = []
    for folder in runs:
        run = load_run(folder)
        if run.config.data.name != data:
            raise ConfigError(f"{folder} was trained on {run.config.data.name}, not on {data}; give data=")
        task = next(iter(run.choices))
        model = run.config.model
        found.append(
            Trained(
                f"{model.name} {Path(folder).name}",
                run.network,
                model,
                task,
                run.choice(task),
                run.config.seed,
            )
        )
    return found


def train_both(config: Config, splits: ImageSplits, tell: Tell) -> list[Trained]:
    """`config.model` by `config.rule`, and the transformer of conf/model by backpropagation.

    Both for the one task of `config`, with its seed; all steps are taken, without early stopping. The
    transformer learns in fewer of them, each of which takes longer: `train.steps` / 4.
    """
    transformer = TransformerConfig(
        name="transformer", patch=config.model.patch, width=96, heads=4, depth=5
    )
    backprop = BackpropConfig(learning_rate=0.004)
    fewer = replace(config.train, steps=max(1, config.train.steps // 4))
    recipes = [config, replace(config, model=transformer, rule=backprop, train=fewer)]
    return [_train(recipe, splits, tell) for recipe in recipes]


def _train(config: Config, splits: ImageSplits, tell: Tell) -> Trained:
    network = build_network(
        config.model,
        pixel_mean(splits.train),
        seed=config.seed,
        device=config.device,
        backend=config.backend,
    )
    tasks = build_tasks(config.task, patch=config.model.patch, side=splits.side)
    for step in fit(
        network,
        build_rule(config.rule, network, tasks, seed=config.seed),
        images=splits.train,
        steps=config.train.steps,
        batch_size=config.train.batch_size,
        learning_rate=getattr(config.rule, "learning_rate", 0.0),
        jitter=jitter_of(config),
        seed=config.seed,
    ):
        tell(f"training {config.model.name}, step {step.index}/{config.train.steps}")
    name, task = next(iter(tasks.items()))
    batch = validation_batch(splits, task, images=config.dynamics.validation_images, seed=config.eval.seed)
    screening = config.dynamics.screening_steps
    best = choose(
        network, build_candidates(config, evidence=False), batch, screening_steps=screening, steps=screening
    )
    return Trained(config.model.name, network, config.model, name, best, config.seed)


def untrained(network: Trained, splits: ImageSplits) -> Network:
    """The same network as it was before training: small random weights, or J = 0."""
    return build_network(network.model, pixel_mean(splits.train), seed=network.seed)
