"""Training by backpropagation, for baselines: the only place of this package that calls `backward`.

The error that is descended is the one that is evaluated: the squared error in squared pixels of the hidden
tokens for masked prediction, of all tokens for denoising.
"""

import math

import torch
from torch import Generator, Tensor, nn

from attractor.baselines.transformer import RecycledBlock, Transformer

_LONGEST_WARMUP = 0.2  # of training, so that a short one is more than a warm-up


class Backprop:
    """AdamW with gradient clipping, warm-up and a cosine.

    Matrices decay by `rate * weight_decay`, vectors do not. The norm of the gradient is cut at `clip`. In
    `bfloat16` the products of matrices are computed with eight bits of precision and everything else in
    float32, which is faster on processors that have units for it.
    Source: Loshchilov & Hutter 2019, arXiv 1711.05101.
    """

    objective = "squared_error"

    def __init__(
        self,
        network: Transformer | RecycledBlock,
        *,
        learning_rate: float,
        weight_decay: float,
        warmup: int,
        clip: float,
        bfloat16: bool = False,
    ) -> None:
        """`warmup`: steps in which the rate rises to `learning_rate`, a fifth of training at most."""
        self.network = network
        self.learning_rate, self.warmup, self.clip, self.bfloat16 = learning_rate, warmup, clip, bfloat16
        matrices = [parameter for parameter in network.parameters() if parameter.dim() > 1]
        vectors = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )

    def rate(self, index: int, progress: float) -> float:
        """The rate of step `index` = 1, 2, ..., when the share `progress` of training is done."""
        rise = min(1.0, max(index / self.warmup, progress / _LONGEST_WARMUP))
        return self.learning_rate * rise * (1 + math.cos(math.pi * progress)) / 2

    def step(
        self, x: Tensor, mask: Tensor | None, target: Tensor, *, rate: float, generator: Generator
    ) -> float:
        """Descend once; returns the error before, in squared units of the tokens.

        x, target: (B, N, K); mask: (B, N), true where a token is hidden. `generator` draws how often a
        recycled block is applied. Raises ArithmeticError, with the weights untouched, if the error or the
        gradient is not finite.
        """
        arguments = {}
        if isinstance(self.network, RecycledBlock):
            allowed = self.network.iterations
            drawn = torch.randint(allowed.start, allowed.stop, (), generator=generator)
            arguments["iterations"] = int(drawn)
        self.optimiser.zero_grad()
        with torch.enable_grad():
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
                prediction = self.network(x, mask, **arguments)
            squares = (prediction.float() - target).square()
            error = squares.mean() if mask is None else squares[mask].mean()
            error.backward()
        value = float(error.detach())
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), self.clip))
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise ArithmeticError(f"the error is {value:g}, the norm of its gradient {norm:g}")
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        return value

    @property
    def state(self) -> dict[str, Tensor]:
        """What the next step depends on beside the weights: parameter.moment -> tensor."""
        return {
            f"{name}.{key}": value
            for name, parameter in self.network.named_parameters()
            for key, value in self.optimiser.state[parameter].items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a `state`."""
        names = dict(self.network.named_parameters())
        for key, value in state.items():
            name, _, moment = key.rpartition(".")
            parameter = names[name]
            self.optimiser.state[parameter][moment] = value.clone().to(parameter.device)
