"""Configurations as the commands compose them, and one small trained run that many tests look at."""

import base64
import copy
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from attractor.images import ImageSplits, pixel_mean, synthetic
from attractor.lab.config.checks import validate, validate_comparison
from attractor.lab.config.names import CouplingsName, MeasureName
from attractor.lab.config.schema import AttractorConfig, CompareConfig, Config, register, typed
from attractor.lab.experiment.build import build_network
from attractor.lab.experiment.network import AttractorNetwork
from attractor.lab.run.folder import RunFolder
from attractor.physics import random_start
from attractor.studies.run import study
from tests.lab.faulty import LONG
from train import train

ROOT = Path(__file__).parents[1]

# overrides of a run that takes about a second
TINY = (
    "data=synthetic",
    "beside=none",
    "train.steps=6",
    "train.batch_size=16",
    "train.validate_every=2",
    "train.validation_images=8",
    "dynamics.inverse_temperatures=[1.0,0.25]",
    "dynamics.inertias=[0.0]",
    "dynamics.evidence=[1.0]",
    "dynamics.validation_images=8",
    "eval.images=9",
    "eval.steps=6",
    "eval.batch_size=4",
    "eval.overlap_images=5",
    "wandb=disabled",
    "figures=false",
)


@dataclass(frozen=True)
class Run:
    """A finished run: where it is, what it was asked, what it said and measured."""

    path: Path
    config: Config
    results: dict[str, Any]
    score: float
    output: str


@dataclass(frozen=True)
class Study:
    """A finished study: where it is, what it was asked, what it measured and said."""

    path: Path
    config: Config
    results: dict[str, Any]
    output: str


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on many threads, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No wandb settings of the person who runs the tests, and none left behind by a test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    yield
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    return TINY


@cache
def composed(name: str, groups: tuple[str, ...]) -> DictConfig:
    """conf/ with these choices of files; what it returns is shared."""
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, overrides=list(groups))


def is_field(override: str) -> bool:
    """Whether it is KEY=VALUE for a field, which decides nothing about which files of conf/ are read."""
    key = override.partition("=")[0]
    return key.replace(".", "").isidentifier() and not (ROOT / "conf" / key).is_dir()


@pytest.fixture(scope="session")
def make_raw() -> Callable[..., DictConfig]:
    """A function that composes conf/ as train.py does, or with name="evaluate" as evaluate.py does.

    Files are composed once for each choice of them, which takes half a second; fields are set afterwards,
    by the functions with which Hydra sets them.
    """
    parser = OverridesParser.create()

    def make(*overrides: str, name: str = "config") -> DictConfig:
        files = composed(name, tuple(word for word in overrides if not is_field(word)))
        config = copy.deepcopy(files)
        fields = parser.parse_overrides([word for word in overrides if is_field(word)])
        ConfigLoaderImpl._apply_overrides_to_config(fields, config)
        return config

    return make


@pytest.fixture(scope="session")
def make_config(make_raw: Callable[..., DictConfig]) -> Callable[..., Config]:
    """The same, as validated dataclasses."""

    def make(*overrides: str) -> Config:
        config: Config = typed(make_raw(*overrides))
        validate(config)
        return config

    return make


@pytest.fixture(scope="session")
def make_comparison(make_raw: Callable[..., DictConfig]) -> Callable[..., CompareConfig]:
    """A configuration of evaluate.py on run folders, tiny as TINY is."""

    def make(runs: list[Path], *overrides: str) -> CompareConfig:
        folders = ",".join(str(run) for run in runs)
        small = ("images=9", "steps=6", "batch_size=4", "wandb=disabled", "figures=false")
        config: CompareConfig = typed(make_raw(f"runs=[{folders}]", *small, *overrides, name="evaluate"))
        validate_comparison(config)
        return config

    return make


