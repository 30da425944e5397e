"""The networks that studies look at: trained here and loaded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attractor.images import ImageSplits
from attractor.lab.config import Config
from attractor.lab.errors import ConfigError
from attractor.lab.network import AttractorNetwork
from attractor.lab.runs import load_run
from attractor.lab.studies import networks
from attractor.lab.studies.networks import Trained, load, untrained
from attractor.lab.transformers import TransformerNetwork


@pytest.fixture(scope="module")
def config(make_config: Callable[..., Config], tiny: tuple[str, ...]) -> Config:
    return make_config(*tiny, "task=masked")


@pytest.fixture(scope="module")
def both(config: Config, splits: ImageSplits) -> tuple[list[Trained], list[str]]:
    """The two networks, and what was told meanwhile."""
    said: list[str] = []
    return networks.trained(config, splits, said.append, runs=[]), said


def test_two_are_trained(both: tuple[list[Trained], list[str]], splits: ImageSplits) -> None:
    """Bare self-attention and a transformer, by their rules: weights have moved, the error is finite."""
    (bare, transformer), said = both
    assert isinstance(bare.network, AttractorNetwork)
    assert isinstance(transformer.network, TransformerNetwork)
    assert said[0] == "training bare_attention, step 1/6"
    assert said[-1] == "training transformer, step 1/1"
    for found in (bare, transformer):
        assert 0 < found.choice.error < 1
        before = untrained(found, splits)
        weights = found.network.weights
        assert any(not torch.equal(weight, before.weights[name]) for name, weight in weights.items())


def test_the_seed_is_that_of_training(both: tuple[list[Trained], list[str]], splits: ImageSplits) -> None:
    """An untrained transformer has the weights that training started from: one step has moved little."""
    _, transformer = both[0]
    before = untrained(transformer, splits)
    for name, weight in transformer.network.weights.items():
        # the first step of warm-up moves a weight by the rate 0.004 at most, an initial one has 0.02 or 0.5
        assert float((weight - before.weights[name]).abs().max()) < 0.01


def test_runs_are_loaded(trained: Any) -> None:
    """By folder, with the weights that the run chose; other data are refused, by name."""
    (found,) = load([str(trained.path)], data="synthetic")
    assert found.name == f"bare_attention {trained.path.name}"
    loaded = load_run(trained.path)
    assert found.choice == loaded.choice("masked")
    for name, weight in loaded.network.weights.items():
        assert torch.equal(found.network.weights[name], weight)
    with pytest.raises(ConfigError, match="was trained on synthetic, not on digits"):
        load([str(trained.path)], data="digits")
    with pytest.raises(ConfigError, match="holds no finished run"):
        load([str(trained.path / "missing")], data="digits")
