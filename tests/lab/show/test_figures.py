"""Figures: all of them are there, in both formats, at their size, with the numbers of the results."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from attractor.lab import load_run
from attractor.lab.config.names import CouplingsName, DeviceName, MeasureName
from attractor.lab.config.schema import AttractorConfig
from attractor.lab.experiment.build import build_network
from attractor.lab.experiment.evaluation import corruptions
from attractor.lab.experiment.examples import Trajectory, first_images
from attractor.lab.experiment.network import Recall
from attractor.lab.show import figures, portraits
from attractor.lab.show.figures import COLUMN, PAGE

PLOTS = {
    "error_curves": PAGE,
    "training": PAGE,
    "overlap": COLUMN,
    "couplings": PAGE,
    "attention": PAGE,
    "grid_masked": None,
    "grid_denoise": None,
    "grid_denoise_evidence": None,
}
GIFS = {"trajectory_masked", "trajectory_denoise"}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved, in order; nothing is written."""
    kept: list[Figure] = []

    def save(figure: Figure, folder: Path, name: str) -> Path:
        kept.append(figure)
        return folder / f"{name}.png"

    monkeypatch.setattr(figures, "save", save)
    monkeypatch.setattr(portraits, "save", save)
    return kept


def test_every_figure_is_there(trained) -> None:
    """Each plot as PNG and PDF, each trajectory as GIF, and nothing else in the folder."""
    names = {entry.name for entry in (trained.path / "figures").iterdir()}
    plots = {f"{name}.{kind}" for name in PLOTS for kind in ("png", "pdf")}
    assert names == plots | {f"{name}.gif" for name in GIFS}


@pytest.mark.parametrize(("name", "inches"), PLOTS.items())
def test_figures_have_the_size_of_a_paper(trained, name: str, inches: float | None) -> None:
    """PNG at 220 dpi, one column or a page wide (less at most a tenth, that was blank); a real PDF.

    At 100 dpi, the default, print is blurred. A picture of one colour would be an empty plot.
    """
    folder = trained.path / "figures"
    with Image.open(folder / f"{name}.png") as picture:
        picture.load()
        assert picture.info["dpi"][0] == pytest.approx(220, abs=0.1)
        if inches is not None:
            assert 0.9 * inches * 220 < picture.width < 1.05 * inches * 220
        assert picture.width <= 1.05 * PAGE * 220
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize("name", sorted(GIFS))
def test_trajectories_have_a_frame_for_every_t(trained, name: str) -> None:
    """t = 0, 1, ..., 6: seven frames, each different, for six iterations."""
    with Image.open(trained.path / "figures" / f"{name}.gif") as film:
        assert film.n_frames == 7
        assert film.info["loop"] == 0
        frames = []
        for index in range(film.n_frames):
            film.seek(index)
            frames.append(film.convert("L").tobytes())
    assert len(set(frames)) == 7


def test_error_curves_are_the_results(trained, drawn: list[Figure], tmp_path: Path) -> None:
    """Lines are the curves of results.json over t = 1, 2, ...; the circle is `best`; references are level.

    A curve that began at t = 0, or a circle at the oracle's t, would show here.
    """
    figures.error_curves(trained.results["tasks"], tmp_path)
    (figure,) = drawn
    assert len(figure.axes) == 2
    for axes, values in zip(figure.axes, trained.results["tasks"].values(), strict=True):
        assert axes.get_xscale() == "log"
        assert "pixel" in axes.get_ylabel()
        lines = {line.get_label(): line for line in axes.lines}
        circles = [line for line in axes.lines if line.get_marker() == "o"]
        rows = {"bare_attention": "bare self-attention"}
        if "bare_attention+evidence" in values["models"]:
            rows["bare_attention+evidence"] = "bare self-attention + evidence"
        for (name, label), circle in zip(rows.items(), circles, strict=True):
            entry = values["models"][name]
            np.testing.assert_array_equal(lines[label].get_xdata(), np.arange(1, 7))
            np.testing.assert_array_equal(lines[label].get_ydata(), entry["mse"])
            assert [circle.get_xdata()[0], circle.get_ydata()[0]] == [
                entry["best"]["t"],
                entry["best"]["mse"],
            ]
        for name, label in (("memory", "softmax memory"), ("regression", "linear regression")):
            np.testing.assert_array_equal(lines[label].get_ydata(), values["models"][name]["mse"] * 2)