class Commands:
    """Starts runs of train.py, small, with faults in them: see faulty.py, whose server forks them."""

    def __init__(self, outputs: Path) -> None:
        self._outputs = outputs
        self._files: dict[int, Path] = {}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        self._server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "lab" / "faulty.py"), "--serve"],
            env=kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, **request: Any) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, *overrides: str, **environment: str) -> int:
        """The process id of a run; FAULT and what else it needs are in its environment."""
        resuming = any(word.startswith("resume=") for word in overrides)
        file = self._outputs / f"{len(self._files)}.txt"
        argv = [*(() if resuming else TINY), *overrides]
        argv.sort(key=lambda word: not word.startswith("-"))  # -m comes first
        pid = self._ask(argv=argv, cwd=str(ROOT), environment=environment, output=str(file))
        self._files[pid] = file
        return pid

    def said(self, pid: int) -> str:
        """What it has printed."""
        return self._files[pid].read_text().replace("\r", "\n")

    def end(self, pid: int) -> tuple[int, str]:
        """Its exit code, negative for a signal that killed it, and what it printed."""
        code = self._ask(wait=pid)
        return code, self.said(pid)

    def run(self, *overrides: str, **environment: str) -> tuple[int, str]:
        return self.end(self.start(*overrides, **environment))

    def close(self) -> None:
        self._server.communicate(timeout=30)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    started = Commands(tmp_path_factory.mktemp("commands"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def whole(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run LONG, which nothing interrupts. Tests look at it and leave it as it is."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, said = commands.run(*LONG, f"folder={folder}")
    assert code == 0, said
    return folder


@pytest.fixture(scope="session")
def train_run(
    make_raw: Callable[..., DictConfig], make_config: Callable[..., Config]
) -> Callable[..., Run]:
    """A function that trains in this process, into a folder, with overrides on top of TINY."""

    def run(path: Path, *overrides: str) -> Run:
        given = (*TINY, f"folder={path}", *overrides)
        config = make_config(*given)
        folder = RunFolder(path, OmegaConf.to_yaml(make_raw(*given), resolve=True))
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(io.StringIO()):
            score = train(config, folder)
        results = json.loads((path / "results.json").read_text())
        return Run(path, config, results, score, said.getvalue())

    return run


@pytest.fixture(scope="session")
def study_run(
    make_raw: Callable[..., DictConfig], make_config: Callable[..., Config]
) -> Callable[..., Study]:
    """A function that runs the study of an experiment in this process, like `train_run`, with figures."""

    def run(path: Path, *overrides: str) -> Study:
        given = (*TINY, f"folder={path}", "figures=true", *overrides)
        config = make_config(*given)
        folder = RunFolder(path, OmegaConf.to_yaml(make_raw(*given), resolve=True))
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(io.StringIO()):
            study(config, folder)
        results = json.loads((path / "results.json").read_text())
        return Study(path, config, results, said.getvalue())

    return run


@pytest.fixture(scope="session")
def trained(train_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run with figures. Tests look at it and leave it as it is."""
    return train_run(tmp_path_factory.mktemp("trained") / "first", "figures=true")


@pytest.fixture(scope="session")
def splits() -> ImageSplits:
    """Images of 4x4 pixels, four tokens of 2x2: 32 for training, 8 and 9 held out."""
    return synthetic(side=4, train=40, test=9, validation=8)


@pytest.fixture
def make_network(splits: ImageSplits) -> Callable[..., AttractorNetwork]:
    """A function that builds a network for `splits`; random couplings if their `scale` is given."""

    def make(*, scale: float = 0.0, measure: str = "sphere", seed: int = 0) -> AttractorNetwork:
        config = AttractorConfig(
            name="bare_attention", couplings=CouplingsName.pairwise, measure=MeasureName(measure)
        )
        network = build_network(config, pixel_mean(splits.train), seed=0)
        if scale:
            generator = torch.Generator().manual_seed(seed)
            random_start(network.energy.couplings, scale, generator=generator)
        return network

    return make


@pytest.fixture(scope="session")
def read_sheet() -> Callable[[str], np.ndarray]:
    """A function that reads the pixels of a picture inside a page from its address."""

    def read(address: str) -> np.ndarray:
        kind, _, content = address.partition(",")
        assert kind == "data:image/png;base64"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))

    return read


@pytest.fixture(scope="session")
def read_scenes() -> Callable[[Path], list[dict[str, Any]]]:
    """A function that reads what the slider of a run's report.html moves over, see `page.scenes`."""

    def read(path: Path) -> list[dict[str, Any]]:
        text = (path / "report.html").read_text(encoding="utf-8")
        found = re.search(r'<script type="application/json" id="scenes">(.*?)</script>', text, re.DOTALL)
        assert found is not None
        scenes: list[dict[str, Any]] = json.loads(found[1])
        return scenes

    return read
