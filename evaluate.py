"""Compare finished runs: the same corruptions for all, one table, one figure.

uv run evaluate.py 'runs=[DIR,DIR]'     quoted for zsh
"""

import signal

if __name__ == "__main__":  # Ctrl-C before `launch`, of which the imports are the most, ends quietly
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from dataclasses import replace

import hydra
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from attractor.lab.config.checks import validate_comparison
from attractor.lab.config.schema import CompareConfig, register
from attractor.lab.entry import launch
from attractor.lab.experiment import assessment, beside
from attractor.lab.experiment.build import build_data, build_tasks
from attractor.lab.experiment.choices import choices_to_json, of_run, together
from attractor.lab.experiment.examples import watch
from attractor.lab.experiment.network import Retrieval
from attractor.lab.experiment.processes import Processes, refuse_draws
from attractor.lab.run.finished import enough_steps, load_run, same_data, same_images
from attractor.lab.run.folder import RunFolder
from attractor.lab.run.tracking import Tracker
from attractor.lab.show import page, terminal

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(raw: DictConfig) -> None:
    """Compose conf/evaluate.yaml, then `compare`."""
    launch(raw, check=validate_comparison, job=compare)


def compare(config: CompareConfig, folder: RunFolder, processes: Processes | None = None) -> None:
    """Load the runs, evaluate them and the references, write results.json, table, figure and page.

    Several processes share the rows of the couplings; the first one alone has references and results.
    """
    processes = processes or Processes()
    placed = {"device": config.device, "backend": config.backend, "root": config.root}
    runs = [load_run(run, **placed, ranks=processes.ranks) for run in config.runs]
    readings = [choice.retrieval for run in runs for choice in run.every_choice]
    refuse_draws({each.map for each in readings if isinstance(each, Retrieval)}, processes)
    learned = same_data(runs)
    enough_steps(runs, config.steps)
    first = runs[0]
    with processes.in_turn():
        data = replace(first.config.data, root=config.root or first.config.data.root)
        if len({run.config.data.train_images for run in runs}) > 1:
            data.train_images = None  # the references, which are the same for all runs, see all images
        splits = build_data(data)
    same_images(runs, splits)
    names = terminal.short_names([run.folder for run in runs])
    pairs = [(run.network, run.choices) for run in runs]
    if len(runs) > 1:
        pairs = [(run.network, of_run(name, run.choices)) for name, run in zip(names, runs, strict=True)]
    tasks = build_tasks(learned, patch=first.config.model.patch, side=splits.side)
    tracker = Tracker(
        config.wandb,
        folder=folder.path,
        name=f"evaluate-{splits.name}-{len(runs)}-runs",
        job_type="eval",
        settings=OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
        | {"device": first.network.device.type, "backend": first.network.backend_name},
        silent=folder.silent,
    )
    with folder.job(), processes.last_words(), tracker:
        plain = {"bar_format": "{desc}  {elapsed}  {postfix}", "disable": folder.silent}
        with tqdm(desc="evaluating", **plain) as bar:
            references, rows = {}, []
            if processes.first:
                references = assessment.references(
                    splits, tasks.values(), validation_images=len(splits.validation), seed=config.seed
                )
                bar.set_postfix_str("models beside see the training images")
                rows = beside.again(runs, splits, tasks, device=config.device)
            outcome = assessment.assess(
                [*pairs, *((row.network, row.choices) for row in rows)],
                references,
                splits,
                tasks,
                images=config.images,
                steps=config.steps,
                batch_size=config.batch_size,
                seed=config.seed,
                progress=bar.set_postfix_str,
            )
        if not processes.first:
            return
        results = {
            "schema": assessment.SCHEMA,
            "data": splits.name,
            "patch": first.config.model.patch,
            "runs": {name: str(run.folder) for name, run in zip(names, runs, strict=True)},
            "selection": choices_to_json(together(chosen for _, chosen in pairs)),
            "beside": beside.to_json(rows),
            "tasks": assessment.task_results(outcome),
        }
        folder.write_json("results.json", results)
        tracker.results(results)
        drawn = {}
        if config.figures:
            from attractor.lab.show import figures  # matplotlib takes a second to import

            drawn["error_curves"] = figures.error_curves(results["tasks"], folder.figures)
            tracker.images(drawn)
        scale = terminal.scale(results["tasks"], steps=config.steps)
        folder.say(f"{splits.name}: {scale}")
        folder.say(terminal.table(results["tasks"]))
        folder.say(terminal.comparisons(results["tasks"]))
        if config.figures:
            if processes.count > 1:  # the states are those of all rows, which one process has to hold
                for run in runs:
                    outcome = outcome.instead(run.network, load_run(run.folder, **placed).network)
            page.write(
                folder,
                results,
                heading=f"{len(runs)} runs on {splits.name}: {scale}",
                figures=drawn,
                trajectories=watch(outcome, steps=config.steps),
            )
    tracked = {"sync": tracker.sync_command, "url": tracker.url}
    print(terminal.closing(folder.path, figures=config.figures, **tracked))


if __name__ == "__main__":
    main()
