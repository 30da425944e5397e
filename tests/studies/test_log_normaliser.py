"""The study of log-normalisers, tiny: what it measures, says and draws."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from attractor.images import Denoise, ImageSplits, pixel_mean
from attractor.lab.config.schema import Config, TransformerBlockConfig, TransformerConfig
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.assessment import validation_batch
from attractor.lab.experiment.build import build_network, build_tasks
from attractor.lab.experiment.selection import Choice
from attractor.lab.experiment.transformers import Passes, TransformerNetwork
from attractor.studies import log_normaliser
from attractor.studies.config import LogNormaliserConfig
from attractor.studies.log_normaliser import expansion, populations
from attractor.studies.log_normaliser.report import headline, rank_correlation
from attractor.studies.networks import Trained
from attractor.theory.expansion import covariance, deviations

SMALL = (
    "experiment=log_normaliser",
    "theory.draws=[10,100]",
    "theory.repetitions=20",
    "theory.particles=60",
    "theory.iterations=2",
    "theory.seeds=2",
    "theory.images=8",
    "theory.transformer_steps=1",
)


@pytest.fixture(scope="module")
def done(study_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return study_run(tmp_path_factory.mktemp("study") / "run", *SMALL)


def test_the_study_from_command_to_figures(done: Any) -> None:
    """Results are plain values, the headline is finite, and both figures are pictures."""
    results = done.results
    assert len(results["sampling"]) == 15
    assert {row["shape"] for row in results["shapes"]} >= {"equilibrium", "Gaussian", "exponential"}
    assert [row["kind"] for row in results["networks"]] == ["bare", "transformer"]
    json.dumps(results, allow_nan=False)
    assert all(math.isfinite(value) for value in results["headline"].values())
    for name in ("log_normaliser", "log_normaliser_expansion"):
        with Image.open(done.path / "figures" / f"{name}.png") as picture:
            assert picture.width > 1000
    assert "softmax attention over n draws" in done.output
    assert "rank correlation of slope and eigenvalue" in done.output


def test_it_measures_theorem_1(done: Any) -> None:
    """The equilibrium stays to rounding; the same sample attending to itself does not."""
    moved = {(row["shape"], row["variance"]): row["start"][0][-1] for row in done.results["shapes"]}
    assert moved["equilibrium", 1.0] < 1e-12
    assert moved["Gaussian", 1.0] > 1e-3
    assert moved["exponential", 1.0] > 1e-2


def test_it_measures_the_growth_of_cumulants() -> None:
    """At a small variance the sample's attention grows cumulants as predicted; at a large one it cannot."""
    found = populations.growth(1000)
    for order in ("3", "4"):
        values = found[order]
        np.testing.assert_allclose(values["measured"][:3], values["predicted"][:3], rtol=0.02)
        assert values["measured"][-1] < 0.7 * values["predicted"][-1]


def test_populations_end_as_three_points(make_config: Callable[..., Config]) -> None:
    """D + 1 = 3 points, from two starts: whoever reads theorem 1 as convergence to a Gaussian is wrong."""
    theory = make_config(*SMALL, "theory.particles=300", "theory.iterations=20").theory
    assert isinstance(theory, LogNormaliserConfig)
    for shape in ("Gaussian", "uniform"):
        assert len(populations.limit(shape, 1.0, theory, seed=0)["shares"]) == 3


def test_every_bound_holds(done: Any) -> None:
    """No mixture of the 200 violates it, nor one on the ray that is drawn."""
    bound = done.results["bound"]
    assert bound["smallest_gap"] > -1e-12
    gap = np.array(bound["exact"]) - np.array(bound["lower_bound"])
    assert gap.min() > -1e-12
    assert gap.max() > 0.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("theory.seeds=0", r"theory\.seeds is 0"),
        ("theory.draws=[]", r"theory\.draws is \[\]"),
        ("theory.draws=[10,0]", r"theory\.draws is \[10, 0\]"),
        ("theory.particles=9", r"theory\.particles is 9; it must be 10 or more"),
        ("theory.repetitions=1", r"theory\.repetitions is 1; it must be 2 or more"),
        ("theory.iterations=0", r"theory\.iterations is 0"),
        ("theory.images=0", r"theory\.images is 0"),
        ("theory.depth=0", r"theory\.depth is 0"),
        ("theory.runs=[nowhere]", "holds no finished run"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    make_config: Callable[..., Config], override: str, message: str
) -> None:
    """Before any work."""
    with pytest.raises(ConfigError, match=message):
        log_normaliser.check(make_config(*SMALL, override))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=hopfield rule=ridge", "model=hopfield has couplings=hopfield, measure=gaussian"),
        ("model=transformer rule=backprop", "sphere, and model=transformer; leave model as it is"),
        ("model.measure=gaussian", "measure=gaussian"),
        ("model.measure=circles", "measure=circles"),
        ("model=local_attention", "radius=3"),
    ],
)
def test_other_networks_are_refused(
    make_config: Callable[..., Config], trained: Any, override: str, message: str
) -> None:
    """Before they are trained and reported as bare self-attention; beside given runs they do not matter."""
    with pytest.raises(ConfigError, match=message):
        log_normaliser.check(make_config(*SMALL, *override.split()))
    given = make_config("data=synthetic", *SMALL, *override.split(), f"theory.runs=[{trained.path}]")
    log_normaliser.check(given)