def test_training_curves_are_the_metrics(trained, drawn: list[Figure], tmp_path: Path) -> None:
    """The objective of every step, the validation errors where there are any, and the step that was kept.

    A validation error drawn at the wrong step would show another training than took place.
    """
    selected = trained.results["cost"]["selected_step"]
    figures.training_curves(trained.path / "metrics.jsonl", tmp_path, selected=selected)
    lines = [json.loads(line) for line in (trained.path / "metrics.jsonl").read_text().splitlines()]
    climb, errors = drawn[0].axes
    np.testing.assert_array_equal(climb.lines[0].get_xdata(), [1, 2, 3, 4, 5, 6])
    objective = [line["train/log_pseudo_likelihood"] for line in lines]
    np.testing.assert_array_equal(climb.lines[0].get_ydata(), objective)
    for curve, task in zip(errors.lines, ("masked", "denoise"), strict=False):
        np.testing.assert_array_equal(curve.get_xdata(), [2, 4, 6])
        np.testing.assert_array_equal(curve.get_ydata(), [lines[i][f"val/{task}"] for i in (1, 3, 5)])
    for axes in (climb, errors):
        assert list(axes.lines[-1].get_xdata()) == [selected] * 2


def test_a_rule_of_one_shot_has_one_panel(drawn: list[Figure], tmp_path: Path) -> None:
    """Hebb's rule climbs nothing: no empty panel, and one task where one was trained for."""
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 1, "train/rate": 1.0, "val/masked": 0.05}) + "\n")
    figures.training_curves(metrics, tmp_path, selected=1)
    (axes,) = drawn[0].axes
    assert [line.get_label() for line in axes.lines] == ["masked prediction", "step 1, kept"]


def test_overlap_curves_are_means_over_images(drawn: list[Figure], tmp_path: Path) -> None:
    """Lines are means over images against t = 0, 1, ...: train solid, test dashed, in one colour.

    The training mean's overlap is level beside them: without it any overlap looks like a memory.
    """
    generator = torch.Generator().manual_seed(0)
    curves = {"net": {name: torch.rand(5, 4, generator=generator) for name in ("training", "test")}}
    figures.overlap_curves(curves, tmp_path, corruption="noisy", mean_overlap=0.625)
    (axes,) = drawn[0].axes
    assert len(axes.lines) == 3
    np.testing.assert_array_equal(axes.lines[2].get_ydata(), [0.625, 0.625])
    for line, (name, values) in zip(axes.lines[:2], curves["net"].items(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 3])
        np.testing.assert_allclose(line.get_ydata(), values.mean(0).numpy())
        assert line.get_label() == f"net, {name}"
    assert axes.lines[0].get_color() == axes.lines[1].get_color()
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()


def test_a_grid_shows_the_trajectory(trained, drawn: list[Figure], tmp_path: Path) -> None:
    """Columns original, corrupted, t = 1, 5 and the chosen 3, reference; visible pixels put back.

    A state beside the wrong t would illustrate something that did not happen.
    """
    from attractor.baselines import TrainingMean
    from attractor.images import Masked, synthetic

    splits, run = synthetic(), load_run(trained.path)
    (batch,) = corruptions(Masked(patch=2), splits.test[:3], seed=0, batch_size=3)
    retrieval = replace(run.choices["masked"]["bare_attention"].retrieval, steps=3)
    recall = Recall(run.network, retrieval)
    reference = ("training mean", TrainingMean(splits.train))
    trajectory = Trajectory(batch, list(islice(recall.reconstruct(batch), 6)), retrieval)
    portraits.retrieval_grid(trajectory, reference, tmp_path, name="grid", heading="head", rows=2)
    strips = drawn[0].axes
    titles = [axes.get_title() for axes in strips]
    assert titles == ["original", "corrupted", "$t=1$", "$t=3$, chosen", "$t=5$", "training mean"]
    states = recall.reconstruct(first_images(batch, 2))
    curve = [next(states) for _ in range(5)]
    for column, state in ((2, curve[0]), (3, curve[2]), (4, curve[4])):
        for row in range(2):
            shown = np.asarray(strips[column].images[0].get_array())[9 * row : 9 * row + 8]
            expected = torch.where(batch.pixel_mask[row], state[row], batch.original[row])
            np.testing.assert_allclose(shown, expected[0].numpy(), atol=1e-6)
    seen = np.asarray(strips[1].images[0].get_array())
    assert seen.shape == (17, 8), "two images with a gap of a pixel"
    assert (seen[8] == 1).all()
    assert (seen[:8][batch.pixel_mask[0, 0].numpy()] == 0.5).all(), "hidden pixels are grey, not black"


