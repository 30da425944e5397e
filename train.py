"""Train an attractor network with a local rule, choose how to retrieve, evaluate, report.

uv run train.py                                     embedded digits, under two minutes
uv run train.py experiment=mnist data.root=DIR      any field of conf/ from the command line
uv run train.py -m rule.learning_rate=0.01,0.03     Hydra multirun
"""

import time

import hydra
from omegaconf import DictConfig, OmegaConf
from torch import Generator
from tqdm import tqdm

from attractor.images import pixel_mean
from attractor.lab import assessment, checkpoints, report
from attractor.lab.build import build_candidates, build_data, build_network, build_rule, build_tasks
from attractor.lab.config import Config, register, validate
from attractor.lab.drawing import draw_run
from attractor.lab.entry import launch
from attractor.lab.folder import MetricsFile, RunFolder
from attractor.lab.selection import choose
from attractor.lab.tracking import Tracker
from attractor.lab.training import EarlyStopping, fit
from attractor.physics import IterativeRule

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(raw: DictConfig) -> float | None:
    """Compose conf/, then `train`."""
    return launch(raw, check=validate, job=train)


def train(config: Config, folder: RunFolder) -> float:
    """One run, from data to figures; returns its validation score, for sweepers."""
    begin = time.perf_counter()
    splits = build_data(config.data)
    mean = pixel_mean(splits.train)
    network = build_network(config.model, mean, seed=config.seed)
    rule = build_rule(config.rule, network, seed=config.seed)
    tasks = build_tasks(config.task, patch=config.model.patch, side=splits.side)
    # the first inertia is enough to tell couplings apart while they are trained
    candidates = build_candidates(config, evidence=False)[:: len(config.dynamics.inertias)]
    couplings = network.energy.couplings
    settings = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    tracker = Tracker(
        config.wandb,
        folder=folder.path,
        name=f"{config.model.name}-{splits.name}-seed{config.seed}",
        job_type="train",
        settings=settings,
    )

    with folder.job(), tracker, MetricsFile(folder.path / "metrics.jsonl") as metrics:
        folder.say(report.header(config, splits, network))
        validation = {
            name: assessment.validation_batch(
                splits, task, images=config.train.validation_images, seed=config.eval.seed
            )
            for name, task in tasks.items()
        }
        stopping = EarlyStopping(config.train.patience)
        train_seconds = 0.0
        errors: dict[str, float] = {}
        steps = fit(
            network,
            rule,
            images=splits.train,
            steps=config.train.steps,
            batch_size=config.train.batch_size,
            learning_rate=getattr(config.rule, "learning_rate", 0.0),
            jitter=config.train.jitter,
            generator=Generator().manual_seed(config.seed),
        )
        total = config.train.steps if isinstance(rule, IterativeRule) else 1
        bar = tqdm(steps, "training", total=total, dynamic_ncols=True)
        for step in bar:
            train_seconds += step.seconds
            values = {"train/rate": step.rate}
            if isinstance(rule, IterativeRule):
                values[f"train/{rule.objective}"] = step.objective
            if step.index % config.train.validate_every == 0 or step.index == total:
                errors = {
                    task: choose(
                        network,
                        candidates,
                        batch,
                        screening_steps=config.train.validation_steps,
                        steps=config.train.validation_steps,
                    ).error
                    for task, batch in validation.items()
                }
                values |= {f"val/{task}": error for task, error in errors.items()}
                if stopping.update(step.index, errors, couplings.weights):
                    checkpoints.save(
                        folder.checkpoints,
                        checkpoints.Checkpoint(
                            step=step.index,
                            weights=couplings.weights,
                            mean=mean,
                            config=settings,
                            validation=errors,
                        ),
                    )
            bar.set_postfix_str(report.progress(rule, step, errors), refresh=False)
            metrics.write(step.index, values)
            tracker.log(step.index, values)
            if stopping.exhausted:
                break
        bar.close()
        stopping.restore(couplings.weights)
        peak_memory = assessment.peak_memory()

        with tqdm(desc="choosing", bar_format="{desc}  {elapsed}  {postfix}") as bar:
            choices = assessment.choose_retrievals(
                config, network, splits, tasks, progress=bar.set_postfix_str
            )
        with tqdm(desc="evaluating", bar_format="{desc}  {elapsed}  {postfix}") as bar:
            references = assessment.references(
                splits,
                tasks.values(),
                validation_images=len(splits.validation),
                seed=config.eval.seed,
            )
            outcome = assessment.assess(
                {config.model.name: (network, choices)},
                references,
                splits,
                tasks,
                images=config.eval.images,
                steps=config.eval.steps,
                batch_size=config.eval.batch_size,
                seed=config.eval.seed,
                progress=bar.set_postfix_str,
            )
        results = assessment.run_results(
            config,
            network,
            splits,
            outcome,
            train_seconds=train_seconds,
            peak_memory=peak_memory,
            steps=step.index,
            selected_step=stopping.best_step,
        )
        folder.write_json("results.json", results)
        tracker.summary(report.headline(results))
        tracker.curves(results["tasks"])
        if config.figures:
            drawn = draw_run(config, network, splits, tasks, references, outcome, results, folder.figures)
            tracker.images(drawn)
        folder.say(f"couplings of step {stopping.best_step} of {step.index}, chosen on validation images")
        folder.say(report.scale(results["tasks"], steps=config.eval.steps))
        folder.say(report.table(results["tasks"]))
        for warning in report.warnings(results["tasks"]):
            folder.say(f"warning: {warning}")
    seconds = time.perf_counter() - begin
    print(report.closing(folder.path, figures=config.figures, sync=tracker.sync_command, seconds=seconds))
    return stopping.best_score


if __name__ == "__main__":
    main()