def test_a_single_token_is_refused(make_config: Callable[..., Config], splits: ImageSplits) -> None:
    """Once the images are there, whose side says so; else measuring would fail after training."""
    config = make_config(*SMALL, "data=synthetic", f"model.patch={splits.side}")
    with pytest.raises(ConfigError, match=f"model.patch is {splits.side}"):
        log_normaliser.check_data(config, splits)
    log_normaliser.check_data(make_config(*SMALL, "data=synthetic"), splits)


def test_runs_of_other_networks_are_refused(
    make_config: Callable[..., Config],
    tiny: tuple[str, ...],
    train_run: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """A Gaussian network has no sphere to be projected to; its folder is named."""
    run = train_run(tmp_path / "gaussian", "model=hopfield", "rule=ridge", "task=denoise")
    with pytest.raises(ConfigError, match=r"gaussian: model=hopfield has couplings=hopfield"):
        log_normaliser.check(make_config(*tiny, *SMALL, f"theory.runs=[{run.path}]"))


def test_a_single_draw_leaves_results_that_are_json(done: Any) -> None:
    """With theory.draws=[1] no error can be held against its prediction: no headline says so, nor NaN."""
    sampling = [
        row | {"draws": [1], "error": row["error"][:1], "predicted": row["predicted"][:1]}
        for row in done.results["sampling"]
    ]
    results = done.results | {"sampling": sampling}
    found = headline(results)
    json.dumps(found, allow_nan=False)
    assert set(done.results["headline"]) - set(found) == {"sampling_error_over_prediction"}
    assert "under 20" in log_normaliser.table(results)


def test_the_headline_has_the_controls(done: Any) -> None:
    """Of each number about trained networks; shares are those of attention and of its surrogate."""
    found = done.results["headline"]
    names = [name.removeprefix("transformer_") for name in found if name.startswith("transformer_")]
    for name in ("attention_variance_ratio", "directions_that_gain", "regression_share", "surrogate_share"):
        assert {name, f"permuted_{name}", f"untrained_{name}"} <= set(names)
    row = done.results["networks"][1]
    expected = np.mean(row["trained"]["surrogate_share"])
    assert found["transformer_surrogate_share"] == pytest.approx(expected)
    gains = [np.mean(np.array(step["gains"]) > 1) for step in row["untrained"]["stages"]["attention"]]
    assert found["transformer_untrained_directions_that_gain"] == pytest.approx(np.mean(gains))


@pytest.mark.parametrize("kind", ["bare", "transformer"])
def test_runs_of_one_kind_are_drawn(done: Any, tmp_path: Path, kind: str) -> None:
    """Panels of what was not given are left out, without warnings of empty legends."""
    rows = [row for row in done.results["networks"] if row["kind"] == kind]
    results = done.results | {"networks": rows}
    if kind == "transformer":
        results["weightless"] = {}
    assert set(log_normaliser.draw(results, tmp_path)) == {"log_normaliser", "log_normaliser_expansion"}


@pytest.fixture(scope="module")
def masked(make_config: Callable[..., Config], splits: ImageSplits) -> Any:
    task = build_tasks(make_config("data=synthetic").task, patch=2, side=splits.side)["masked"]
    return validation_batch(splits, task, images=8, seed=0)


def test_the_stages_of_a_transformer_follow_each_other(splits: ImageSplits, masked: Any) -> None:
    """h after attention is what the MLP adds to, and after the MLP what the next layer sees.

    So the ratios of a layer multiply to that of the next stream: a stage taken from another layer, or
    before the residual, breaks the chain.
    """
    config = TransformerConfig(name="t", patch=2, width=8, heads=2, depth=3)
    network = build_network(config, pixel_mean(splits.train), seed=0)
    assert isinstance(network, TransformerNetwork)
    with torch.no_grad():
        for parameter in network.module.blocks.parameters():
            parameter.mul_(20)  # or the layers would add next to nothing
    found = expansion.transformer(network, masked, seed=0)
    for layer in range(2):
        step = [found["stages"][stage][layer]["variance"] for stage in ("attention", "MLP")]
        product = found["stream"][layer] * step[0] * step[1]
        assert product == pytest.approx(found["stream"][layer + 1], rel=1e-9)
        normalised = found["stream"][layer] * found["stages"]["normalisation"][layer]["variance"]
        assert normalised == pytest.approx(found["normalised"][layer], rel=1e-9)
    h = network.module.embed(network.encoding.encode(masked.corrupted), masked.mask)
    start = float(covariance(deviations(h.detach())).trace())
    assert found["stream"][0] == pytest.approx(start, rel=1e-5)  # the network itself is float32
    assert min(found["regression_share"]) < 0.99


def test_a_recycled_block_is_measured_as_often_as_it_is_applied(splits: ImageSplits, masked: Any) -> None:
    """One block, ITERATIONS layers."""
    config = TransformerBlockConfig(name="b", patch=2, width=8, heads=2, min_iterations=1, max_iterations=2)
    network = build_network(config, pixel_mean(splits.train), seed=0)
    assert isinstance(network, TransformerNetwork)
    found = expansion.transformer(network, masked, seed=0)
    assert len(found["stream"]) == expansion.ITERATIONS
    for share in ("regression_share", "surrogate_share"):
        assert found[share][0] == pytest.approx(1, abs=1e-2)  # small weights: attention is linear


def test_permuted_weights_have_the_sizes_of_the_trained(splits: ImageSplits) -> None:
    """Each row of each weight of the blocks has its values, elsewhere; the given network keeps its own."""
    config = TransformerConfig(name="t", patch=2, width=8, heads=2, depth=2)
    network, same = (build_network(config, pixel_mean(splits.train), seed=0) for _ in range(2))
    assert isinstance(network, TransformerNetwork)
    random = expansion.permuted(network, seed=0)
    for name, weight in network.weights.items():
        assert torch.equal(weight, same.weights[name])
        torch.testing.assert_close(
            random.weights[name].sort(-1).values, weight.sort(-1).values, rtol=0, atol=0
        )
        moved = not torch.equal(random.weights[name], weight)
        assert moved == ("blocks" in name and float(weight.std()) > 0)


def test_bare_self_attention_is_projected(make_network: Callable[..., Any], masked: Any) -> None:
    """Tokens of norm 1 before and after an iteration; in between they are x + force."""
    network = make_network(scale=2.0)
    found = expansion.bare(network, masked)
    x = network.encode(masked.original)
    moved = x + network.energy.force(x)
    before, after = (float(covariance(deviations(tokens)).trace()) for tokens in (x, moved))
    assert found["stages"]["attention"][0]["variance"] == pytest.approx(after / before, rel=1e-5)
    product = before * math.prod(found["stages"][s][0]["variance"] for s in ("attention", "normalisation"))
    assert product == pytest.approx(found["stream"][1], rel=1e-5)


def test_random_couplings_have_the_size_of_the_trained_ones(make_network: Callable[..., Any]) -> None:
    """Root mean square over the blocks that are learned; to 5 %, the error of 768 draws twice over."""
    trained, network = make_network(scale=0.3, seed=1), make_network()
    random = expansion.shuffled(network, trained, seed=0)
    one, two = (float(net.energy.couplings.couplings.square().sum()) for net in (trained, random))
    assert two / one == pytest.approx(1, rel=0.1)


def test_the_layer_without_weights_on_a_gaussian_population() -> None:
    """Gains are 1 + lambda where eta^T Sigma eta is small: the layer is the theory's own."""
    tokens = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.5, 0.2])
    small, large = expansion.weightless(tokens, scales=[1.0, 100.0], seed=0)
    np.testing.assert_allclose(small["gains"], 1 + np.array(small["eigenvalues"]), rtol=0.02)
    assert large["gains"][0] < 0.5 * (1 + large["eigenvalues"][0])