def test_couplings_are_those_of_the_named_neighbours(trained, drawn: list[Figure], tmp_path: Path) -> None:
    """The panel at (down, right) shows J_ij of that token j, on one scale that is symmetric about 0."""
    network = load_run(trained.path).network
    portraits.coupling_matrices(network, tmp_path)
    weights = network.energy.couplings.couplings
    panels = [axes for axes in drawn[0].axes if axes.images and "," in axes.get_title()]
    assert len(panels) == 6
    scales = set()
    for axes in panels:
        down, right = (int(part) for part in axes.get_title().split(","))
        i, j = 2 * 4 + 2, (2 + down) * 4 + (2 + right)
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), weights[i, j].numpy())
        scales.add(axes.images[0].get_clim())
    ((low, high),) = scales
    assert low == -high


@pytest.fixture(scope="module")
def local(train_run, tmp_path_factory: pytest.TempPathFactory):
    """A run with sparse couplings, trained a few rows at a time."""
    overrides = ("model=local_attention", "model.radius=1", "rule.rows_per_step=5", "figures=true")
    return train_run(tmp_path_factory.mktemp("local") / "run", *overrides)


def test_sparse_couplings_have_every_figure(local) -> None:
    """A run of `local_attention` ends with its row, its count of couplings and all figures.

    16 tokens with 3, 5 or 8 neighbours: 4 * 3 + 8 * 5 + 4 * 8 = 84 matrices of 8 x 8.
    """
    assert "5,376 couplings" in local.output
    assert set(local.results["tasks"]["masked"]["models"]) >= {"local_attention"}
    assert local.results["cost"]["parameters"] == 5376
    names = {entry.name for entry in (local.path / "figures").iterdir()}
    assert {f"{name}.png" for name in PLOTS} <= names


def test_attention_of_sparse_couplings_is_shown_on_its_tokens(drawn: list[Figure], tmp_path: Path) -> None:
    """Square (r, c) of a map is the attention on that token, blank where it is no source.

    Maps of the slots in the order that they are stored would be shifted at every border. On the 8 x 8 grid
    the border cuts the neighbourhoods of radius 3 of the tokens shown, so some slots are empty.
    """
    from attractor.images import pixel_mean, synthetic, to_pixels
    from attractor.physics import random_start

    splits = synthetic()
    config = AttractorConfig(
        "local_attention", patch=1, couplings=CouplingsName.pairwise, measure=MeasureName.sphere, radius=3
    )
    network = build_network(config, pixel_mean(splits.train), seed=0, device=DeviceName.cpu)
    couplings, pixels = network.energy.couplings, to_pixels(splits.test[:1])[0]
    random_start(couplings, 1.0, generator=torch.Generator().manual_seed(0))
    portraits.attention_maps(network, pixels, tmp_path)
    attention = network.energy.attention(network.encoding.encode(pixels[None]))[0]
    panels = [axes for axes in drawn[0].axes if axes.get_title().startswith("$i=(")]
    assert len(panels) == 4
    for axes in panels:
        row, column = (int(part) for part in axes.get_title().strip("$i=()").split(","))
        shown = np.ma.masked_invalid(axes.images[0].get_array())
        i = row * 8 + column
        expected = {
            j: float(a)
            for j, a in zip(couplings.neighbours[i].tolist(), attention[i], strict=True)
            if j >= 0
        }
        assert shown.count() == len(expected) < couplings.sources
        for j, weight in expected.items():
            assert shown[j // 8, j % 8] == pytest.approx(weight)


def test_only_couplings_that_exist_are_shown(local, drawn: list[Figure], tmp_path: Path) -> None:
    """The panel (0, +2) is not there for radius 1: its matrix would be a picture of nothing."""
    network = load_run(local.path).network
    portraits.coupling_matrices(network, tmp_path)
    panels = [axes for axes in drawn[0].axes if axes.images and "," in axes.get_title()]
    weights = network.energy.couplings.couplings
    assert len(panels) == 6
    for axes in panels:
        down, right = (int(part) for part in axes.get_title().split(","))
        i, j = 2 * 4 + 2, (2 + down) * 4 + (2 + right)
        np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), weights[i, j].numpy())
        assert weights[i, j].any()
