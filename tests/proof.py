"""Prove that a change of the code has changed no result: record small runs of everything, compare records.

    uv run python -m tests.proof record DIR [NAME...]   runs of the code as it is, each into DIR/NAME
    uv run python -m tests.proof compare DIR OTHER      exit code 1 and the first differences, unless equal

Every model with every rule that it allows, two processes, a pause and its resumption, a sweep with its
table, evaluate.py, and every study, all small. Compared at zero tolerance: every number and word of
results.json, metrics.jsonl and table.csv, and every tensor of every checkpoint, by name. What a clock, a
process or a folder says is left out. Both records have to be made on one machine: another processor adds
in another order.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.lab.experiment import test_recollection, test_slot_network
from tests.running import TINY

ROOT = Path(__file__).resolve().parents[1]
SMALL = (*TINY, "dynamics.inertias=[0.0,0.5]")
ATTRACTORS = ("bare_attention", "hopfield", "local_attention")
LOCAL_RULES = ("pseudo_likelihood", "energy_descent", "energy_descent_decay", "hebb", "ridge")
TRANSFORMER = ("model.width=8", "model.heads=2")
STUDIES = ("ols_attention", "capacity", "fast_weights", "log_normaliser", "query_key")
TRAIN = (sys.executable, "train.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py")
# what a clock or a process says, and no result
LEFT_OUT = {"seconds", "time", "peak_memory_mb", "pid", "host"}


def commands(record: Path) -> Iterator[tuple[str, list[Sequence[str]]]]:
    """A name, and the command lines that leave something in record/NAME."""

    def train(
        name: str, *overrides: str, program: Sequence[str] = TRAIN
    ) -> tuple[str, list[Sequence[str]]]:
        return name, [[*program, *SMALL, *overrides, f"folder={record / name}"]]

    for model in ATTRACTORS:
        for rule in LOCAL_RULES:
            if (rule == "ridge") <= (model == "hopfield"):  # which alone has this closed form
                yield train(f"{model}-{rule}", f"model={model}", f"rule={rule}")
    yield train("drawn-rows", "rule.rows_per_step=12", "backend=eager")
    yield train(
        "momentum", "rule=energy_descent", "rule.momentum=0.9", "train.patience=1", "train.steps=12"
    )
    yield train("gibbs", "dynamics.maps=[gibbs,mean_field]", "task=masked", "model.measure=circles")
    yield train("phases", "model.span=0.25", "model.patch=4", "model.measure=gaussian")
    for model in ("transformer", "transformer_block"):
        for task in ("masked", "denoise"):
            yield train(f"{model}-{task}", f"model={model}", f"task={task}", *TRANSFORMER)
    yield train("local_linear_memory", *test_recollection.SMALL)
    yield train("slots", *test_slot_network.SMALL)
    yield train("beside", "beside=digits")
    yield train("two-processes", program=TORCHRUN)
    name, ((*first, _),) = train("resumed", "train.stop_after=3")
    folder = record / name
    yield name, [[*first, f"folder={folder}"], [*TRAIN, f"resume={folder}", "train.stop_after=null"]]
    sweep = record / "sweep"
    swept = [*TRAIN, "-m", *SMALL, "seed=0,1", "rule=pseudo_likelihood,hebb", f"hydra.sweep.dir={sweep}"]
    yield "sweep", [swept, [sys.executable, "-m", "attractor.lab.collect", str(sweep), "--no-figures"]]
    runs = [str(record / f"bare_attention-{rule}") for rule in ("pseudo_likelihood", "hebb")]
    compared = ["runs=[" + ",".join(runs) + "]", "images=9", "steps=6", "figures=false", "wandb=disabled"]
    yield "evaluated", [[sys.executable, "evaluate.py", *compared, f"folder={record / 'evaluated'}"]]
    for study in STUDIES:
        small = import_module(f"tests.studies.test_{study}").SMALL
        yield train(f"study-{study}", *small, "eval.steps=3")


def record(folder: Path, names: Sequence[str]) -> int:
    """Run what is not there yet; how many commands ended with an error that they should not have."""
    failed = 0
    for name, lines in commands(folder):
        if (names and name not in names) or (folder / name).exists():
            continue
        for line in lines:
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
            print(f"{name}: exit code {done.returncode}", flush=True)
            paused = any(word.startswith("train.stop_after=") and word[-1].isdigit() for word in line)
            if done.returncode and not paused:
                failed += 1
                print(done.stdout[-1500:] + done.stderr[-1500:])
                break
    return failed


def differences(one: Any, other: Any, where: str) -> Iterator[str]:
    """Where two records differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if key in LEFT_OUT or str(key).endswith("_seconds"):
                continue
            if key not in one or key not in other:
                yield f"{where}/{key}: only in one"
            else:
                yield from differences(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{where}/{index}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield f"{where}: another tensor"
    elif one != other and not (one != one and other != other):  # nan
        yield f"{where}: {str(one)[:60]} and {str(other)[:60]}"


def read(path: Path, record: Path) -> Any:
    """What is compared of a file, without the place of its record; None for a file that is not compared."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.name not in ("results.json", "metrics.jsonl", "table.csv"):
        return None
    text = path.read_text().replace(str(record.absolute()), "")
    if path.suffix == ".csv":
        return text.splitlines()
    return [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]


def compare(one: Path, other: Path) -> int:
    """How many differences there are; they are printed."""
    files = {
        path.relative_to(folder) for folder in (one, other) for path in folder.rglob("*") if path.is_file()
    }
    count = compared = 0
    for file in sorted(files):
        if not (one / file).exists() or not (other / file).exists():
            if file.suffix in (".safetensors", ".json", ".jsonl", ".csv"):
                count += 1
                print(f"{file}: only in one")
            continue
        mine = read(one / file, one)
        if mine is None:
            continue
        compared += 1
        for line in differences(mine, read(other / file, other), str(file)):
            count += 1
            if count < 40:
                print(line)
    print(f"{compared} files compared, {count} differences")
    return count + (compared == 0)


def main(words: list[str]) -> int:
    """The command; its exit code."""
    match words:
        case ["record", folder, *names]:
            return int(record(Path(folder).absolute(), names) > 0)
        case ["compare", one, other]:
            return int(compare(Path(one), Path(other)) > 0)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
