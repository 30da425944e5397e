"""Prove that a change of the code has changed no result: record small runs of everything, compare records.

    uv run scripts/proof.py record DIR [NAME...]    runs of the code as it is, each into DIR/NAME
    uv run scripts/proof.py compare DIR OTHER       exit code 1, and the first differences, unless equal

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
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    *("data=synthetic", "beside=none", "wandb=disabled", "figures=false"),
    *("train.steps=6", "train.batch_size=16", "train.validate_every=2", "train.validation_images=8"),
    *("dynamics.inverse_temperatures=[1.0,0.25]", "dynamics.inertias=[0.0,0.5]", "dynamics.evidence=[1.0]"),
    *("dynamics.validation_images=8", "eval.images=9", "eval.steps=6", "eval.batch_size=4"),
    "eval.overlap_images=5",
)  # fmt: skip
ATTRACTORS = ("bare_attention", "hopfield", "local_attention")
LOCAL_RULES = ("pseudo_likelihood", "energy_descent", "energy_descent_decay", "hebb", "ridge")
MEMORY = (
    *("model=local_linear_memory", "model.copies=[shift 1]", "model.candidates=60", "model.reaches=[3.0]"),
    *("model.neighbours=[50,100]", "model.inverse_temperatures=[4.0]", "model.ridges=[0.001]"),
)
SLOTS = (
    *("model=slots", "model.slots=6", "model.parents=2", "model.rank=10", "model.screening_rank=3"),
    "model.candidates=3",
)
TRANSFORMER = ("model.width=8", "model.heads=2")
STUDIES = {
    "ols_attention": (
        "images=60",
        "side=4",
        "steps=40",
        "seeds=2",
        "short_context=12",
        "start_scales=[0.3]",
    ),
    "capacity": (
        *("stored=[2,6]", "learned=[6]", "fixed=6", "variances=[0.1,0.5]", "fractions=[0.5]", "powers=[3]"),
        *("ridges=[0.1,1.0]", "queries=8", "seeds=2"),
    ),
    "fast_weights": (
        *("seeds=2", "dim=8", "sequences=16", "stored=[2,8,32]", "random_features=64", "rounds=3"),
        *("neurons=[40,80]", "loads=[0.05,0.3,0.6]", "patterns=10", "lengths=[8,16,32]", "chunk=4"),
    ),
    "log_normaliser": (
        *("draws=[10,100]", "repetitions=20", "particles=60", "iterations=2", "seeds=2", "images=8"),
        "transformer_steps=1",
    ),
    "query_key": (
        *("images=16", "test_images=6", "draws=2", "width=8", "heads=2", "depth=2", "transformer_steps=2"),
        *("transformer_batch=8", "steps=4", "seeds=2", "target_ridges=[0.1,10.0]", "ridges=[1.0]"),
        "adam_rates={plain:[0.03,0.1],rotated:[0.1],whitened_keys:[0.03,0.1],whitened_keys_and_queries:[0.03]}",
        "sgd_rates={plain:[1.0,3.0],whitened_keys:[1.0],whitened_keys_and_queries:[1.0]}",
    ),
}
TRAIN = (sys.executable, "train.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py")
# what a clock or a process says, and no result
LEFT_OUT = {"seconds", "time", "peak_memory_mb", "pid", "host"}


def commands(record: Path) -> Iterator[tuple[str, list[Sequence[str]]]]:
    """A name, and the command lines that leave something in record/NAME."""

    def train(
        name: str, *overrides: str, program: Sequence[str] = TRAIN
    ) -> tuple[str, list[Sequence[str]]]:
        return name, [[*program, *TINY, *overrides, f"folder={record / name}"]]

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
    yield train("local_linear_memory", *MEMORY)
    yield train("slots", *SLOTS)
    yield train("beside", "beside=digits")
    yield train("two-processes", program=TORCHRUN)
    name, ((*first, _),) = train("resumed", "train.stop_after=3")
    folder = record / name
    yield name, [[*first, f"folder={folder}"], [*TRAIN, f"resume={folder}", "train.stop_after=null"]]
    sweep = record / "sweep"
    swept = [*TRAIN, "-m", *TINY, "seed=0,1", "rule=pseudo_likelihood,hebb", f"hydra.sweep.dir={sweep}"]
    yield "sweep", [swept, [sys.executable, "-m", "attractor.lab.collect", str(sweep), "--no-figures"]]
    runs = [str(record / f"bare_attention-{rule}") for rule in ("pseudo_likelihood", "hebb")]
    compared = ["runs=[" + ",".join(runs) + "]", "images=9", "steps=6", "figures=false", "wandb=disabled"]
    yield "evaluated", [[sys.executable, "evaluate.py", *compared, f"folder={record / 'evaluated'}"]]
    for study, fields in STUDIES.items():
        given = [f"experiment={study}", *(f"theory.{field}" for field in fields)]
        yield train(f"study-{study}", *given, "eval.steps=3")


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
