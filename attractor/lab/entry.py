"""What train.py and evaluate.py do around their job: folder, threads, processes, errors and exit codes."""

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from attractor.lab.config.schema import typed
from attractor.lab.errors import EXIT_CODES, ConfigError, Paused, Terminated, exit_code
from attractor.lab.experiment.processes import Processes, after_the_first, joined, launched
from attractor.lab.run.folder import RunFolder, SilentFolder
from attractor.lab.run.resuming import continued, named
from attractor.lab.run.signals import heeded
from attractor.lab.sweep.callback import refuse_without_multirun
from attractor.lab.sweep.job import run_job
from attractor.physics.processes import LostProcessError

log = logging.getLogger("attractor")

Job = Callable[[Any, RunFolder, Processes], float | None]
# what ends a process because another one has ended; that one, or torchrun, has said why
_CAUSED = (LostProcessError, Terminated, KeyboardInterrupt)


def launch(raw: DictConfig, *, check: Callable[[Any], None], job: Job) -> float | None:
    """Check the configuration and the run folder, do the job, which enters the folder when it is ready.

    A known error ends the process with one line and its exit code (DESIGN.md section 5); anything else
    keeps its traceback. In a sweep the errors of a job are its own (`run_job`), so that the other jobs go
    on. Of several processes the first one speaks, the others only where it has not ended them. It alone
    heeds signals: the others may wait in the middle of an operation, where no handler would run.
    """
    rank, count = launched()
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN and "on_error" in raw and count == 1:
        path, sweep = Path(hydra.runtime.output_dir), Path(hydra.sweep.dir)
        return run_job(raw, path, sweep, lambda: _launch(raw, check=check, job=job))
    with heeded() if rank == 0 else nullcontext():
        return _launch(raw, check=check, job=job)


def _launch(raw: DictConfig, *, check: Callable[[Any], None], job: Job) -> float | None:
    logging.getLogger().setLevel(logging.WARNING)  # libraries that draw or compress talk much at INFO
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # of fonts that matplotlib itself brings
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    rank, count = launched()
    try:
        if not multirun:
            refuse_without_multirun(HydraConfig.get())
        if multirun and count > 1:
            raise ConfigError("a multirun has one process; start torchrun for each of its jobs instead")
        resumed, step = raw.get("resume") is not None, None
        if resumed:
            config, path = continued(raw, HydraConfig.get().overrides.task)
            step = named(raw.resume)[1]
        else:
            config = typed(raw)
            path = Path(HydraConfig.get().runtime.output_dir if multirun else config.folder)
        with joined(config.device) as processes:
            # the path may hold a time, which is not the same to all processes
            path = processes.of_first(path)
            OmegaConf.update(raw, "folder", str(path))  # in a multirun it is Hydra's
            kind = RunFolder if processes.first else SilentFolder
            folder = kind(path, OmegaConf.to_yaml(raw, resolve=True), resumed=resumed, step=step)
            check(config)
            torch.set_num_threads(config.threads)
            return job(config, folder, processes)
    except Paused as pause:
        if rank == 0:
            print(pause)
        return None
    except tuple(EXIT_CODES) as error:
        if multirun and count == 1 and isinstance(error, Exception):
            raise
        text = str(error) or type(error).__name__
        if rank == 0:
            print(f"error: {text}", file=sys.stderr)
        elif not isinstance(error, _CAUSED):
            after_the_first()
            print(f"error: rank {rank}: {text}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from error