def test_the_rank_correlation_is_spearmans() -> None:
    """scipy's, of slopes against eigenvalues in descending order."""
    values = torch.arange(9, 0, -1).tolist()
    slopes = torch.randn(9, generator=torch.Generator().manual_seed(0)).tolist()
    expected = stats.spearmanr(values, slopes).statistic
    assert rank_correlation({"eigenvalues": values, "slopes": slopes}) == pytest.approx(expected)
    assert rank_correlation({"eigenvalues": [1.0], "slopes": [2.0]}) == 0


def test_a_run_is_measured_on_its_own_task(
    make_config: Callable[..., Config],
    tiny: tuple[str, ...],
    splits: ImageSplits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A transformer that denoises, under an experiment whose task is masking: no mask is drawn for it."""
    config = make_config(*tiny, *SMALL)
    model = TransformerConfig(name="t", patch=2, width=8, heads=2, depth=1)
    network = build_network(model, pixel_mean(splits.train), seed=0)
    tasks = {"denoise": Denoise()}
    choices = {"denoise": Choice(Passes(steps=1), 0.1)}
    denoiser = Trained(replace(config, model=model), network, network, tasks, choices)
    monkeypatch.setattr(log_normaliser, "networks", lambda *args: [denoiser])
    seen = []
    record: Any = lambda network, batch, *, seed: seen.append(batch.mask)  # noqa: E731
    monkeypatch.setattr(expansion, "transformer", record)
    found = log_normaliser.measure_networks(config, splits, lambda text: None)
    assert [row["task"] for row in found["networks"]] == ["denoise"]
    assert seen == [None] * 3  # trained, permuted, untrained
