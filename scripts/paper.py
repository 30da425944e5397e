"""The paper's experiment: train every arm, then compare. Interrupted, the same command goes on.

uv run scripts/paper.py data.root=DIR                            experiment=paper, in outputs/paper
uv run scripts/paper.py experiment=paper_quick data.root=DIR     reduced, in outputs/paper_quick
uv run scripts/paper.py data.root=DIR seed=0 launcher=joblib hydra.launcher.n_jobs=2     any field
"""

import sys
from pathlib import Path

from attractor.lab.show import command

ROOT = Path(__file__).parents[1]
# test images of the comparison, where they are not all
FEWER = {"paper_quick": ["--images", "1000", "--curve-images", "200"]}
# experiment -> that of its arms in which nothing is drawn, for one seed, in a folder beside the jobs
ONCE = {"paper": "paper_once"}


def main(arguments: list[str]) -> int:
    """Run the commands, one after the other; the exit code of the first one that fails."""
    given = command.overrides(arguments, __doc__)
    experiment = given.setdefault("experiment", "paper")
    sweeps = [given | {"hydra.sweep.dir": given.get("hydra.sweep.dir", f"outputs/{experiment}")}]
    if experiment in ONCE and "arm" not in given:
        folder = f"{sweeps[0]['hydra.sweep.dir']}/once"
        once = sweeps[0] | {"experiment": ONCE[experiment], "hydra.sweep.dir": folder}
        sweeps.append({name: value for name, value in once.items() if name != "seed"})
    for fields in sweeps:
        asked = [f"{name}={value}" for name, value in fields.items()]
        if code := command.child([ROOT / "train.py", "-m", *asked]):
            return code
    comparison = ["-m", "attractor.lab.paper", *(fields["hydra.sweep.dir"] for fields in sweeps)]
    comparison += FEWER.get(experiment, [])
    if "data.root" in given:
        comparison += ["--root", given["data.root"]]
    return command.child(comparison)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
