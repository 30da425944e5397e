"""Triton kernels for D up to 8: every lane has a source of its own, with its J_ij (and dJ_ij) in registers.

A vector is a tuple of D tensors, a matrix a tuple of P P of them, P = 2^ceil(log2 D) and P P = 2^LEVELS.
Triton lays the axes of a tensor out over threads as it likes, and sums over D would cross lanes; the parts
of a tuple are in one thread for certain. Shapes in comments: I images, L lanes, G groups of images.
"""

# Triton's language has no types, and it compiles no annotations but its own.
# mypy: ignore-errors
# Nor does it compile unpacking in a tuple.
# ruff: noqa: RUF005

import triton
import triton.language as tl

from attractor.physics.kernels.cuda_source import SIZES, online, psi_and_gain, source


@triton.jit
def _split(tile, LANES: tl.constexpr, LEVELS: tl.constexpr):
    """(L, P P) -> P P tensors (1, L), in order: Triton cannot index a tile on chip, but can halve one."""
    parts = (tile,)
    for level in tl.static_range(LEVELS):
        halves = ()
        for k in tl.static_range(2**level):
            pair = tl.reshape(parts[k], (LANES, 2, 2 ** (LEVELS - level - 1)))
            low, high = tl.split(tl.permute(pair, (0, 2, 1)))
            halves = halves + (low, high)
        parts = halves
    columns = ()
    for k in tl.static_range(2**LEVELS):
        columns = columns + (tl.reshape(parts[k], (1, LANES)),)
    return columns


@triton.jit
def _join(columns, GROUPS: tl.constexpr, LANES: tl.constexpr, LEVELS: tl.constexpr):
    """The inverse: P P tensors (G, L) -> (G, L, P P)."""
    parts = columns
    for level in tl.static_range(LEVELS):
        pairs = ()
        for k in tl.static_range(2 ** (LEVELS - level - 1)):
            pair = tl.join(parts[2 * k], parts[2 * k + 1])
            if level > 0:
                pair = tl.permute(pair, (0, 1, 3, 2))
            pairs = pairs + (tl.reshape(pair, (GROUPS, LANES, 2 ** (level + 1))),)
        parts = pairs
    return parts[0]


