"""Sweeps: what surrounds the jobs of a Hydra multirun.

A job that fails leaves its traceback in its own folder and does not take the others with it. A sweep that
is started again in the same folder skips the jobs that are done and runs the others (`job`).
SIGTERM and SIGINT end those that are running, saved, and start no other (`signals`, `relay`).
"""

import json
import shlex
import signal
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from attractor.lab.errors import ConfigError, OutputError, exit_code
from attractor.lab.experiment.processes import launched
from attractor.lab.run import files
from attractor.lab.run.locks import take
from attractor.lab.run.relay import Relay
from attractor.lab.sweep import jobs
from attractor.lab.sweep.job import STOPPED, different_from, end, refusal

_JOBLIB = "hydra_plugins.hydra_joblib_launcher"
LAUNCHERS = {  # the extra that has the plugin
    _JOBLIB: "joblib",
    "hydra_plugins.hydra_submitit_launcher": "slurm",
}
_BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"


def refuse_without_multirun(hydra: Any) -> None:
    """ConfigError if a sweep or a launcher was chosen for a single run, which would leave it out.

    An experiment that is a sweep may be one run: that of which all its swept fields are given.
    """
    task = list(hydra.overrides.task)
    given = {override.partition("=")[0].lstrip("+") for override in task}
    groups = [group for group in ("sweep", "launcher") if hydra.runtime.choices.get(group)]
    chosen = [f"{group}={hydra.runtime.choices[group]}" for group in groups]
    swept = [name for name in (hydra.sweeper.get("params") or {}) if name not in given]
    if swept and not chosen:
        chosen = [f"experiment={hydra.runtime.choices.get('experiment')}, a sweep over {', '.join(swept)},"]
    if chosen:
        # hydra.mode is what Hydra puts there itself
        again = [word for word in (*task, *hydra.overrides.hydra) if not word.startswith("hydra.mode=")]
        raise ConfigError(
            f"{chosen[0]} needs -m, without which it would be one run: "
            f"uv run train.py -m {shlex.join(again)}"
        )


class SweepCallback(Callback):
    """Before the first job and after the last one, in the process that the sweep was started in."""

    _lock: TextIO | None = None
    _relay: Relay | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock and the relay: a launcher sends callbacks to its processes."""
        return {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse what cannot be started or gone on with, before any job is."""
        if launched()[1] > 1:
            return  # every job is going to refuse that
        if OmegaConf.select(config, "train.stop_after") is not None:
            end(
                "train.stop_after pauses a single run. A sweep is interrupted with Ctrl-C, and the same "
                "command goes on with it",
                2,
            )
        target = config.hydra.launcher._target_
        for package, extra in LAUNCHERS.items():
            if target.startswith(package) and not _installed(package):
                end(f"launcher={extra} is not installed: uv sync --extra {extra}", 2)
        sweep = Path(config.hydra.sweep.dir)
        try:
            sweep.mkdir(parents=True, exist_ok=True)
            self._lock = take(sweep / ".lock", f"{sweep}: another sweep is going on in this folder")
            plan = _planned(config)
            refused = {
                sweep / name: different
                for name, overrides in plan.items()
                if (sweep / name).exists()
                and (different := different_from(_composed(config, overrides), jobs.read(sweep / name)))
            }
            if refused:
                end(refusal(refused), 2)
            (sweep / STOPPED).unlink(missing_ok=True)
            files.write(sweep / jobs.SWEEP_FILE, json.dumps({"schema": 1, "jobs": plan}, indent=2) + "\n")
        except OSError as error:
            end(f"{sweep} cannot be written: {error}", 5)
        except OutputError as error:
            end(str(error), exit_code(error))
        if target.startswith(_JOBLIB):

            def stop(received: signal.Signals) -> None:
                with suppress(OSError):  # a full disk must not keep the signal from the jobs
                    (sweep / STOPPED).write_text(f"{received.name} was received")

            self._relay = Relay(stop)
            self._relay.begin()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say what became of the jobs; exit code 1 unless all of them are done, 128 + N after signal N."""
        sweep = Path(config.hydra.sweep.dir)
        ended = jobs.of_sweep(sweep)
        print(summary(sweep, ended))
        if self._lock is not None:
            self._lock.close()
        if self._relay is not None and self._relay.received is not None:
            raise SystemExit(128 + self._relay.received)
        if any(job.state != jobs.DONE for job in ended):
            raise SystemExit(1)


def summary(sweep: Path, ended: list[jobs.Job]) -> str:
    """How many jobs ended how, what failed and why, and what to type next."""
    counts = [f"{sum(job.state == state for job in ended)} {state}" for state in _states(ended)]
    lines = [f"sweep {sweep}: {len(ended)} jobs: {', '.join(counts)}"]
    typed = shlex.quote(str(sweep))
    fields = jobs.swept(ended)
    for job in ended:
        if job.state != jobs.DONE:
            error = f"\n      {job.error}" if job.error else ""
            lines.append(f"  {job.state}: {job.path}  {job.asked(fields)}{error}")
    if len(lines) > 1:
        lines.append(
            f"the same command with hydra.sweep.dir={typed} takes these up, and none of the others"
        )
    lines.append(f"table and figures: uv run python -m attractor.lab.collect {typed}")
    return "\n".join(lines)


def _states(ended: list[jobs.Job]) -> list[str]:
    return sorted({job.state for job in ended}, key=lambda state: (state != jobs.DONE, state))


def _planned(config: DictConfig) -> dict[str, list[str]]:
    """Job -> overrides, as Hydra's own sweeper is going to number them; {} for other sweepers."""
    sweeper, folders = config.hydra.sweeper, OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(folders, dict)
    if sweeper._target_ != _BASIC or folders["subdir"] != "${hydra.job.num}":
        return {}
    params = [f"{name}={value}" for name, value in (sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        given = parser.parse_overrides([*params, *config.hydra.overrides.task])
        (batch,) = BasicSweeper.split_arguments(given, None)
    except HydraException:  # which the sweeper is about to say better
        return {}
    return {str(number): overrides for number, overrides in enumerate(batch)}


def _composed(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of a job."""
    composed = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
    with open_dict(composed):
        del composed["hydra"]
    return composed


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # no plugin at all
        return False
