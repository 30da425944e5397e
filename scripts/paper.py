"""The paper's experiment: train every arm, then compare. Interrupted, the same command goes on.

uv run scripts/paper.py data.root=DIR                            experiment=paper, in outputs/paper
uv run scripts/paper.py experiment=paper_quick data.root=DIR     reduced, in outputs/paper_quick
uv run scripts/paper.py data.root=DIR seed=0 launcher=joblib hydra.launcher.n_jobs=2     any field
"""

import sys
from pathlib import Path

from attractor.lab import command

ROOT = Path(__file__).parents[1]
# test images of the comparison, where they are not all
FEWER = {"paper_quick": ["--images", "1000", "--curve-images", "200"]}


def main(arguments: list[str]) -> int:
    """Run both commands; the exit code of the first one that fails."""
    given = command.overrides(arguments, __doc__)
    experiment = given.setdefault("experiment", "paper")
    sweep = given.setdefault("hydra.sweep.dir", f"outputs/{experiment}")
    fields = [f"{name}={value}" for name, value in given.items()]
    comparison = ["-m", "attractor.lab.paper", sweep, *FEWER.get(experiment, [])]
    if "data.root" in given:
        comparison += ["--root", given["data.root"]]
    return command.child([ROOT / "train.py", "-m", *fields]) or command.child(comparison)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
