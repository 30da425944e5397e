"""Transformers on patches, to be trained by backpropagation: what bare self-attention is held against.

Tokens x (B, N, K) are the centred pixels of patches; masked ones are replaced by a learned mask token.

    h_0 = W_in x + position,   h_l = block_l(h_{l-1}),   prediction = W_out norm(h_L)
    block(h):   h <- h + attention(norm h),   h <- h + W_2 gelu(W_1 norm h)

A `Transformer` has L blocks and one prediction; a `RecycledBlock` has a single block that is applied again
and again, and a prediction after each time: a dynamical system of the states h.

Sources: Vaswani et al. 2017, arXiv 1706.03762; Xiong et al. 2020, arXiv 2002.04745 (pre-norm); D'Amico &
Negri 2024, arXiv 2409.16112 (both networks as baselines; the paper leaves their sizes open).
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

# Centred pixels times this have a variance of about 1 where an image has ink, which is what layers expect.
_GAIN = 3.0


class Block(nn.Module):
    """One pre-norm layer: h (B, N, W) to h (B, N, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.hidden_norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 4 * width)
        self.hidden_out = nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attention_out(self._attention(self.queries_keys_values(self.attention_norm(h))))
        h = h + self.hidden_out(gelu(self.hidden(self.hidden_norm(h))))
        return h

    def _attention(self, projected: Tensor) -> Tensor:
        """The mixed values of all heads, (B, N, W), from queries, keys and values side by side."""
        if projected.device.type == "cpu" and projected.dtype is torch.bfloat16:
            projected = projected.float()  # its backward pass in bfloat16 is six times slower there
        heads = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, N, W/H)
        with torch.autocast(projected.device.type, enabled=False):
            mixed = scaled_dot_product_attention(*heads.unbind())
        return mixed.transpose(1, 2).flatten(2)


class _PatchNetwork(nn.Module):
    """What both networks share: from tokens to states, and from states to predictions."""

    def __init__(
        self,
        *,
        tokens: int,
        dim: int,
        width: int,
        heads: int,
        blocks: int,
        applied: int,
        generator: Generator,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width} and heads are {heads}; the heads must divide the width")
        self.tokens, self.dim = tokens, dim
        self.embedding = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, dim)
        self._draw(applied, generator)

    @torch.no_grad()
    def _draw(self, applied: int, generator: Generator) -> None:
        """Weights of standard deviation 0.02, less for what is added to h 2 `applied` times (GPT-2's).

        Positions are drawn large: with 0.02 the tokens look alike for the first 600 steps, in which masked
        prediction stays at the error of the mean.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name == "positions":
                parameter.normal_(0, 0.5, generator=generator)
            elif "norm" not in name:
                added = name.endswith(("attention_out.weight", "hidden_out.weight"))
                parameter.normal_(0, 0.02 / (2 * applied) ** 0.5 if added else 0.02, generator=generator)

    def embed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """h_0 (B, N, W) of tokens x (B, N, K); `mask` (B, N) is true where a token is hidden."""
        if x.shape[1:] != (self.tokens, self.dim):
            expected = f"(B, N, K) = (B, {self.tokens}, {self.dim})"
            raise ValueError(f"tokens are {tuple(x.shape)}, expected {expected}")
        h: Tensor = self.embedding(_GAIN * x)
        if mask is not None:
            h = torch.where(mask.unsqueeze(-1), self.mask_token.to(h.dtype), h)
        h = h + self.positions
        return h

    def predict(self, h: Tensor) -> Tensor:
        """Centred pixels (B, N, K) of states h."""
        prediction: Tensor = self.readout(self.norm(h)) / _GAIN
        return prediction


class Transformer(_PatchNetwork):
    """`depth` different blocks, one after the other.

    Raises ValueError unless `heads` divides `width`.
    """

    def __init__(
        self, *, tokens: int, dim: int, width: int, depth: int, heads: int, generator: Generator
    ) -> None:
        super().__init__(
            tokens=tokens,
            dim=dim,
            width=width,
            heads=heads,
            blocks=depth,
            applied=depth,
            generator=generator,
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The prediction (B, N, K) for tokens x (B, N, K)."""
        h = self.embed(x, mask)
        for block in self.blocks:
            h = block(h)
        return self.predict(h)

    def predictions(self, x: Tensor, mask: Tensor | None = None) -> Iterator[Tensor]:
        """One prediction."""
        yield self(x, mask)


class RecycledBlock(_PatchNetwork):
    """One block, applied again and again.

    In training the number of times is drawn from `min_iterations` to `max_iterations`, both included, for
    every batch; `forward` takes the number, `predictions` goes on without end. Raises ValueError unless
    `heads` divides `width` and 1 <= min_iterations <= max_iterations.
    """

    def __init__(
        self,
        *,
        tokens: int,
        dim: int,
        width: int,
        heads: int,
        min_iterations: int,
        max_iterations: int,
        generator: Generator,
    ) -> None:
        if not 1 <= min_iterations <= max_iterations:
            raise ValueError(
                f"min_iterations is {min_iterations}, max_iterations {max_iterations}; they must be at"
                " least 1 and in this order"
            )
        super().__init__(
            tokens=tokens,
            dim=dim,
            width=width,
            heads=heads,
            blocks=1,
            applied=max_iterations,
            generator=generator,
        )
        self.iterations = range(min_iterations, max_iterations + 1)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, iterations: int) -> Tensor:
        """The prediction (B, N, K) after `iterations` times."""
        h = self.embed(x, mask)
        for _ in range(iterations):
            h = self.blocks[0](h)
        return self.predict(h)

    def states(self, x: Tensor, mask: Tensor | None = None) -> Iterator[Tensor]:
        """h_1, h_2, ... (B, N, W), without end."""
        h = self.embed(x, mask)
        while True:
            h = self.blocks[0](h)
            yield h

    def predictions(self, x: Tensor, mask: Tensor | None = None) -> Iterator[Tensor]:
        """The predictions after 1, 2, ... times, without end."""
        return map(self.predict, self.states(x, mask))
