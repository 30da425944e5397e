"""The trained networks that studies of weights and states look at: trained here, or loaded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from attractor.images import ImageSplits, Task, pixel_mean
from attractor.lab.config.names import TaskName
from attractor.lab.config.rules import BackpropConfig
from attractor.lab.config.schema import Config, DataConfig, TransformerConfig
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.assessment import choose_retrievals
from attractor.lab.experiment.build import build_network, build_tasks
from attractor.lab.experiment.build_rule import training
from attractor.lab.experiment.network import Network
from attractor.lab.experiment.selection import Choice
from attractor.lab.run.finished import load_run, same_images
from attractor.studies.config import NetworksConfig
from attractor.studies.study import Tell


@dataclass(frozen=True)
class Trained:
    """A network, the same before training, and how it is read, without evidence, for each of its tasks.

    choices: task -> the retrieval that validation images chose, with its error there (pixels^2).
    """

    config: Config  # its own
    network: Network
    untrained: Network
    tasks: Mapping[str, Task]
    choices: Mapping[str, Choice]

    @property
    def label(self) -> str:
        """Kind, patch, task if it has one, seed."""
        name, patch = self.config.model.name.replace("_", " "), self.config.model.patch
        task = f" {next(iter(self.tasks))}" * (len(self.tasks) == 1)
        return f"{name} {patch}x{patch}{task} seed {self.config.seed}"


def networks(config: Config, splits: ImageSplits, tell: Tell) -> Iterator[Trained]:
    """Those of the run folders `theory.runs`, or `config.model` and a transformer for each of its tasks.

    Raises ConfigError as `load` does.
    """
    fields = networks_config(config)
    if fields.runs:
        for folder in fields.runs:
            yield load(folder, data=config.data, splits=splits)
        return
    yield train(config, splits, tell)
    for task in config.task.names:
        yield train(transformer_beside(config, task), splits, tell)


def networks_config(config: Config) -> NetworksConfig:
    """The fields of a study of networks."""
    assert isinstance(config.theory, NetworksConfig)
    return config.theory


def check_networks(config: Config) -> list[Trained]:
    """Refuse runs that cannot be loaded, and a transformer that cannot be trained (ConfigError).

    Returns the runs, for what else a study asks of them; `networks` loads them again, one at a time.
    """
    fields = networks_config(config)
    for name in ("width", "heads", "depth", "transformer_rate", "transformer_steps", "transformer_batch"):
        if not 0 < getattr(fields, name) < float("inf"):
            raise ConfigError(f"theory.{name} is {getattr(fields, name)}; it must be positive")
    if fields.width % fields.heads:
        raise ConfigError(f"theory.heads is {fields.heads}; it must divide theory.width={fields.width}")
    return [load(folder, data=config.data) for folder in fields.runs]


def load(folder: str, *, data: DataConfig, splits: ImageSplits | None = None) -> Trained:
    """A finished run on the data set `data`. ConfigError for another one, and for what is no run.

    With `splits`, the images of `data`, for another file of that name too, if as many train the run.
    """
    run = load_run(folder)
    config, encoding = run.config, run.network.encoding
    if config.data.name != data.name:
        raise ConfigError(f"{folder} was trained on {config.data.name}; give data={config.data.name}")
    if splits is not None and config.data.train_images == data.train_images:
        same_images([run], splits)
    untrained = build_network(config.model, encoding.mean, seed=config.seed, device=config.device)
    tasks = build_tasks(config.task, patch=config.model.patch, side=encoding.side)
    choices = {task: run.choices[task][config.model.name] for task in tasks}
    return Trained(config, run.network, untrained, tasks, choices)


def transformer_beside(config: Config, task: TaskName) -> Config:
    """The training of the transformer that is compared with the network of `config`."""
    fields = networks_config(config)
    model = TransformerConfig(
        name="transformer",
        patch=config.model.patch,
        width=fields.width,
        heads=fields.heads,
        depth=fields.depth,
    )
    return replace(
        config,
        model=model,
        rule=BackpropConfig(learning_rate=fields.transformer_rate),
        task=replace(config.task, names=[task]),
        train=replace(config.train, steps=fields.transformer_steps, batch_size=fields.transformer_batch),
    )


def train(config: Config, splits: ImageSplits, tell: Tell) -> Trained:
    """Train `config.model` by `config.rule` to the last of its steps, without early stopping."""
    network, untrained = (
        build_network(
            config.model,
            pixel_mean(splits.train),
            seed=config.seed,
            device=config.device,
            backend=config.backend,
        )
        for _ in range(2)
    )
    tasks = build_tasks(config.task, patch=config.model.patch, side=splits.side)
    for step in training(config, network, tasks, splits.train):
        if step.index % 50 == 0 or step.last:
            tell(f"training {config.model.name}, step {step.index} of {config.train.steps}")
    return Trained(config, network, untrained, tasks, best_choices(config, network, splits, tasks))


def best_choices(
    config: Config, network: Network, splits: ImageSplits, tasks: dict[str, Task]
) -> dict[str, Choice]:
    """Task -> the retrieval without evidence that does best on validation images."""
    chosen = choose_retrievals(config, network, splits, tasks)
    return {task: rows[config.model.name] for task, rows in chosen.items()}
