"""What train.py and evaluate.py do around their job: folder, threads, errors and exit codes."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from attractor.lab.config import typed
from attractor.lab.errors import EXIT_CODES, exit_code
from attractor.lab.folder import RunFolder

log = logging.getLogger("attractor")


def launch(
    raw: DictConfig,
    *,
    check: Callable[[Any], None],
    job: Callable[[Any, RunFolder], float | None],
) -> float | None:
    """Check the configuration and the run folder, do the job, which enters the folder when it is ready.

    A known error ends the process with one line and its exit code (DESIGN.md section 5); in a multirun it
    is left to Hydra, so that the other jobs go on. Anything else keeps its traceback.
    """
    logging.getLogger().setLevel(logging.WARNING)  # libraries that draw or compress talk much at INFO
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    folder: RunFolder | None = None
    try:
        config = typed(raw)
        path = Path(HydraConfig.get().runtime.output_dir if multirun else config.folder)
        OmegaConf.update(raw, "folder", str(path))  # in a multirun it is Hydra's
        folder = RunFolder(path, OmegaConf.to_yaml(raw, resolve=True))
        check(config)
        torch.set_num_threads(config.threads)
        return job(config, folder)
    except tuple(EXIT_CODES) as error:
        text = str(error) or type(error).__name__
        print(f"error: {text}", file=sys.stderr)
        if multirun and isinstance(error, Exception):
            if folder is not None and not (folder.path / "status.json").exists():
                with folder.job():  # a job of a sweep says in its folder why it did not start
                    raise
            raise
        raise SystemExit(exit_code(error)) from error
