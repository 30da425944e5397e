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
from attractor.lab.studies.networks import load, trained, untrained
from attractor.lab.transformers import TransformerNetwork


@pytest.fixture(scope="module")
def config(make_config: Callable[..., Config], tiny: tuple[str, ...]) -> Config:
    return make_config(*tiny, "task=masked")


def test_two_are_trained(config: Config, splits: ImageSplits) -> None:
    """Bare self-attention and a transformer, by their rules: weights have moved, the error is finite."""
    said: list[str] = []
    bare, transformer = trained(config, splits, said.append, runs=[])
    assert isinstance(bare.network, AttractorNetwork)
    assert isinstance(transformer.network, TransformerNetwork)
    assert said[0] == "training bare_attention, step 1/6"
    assert said[-1] == "training transformer, step 1/1"
    for found in (bare, transformer):
        assert 0 < found.choice.error < 1
        before = untrained(found, splits)
        weights = found.network.weights
        assert any(not torch.equal(weight, before.weights[name]) for name, weight in weights.items())


def test_the_seed_is_that_of_training(config: Config, splits: ImageSplits) -> None:
    """An untrained transformer starts from the weights that the trained one started from."""
    _, transformer = trained(config, splits, lambda text: None, runs=[])
    one, two = untrained(transformer, splits), untrained(transformer, splits)
    for name, weight in one.weights.items():
        assert torch.equal(weight, two.weights[name])


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
