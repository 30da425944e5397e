"""The networks that studies look at: trained here and loaded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attractor.images import ImageSplits
from attractor.lab.config.schema import Config, DataConfig
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.network import AttractorNetwork
from attractor.lab.experiment.transformers import TransformerNetwork
from attractor.lab.run.finished import load_run
from attractor.studies.networks import Trained, check_networks, load, networks


@pytest.fixture(scope="module")
def config(make_config: Callable[..., Config], tiny: tuple[str, ...]) -> Config:
    return make_config(
        *tiny, "experiment=log_normaliser", "theory.width=8", "theory.depth=2", "theory.transformer_steps=1"
    )


@pytest.fixture(scope="module")
def both(config: Config, splits: ImageSplits) -> tuple[list[Trained], list[str]]:
    """The two networks of one task, and what was told meanwhile."""
    said: list[str] = []
    return list(networks(config, splits, said.append)), said


def test_two_are_trained(both: tuple[list[Trained], list[str]]) -> None:
    """Bare self-attention and a transformer, by their rules: weights have moved, the error is finite."""
    (bare, transformer), said = both
    assert isinstance(bare.network, AttractorNetwork)
    assert isinstance(transformer.network, TransformerNetwork)
    assert said == ["training bare_attention, step 6 of 6", "training transformer, step 1 of 1"]
    for found in (bare, transformer):
        assert 0 < found.choices["masked"].error < 1
        before = found.untrained.weights
        assert any(not torch.equal(weight, before[name]) for name, weight in found.network.weights.items())


def test_a_transformer_for_each_task(
    make_config: Callable[..., Config], tiny: tuple[str, ...], splits: ImageSplits
) -> None:
    """As no transformer learns two tasks; the bare network, which does, is trained once."""
    small = ("theory.width=8", "theory.depth=1", "theory.transformer_steps=1", "train.steps=1")
    config = make_config(*tiny, "experiment=query_key", *small)
    found = list(networks(config, splits, lambda text: None))
    assert [list(one.tasks) for one in found] == [["masked", "denoise"], ["masked"], ["denoise"]]
    assert found[1].label == "transformer 2x2 masked seed 0"


def test_the_seed_is_that_of_training(both: tuple[list[Trained], list[str]]) -> None:
    """An untrained transformer has the weights that training started from: one step has moved little."""
    _, transformer = both[0]
    for name, weight in transformer.network.weights.items():
        # the first step of warm-up moves a weight by the rate 0.004 at most, an initial one has 0.02 or 0.5
        assert float((weight - transformer.untrained.weights[name]).abs().max()) < 0.01


def test_runs_are_loaded(trained: Any) -> None:
    """By folder, with the weights that the run chose; other data are refused, by name."""
    found = load(str(trained.path), data=DataConfig(name="synthetic"))
    assert found.label == "bare attention 2x2 seed 0"
    loaded = load_run(trained.path)
    assert found.choices["masked"] == loaded.choice("masked")
    assert found.choices["denoise"] == loaded.choices["denoise"]["bare_attention"]  # free of evidence
    for name, weight in loaded.network.weights.items():
        assert torch.equal(found.network.weights[name], weight)
    with pytest.raises(ConfigError, match="was trained on synthetic; give data=synthetic"):
        load(str(trained.path), data=DataConfig(name="digits"))
    with pytest.raises(ConfigError, match="holds no finished run"):
        load(str(trained.path / "missing"), data=DataConfig(name="digits"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("theory.heads=5", "must divide theory.width=96"),
        ("theory.transformer_steps=0", "theory.transformer_steps is 0"),
        ("theory.transformer_rate=nan", "theory.transformer_rate is nan"),
        ("theory.runs=[nowhere]", "holds no finished run"),
    ],
)
def test_what_cannot_be_trained_or_loaded_is_refused(
    make_config: Callable[..., Config], override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_networks(make_config("experiment=log_normaliser", override))
