"""What a run says on the terminal: its header, its table, where everything is."""

from pathlib import Path
from typing import Any

from attractor.images import ImageSplits
from attractor.lab.config.names import MeasureName
from attractor.lab.config.rules import (
    BackpropConfig,
    ClosedFormConfig,
    EnergyDescentConfig,
    HebbConfig,
    PseudoLikelihoodConfig,
    RidgeConfig,
    RuleConfig,
    StoreConfig,
)
from attractor.lab.config.schema import AttractorConfig, Config, LocalLinearMemoryConfig, SlotsConfig
from attractor.lab.config.titles import TASK_WORDS, title
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.network import Network
from attractor.lab.experiment.numbers import in_order, score
from attractor.lab.experiment.training import ONE_SHOT, Rule
from attractor.lab.run.files import relative

_RULES: dict[type[RuleConfig], str] = {
    PseudoLikelihoodConfig: "exact pseudo-likelihood (local, no backpropagation)",
    EnergyDescentConfig: "energy descent, positive phase only (local, no backpropagation)",
    HebbConfig: "Hebb, one shot (no backpropagation)",
    RidgeConfig: "ridge regression, closed form (no backpropagation)",
    BackpropConfig: "backpropagation of the squared error",
    ClosedFormConfig: "k-means and shrunk covariances, closed form (no backpropagation)",
    StoreConfig: "training images are stored (no training, no backpropagation)",
}


_OBJECTIVES = {
    "log_pseudo_likelihood": ("log PL", " nats/token"),
    "negative_energy": ("-energy", ""),
    "squared_error": ("error", ""),
}


def header(config: Config, splits: ImageSplits, network: Network) -> str:
    """What is about to be trained, in two lines."""
    encoding, side, patch = network.encoding, splits.side, config.model.patch
    channels = f" of {splits.channels} channels" if splits.channels > 1 else ""
    kind, learned = "", "weights"
    if isinstance(config.model, AttractorConfig):
        learned, measure = "couplings", config.model.measure
        kind = "" if measure is MeasureName.sphere else f", {measure.value} measure"
    size = f"{network.parameters:,} {learned}{kind}"
    if isinstance(config.model, LocalLinearMemoryConfig):
        copies = f" with {', '.join(config.model.copies)}" if config.model.copies else ""
        size = f"{len(splits.train):,} images to store{copies}"
    if isinstance(config.model, SlotsConfig):
        size = _mixture(config.model)
    threads = f"{config.threads} thread" + ("s" if config.threads > 1 else "")
    running = f"{network.device.type}, {threads}, backend {network.backend_name}"
    if network.ranks is not None:
        running = f"{running}, {network.ranks.count} processes"
    return (
        f"{title(config.model.name)} on {splits.name}: {side}x{side} images{channels}, "
        f"{patch}x{patch} patches, N={encoding.tokens} tokens of D={encoding.dim}, "
        f"{size}\n"
        f"rule: {_RULES[type(config.rule)]}   device: {running}"
    )


def _mixture(model: SlotsConfig) -> str:
    copies = f", with {', '.join(model.copies)}" if model.copies else ""
    each = f"mixture of {model.slots:,} Hopfield networks with {model.parents:,} parents"
    heads = "a" if model.heads == 1 else f"{model.heads} heads, each a"
    return f"{heads} {each}, rank {model.rank}{copies}"


def progress(rule: Rule, objective: float | None, errors: dict[str, float]) -> str:
    """Behind the progress bar: what training climbs, and the last validation."""
    shown = "  ".join(f"{task} {error:.4f}" for task, error in errors.items())
    shown += " (validation)" if errors else ""
    if not isinstance(rule, ONE_SHOT) and objective is not None:
        name, unit = _OBJECTIVES[rule.objective]
        shown = f"{name} {objective:.3f}{unit}  {shown}"
    return shown


def scale(tasks: dict[str, Any], *, steps: int) -> str:
    """How much is behind the table."""
    images = max(values["images"] for values in tasks.values())
    return f"{images:,} test images, {steps} iterations"


def table_rows(tasks: dict[str, Any]) -> dict[str, list[str]]:
    """Model -> its cells, one for each task: the test error at the t chosen on validation, then the lowest
    over t, if it is another. Learned models first.
    """
    names = in_order(name for task in tasks.values() for name in task["models"])
    return {name: [_cell(values["models"].get(name)) for values in tasks.values()] for name in names}


def table(tasks: dict[str, Any]) -> str:
    """Test errors, a row for each model."""
    rows = [["", *tasks], *([title(name), *cells] for name, cells in table_rows(tasks).items())]
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    cells = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  " + "".join(f"{c:<{w}}" for c, w in row).rstrip() for row in cells)


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    if "best" not in entry:
        return f"{entry['mse'][0]:.4f}"
    best, oracle = entry["best"], entry["oracle_best"]
    if best["t"] == oracle["t"]:
        return f"{best['mse']:.4f} (t={best['t']})"
    return f"{best['mse']:.4f} (t={best['t']}; {oracle['mse']:.4f} at {oracle['t']})"


def warnings(tasks: dict[str, Any]) -> list[str]:
    """Rows that know less than the training mean: training has failed, whatever it says."""
    lines = []
    for task, values in tasks.items():
        floor = values["models"]["training_mean"]["mse"][0]
        for name, entry in values["models"].items():
            if "best" in entry and entry["best"]["mse"] > floor:
                lines.append(f"{title(name)} is worse than the training mean at {TASK_WORDS[task]}")
    return lines


def comparisons(tasks: dict[str, Any]) -> str:
    """How far every learned row is from the best row, with the paired standard error over images."""
    lines = []
    for task, values in tasks.items():
        errors = {name: score(entry).mse for name, entry in values["models"].items()}
        best = min(errors, key=errors.__getitem__)
        lines.append(f"{task}: above {title(best)}, +- paired standard error over images")
        for name, others in values["differences"].items():
            if name != best:
                value = others[best]
                text = f"{value['mse']:+.4f} +- {value['standard_error']:.4f}"
                lines.append(f"  {title(name)}  {text}")
    return "\n".join(lines)


def closing(
    folder: Path, *, figures: bool, sync: str | None, url: str | None = None, seconds: float | None = None
) -> str:
    """Where everything is."""
    where = f"run folder   {relative(folder)}"
    if figures:
        where += f"      figures   {relative(folder / 'figures')}"
    lines = [where]
    if url is not None:
        lines.append(f"tracked at   {url}")
    if sync is not None:
        what = "tracked offline" if url is None else "not all of it was uploaded"
        lines.append(f"{what}; upload with: uv run {sync}")
    if seconds is not None:
        lines.append(f"{seconds:.0f} s in all")
    return "\n".join(lines)


def going_on(folder: Path) -> str:
    """What goes on with a run that was interrupted."""
    return f"go on with: uv run train.py resume={relative(folder)}"


def short_names(folders: list[Path]) -> list[str]:
    """The shortest endings of the paths that tell the runs apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["-".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("a run was given twice; each of runs must be another folder")
