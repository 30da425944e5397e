"""Transformers of `baselines` as networks of the lab: what training, checkpoints and evaluation ask."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from attractor.baselines import Backprop, RecycledBlock, Transformer
from attractor.images import Corrupted, PixelEncoding, Task

# training images are corrupted with other draws than validation and test images
_TRAINING_SEED = 2_000_003


@dataclass(frozen=True)
class Passes:
    """How a transformer is read: after `steps` blocks if it recycles one, None while that is not chosen."""

    steps: int | None = None
    recycled: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values, for results.json."""
        return asdict(self)

    def describe(self) -> str:
        """For tables and legends."""
        return "one block, applied t times" if self.recycled else "one pass"


class TransformerNetwork:
    """A transformer and the encoding of pixels (B, C, H, W) as tokens (B, N, K).

    Its weights count as one row, which no other process can share.
    """

    rows = range(1)
    backend_name = "torch"
    ranks = None

    def __init__(self, module: Transformer | RecycledBlock, encoding: PixelEncoding) -> None:
        self.module = module
        self.encoding = encoding

    @property
    def device(self) -> torch.device:
        """Where the weights are; pixels are on the CPU."""
        return self.module.positions.device

    @property
    def weights(self) -> dict[str, Tensor]:
        """name -> the weight itself, not a copy, as one row (1, ...)."""
        return {name: weight.detach()[None] for name, weight in self.module.named_parameters()}

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(weight.numel() for weight in self.module.parameters())

    def predictions(self, corrupted: Corrupted, reading: Any) -> Iterator[Tensor]:
        """Pixels (B, C, H, W): once, or after each application of a recycled block, without end."""
        with torch.inference_mode():
            x = self.encoding.encode(corrupted.corrupted).to(self.device)
            mask = None if corrupted.mask is None else corrupted.mask.to(self.device)
        states = self.module.predictions(x, mask)
        while True:
            with torch.inference_mode():  # not across a yield
                prediction = next(states, None)
                if prediction is None:
                    return
                pixels = self.encoding.decode(prediction).cpu()
            yield pixels


class TaskDescent:
    """Backpropagation of the error of one task: see `baselines.Backprop`, which it drives.

    What a step draws, corruptions and how often a block is recycled, depends on seed and step alone.
    """

    objective = Backprop.objective

    def __init__(self, backprop: Backprop, task: Task, *, seed: int) -> None:
        self.backprop, self.task, self.seed = backprop, task, seed

    def step(
        self, network: TransformerNetwork, seen: Tensor, clean: Tensor, *, index: int, rate: float
    ) -> float:
        """Descend on a batch. seen: the pixels to corrupt; clean: what they should become, (B, C, H, W)."""
        places = range(index * len(seen), (index + 1) * len(seen))
        corrupted = self.task.corrupt(seen, places, seed=self.seed + _TRAINING_SEED)
        x, target = (network.encoding.encode(p).to(network.device) for p in (corrupted.corrupted, clean))
        mask = None if corrupted.mask is None else corrupted.mask.to(network.device)
        generator = Generator().manual_seed(self.seed * 2**32 + index)
        return self.backprop.step(x, mask, target, rate=rate, generator=generator)

    @property
    def state(self) -> dict[str, Tensor]:
        """What the next step depends on beside the weights, each as one row (1, ...)."""
        return {name: value[None] for name, value in self.backprop.state.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a `state`."""
        self.backprop.restore({name: value[0] for name, value in state.items()})
