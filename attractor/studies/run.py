"""What train.py does where `theory` is set: a study in place of a training."""

import time
from importlib import import_module

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from attractor.lab.config.schema import Config, TheoryConfig
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.assessment import SCHEMA, peak_memory
from attractor.lab.experiment.build import build_data
from attractor.lab.experiment.processes import Processes
from attractor.lab.run.folder import RunFolder
from attractor.lab.run.tracking import Tracker
from attractor.lab.show import terminal
from attractor.studies.config import THEORY_SCHEMAS
from attractor.studies.study import Study


def name_of(config: TheoryConfig) -> str:
    """The name of a study: of its module here, its experiment and its part of docs/theory.md."""
    return next(name for name, schema in THEORY_SCHEMAS.items() if schema is type(config))


def study(config: Config, folder: RunFolder, processes: Processes | None = None) -> None:
    """Measure, write results.json, draw, and say what came out.

    The folder is that of a run, without checkpoints: a study takes minutes, and begins anew if it was
    interrupted. Raises ConfigError before any work.
    """
    begin = time.perf_counter()
    name = name_of(config.theory)
    if processes is not None and processes.count > 1:
        raise ConfigError(f"theory={name} runs in one process; start it without torchrun")
    module: Study = import_module(f"attractor.studies.{name}")  # the others' imports take seconds
    for field in ("max_seconds", "patience", "stop_after"):
        if getattr(config.train, field) is not None:
            raise ConfigError(f"train.{field} is for trainings; a study does all of its steps, without it")
    module.check(config)
    splits = build_data(config.data)
    module.check_data(config, splits)
    settings = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(settings, dict)
    tracker = Tracker(
        config.wandb,
        folder=folder.path,
        name=f"{name}-{splits.name}-seed{config.seed}",
        job_type="theory",
        settings={str(key): value for key, value in settings.items()},
    )
    with folder.job(), tracker:
        folder.say(f"{name.replace('_', ' ')}: a study on {splits.name}")
        with tqdm(desc="measuring", bar_format="{desc}  {elapsed}  {postfix}") as bar:
            measured = module.measure(config, splits, bar.set_postfix_str)
        seconds = time.perf_counter() - begin
        results = {
            "schema": SCHEMA,
            "theory": name,
            "data": splits.name,
            "seed": config.seed,
            "cost": {
                "seconds": seconds,
                "peak_memory_mb": peak_memory(),
                "threads": config.threads,
                "torch": torch.__version__,
            },
            **measured,
        }
        folder.write_json("results.json", results)
        tracker.summary(measured["headline"] | {"seconds": seconds})
        if config.figures:
            tracker.images(module.draw(results, folder.figures))
        folder.say(module.table(results))
        folder.say(_in_short(measured["headline"]))
    tracked = {"sync": tracker.sync_command, "url": tracker.url}
    seconds = time.perf_counter() - begin
    print(terminal.closing(folder.path, figures=config.figures, **tracked, seconds=seconds))


def _in_short(headline: dict[str, float]) -> str:
    lines = [f"  {value:<12.4g}{name.replace('_', ' ')}" for name, value in headline.items()]
    return "\n".join(["", "in short", *lines])
