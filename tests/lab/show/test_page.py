"""report.html: what is written in it. What a browser makes of it is tested in test_page_browser."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from attractor.images import Corrupted, Denoise, Masked, synthetic, to_pixels
from attractor.lab import load_run
from attractor.lab.config.names import MapName
from attractor.lab.config.titles import title
from attractor.lab.experiment.examples import Trajectory, times
from attractor.lab.experiment.network import Recall, Retrieval
from attractor.lab.run.folder import RunFolder
from attractor.lab.show import page, terminal
from evaluate import compare
from train import train


class Page(HTMLParser):
    """Tables as lists of rows of cells, addresses, and the text of the elements with an id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.policy = ""
        self.pre = ""
        self._cell = self._pre = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [given[name] or "" for name in ("src", "href", "data", "action") if name in given]
        if tag == "img":
            self.images.append(given)
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True
        elif tag == "pre":
            self._pre = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")
        self._pre = self._pre and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data
        if self._pre:
            self.pre += data


@pytest.fixture(scope="module")
def read(trained) -> Page:
    return Page((trained.path / "report.html").read_text(encoding="utf-8"))


def test_the_table_is_the_printed_one(trained, read: Page) -> None:
    """Cell by cell: the page that is passed on must not say anything else than the terminal did."""
    head, *rows = read.tables[0]
    assert head == ["model", "masked prediction9 test images", "denoising9 test images"]
    expected = terminal.table_rows(trained.results["tasks"])
    assert rows == [[title(model), *cells] for model, cells in expected.items()]


def test_selection_cost_and_differences_are_those_of_the_results(trained, read: Page) -> None:
    """The numbers a reader would cite come from results.json, none from elsewhere."""
    results = trained.results
    *differences, selection, cost = read.tables[1:]
    for table, values in zip(differences, results["tasks"].values(), strict=True):
        for other, row in zip(values["models"], table[1:], strict=True):
            for model, cell in zip(values["differences"], row[1:], strict=True):
                found = values["differences"][model].get(other)
                text = f"{found['mse']:+.4f} ± {found['standard_error']:.4f}" if found else ""
                assert cell == text
    errors = [entry["validation_mse"] for rows in results["selection"].values() for entry in rows.values()]
    chosen = [entry["steps"] for rows in results["selection"].values() for entry in rows.values()]
    assert [row[-1] for row in selection[1:]] == [f"{error:.4f}" for error in errors]
    assert [row[-2] for row in selection[1:]] == [str(t) for t in chosen]
    assert ["couplings", "15,360"] in cost
    value = results["pseudo_likelihood"]["test"]
    assert ["log pseudo-likelihood, test images, nats per token", f"{value:.3f}"] in cost


def test_configuration_and_figures_are_in_the_page(trained, read: Page) -> None:
    """Every PNG of figures/, byte for byte, with a text for those who do not see it, and config.yaml."""
    assert read.pre == (trained.path / "config.yaml").read_text()
    files = {page.data_uri(file.read_bytes()) for file in (trained.path / "figures").glob("*.png")}
    assert {image["src"] for image in read.images} == files
    assert all(image["alt"] for image in read.images)


def test_every_address_is_inside_the_page(read: Page) -> None:
    """The page is passed on without its folder, and opened without a network; the policy says so too."""
    assert len(read.addresses) >= 8
    assert all(address.startswith("data:") for address in read.addresses)
    assert read.policy.startswith("default-src 'none'; img-src data:;")


def test_sheets_hold_the_states(trained, read_scenes, read_sheet) -> None:
    """Originals in row 0, then t = 0, 1, ... 6 as the loaded run computes them, and their errors.

    A sheet that is off by one row would show every memory one iteration early.
    """
    run, splits = load_run(trained.path), synthetic()
    scenes = iter(read_scenes(trained.path))
    for task in (Masked(patch=2), Denoise()):
        batch = task.corrupt(to_pixels(splits.test[:4]), range(4), seed=0)
        for row, choice in run.choices[task.name].items():
            scene = next(scenes)
            states = list(islice(Recall(run.network, choice.retrieval).reconstruct(batch), 6))
            shown = [batch.original, batch.corrupted, *states]
            if batch.pixel_mask is not None:
                shown[1] = torch.where(batch.pixel_mask, 0.5, batch.corrupted)
                shown[2:] = [torch.where(batch.pixel_mask, state, batch.original) for state in states]
            columns = torch.stack(shown).squeeze(2).permute(0, 2, 1, 3).reshape(8 * 8, 4 * 8)
            expected = (columns.clamp(0, 1) * 255).round().numpy()
            np.testing.assert_allclose(read_sheet(scene["sheet"]), expected, atol=1)  # a rounding at most
            assert scene["times"] == [0, 1, 2, 3, 4, 5, 6]
            errors = [batch.squared_error(pixels).tolist() for pixels in (batch.corrupted, *states)]
            np.testing.assert_allclose(scene["errors"], np.array(errors).T, atol=1e-6)
            results = trained.results["tasks"][task.name]
            assert scene["mean"] == [results["corrupted_mse"], *results["models"][row]["mse"]]
            assert scene["chosen"] == results["models"][row]["best"]["t"]
    assert next(scenes, None) is None


