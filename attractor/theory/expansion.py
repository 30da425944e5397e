"""How a map moves a cloud of tokens: expansion by attention, contraction by normalisation.

The cloud of an image is its N tokens about their mean; C (D, D) is the covariance of these deviations over
all tokens of all images. With C' that of the cloud after the map, and v_a, lambda_a the eigenvectors and
eigenvalues of C:

    total variance    tr C'/tr C
    distance          mean distance between two tokens of an image, after over before
    gain_a            sqrt(v_a^T C' v_a / lambda_a)
    slope_a           v_a^T E[x' x^T] v_a / lambda_a, of the deviations x' on x: what is added that has
                      nothing to do with x counts in the gain alone

Whatever is added and has nothing to do with x expands: that a gain is above 1 says little by itself. The
residual update of N(mu, C) multiplies deviations by I + C, so it expands along every v_a: gain and
slope are 1 + lambda_a, where tokens are queries, keys and values as they are (Shim 2021, arXiv 2205.01080).
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attractor.physics.spectrum import second_moments, spectrum


@dataclass(frozen=True)
class Expansion:
    """After over before: above 1 the cloud has grown."""

    variance: float
    distance: float
    eigenvalues: Tensor  # (r,) of C, descending
    gains: Tensor  # (r,)
    slopes: Tensor  # (r,)


def deviations(tokens: Tensor) -> Tensor:
    """Tokens (B, N, D) about the mean of their image, in float64. Raises ValueError for fewer than two."""
    if tokens.dim() != 3 or tokens.shape[1] < 2 or not len(tokens):
        raise ValueError(f"tokens are {tuple(tokens.shape)}, expected (B, N, D) with B over 0 and N over 1")
    return tokens.double() - tokens.double().mean(1, keepdim=True)


def covariance(cloud: Tensor) -> Tensor:
    """C (D, D) of deviations (B, N, D)."""
    return second_moments(cloud.flatten(0, 1))


def expansion(before: Tensor, after: Tensor) -> Expansion:
    """What a map did to tokens: `before` and `after` it, (B, N, D) both. Raises ValueError.

    A direction that the map has removed, as layer normalisation does with one, has gain 0.
    """
    if before.shape != after.shape:
        raise ValueError(f"tokens are {tuple(before.shape)} before and {tuple(after.shape)} after")
    old, new = deviations(before), deviations(after)
    was, now = covariance(old), covariance(new)
    kept = spectrum(was)
    seen = kept.vectors.mT @ now @ kept.vectors  # (r, r)
    along = (old.flatten(0, 1) @ kept.vectors) * (new.flatten(0, 1) @ kept.vectors)  # (B N, r)
    return Expansion(
        variance=float(now.trace() / was.trace()),
        distance=float(torch.cdist(new, new).mean() / torch.cdist(old, old).mean()),
        eigenvalues=kept.values,
        gains=(seen.diagonal() / kept.values).clamp_min(0).sqrt(),
        slopes=along.mean(0) / kept.values,
    )


def linear_response(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What softmax attention would return (..., N, D) if keys and values were jointly Gaussian.

        E[v] + Cov(v, k) q        with the moments over the N tokens; logits are q . k, without a scale

    the generalisation of mu + Sigma eta to values that are not the keys: E[v exp(k . q)]/E[exp(k . q)].
    """
    if keys.shape[:-1] != values.shape[:-1] or queries.shape[-1] != keys.shape[-1]:
        given = ", ".join(str(tuple(tensor.shape)) for tensor in (queries, keys, values))
        raise ValueError(
            f"queries, keys and values are {given}, expected (..., N, D) with the same N and D"
        )
    mean = values.mean(-2, keepdim=True)
    # keys need not be centred: the values are
    return mean + (queries @ keys.mT) @ (values - mean) / keys.shape[-2]


def gaussian_surrogate(keys: Tensor, values: Tensor, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """As many keys (B, N, D) and values (B, N, E), jointly Gaussian with the moments of those given.

        [k, v] = mean of the image + C^(1/2) z,      z ~ N(0, I)

    with the covariance C of [k, v] within images, over all of them, which may be singular. What softmax
    attention over them does not share with `linear_response` is due to N draws being few. Moments of
    each image by itself would not do: for N near D they are noise, which drawing from them doubles.
    Raises ValueError for shapes.
    """
    if keys.shape[:-1] != values.shape[:-1]:
        given = f"{tuple(keys.shape)} and {tuple(values.shape)}"
        raise ValueError(f"keys and values are {given}, expected (B, N, D) with the same B and N")
    both = torch.cat([keys, values], -1).double()
    cloud, count = deviations(both), both.shape[1]
    root = spectrum(covariance(cloud) * (count / (count - 1))).power(0.5)  # without the bias of few tokens
    noise = torch.randn(both.shape, generator=generator, dtype=both.dtype).to(both.device)
    drawn = both.mean(1, keepdim=True) + noise @ root
    new_keys, new_values = drawn.split([keys.shape[-1], values.shape[-1]], -1)
    return new_keys, new_values


def explained(actual: Tensor, predicted: Tensor) -> float:
    """1 - |actual - predicted|^2/|actual - its mean over tokens|^2 of (..., N, D): 1 at best."""
    spread = actual - actual.mean(-2, keepdim=True)
    return 1 - float(((actual - predicted) ** 2).sum() / (spread**2).sum())
