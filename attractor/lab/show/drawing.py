"""Which figures a run gets."""

from pathlib import Path
from typing import Any

import torch

from attractor.images import ImageSplits, Reconstructor, Task, pixel_mean, to_pixels
from attractor.lab.config.schema import REFERENCES, Config
from attractor.lab.config.titles import title
from attractor.lab.experiment.assessment import Assessment
from attractor.lab.experiment.evaluation import corruptions, cosine, overlaps
from attractor.lab.experiment.examples import Trajectories
from attractor.lab.experiment.network import AttractorNetwork, Network, Retrieval
from attractor.lab.show import figures, portraits


def draw_run(
    config: Config,
    network: Network,
    splits: ImageSplits,
    tasks: dict[str, Task],
    reference_models: dict[str, Reconstructor],
    assessment: Assessment,
    results: dict[str, Any],
    trajectories: Trajectories,
    metrics: Path,
    folder: Path,
) -> dict[str, Path]:
    """Draw everything; name -> PNG or GIF. metrics: metrics.jsonl of the run."""
    drawn = {
        "error_curves": figures.error_curves(results["tasks"], folder),
        "training": figures.training_curves(metrics, folder, selected=results["cost"]["selected_step"]),
    }
    for task, shown in trajectories.items():
        errors = results["tasks"][task]["models"]
        reference = min((errors[name]["mse"][0], name) for name in REFERENCES)[1]  # the best one
        own = assessment.choices_of(network)[task]
        others = [(title(row), found) for row, found in shown.items() if row not in own]
        for row in own:
            trajectory = shown[row]
            name = f"grid_{task}" + row.removeprefix(config.model.name).replace("+", "_")
            drawn[name] = portraits.retrieval_grid(
                trajectory,
                (title(reference), reference_models[reference]),
                folder,
                others=others,
                name=name,
                heading=f"{title(row)}: {trajectory.retrieval.describe()}",
            )
        drawn[f"trajectory_{task}"] = portraits.trajectory_gif(shown[config.model.name], folder)
    if not isinstance(network, AttractorNetwork):
        return drawn  # the rest is about couplings and their states
    last = list(tasks)[-1]
    curves = {}
    for row, choice in assessment.choices_of(network)[last].items():
        assert isinstance(choice.retrieval, Retrieval)
        curves[row] = {
            name: overlaps(
                network,
                choice.retrieval,
                corruptions(
                    tasks[last],
                    images[: config.eval.overlap_images],
                    seed=config.eval.seed,
                    batch_size=config.eval.batch_size,
                ),
                steps=config.eval.steps,
            )
            for name, images in (("training", splits.train), ("test", splits.test))
        }
    corruption = {"denoise": "noisy", "masked": "masked"}[last]
    originals = torch.cat([batch.original for batch in assessment.batches[last]])
    of_mean = cosine(
        network.encoding.encode(originals), network.encoding.encode(pixel_mean(splits.train)[None])
    )
    drawn["overlap"] = figures.overlap_curves(
        curves, folder, corruption=corruption, mean_overlap=float(of_mean.mean())
    )
    for name, path in (
        ("couplings", portraits.coupling_matrices(network, folder)),
        ("attention", portraits.attention_maps(network, to_pixels(splits.test[:1])[0], folder)),
    ):
        if path is not None:
            drawn[name] = path
    return drawn
