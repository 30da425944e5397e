"""The README is executed: its commands as they stand (made small), its Python blocks as they are."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm import WarmPython

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# what makes a command small without changing what it does
SMALL = [
    "train.steps=20",
    "train.validate_every=10",
    "train.validation_images=10",
    "dynamics.validation_images=10",
    "dynamics.inverse_temperatures=[1.0]",
    "eval.images=10",
    "eval.steps=6",
    "eval.overlap_images=4",
]
# and a study
SMALL_STUDY = {
    "experiment=ols_attention": [
        "theory.images=100",
        "theory.short_context=20",
        "theory.steps=10",
        "theory.seeds=2",
    ]
}
# torchvision's data sets are not there in tests: the same experiment on embedded images
EMBEDDED = ["data=synthetic"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = (line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines())
    return [line for line in lines if line]


def small(command: str, *, first: bool) -> list[str]:
    """What Python gets for the command, made small; the first one draws and tracks too."""
    words = shlex.split(command)
    program = words.index("run") + 1
    script, arguments = words[program], words[program + 1 :]
    if script == "python":
        return arguments
    if script == "train.py":
        overrides = SMALL if first else [*SMALL, "beside=none", "figures=false", "wandb=disabled"]
        arguments = [word for word in arguments if not word.startswith("train.steps=")]
        given = " ".join(arguments)  # wandb is given where wandb.project is
        arguments += [word for word in overrides if word.split("=")[0] not in given]
        if "data.root" in command:
            arguments = [word for word in arguments if not word.startswith("data.root")] + EMBEDDED
        arguments += [word for chosen in words for word in SMALL_STUDY.get(chosen, [])]
        if "sweep=rates" in command:
            arguments += ["seed=0"]  # five rates are enough
    if script == "evaluate.py":
        arguments += ["images=10", "steps=6", "wandb=disabled"]
    return [str(ROOT / script), *arguments]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory, warm: WarmPython) -> Path:
    """A folder in which every command of the README has been run, in order; each must succeed.

    The first one in a fresh Python, the others where torch is imported already.
    """
    folder = tmp_path_factory.mktemp("readme")
    # each once: the first one is shown twice
    once = dict.fromkeys(command.split("&&")[-1].strip() for command in commands())
    for index, command in enumerate(once):
        if command.endswith("pytest"):
            continue
        words = small(command, first=index == 0)
        environment = dict(
            word.split("=", 1) for word in shlex.split(command) if re.match(r"[A-Z_]+=", word)
        )
        environment = dict(os.environ) | environment
        if index == 0:
            done = subprocess.run(
                [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
            )
        else:
            done = warm.run(words, cwd=folder, environment=environment)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return folder


def test_every_command_of_the_readme_runs(executed: Path) -> None:
    """A command that a new user copies must work; without this the README rots unseen."""
    assert len(commands()) >= 10
    for name in ("a", "b", "sweeps/rates/4", "sweeps/mine/3", "mine"):
        assert (executed / "outputs" / name / "results.json").is_file()
    table = (executed / "outputs" / "sweeps" / "rates" / "table.csv").read_text().splitlines()
    assert table[0].startswith("rule.learning_rate,n,failed,unfinished,val,")
    assert sorted(line.split(",")[0] for line in table[1:]) == ["0.003", "0.01", "0.03", "0.1", "0.3"]


def test_the_tracking_section_does_what_it_says(executed: Path) -> None:
    """Its first command leaves an offline run, its second none."""
    section = README.partition("## Tracking")[2].partition("\n## ")[0]
    assert "folder=outputs/tracked" in section
    assert "folder=outputs/untracked" in section
    (record,) = (executed / "outputs/tracked/wandb").glob("offline-run-*/run-*.wandb")
    assert record.stat().st_size > 0
    assert (executed / "outputs/untracked/results.json").is_file()
    assert not (executed / "outputs/untracked/wandb").exists()


def test_every_python_block_of_the_readme_runs(
    executed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code in the README runs as it stands, in the folder where its commands have run."""
    monkeypatch.chdir(executed)
    assert len(blocks("python")) >= 2
    for block in blocks("python"):
        scope: dict[str, object] = {}
        exec(compile(block, "README.md", "exec"), scope)
    assert "iterations" in capsys.readouterr().out
    assert scope["completed"].shape == (4, 1, 8, 8)  # type: ignore[attr-defined]  # the last block's


def test_every_file_the_readme_names_exists() -> None:
    """Links, figures and files in the reading order are there."""
    named = re.findall(r"\]\(([\w./-]+)\)|`((?:attractor|benchmarks|scripts|conf)/[\w./-]+)`", README)
    assert named
    for link, path in named:
        assert (ROOT / (link or path)).exists(), link or path


def test_measured_numbers_of_the_readme_are_those_of_the_results() -> None:
    """Every error with a spread stands in docs/results.md too, or one of the two is out of date."""
    results = (ROOT / "docs" / "results.md").read_text().replace("*", "")
    rows = [line for line in README.replace("*", "").splitlines() if line.startswith("|") and "±" in line]
    assert rows
    for row in rows:
        for number in re.findall(r"0\.\d{4} ± 0\.\d{4}", row):
            assert number in results, row
