"""The jobs of a sweep, read from their folders: what each was asked, and what became of it."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from attractor.lab.config.fields import PLACE, leaves, within
from attractor.lab.config.rules import RULE_SCHEMAS
from attractor.lab.experiment.assessment import SCHEMA
from attractor.lab.experiment.objective import metrics
from attractor.lab.run.files import read_json
from attractor.lab.run.status import occupied, read_status

SWEEP_FILE = "sweep.json"  # what a sweep was going to do
# The configuration and the end of a run that has one of these states are known.
NOT_STARTED, RUNNING, INTERRUPTED, DONE, FAILED = "not started", "running", "interrupted", "done", "failed"
# These cannot change a number, and make no row of their own.
_HIDDEN = (
    "beside",
    "data.download",
    "figures",
    "objective",
    "on_error",
    "threads",
    "train.stop_after",
    "wandb",
    *PLACE,
)
_NAMES = ("model.name", "rule", "data.name")  # of what the other fields of their group may follow from


@dataclass(frozen=True)
class Job:
    """One job. settings: field -> value; results, metrics: of results.json, if it is done."""

    path: Path
    state: str
    error: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()  # what the sweep set, where that is known
    own: tuple[str, ...] = ()  # those of them that not all jobs have

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def order(self) -> tuple[bool, int, str]:
        """Sorts jobs by their number."""
        return not self.name.isdigit(), int(self.name) if self.name.isdigit() else 0, self.name

    @property
    def configuration(self) -> str:
        """Equal for jobs that do the same; a job's own where it is not known."""
        asked = {name: value for name, value in self.settings.items() if not within(name, _HIDDEN)}
        return json.dumps(asked, sort_keys=True) if asked else str(self.path)

    def asked(self, names: list[str]) -> str:
        """The values of these fields, as one would type them; of a job not started, what the sweep set."""
        if self.state == NOT_STARTED and self.own:
            return " ".join(self.own)
        return " ".join(f"{name}={shown(self.settings.get(name))}" for name in names)


def read(path: Path, overrides: tuple[str, ...] = ()) -> Job:
    """The job in a folder, which need not be there."""
    job = Job(path, NOT_STARTED, None, _settings(path / "config.yaml"), overrides=overrides)
    if not (path / "status.json").exists():
        return job
    status = read_status(path)
    said, error = status.get("status"), status.get("error")
    if said == "done":
        try:
            results = _results(path / "results.json")
            return replace(job, state=DONE, results=results, metrics=metrics(results))
        except (KeyError, TypeError) as lacking:
            error = f"results.json lacks {lacking}; run the job again"
        except ValueError as damage:
            error = str(damage)
    elif said != "failed":
        error = error if said else "status.json is damaged"
        return replace(job, state=RUNNING if occupied(path) else INTERRUPTED, error=error)
    return replace(job, state=FAILED, error=error)


def settings(config: Any) -> dict[str, Any]:
    """Field -> value of a configuration, and the rule by its name."""
    values = leaves(config)
    fields = {name.removeprefix("rule.") for name in values if within(name, ("rule",))}
    rules = [name for name, kind in RULE_SCHEMAS.items() if set(kind.__dataclass_fields__) == fields]
    return {"rule": rules[0]} | values if rules else values


def of_sweep(sweep: Path) -> list[Job]:
    """The jobs that the sweep in this folder has, or was going to have, by number.

    Without a plan, these are all that have left something.
    """
    planned = planned_in(sweep)
    found = [read(sweep / name, overrides) for name, overrides in planned.items()]
    shared = set.intersection(*map(set, planned.values())) if planned else set()
    found = [replace(job, own=tuple(o for o in job.overrides if o not in shared)) for job in found]
    found = found or [read(sweep / name) for name in _there(sweep)]
    known = [job for job in found if job.settings]
    return sorted(
        (
            replace(job, settings=_assumed(job, known)) if job.overrides and not job.settings else job
            for job in found
        ),
        key=lambda job: job.order,
    )


def former(sweep: Path) -> list[str]:
    """The names of those that an earlier plan of the sweep has left, and the present one is without."""
    planned = planned_in(sweep)
    return [name for name in _there(sweep) if planned and name not in planned]


def planned_in(sweep: Path) -> dict[str, tuple[str, ...]]:
    """Job -> its overrides, of the sweep that was started last in this folder."""
    plan = read_json(sweep / SWEEP_FILE)
    return {name: tuple(overrides) for name, overrides in plan.get("jobs", {}).items()}


def swept(jobs: list[Job]) -> list[str]:
    """The fields of which the jobs have different values, in the order of the configuration.

    Fields that follow from the name of the model, of the rule or of the data set are left out: their
    names stand for them.
    """
    known = [job.settings for job in jobs if job.settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    varied = [
        name
        for name in names
        if not within(name, _HIDDEN) and len({shown(settings.get(name)) for settings in known}) > 1
    ]
    return [name for name in varied if not _follows(name, varied, known)]


def shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(shown(item) for item in value)}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return brief if float(brief := f"{value:g}") == value else repr(value)
    return str(value)


def _there(sweep: Path) -> list[str]:
    names = [path.name for path in sweep.iterdir() if (path / "status.json").is_file()]
    return sorted(names, key=lambda name: Job(sweep / name, NOT_STARTED).order)


def _assumed(job: Job, known: list[Job]) -> dict[str, Any]:
    """What a job would have been asked: the settings of the one most like it, with its own overrides.

    An option of a group that sets fields of others, like arm, stands for what the others with it have; if
    there are none, the job's settings are what is overridden alone.
    """
    given, values = set(job.overrides), {}
    if known:
        groups = {override for override in given if not _sets_itself(override, known[0].settings)}
        like = max(known, key=lambda other: [len(of & set(other.overrides)) for of in (groups, given)])
        if groups <= set(like.overrides):
            given, values = given - set(like.overrides), dict(like.settings)
        given -= groups
    for name, value in leaves(OmegaConf.from_dotlist(sorted(given))).items():
        # of another rule or model the fields are not known
        values = {key: old for key, old in values.items() if not within(key, (name,))} | {name: value}
    return values


def _sets_itself(override: str, settings: dict[str, Any]) -> bool:
    """Whether it names a field, or a group whose options set fields of that name, like model."""
    return any(within(name, (override.partition("=")[0],)) for name in settings)


def _follows(name: str, varied: list[str], known: list[dict[str, Any]]) -> bool:
    for leader in _NAMES:
        if leader == name or leader not in varied or name.split(".")[0] != leader.split(".")[0]:
            continue
        pairs = {(shown(settings.get(leader)), shown(settings.get(name))) for settings in known}
        if len(pairs) == len({first for first, _ in pairs}):
            return True
    return False


def _settings(path: Path) -> dict[str, Any]:
    """`settings` of a config.yaml; {} if it cannot be read."""
    try:
        return settings(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException):
        return {}


def _results(path: Path) -> dict[str, Any]:
    """results.json. Raises ValueError that says why it cannot be read."""
    results = read_json(path)
    if not results:
        raise ValueError(f"{path.name} is missing or damaged; run the job again")
    if results.get("schema") != SCHEMA:
        raise ValueError(
            f"{path.name} has schema {results.get('schema')}, this code reads {SCHEMA}; run the job again"
        )
    return results
