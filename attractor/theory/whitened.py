"""Learning with whitened queries and keys: the same networks, climbed in other coordinates.

    q_i = L_i^T x_i,    k_j = L_j^T x_j,    x_i . J_ij x_j = q_i . A_ij k_j,    J_ij = L_i A_ij L_j^T
    d/dA_ij = L_i^T (d/dJ_ij) L_j

L_i whitens token i: L_i^T <x_i x_i^T> L_i = I, up to a ridge (`physics.spectrum`). The optimiser moves
A, and J follows. Every J belongs to one A, so whitening changes the path of learning and nothing else:
with plain SGD, dJ_ij = eta (L_i L_i^T) g_ij (L_j L_j^T), the gradient preconditioned by the inverse second
moments of both tokens; Adam then scales every entry of A by itself, so that it matters how L_i is rotated
too. The rule stays local: dA_ij needs what dJ_ij does and the statistics of the tokens i and j.

Ours; that regression as attention has whitened queries and keys, W_Q = W_K = L, is Tan & Zhao's (2026,
arXiv 2604.13656).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attractor.physics.optimisers import Optimiser
from attractor.physics.spectrum import Spectrum, second_moments, spectrum


class Whitened(Optimiser):
    """`optimiser` on A instead of J, for `Pairwise` or `Hopfield` couplings that hold all N x N blocks.

    queries, keys: the L_i and L_j (N, D, D), invertible; the identity unless given, and with both left out
    every step is that of `optimiser` alone. Its state holds A, which starts as L_i^-1 J_ij L_j^-T.
    """

    def __init__(
        self, optimiser: Optimiser, *, queries: Tensor | None = None, keys: Tensor | None = None
    ) -> None:
        for name, matrices in (("queries", queries), ("keys", keys)):
            if matrices is not None and (matrices.dim() != 3 or matrices.shape[1] != matrices.shape[2]):
                raise ValueError(
                    f"{name} are {tuple(matrices.shape)}, expected (N, D, D): a matrix a token"
                )
        self.optimiser = optimiser
        self.queries, self.keys = queries, keys
        self.state = optimiser.state

    def ascend(
        self,
        weights: dict[str, Tensor],
        gradient: dict[str, Tensor],
        *,
        rate: float,
        rows: Sequence[int] | None = None,
    ) -> bool:
        """See `Optimiser`; all rows are turned, whichever move. ValueError for weights that do not fit."""
        self._check(weights)
        turned = {}
        for name, weight in weights.items():
            if f"{name}.whitened" not in self.state:
                with torch.inference_mode(False):
                    self.state[f"{name}.whitened"] = self._inverted(weight)
            turned[name] = self._between(gradient[name], transposed=True)
        whitened = {name: self.state[f"{name}.whitened"] for name in weights}
        finite = self.optimiser.ascend(whitened, turned, rate=rate, rows=rows)
        for name, weight in weights.items():
            weight.copy_(self._between(whitened[name], transposed=False))
            finite &= bool(weight.sum().isfinite())
        return finite

    def _between(self, blocks: Tensor, *, transposed: bool) -> Tensor:
        """L_i^T blocks_ij L_j if `transposed`, else L_i blocks_ij L_j^T; (N, N, D, D), contiguous."""
        if self.queries is not None:
            left = self.queries.to(blocks)
            blocks = (left.mT if transposed else left).unsqueeze(1) @ blocks
        if self.keys is not None:
            right = self.keys.to(blocks)
            blocks = blocks @ (right if transposed else right.mT)
        return blocks.contiguous()

    def _inverted(self, weight: Tensor) -> Tensor:
        """A of J."""
        blocks = weight.clone(memory_format=torch.contiguous_format)
        if self.queries is not None:
            blocks = torch.linalg.solve(self.queries.to(blocks).unsqueeze(1), blocks)
        if self.keys is not None:
            blocks = torch.linalg.solve(self.keys.to(blocks), blocks.mT).mT
        return blocks.clone(memory_format=torch.contiguous_format)

    def _check(self, weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            for side, matrices in (("queries", self.queries), ("keys", self.keys)):
                if matrices is None:
                    continue
                tokens, dim, _ = matrices.shape
                expected = (tokens, tokens, dim, dim)
                if weight.shape != expected:
                    raise ValueError(
                        f"the {name} are {tuple(weight.shape)}, and the whitened {side} fit {expected}; "
                        "neighbourhoods and rows shared by processes cannot be whitened"
                    )


def token_spectra(tokens: Tensor, *, ridge: float) -> list[Spectrum]:
    """The spectrum of <x_i x_i^T> + ridge m_i I for every token i of `tokens` (B, N, D), in float64.

    m_i is the mean eigenvalue, so that the ridge has no unit. A token at the border of the images hardly
    varies and its second moment is almost singular: with ridge = 0 its whitening magnifies noise, or has
    fewer columns than D, and `Whitened` refuses it.
    """
    if tokens.dim() != 3 or not len(tokens):
        raise ValueError(f"tokens are {tuple(tokens.shape)}, expected (B, N, D) with B at least 1")
    x = tokens.double().transpose(0, 1)  # (N, B, D)
    moments = second_moments(x)
    scale = moments.diagonal(dim1=1, dim2=2).mean(1)
    return [spectrum(moment, ridge=ridge * float(m)) for moment, m in zip(moments, scale, strict=True)]
