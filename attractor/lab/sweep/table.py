"""The table of a sweep: a row for each setting, with means and deviations over its seeds."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attractor.lab.config.names import Objective
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.numbers import deviation, with_deviation
from attractor.lab.experiment.objective import MAXIMISED
from attractor.lab.sweep import jobs
from attractor.lab.sweep.jobs import Job, shown

SEED = "seed"  # what is averaged over


@dataclass(frozen=True)
class Row:
    """The jobs that differ in their seed only. values: metric -> one number for each that is done."""

    settings: dict[str, Any]  # swept field -> value
    jobs: list[Job]
    values: dict[str, list[float]]

    @property
    def done(self) -> int:
        return sum(job.state == jobs.DONE for job in self.jobs)

    def mean(self, metric: str) -> float:
        """Of the jobs that are done; nan if there are none, inf if one of them has none."""
        values = self.values.get(metric, [])
        return statistics.fmean(values) if values else math.nan

    def deviation(self, metric: str) -> float:
        """Over seeds, see `numbers.deviation`."""
        return deviation(self.values.get(metric, []))

    def cell(self, metric: str) -> str:
        if not self.values.get(metric):
            return "-"
        return with_deviation(self.mean(metric), self.deviation(metric))


@dataclass(frozen=True)
class Table:
    """A sweep, collected. twins: job -> the one of the same configuration that counts in its place."""

    sweep: Path
    fields: list[str]  # swept, but for the seed
    metrics: list[str]  # the first is the one that is sorted by
    ranked: bool  # or in the order of the jobs: studies of theory have nothing to be sorted by
    rows: list[Row]
    twins: dict[str, str]
    former: list[str]  # jobs of an earlier plan, which do not count

    @property
    def jobs(self) -> list[Job]:
        return [job for row in self.rows for job in row.jobs]


def collect(sweep: Path, *, sort: Objective = Objective.val) -> Table:
    """The table of a sweep's folder. Raises ConfigError if it holds no job, or lacks what is sorted by."""
    if not sweep.is_dir():
        raise ConfigError(f"{sweep} is not a folder; give the hydra.sweep.dir of a sweep")
    if (sweep / "status.json").is_file():
        raise ConfigError(f"{sweep} holds one run, not a sweep; give the folder that its job is in")
    found, twins = once(jobs.of_sweep(sweep))
    if not found:
        raise ConfigError(f"{sweep} holds no jobs of a sweep; give the hydra.sweep.dir of one")
    fields = [name for name in jobs.swept(found) if name != SEED]
    names = list(dict.fromkeys(name for job in found for name in job.metrics))
    ranked = not any("theory" in job.results for job in found)
    if ranked and names and sort.value not in names:
        raise ConfigError(f"no job of {sweep} has {sort.value!r}; sort by one of {', '.join(OBJECTIVES)}")
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in found:
        groups.setdefault(tuple(shown(job.settings.get(name)) for name in fields), []).append(job)
    rows = [
        Row(
            {name: members[0].settings.get(name) for name in fields},
            members,
            {name: [job.metrics[name] for job in members if name in job.metrics] for name in names},
        )
        for members in groups.values()
    ]
    sign = -1 if sort in MAXIMISED else 1

    def order(row: Row) -> tuple[bool, bool, float]:
        """Rows that lack a job after all that lack none: a mean over the seeds that survived flatters."""
        there = row.values.get(sort.value, [])
        return not there, len(there) < len(row.jobs), sign * row.mean(sort.value)

    if ranked:
        rows.sort(key=order)
        names.sort(key=lambda name: name != sort.value)
    return Table(sweep, fields, names, ranked, rows, twins, jobs.former(sweep))


OBJECTIVES = [objective.value for objective in Objective]


def once(found: list[Job]) -> tuple[list[Job], dict[str, str]]:
    """One job of each configuration, done if any is: a run again is no other sample. And its twins."""
    counted: dict[str, Job] = {}
    for job in sorted(found, key=lambda job: job.state != jobs.DONE):
        counted.setdefault(job.configuration, job)
    twins = {job.name: other.name for job in found if (other := counted[job.configuration]) is not job}
    return [job for job in found if job.name not in twins], twins
