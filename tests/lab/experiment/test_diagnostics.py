"""The physics scalars: against their definitions, summed in plain loops; and that they change nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attractor.images import Corrupted, Denoise, ImageSplits, Masked, to_pixels
from attractor.lab.config.names import MapName
from attractor.lab.experiment import diagnostics
from attractor.lab.experiment.diagnostics import IMAGES, measure
from attractor.lab.experiment.network import AttractorNetwork, Retrieval
from attractor.physics import Attention, MeanField, run

Make = Callable[..., AttractorNetwork]


@pytest.fixture
def noisy(splits: ImageSplits) -> Corrupted:
    return Denoise(0.7).corrupt(to_pixels(splits.validation), range(8), seed=0)


def plain_entropy(logits: Tensor) -> float:
    """-sum_s p log p of p = softmax(logits (B, N, N)), without s = i, averaged."""
    entropies = []
    for image in logits.double():
        for i, row in enumerate(image):
            others = torch.cat((row[:i], row[i + 1 :]))
            weights = others.exp() / others.exp().sum()
            entropies.append(-sum(float(w) * math.log(float(w)) for w in weights))
    return sum(entropies) / len(entropies)


def test_without_couplings_every_source_is_alike(make_network: Make, noisy: Corrupted) -> None:
    """At J = 0: log p = 0 relative to the spin measure, both entropies log(N - 1), norm 0."""
    measured = measure(make_network(), Retrieval(MapName.mean_field), noisy, steps=3)
    assert measured["log_pl"] == pytest.approx(0, abs=1e-6)
    assert measured["coupling_norm"] == 0
    assert measured["attention_entropy"] == pytest.approx(math.log(3), rel=1e-6)
    assert measured["prior_attention_entropy"] == pytest.approx(math.log(3), rel=1e-6)


def test_they_are_what_they_are_defined_to_be(make_network: Make, noisy: Corrupted) -> None:
    """Against J_ij x_j written out: a factor, an excluded source or a wrong mean would show."""
    network = make_network(scale=2.0)
    energy, couplings = network.energy, network.energy.couplings.couplings
    retrieval = Retrieval(MapName.attention, inverse_temperature=0.5, inertia=0.25)
    measured = measure(network, retrieval, noisy, steps=3)

    x = network.encode(noisy.original)
    fields = torch.einsum("ijab,njb->nija", couplings, x)
    assert measured["attention_entropy"] == pytest.approx(
        plain_entropy(torch.einsum("nia,nija->nij", x, fields)), rel=1e-5
    )
    priors = energy.measure.log_normaliser(fields)
    assert measured["prior_attention_entropy"] == pytest.approx(plain_entropy(priors), rel=1e-5)
    assert measured["log_pl"] == pytest.approx(float(energy.log_conditional(x).mean()), rel=1e-5)
    learned = [float(couplings[i, j].square().sum()) for i in range(4) for j in range(4) if i != j]
    assert measured["coupling_norm"] == pytest.approx(math.sqrt(sum(learned) / (12 * 8 * 8)), rel=1e-5)

    states = [
        run(
            energy,
            network.encode(noisy.corrupted),
            t,
            map=Attention(),
            inverse_temperature=0.5,
            inertia=0.25,
        )
        for t in (2, 3)
    ]
    before, last = (trajectory.state for trajectory in states)
    moved = [float((last[b, i] - before[b, i]).norm()) ** 2 for b in range(8) for i in range(4)]
    assert measured["fixed_point_residual"] == pytest.approx(math.sqrt(sum(moved) / len(moved)), rel=1e-4)
    cosines = [float(last[b].flatten() @ x[b].flatten() / last[b].norm() / x[b].norm()) for b in range(8)]
    assert measured["overlap"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)


def test_at_a_fixed_point_nothing_moves(make_network: Make, splits: ImageSplits) -> None:
    """Weak couplings contract: the residual vanishes, and clamped tokens alone give an overlap."""
    network = make_network(scale=0.1)
    task = Masked(0.3, patch=2)
    hidden = task.corrupt(to_pixels(splits.validation), range(8), seed=0)
    retrieval = Retrieval(MapName.mean_field)
    first, late = (measure(network, retrieval, hidden, steps=steps) for steps in (1, 50))
    assert first["fixed_point_residual"] > 1e-3
    assert late["fixed_point_residual"] < 1e-6
    tokens = network.encode(hidden.original)
    state = run(network.energy, network.start(hidden), 50, map=MeanField(), clamped=~hidden.mask).state
    cosine = torch.nn.functional.cosine_similarity(state.flatten(1), tokens.flatten(1)).mean()
    assert late["overlap"] == pytest.approx(float(cosine), rel=1e-6)


def test_few_images_are_enough(make_network: Make, splits: ImageSplits) -> None:
    """Of a large batch, the first ones only: attention of all would be (images, N, N)."""
    pixels = to_pixels(splits.train)
    many = Denoise(0.7).corrupt(pixels, range(len(pixels)), seed=0)
    few = Denoise(0.7).corrupt(pixels[:IMAGES], range(IMAGES), seed=0)
    network = make_network(scale=1.0)
    retrieval = Retrieval(MapName.attention)
    assert len(pixels) > IMAGES
    assert measure(network, retrieval, many, steps=2) == measure(network, retrieval, few, steps=2)


@pytest.mark.parametrize("maps", ["[attention,mean_field]", "[gibbs]"])
def test_a_run_is_the_same_without_them(
    maps: str, train_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Couplings bit for bit, and every other number, with a map that draws too.

    They stand in metrics.jsonl at validations, and only there.
    """
    overrides = (f"dynamics.maps={maps}", "eval.steps=3", "train.steps=5")
    measured = train_run(tmp_path / "measured", *overrides)
    monkeypatch.setattr(diagnostics, "measure", lambda *given, **more: {})
    plain = train_run(tmp_path / "plain", *overrides)
    assert plain.results["tasks"] == measured.results["tasks"]
    weights = [sorted(run.path.rglob("*.safetensors")) for run in (measured, plain)]
    assert len(weights[0]) == len(weights[1]) > 0
    for mine, other in zip(*weights, strict=True):
        assert mine.read_bytes() == other.read_bytes()
    for result in (measured, plain):
        lines = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
        found = {line["step"]: {n for n in line if n.startswith("physics/")} for line in lines}
        names = set()
        if result is measured:
            scalars = ("log_pl", "coupling_norm", "attention_entropy", "prior_attention_entropy")
            names = {f"physics/{name}" for name in (*scalars, "overlap", "fixed_point_residual")}
        assert found == {1: set(), 2: names, 3: set(), 4: names, 5: names}
