"""A collected sweep as text and as CSV."""

import csv
import math
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attractor.lab.config.schema import REFERENCES
from attractor.lab.config.titles import title
from attractor.lab.sweep import jobs
from attractor.lab.sweep.jobs import Job, shown
from attractor.lab.sweep.table import SEED, Table

# Fields whose values make other tasks or other scales, and what cannot be compared across them
_APART = {
    "data.name": "errors",
    "data.root": "errors, if the images are others,",
    "task.names": "val, the mean of other tasks,",
    "task.mask_fraction": "errors",
    "task.noise_variance": "errors",
    "model.patch": "errors of masked prediction, whose grain it is, and log pseudo-likelihoods",
    "model.measure": "log pseudo-likelihoods",
    "model.span": "log pseudo-likelihoods",
    "model.projection": "log pseudo-likelihoods",
    "model.name": "log pseudo-likelihoods, unless their measure is the same,",
}


def printed(table: Table) -> str:
    """The table as text, what is not in its means, and what it says is best."""
    found = table.jobs
    counts = ", ".join(
        f"{sum(j.state == s for j in found)} {s}" for s in dict.fromkeys(j.state for j in found)
    )
    lines = [f"{table.sweep}: {len(found)} jobs, {counts}"]
    if table.metrics:
        order = f"best first by {table.metrics[0]}, on validation images; " if table.ranked else ""
        lines.append(f"{order}mean ± standard deviation over n")
    heads = [*table.fields, "n", *table.metrics]
    body = [
        [
            *map(shown, row.settings.values()),
            f"{row.done} of {len(row.jobs)}",
            *map(row.cell, table.metrics),
        ]
        for row in table.rows
    ]
    lines += _aligned([heads, *body])
    lines += [
        f"{name} differs: {what} cannot be compared across it"
        for name, what in _APART.items()
        if name in table.fields
    ]
    lines += _references(found) if table.ranked else []
    names = [*table.fields, SEED]
    missing = [job for job in found if job.state != jobs.DONE]
    if missing:
        lines.append("not in the means:")
    for job in missing:
        lines.append(
            f"  {job.state}: {job.path}  {job.asked(names)}" + (f"\n      {job.error}" if job.error else "")
        )
    if table.twins:
        same = ", ".join(f"{job} as {other}" for job, other in table.twins.items())
        lines.append(f"of the same configuration, and counted once: {same}")
    if table.former:
        lines.append(f"of an earlier sweep in this folder, and left out: {', '.join(table.former)}")
    best = table.rows[0]
    if best.done and table.ranked:
        # a field that this rule or model does not have is not to be typed
        had = [name for name in table.fields if name in best.jobs[0].settings]
        overrides = [f"{name}={shown(best.settings[name])}" for name in had]
        lines.append(f"best: {shlex.join(overrides) if overrides else 'there is one row'}")
        if best.done < len(best.jobs):
            lines.append(f"  of which {len(best.jobs) - best.done} of {len(best.jobs)} jobs are missing")
    return "\n".join(lines)


def write(table: Table) -> list[Path]:
    """table.csv, a row for each combination of swept values; jobs.csv, a row for each job."""
    heads = [f"{metric}{part}" for metric in table.metrics for part in ("", " deviation")]
    rows: list[list[Any]] = [[*table.fields, "n", "failed", "unfinished", *heads]]
    for row in table.rows:
        failed = sum(job.state == jobs.FAILED for job in row.jobs)
        numbers = [value for m in table.metrics for value in (row.mean(m), row.deviation(m))]
        counts = [row.done, failed, len(row.jobs) - row.done - failed]
        rows.append([*map(shown, row.settings.values()), *counts, *map(_number, numbers)])
    each: list[list[Any]] = [["job", "state", *table.fields, SEED, *table.metrics, "error", "folder"]]
    for job in sorted(table.jobs, key=lambda job: job.order):
        each.append(
            [
                job.name,
                job.state,
                *(
                    shown(job.settings[name]) if name in job.settings else ""
                    for name in (*table.fields, SEED)
                ),
                *(_number(job.metrics.get(metric, math.nan)) for metric in table.metrics),
                job.error or "",
                job.path,
            ]
        )
    return [_csv(table.sweep / "table.csv", rows), _csv(table.sweep / "jobs.csv", each)]


def _references(found: list[Job]) -> list[str]:
    """The test errors of what every model is held against; least to most, where jobs differ."""
    lines = []
    for name in REFERENCES:
        cells = []
        for task in dict.fromkeys(task for job in found for task in job.results.get("tasks", {})):
            models = [
                job.results["tasks"][task]["models"]
                for job in found
                if task in job.results.get("tasks", {})
            ]
            errors = [f"{model[name]['mse'][0]:.4f}" for model in models if name in model]
            span = errors[0] if len(set(errors)) == 1 else f"{min(errors)} to {max(errors)}"
            cells.append(f"{task} {span}")
        lines.append(f"  {title(name)}: {', '.join(cells)}")
    return ["references, on test images:", *lines] if any(job.results for job in found) else []


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    return ["  " + "".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _csv(path: Path, rows: Iterable[list[Any]]) -> Path:
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    return path
