"""Evidence: what is known of the tokens beside their conditionals."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """An external field h_i, added to lambda u_is of every source.

    field (B, N, D): a natural parameter, y_i/sigma^2 for an observation y_i with noise variance sigma^2.
    precision: 1/sigma^2, a number or one for each token (N,); every density gains a factor
    exp(-precision |x_i|^2/2). Where the norm of a token is fixed that is a constant, and is left out.
    """

    field: Tensor
    precision: Tensor | float = 0.0