def test_colours_keep_their_places(read_sheet) -> None:
    """A colour image (C, H, W) is laid out as it is: its red stays red, its columns its columns."""
    original, state = torch.rand(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = Corrupted("denoise", original, 1 - original)
    trajectory = Trajectory(batch, [state], Retrieval(MapName.attention))
    picture = read_sheet(page.sheet(trajectory, [0, 1]))
    assert picture.shape == (3 * 4, 5 * 4, 3)
    for row, images in enumerate((original, 1 - original, state)):
        for column, image in enumerate(images):
            cut = picture[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            np.testing.assert_allclose(cut, 255 * image.permute(1, 2, 0).numpy(), atol=0.51)


def test_times_are_every_t_or_spaced_on_the_axis() -> None:
    """A long trajectory of large images stays a small page, and the chosen t is never left out."""
    assert times(6, most=7, chosen={3}) == [0, 1, 2, 3, 4, 5, 6]
    some = times(1000, most=30, chosen={137})
    assert len(some) <= 32
    assert some[:5] == [0, 1, 2, 3, 4]
    assert some[-1] == 1000
    assert 137 in some
    assert times(1, most=1, chosen={1}) == [0, 1]


def test_states_are_bounded_in_size(read_sheet) -> None:
    """A page of hundreds of MB opens nowhere: above the bound fewer t are kept, the same for all rows."""
    images = torch.zeros(8, 3, 32, 32)
    retrieval = Retrieval(MapName.attention, steps=71)
    shown = Trajectory(Corrupted("denoise", images, images), [images] * 100, retrieval)
    entry = {"mse": [0.1] * 100, "best": {"t": 71, "mse": 0.1}}
    tasks = {"denoise": {"images": 8, "corrupted_mse": 0.2, "models": {"a": entry, "b": entry}}}
    scenes = page.scenes(tasks, {"denoise": {"a": shown, "b": shown}})
    assert scenes[0]["times"] == scenes[1]["times"]
    assert 71 in scenes[0]["times"]
    assert 20 < len(scenes[0]["times"]) < 45
    assert read_sheet(scenes[0]["sheet"]).size * 2 < 2_200_000


def test_a_page_that_cannot_be_drawn_loses_no_result(
    make_config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    """results.json and the printed table are there, and the status says what failed."""

    def broken(*args: object, **kwargs: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr(page, "render", broken)
    monkeypatch.setattr(
        "attractor.lab.show.drawing.draw_run", lambda *given: {}
    )  # the figures take their time
    path = tmp_path / "run"
    config = make_config(*tiny, "figures=true", "task=denoise", "dynamics.evidence=[]", f"folder={path}")
    with pytest.raises(RuntimeError, match="no ink"):
        train(config, RunFolder(path, ""))
    results = json.loads((path / "results.json").read_text())
    assert terminal.table(results["tasks"]).splitlines()[1] in (path / "train.log").read_text()
    assert json.loads((path / "status.json").read_text())["error"] == "RuntimeError: no ink"
    assert not list(path.glob("*report.html*"))


def test_runs_are_compared_in_a_page(
    trained, train_run, make_comparison, read_scenes, read_sheet, tmp_path: Path
) -> None:
    """evaluate.py writes one page with the states of all runs; without figures there is none.

    States of another run than its row says would be believed.
    """
    other = train_run(tmp_path / "other", "model=hopfield", "task=both")
    assert not (other.path / "report.html").exists()
    config = make_comparison([trained.path, other.path], "figures=true", f"folder={tmp_path / 'compared'}")
    compare(config, RunFolder(tmp_path / "compared", "runs: two\n"))
    read = Page((tmp_path / "compared" / "report.html").read_text(encoding="utf-8"))
    assert read.pre == "runs: two\n"
    assert read.tables[-1] == [["first", str(trained.path)], ["other", str(other.path)]]
    scenes = read_scenes(tmp_path / "compared")
    assert [(scene["task"], scene["row"]) for scene in scenes] == [
        (task, f"{run}: {name}")
        for task, evidence in (("masked prediction", [""]), ("denoising", ["", " + evidence"]))
        for run, name in (
            (run, words + more)
            for run, words in (("first", "bare self-attention"), ("other", "vector Hopfield network"))
            for more in evidence
        )
    ]
    alone = {(scene["task"], scene["row"]): scene for scene in read_scenes(trained.path)}
    for scene in scenes:
        same = alone.get((scene["task"], scene["row"].removeprefix("first: ")))
        if same is not None:
            np.testing.assert_array_equal(read_sheet(scene["sheet"]), read_sheet(same["sheet"]))


def test_processes_that_share_a_comparison_write_the_same_page(
    trained, read_scenes, root: Path, tmp_path: Path
) -> None:
    """The process that writes the page has rows of J only; the states it shows are those of all rows.

    It must neither wait for processes that have ended nor iterate half a network.
    """
    folder = tmp_path / "compared"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("evaluate.py", f"runs=[{trained.path}]", f"folder={folder}", "images=9", "steps=6"),
        *("batch_size=4", "wandb=disabled"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.html") == 1
    assert read_scenes(folder) == read_scenes(trained.path)
