"""Train an attractor network with a local rule, choose how to retrieve, evaluate, report.

uv run train.py                                     embedded digits, under two minutes
uv run train.py experiment=mnist data.root=DIR      any field of conf/ from the command line
uv run train.py -m sweep=rates                      a sweep; any field of it from the command line too
uv run train.py experiment=capacity                 a study of attractor.theory in place of a training
uv run train.py resume=DIR                          go on with an interrupted run
uv run torchrun --standalone --nproc-per-node 2 train.py      processes that share the rows
"""

import signal

if __name__ == "__main__":  # Ctrl-C before `launch`, of which the imports are the most, ends quietly
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import time

import hydra
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from attractor.images import pixel_mean
from attractor.lab.config.checks import validate
from attractor.lab.config.schema import Config, TheoryConfig, register
from attractor.lab.entry import launch
from attractor.lab.errors import Paused
from attractor.lab.experiment import assessment, beside, diagnostics
from attractor.lab.experiment.build import (
    build_data,
    build_network,
    build_tasks,
    refuse_memory,
    validation_candidates,
)
from attractor.lab.experiment.build_rule import build_rule, jitter_of
from attractor.lab.experiment.examples import watch
from attractor.lab.experiment.objective import measured
from attractor.lab.experiment.processes import Processes, refuse_clocks, refuse_draws
from attractor.lab.experiment.selection import choose
from attractor.lab.experiment.training import CHOSEN_BY, ONE_SHOT, EarlyStopping, fit
from attractor.lab.run import checkpoints
from attractor.lab.run.folder import RunFolder
from attractor.lab.run.resuming import refuse_pause, restore, snapshot
from attractor.lab.run.tracking import Tracker
from attractor.lab.show import page, terminal
from attractor.studies.run import study

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(raw: DictConfig) -> float | None:
    """Compose conf/, then `train`, or the study that `theory` names."""
    job = train if OmegaConf.get_type(raw.theory) is TheoryConfig else study
    return launch(raw, check=validate, job=job)


