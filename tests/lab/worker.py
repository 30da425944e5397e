"""A train.py for tests of several processes: it measures couplings and states first, or fails on purpose.

MEASURED=DIR: leave `measured` of this process in DIR/rank-R.safetensors, then train.
FAILS=R: process R finds the disk full when it writes its second checkpoint.
"""

import errno
import os
from itertools import islice
from pathlib import Path

import hydra
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from attractor.images import Denoise, Masked, pixel_mean, synthetic, to_pixels
from attractor.lab.config.checks import validate
from attractor.lab.config.names import CouplingsName, DeviceName, MapName, MeasureName, OrderName
from attractor.lab.config.rules import EnergyDescentConfig, PseudoLikelihoodConfig
from attractor.lab.config.schema import AttractorConfig, Config, register
from attractor.lab.entry import launch
from attractor.lab.experiment.build import build_network
from attractor.lab.experiment.build_rule import build_rule
from attractor.lab.experiment.network import Retrieval
from attractor.lab.experiment.processes import Processes, launched
from attractor.lab.experiment.training import fit
from attractor.lab.run import tensor_files
from attractor.lab.run.folder import RunFolder
from attractor.physics import Backend
from train import train

pairwise = AttractorConfig(name="x", couplings=CouplingsName.pairwise, measure=MeasureName.sphere)
local = AttractorConfig(name="x", couplings=CouplingsName.pairwise, measure=MeasureName.circles, radius=1)
hopfield = AttractorConfig(name="x", couplings=CouplingsName.hopfield, measure=MeasureName.gaussian)

CASES = {
    "pairwise": (pairwise, PseudoLikelihoodConfig(learning_rate=0.03)),
    "drawn rows": (pairwise, PseudoLikelihoodConfig(learning_rate=0.03, rows_per_step=3)),
    "local": (local, EnergyDescentConfig(learning_rate=0.1, momentum=0.9)),
    "hopfield": (hopfield, PseudoLikelihoodConfig(learning_rate=0.003)),
}
STEPS = 8


def measured(processes: Processes, backend: Backend) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Own rows of the couplings after 8 steps, and all states after 8 iterations, of every case."""
    splits = synthetic()
    noisy = Denoise().corrupt(to_pixels(splits.test[:7]), range(7), seed=0)
    masked = Masked(patch=2).corrupt(to_pixels(splits.test[:7]), range(7), seed=0)
    couplings, states = {}, {}
    for name, (model, rule) in CASES.items():
        network = build_network(
            model,
            pixel_mean(splits.train),
            seed=0,
            device=DeviceName.cpu,
            backend=backend,
            ranks=processes.ranks,
        )
        steps = fit(
            network,
            build_rule(rule, network, {}, seed=0),
            images=splits.train,
            steps=STEPS,
            batch_size=32,
            learning_rate=rule.learning_rate,
            jitter=0.1,
            seed=0,
        )
        assert len(list(steps)) == STEPS
        (couplings[name],) = network.energy.couplings.weights.values()
        sequential = OrderName.sequential if model is hopfield else OrderName.synchronous
        for label, corrupted, retrieval in (
            ("evidence", noisy, Retrieval(MapName.mean_field, evidence=2.0, order=sequential)),
            ("clamped", masked, Retrieval(MapName.mean_field_projected, inverse_temperature=0.5)),
            ("attention", noisy, Retrieval(MapName.attention, inertia=0.5, damping=0.1)),
        ):
            if model is not hopfield or label == "evidence":
                *_, last = islice(network.states(corrupted, retrieval), STEPS)
                states[f"{name}, {label}"] = last
    return couplings, states


def job(config: Config, folder: RunFolder, processes: Processes) -> float:
    if "MEASURED" in os.environ:
        found = {}
        for backend in (Backend.eager, Backend.auto):
            couplings, states = measured(processes, backend)
            found |= {f"{backend.value} couplings {name}": rows for name, rows in couplings.items()}
            found |= {f"{backend.value} states {name}": state for name, state in states.items()}
        path = Path(os.environ["MEASURED"]) / f"rank-{launched()[0]}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, path)
    if os.environ.get("FAILS") == str(launched()[0]):
        write, count = tensor_files.write, []

        def full(*given):
            count.append(1)
            if len(count) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*given)

        tensor_files.write = full
    return train(config, folder, processes)


@hydra.main(version_base="1.3", config_path="../../conf", config_name="config")
def main(raw: DictConfig) -> float | None:
    return launch(raw, check=validate, job=job)


if __name__ == "__main__":
    register()
    main()