@triton.jit
def _places(s, there, D: tl.constexpr, LEVELS: tl.constexpr):
    """Where the matrices of s (L,) lie in a row of couplings (L, P P), and what is not padding."""
    entry = tl.arange(0, 2**LEVELS)
    a = entry // 2 ** (LEVELS // 2)
    c = entry % 2 ** (LEVELS // 2)
    inside = there[:, None] & ((a < D) & (c < D))[None, :]
    return s[:, None] * (D * D) + (a * D + c)[None, :], inside


@triton.jit
def _components(base, stride, D: tl.constexpr, mask):
    """D tensors like `base`, a stride apart; 0 outside the mask."""
    values = ()
    for c in tl.static_range(D):
        values = values + (tl.load(base + c * stride, mask=mask, other=0.0),)
    return values


@triton.jit
def _dot(left, right, D: tl.constexpr):
    value = left[0] * right[0]
    for c in tl.static_range(1, D):
        value += left[c] * right[c]
    return value


@triton.jit
def _product(matrix, x, D: tl.constexpr, LEVELS: tl.constexpr):
    """J x, as D tensors."""
    values = ()
    for a in tl.static_range(D):
        value = matrix[a * 2 ** (LEVELS // 2)] * x[0]
        for c in tl.static_range(1, D):
            value += matrix[a * 2 ** (LEVELS // 2) + c] * x[c]
        values = values + (value,)
    return values


@triton.jit
def _weighted_sum(keep, old, weight, new, D: tl.constexpr):
    values = ()
    for a in tl.static_range(D):
        values = values + (keep * old[a] + weight * new[a],)
    return values


@triton.jit
def _psi_and_mean(h, D: tl.constexpr, CIRCLES: tl.constexpr, FIT: tl.constexpr):
    """psi(h) and grad psi(h), of the sphere (CIRCLES = 0) or of that many circles."""
    mean = ()
    if CIRCLES:
        psi = tl.zeros_like(h[0])
        for k in tl.static_range(CIRCLES):
            squared = h[2 * k] * h[2 * k] + h[2 * k + 1] * h[2 * k + 1]
            part, gain = psi_and_gain(squared * (1 / CIRCLES), FIT)
            gain *= 1 / CIRCLES
            psi += part
            mean = mean + (gain * h[2 * k], gain * h[2 * k + 1])
    else:
        psi, gain = psi_and_gain(_dot(h, h, D), FIT)
        for a in tl.static_range(D):
            mean = mean + (gain * h[a],)
    return psi, mean


@triton.jit
def _finish(highest, total, sums, log_sums, attended, place, exists, D: tl.constexpr, MEAN: tl.constexpr):
    """Bring the lanes together and write log-sum and mean, at place (I, 1)."""
    over_lanes = tl.max(highest, 1, keep_dims=True)
    factor = tl.exp(highest - over_lanes)
    total = tl.sum(total * factor, 1, keep_dims=True)
    tl.store(log_sums + place, over_lanes + tl.log(total), mask=exists)
    if MEAN:
        for a in tl.static_range(D):
            mean = tl.sum(sums[a] * factor, 1, keep_dims=True) / total
            tl.store(attended + place * D + a, mean, mask=exists)


@triton.jit(do_not_specialize=SIZES)
def sums_by_lane(
    x,  # (B, N, D)
    by_component,  # (B, D, N), the same
    field,  # (B, N, D)
    weights,  # (rows held, S, D, D)
    neighbours,  # (N, S)
    rows,  # (R,)
    log_sums,  # (2, B, R), of the posterior and of the prior
    attended,  # (B, R, D)
    temperature,
    images,
    tokens,
    sources,
    count,
    first,
    D: tl.constexpr,
    LEVELS: tl.constexpr,
    CIRCLES: tl.constexpr,
    FIT: tl.constexpr,
    DENSE: tl.constexpr,
    FIELD: tl.constexpr,
    POSTERIOR: tl.constexpr,
    PRIOR: tl.constexpr,
    MEAN: tl.constexpr,
    IMAGES: tl.constexpr,
    LANES: tl.constexpr,
):
    """Log-sums of one row and I images; and, of one side alone, the weighted mean of h or grad psi(h)."""
    b = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)[:, None]  # (I, 1)
    row = tl.program_id(1)
    exists = b < images
    i = tl.load(rows + row)
    weights += (i - first).to(tl.int64) * sources * (D * D)
    own = _components(x + (b * tokens + i) * D, 1, D, exists)
    highest = tl.full((IMAGES, LANES), -3e38, tl.float32)
    total = tl.zeros((IMAGES, LANES), tl.float32)
    prior_highest = highest
    prior_total = total
    sums = ()
    for _ in tl.static_range(D):
        sums = sums + (total,)
    for start in range(0, sources, LANES):
        s = start + tl.arange(0, LANES)
        j, there = source(neighbours, i, s, sources, DENSE)
        place, inside = _places(s, there, D, LEVELS)
        matrix = _split(tl.load(weights + place, mask=inside, other=0.0) * temperature, LANES, LEVELS)
        token = by_component + b * D * tokens + j[None, :]
        h = _product(matrix, _components(token, tokens, D, exists & there[None, :]), D, LEVELS)
        if FIELD:
            # read again for each block of sources: in registers it would push couplings out
            h = _weighted_sum(1.0, h, 1.0, _components(field + (b * tokens + i) * D, 1, D, exists), D)
        if POSTERIOR:
            score = tl.where(there[None, :], _dot(own, h, D), float("-inf"))
            highest, total, keep, weight = online(highest, total, score)
            if MEAN:
                sums = _weighted_sum(keep, sums, weight, h, D)
        if PRIOR:
            psi, mean = _psi_and_mean(h, D, CIRCLES, FIT)
            psi = tl.where(there[None, :], psi, float("-inf"))
            prior_highest, prior_total, keep, weight = online(prior_highest, prior_total, psi)
            if MEAN:
                sums = _weighted_sum(keep, sums, weight, mean, D)
    place = b * count + row
    if POSTERIOR:
        _finish(highest, total, sums, log_sums, attended, place, exists, D, MEAN)
    if PRIOR:
        log_sums += images * count
        _finish(prior_highest, prior_total, sums, log_sums, attended, place, exists, D, MEAN)


@triton.jit(do_not_specialize=SIZES)
def gradient_by_lane(
    x,
    by_component,
    weights,
    gradient,  # like weights
    neighbours,
    rows,
    log_sums,
    temperature,
    scale,
    images,
    tokens,
    sources,
    count,
    first,
    D: tl.constexpr,
    LEVELS: tl.constexpr,
    CIRCLES: tl.constexpr,
    FIT: tl.constexpr,
    DENSE: tl.constexpr,
    CONTRAST: tl.constexpr,
    GROUPS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Gradient of one row by L sources, over all images: a warp takes every G-th image."""
    s = tl.program_id(0) * LANES + tl.arange(0, LANES)
    row = tl.program_id(1)
    i = tl.load(rows + row)
    j, there = source(neighbours, i, s, sources, DENSE)
    place, inside = _places(s, there, D, LEVELS)
    place += (i - first).to(tl.int64) * sources * (D * D)
    matrix = _split(tl.load(weights + place, mask=inside, other=0.0) * temperature, LANES, LEVELS)
    change = ()
    for _ in tl.static_range(2**LEVELS):
        change = change + (tl.zeros((GROUPS, LANES), tl.float32),)
    for start in range(0, images, GROUPS):
        b = start + tl.arange(0, GROUPS)[:, None]
        exists = b < images
        own = _components(x + (b * tokens + i) * D, 1, D, exists)
        token = by_component + b * D * tokens + j[None, :]
        presynaptic = _components(token, tokens, D, exists & there[None, :])
        h = _product(matrix, presynaptic, D, LEVELS)
        log_sum = tl.load(log_sums + b * count + row, mask=exists, other=0.0)
        posterior = tl.exp(_dot(own, h, D) - log_sum)
        if CONTRAST:
            psi, mean = _psi_and_mean(h, D, CIRCLES, FIT)
            log_sum = tl.load(log_sums + (images + b) * count + row, mask=exists, other=0.0)
            error = _weighted_sum(posterior, own, -tl.exp(psi - log_sum), mean, D)
        else:
            error = _weighted_sum(posterior, own, 0.0, own, D)
        following = ()
        for k in tl.static_range(2**LEVELS):
            if (k // 2 ** (LEVELS // 2) < D) & (k % 2 ** (LEVELS // 2) < D):
                term = error[k // 2 ** (LEVELS // 2)] * presynaptic[k % 2 ** (LEVELS // 2)]
                following = following + (change[k] + term,)
            else:
                following = following + (change[k],)
        change = following
    summed = tl.sum(_join(change, GROUPS, LANES, LEVELS), 0) * scale
    # nothing is written where there is no source: a NaN of some image must not reach it
    gradient += place
    tl.store(gradient, summed, mask=inside)