def train(config: Config, folder: RunFolder, processes: Processes | None = None) -> float:
    """One run, from data to figures; returns `config.objective`, for sweepers.

    Several processes do the same on their own rows of the couplings; the first one alone has references,
    results and figures.
    """
    begin = time.perf_counter()
    processes = processes or Processes()
    refuse_draws(config.dynamics.maps, processes)
    refuse_clocks(config.train.max_seconds, processes)
    with processes.in_turn():
        splits = build_data(config.data)
    mean = pixel_mean(splits.train)
    placed = {"seed": config.seed, "device": config.device, "backend": config.backend}
    network = build_network(config.model, mean, **placed, ranks=processes.ranks)
    tasks = build_tasks(config.task, patch=config.model.patch, side=splits.side)
    rule = build_rule(config.rule, network, tasks, seed=config.seed)
    refuse_memory(config.model, splits)
    asked, left_out = beside.possible(config, splits)
    candidates = validation_candidates(config)
    settings = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    stopping = EarlyStopping(config.train.patience)
    done, train_seconds, objective, errors = 0, 0.0, None, {}
    if folder.resumed:
        start = restore(
            folder.checkpoints, network, rule, stopping, settings=settings, splits=splits, step=folder.step
        )
        found = start.checkpoint
        done, train_seconds, errors = found.step, found.position.train_seconds, found.validation
    refuse_pause(config, done)
    tracker = Tracker(
        config.wandb,
        folder=folder.path,
        name=f"{config.model.name}-{splits.name}-seed{config.seed}",
        job_type="train",
        settings=settings
        | {"parameters": network.parameters, "device": network.device.type}
        | {"backend": network.backend_name, "processes": processes.count},
        silent=folder.silent,
    )

    with folder.job(), processes.last_words(), tracker, folder.metrics(done=done) as metrics:
        folder.say(terminal.header(config, splits, network))
        for reason in left_out:
            folder.say(f"warning: {reason}")
        if folder.resumed:
            for warning in start.warnings:
                folder.say(f"warning: {warning}")
            folder.say(f"going on from step {done}")
            if processes.first:
                for aside in checkpoints.set_aside(folder.checkpoints, after=done):
                    folder.say(f"warning: the checkpoint of a later step is set aside in {aside}")
        validation = {
            name: assessment.validation_batch(
                splits, task, images=config.train.validation_images, seed=config.eval.seed
            )
            for name, task in tasks.items()
        }
        steps = fit(
            network,
            rule,
            images=splits.train,
            steps=config.train.steps,
            batch_size=config.train.batch_size,
            learning_rate=getattr(config.rule, "learning_rate", 0.0),
            jitter=jitter_of(config),
            seed=config.seed,
            done=done,
            max_seconds=config.train.max_seconds,
            seconds=train_seconds,
        )
        total = 1 if isinstance(rule, ONE_SHOT) else config.train.steps
        if stopping.exhausted:  # before it was interrupted
            steps = iter(())
        bar = tqdm(steps, "training", total=total, initial=done, dynamic_ncols=True, disable=folder.silent)
        if processes.count == 1:  # several would have to agree on the step
            folder.signals.defer()
        for step in bar:
            done = step.index
            train_seconds += step.seconds
            values = {"train/rate": step.rate}
            validating = done % config.train.validate_every == 0 or step.last
            # of rows that are drawn, the share of each process is not known
            shared = validating and getattr(rule, "rows_per_step", None) is None
            if step.objective is not None and (processes.count == 1 or shared):
                objective = processes.row_mean(step.objective, len(network.rows))
                values[f"train/{rule.objective}"] = objective
            if validating:
                iterations = config.train.validation_steps
                chosen = {
                    task: choose(network, candidates, batch, screening_steps=iterations, steps=iterations)
                    for task, batch in validation.items()
                }
                errors = {task: choice.error for task, choice in chosen.items()}
                values |= {f"val/{task}": error for task, error in errors.items()}
                last = list(chosen)[-1]  # the task of the figure of overlaps too
                physics = diagnostics.measure(
                    network,
                    chosen[last].retrieval,
                    validation[last],
                    steps=iterations,
                    processes=processes,
                )
                values |= {f"physics/{name}": value for name, value in physics.items()}
                stopping.update(done, errors, network.weights, last=step.last)
            bar.set_postfix_str(terminal.progress(rule, objective, errors), refresh=False)
            tracker.log(done, values)  # before the record, which says what was told
            metrics.write(done, values)
            pausing = done == config.train.stop_after and not step.last
            ending = pausing or folder.signals.received is not None
            if validating or ending:
                checkpoint = snapshot(
                    network,
                    rule,
                    stopping,
                    step=done,
                    errors=errors,
                    train_seconds=train_seconds,
                    mean=mean,
                    settings=settings,
                    splits=splits,
                )
                metrics.flush_to_disk()
                checkpoints.save(folder.checkpoints, checkpoint, processes)
            if ending:
                bar.close()
                folder.say(f"saved after step {done} of {total}; {terminal.going_on(folder.path)}")
                folder.signals.heed()
                raise Paused(f"paused after step {done}, as train.stop_after asks")
            if stopping.exhausted:
                break
        bar.close()
        folder.signals.heed()
        stopping.restore(network.weights)
        choosing = time.perf_counter()

        plain = {"bar_format": "{desc}  {elapsed}  {postfix}", "disable": folder.silent}
        with tqdm(desc="choosing", **plain) as bar:
            choices = assessment.choose_retrievals(
                config, network, splits, tasks, progress=bar.set_postfix_str
            )
        choose_seconds, peak_memory = time.perf_counter() - choosing, assessment.peak_memory()
        rows = []
        if asked and processes.first:
            with tqdm(desc="choosing for models beside", **plain) as bar:
                rows, left_out = beside.choose(asked, splits, tasks, progress=bar.set_postfix_str)
            for reason in left_out:
                folder.say(f"warning: {reason}")
        with tqdm(desc="evaluating", **plain) as bar:
            references = {}
            if processes.first:
                references = assessment.references(
                    splits,
                    tasks.values(),
                    validation_images=len(splits.validation),
                    seed=config.eval.seed,
                )
            outcome = assessment.assess(
                [(network, choices), *((row.network, row.choices) for row in rows)],
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
            choose_seconds=choose_seconds,
            peak_memory=peak_memory,
            steps=done,
            selected_step=stopping.best_step,
            score=assessment.score(choices) if isinstance(rule, CHOSEN_BY) else stopping.best_score,
        ) | {"beside": beside.to_json(rows) | {"settings": settings["beside"]}}
        value = measured(results, config.objective)
        if not processes.first:
            return value
        folder.write_json("results.json", results)
        tracker.results(results, objective=value)
        if config.figures:
            if processes.count > 1:  # figures are drawn by one process, from all rows
                whole = build_network(config.model, mean, **placed)
                best = checkpoints.load(folder.checkpoints, step=stopping.best_step)
                checkpoints.fill(whole.weights, best, folder.path)
                network, outcome = whole, outcome.instead(network, whole)
            trajectories = watch(outcome, steps=config.eval.steps)
            from attractor.lab.show.drawing import draw_run  # matplotlib takes a second to import

            drawn = draw_run(
                config,
                network,
                splits,
                tasks,
                references,
                outcome,
                results,
                trajectories,
                folder.path / "metrics.jsonl",
                folder.figures,
            )
            tracker.images(drawn)
        if total > 1:
            folder.say(f"couplings of step {stopping.best_step} of {done}, chosen on validation images")
        folder.say(terminal.scale(results["tasks"], steps=config.eval.steps))
        folder.say(terminal.table(results["tasks"]))
        for warning in terminal.warnings(results["tasks"]):
            folder.say(f"warning: {warning}")
        if config.figures:
            heading = terminal.header(config, splits, network)
            page.write(folder, results, heading=heading, figures=drawn, trajectories=trajectories)
    seconds = time.perf_counter() - begin
    tracked = {"sync": tracker.sync_command, "url": tracker.url}
    print(terminal.closing(folder.path, figures=config.figures, **tracked, seconds=seconds))
    return value


if __name__ == "__main__":
    main()
