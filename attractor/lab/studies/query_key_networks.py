"""The networks of the study `query_key`: trained or loaded; their tokens and their query-key matrices."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from attractor.baselines import Transformer
from attractor.baselines.transformer import Block
from attractor.images import ImageSplits, PhaseEncoding, PixelEncoding, Task, pixel_mean, to_pixels
from attractor.lab.assessment import choose_retrievals
from attractor.lab.build import build_network, build_tasks
from attractor.lab.build_rule import build_rule, jitter_of
from attractor.lab.config import Config, TaskName, TransformerConfig
from attractor.lab.errors import ConfigError
from attractor.lab.evaluation import corruptions, evaluate
from attractor.lab.network import AttractorNetwork, Network, Reading, Recall
from attractor.lab.rule_config import BackpropConfig
from attractor.lab.runs import load_run
from attractor.lab.studies.config import QueryKeyConfig
from attractor.lab.studies.study import Tell
from attractor.lab.training import fit
from attractor.lab.transformers import TransformerNetwork
from attractor.physics import Pairwise
from attractor.theory.query_key import factors


@dataclass(frozen=True)
class Studied:
    """A trained network, what it was before training, its tasks, and how it is read for each of them."""

    label: str
    config: Config
    network: Network
    untrained: Network
    tasks: dict[str, Task]
    readings: dict[str, Reading]
    validation: dict[str, float]  # task -> error of that reading

    @property
    def kind(self) -> str:
        """Its key in the results, whatever the model is called."""
        return "bare_attention" if isinstance(self.network, AttractorNetwork) else "transformer"


def query_key(config: Config) -> QueryKeyConfig:
    """The fields of this study."""
    assert isinstance(config.theory, QueryKeyConfig)
    return config.theory


def transformer_config(config: Config, task: str) -> Config:
    """The transformer that is trained beside the network of `config`, for one task."""
    fields = query_key(config)
    return replace(
        config,
        model=TransformerConfig(
            name="transformer",
            patch=config.model.patch,
            width=fields.width,
            heads=fields.heads,
            depth=fields.depth,
        ),
        rule=BackpropConfig(learning_rate=fields.transformer_rate),
        task=replace(config.task, names=[TaskName(task)]),
        train=replace(config.train, steps=fields.transformer_steps, batch_size=fields.transformer_batch),
    )


def trained_here(config: Config, splits: ImageSplits, tell: Tell) -> Iterator[Studied]:
    """The bare self-attention of `config`, and a transformer for each of its tasks."""
    wanted = [config, *(transformer_config(config, task.value) for task in config.task.names)]
    for one in wanted:
        label = labelled(one)
        network, untrained = (
            build_network(one.model, pixel_mean(splits.train), seed=one.seed, device=one.device)
            for _ in range(2)
        )
        tasks = build_tasks(one.task, patch=one.model.patch, side=splits.side)
        rule = build_rule(one.rule, network, tasks, seed=one.seed)
        for step in fit(
            network,
            rule,
            images=splits.train,
            steps=one.train.steps,
            batch_size=one.train.batch_size,
            learning_rate=getattr(one.rule, "learning_rate", 0.0),
            jitter=jitter_of(one),
            seed=one.seed,
        ):
            if step.index % 50 == 0 or step.last:
                tell(f"training {label}, step {step.index} of {one.train.steps}")
        readings, errors = best_readings(one, network, splits, tasks)
        yield Studied(label, one, network, untrained, tasks, readings, errors)


def best_readings(
    config: Config, network: Network, splits: ImageSplits, tasks: dict[str, Task]
) -> tuple[dict[str, Reading], dict[str, float]]:
    """For every task the retrieval that does best on validation images, and its error there."""
    choices = choose_retrievals(config, network, splits, tasks)
    best = {task: min(rows.values(), key=lambda choice: choice.error) for task, rows in choices.items()}
    return (
        {task: choice.retrieval for task, choice in best.items()},
        {task: choice.error for task, choice in best.items()},
    )


def loaded(folder: str, data: str) -> Studied:
    """A run, read as it has chosen on validation images. ConfigError for what is no such network."""
    run = load_run(folder)
    if run.config.data.name != data:
        raise ConfigError(
            f"{folder} was trained on {run.config.data.name}; give data={run.config.data.name}"
        )
    network = run.network
    attractor = isinstance(network, AttractorNetwork) and _dense(network)
    transformer = isinstance(network, TransformerNetwork) and isinstance(network.module, Transformer)
    if not (attractor or transformer):
        raise ConfigError(
            f"{folder} is a {run.config.model.name}; the study is of transformers and bare self-attention "
            "whose tokens listen to all others"
        )
    assert isinstance(network.encoding, PhaseEncoding | PixelEncoding)
    untrained = build_network(run.config.model, network.encoding.mean, seed=run.config.seed)
    tasks = build_tasks(run.config.task, patch=run.config.model.patch, side=network.encoding.side)
    # free dynamics: evidence would hide what the couplings lost
    choices = {task: run.choices[task][run.config.model.name] for task in tasks}
    readings = {task: choice.retrieval for task, choice in choices.items()}
    errors = {task: choice.error for task, choice in choices.items()}
    return Studied(labelled(run.config), run.config, network, untrained, tasks, readings, errors)


def labelled(config: Config) -> str:
    """What a network is called: kind, patch, task if it has one, seed."""
    name, patch = config.model.name.replace("_", " "), config.model.patch
    tasks = [task.value for task in config.task.names]
    return f"{name} {patch}x{patch}" + f" {tasks[0]}" * (len(tasks) == 1) + f" seed {config.seed}"


def _dense(network: AttractorNetwork) -> bool:
    return isinstance(network.energy.couplings, Pairwise) and network.energy.couplings.dense


def trained_tokens(network: AttractorNetwork, config: Config, images: Tensor) -> Tensor:
    """Tokens (B, N, D) of uint8 images as bare self-attention saw them: with the jitter of training."""
    pixels = to_pixels(images)
    noise = torch.randn(pixels.shape, generator=Generator().manual_seed(config.seed))
    return network.encode(pixels + jitter_of(config) * noise)


def normalised_states(one: Studied, network: Network, images: Tensor) -> list[Tensor]:
    """z = norm(h) before the attention of every block, float64 (B, N, W): what it is made of.

    The images are corrupted as in the task of the transformer.
    """
    assert isinstance(network, TransformerNetwork)
    module = copy.deepcopy(network.module).double()
    (task,) = one.tasks.values()
    corrupted = task.corrupt(to_pixels(images), range(len(images)), seed=one.config.eval.seed)
    states = []
    with torch.inference_mode():
        h = module.embed(network.encoding.encode(corrupted.corrupted).double(), corrupted.mask)
        for block in module.blocks:
            assert isinstance(block, Block)
            states.append(block.attention_norm(h))
            h = block(h)
    return states


def blocks_of(network: Network) -> list[Block]:
    """The blocks of a transformer."""
    assert isinstance(network, TransformerNetwork)
    return [block for block in network.module.blocks if isinstance(block, Block)]


def head_matrices(block: Block) -> Tensor:
    """M_h = [W_Q b_Q]^T W_K / sqrt(head dimension) (heads, W + 1, W), float64; the last row is of b_Q.

    The bias of the keys adds the same number to all scores of a query, which a softmax does not see.
    """
    weight, bias = (p.detach().double() for p in block.queries_keys_values.parameters())
    queries, keys, _ = weight.view(3, block.heads, -1, weight.shape[1])  # (H, W/H, W)
    own = bias.view(3, block.heads, -1, 1)[0]
    scale = math.sqrt(queries.shape[1])
    matrices: Tensor = torch.cat([queries, own], -1).mT @ keys / scale
    return matrices


def set_head_rank(block: Block, rank: int) -> None:
    """Replace W_Q, b_Q and W_K of every head by the factors of its M_h at rank r, the rest by zeros."""
    left, right = factors(head_matrices(block), rank)
    weight, bias = block.queries_keys_values.parameters()
    scale = (weight.shape[1] // block.heads) ** 0.25
    with torch.no_grad():
        parts = weight.view(3, block.heads, -1, weight.shape[1])
        biases = bias.view(3, block.heads, -1)
        parts[:2] = 0
        biases[:2] = 0
        parts[0, :, :rank] = left[..., :-1] * scale
        biases[0, :, :rank] = left[..., -1] * scale
        parts[1, :, :rank] = right * scale


def mean_errors(
    network: Network, config: Config, tasks: dict[str, Task], readings: dict[str, Reading], images: Tensor
) -> dict[str, float]:
    """task -> mean squared error, pixel^2, at the t of its reading, of uint8 images."""
    found = {}
    for name, task in tasks.items():
        steps = readings[name].steps or 1
        batches = corruptions(task, images, seed=config.eval.seed, batch_size=config.eval.batch_size)
        result = evaluate({"": Recall(network, readings[name])}, batches, steps=steps)
        found[name] = float(result.errors[""][:, steps - 1].mean())
    return found


def ranks_up_to(largest: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... and the largest."""
    steps = [k for p in range(12) for k in (2**p, 3 * 2**p // 2)]
    return sorted({k for k in steps if 1 <= k < largest} | {largest})
