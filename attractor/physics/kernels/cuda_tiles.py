"""Triton kernels for D from 9: a J_ij is a P x P tile, P = 2^ceil(log2 D), and products are `tl.dot`.

Products run on the FMA units in full float32 (`input_precision="ieee"`), not in TF32 on tensor cores.
Shapes in comments: I images. A source that is not there is taken to have no images.
"""

# Triton's language has no types, and it compiles no annotations but its own.
# mypy: ignore-errors

import triton
import triton.language as tl

from attractor.physics.kernels.cuda_source import SIZES, online, psi_and_gain, source


@triton.jit
def _tile(base, places, end, stride, D: tl.constexpr, P: tl.constexpr):
    """(places, P): D numbers at each place, `stride` apart; 0 beyond them, and for places from `end` on."""
    c = tl.arange(0, P)[None, :]
    mask = (places < end)[:, None] & (c < D)
    return tl.load(base + places[:, None] * stride + c, mask=mask, other=0.0)


@triton.jit
def _psi_and_mean(h, IMAGES: tl.constexpr, P: tl.constexpr, CIRCLES: tl.constexpr, FIT: tl.constexpr):
    """psi(h) (I,) and grad psi(h) (I, P), of the sphere (CIRCLES = 0) or of that many circles."""
    if CIRCLES:
        pairs = tl.reshape(h, (IMAGES, P // 2, 2))
        psi, gain = psi_and_gain(tl.sum(pairs * pairs, 2) * (1 / CIRCLES), FIT)
        psi = tl.sum(tl.where(tl.arange(0, P // 2)[None, :] < CIRCLES, psi, 0.0), 1)
        mean = tl.reshape(pairs * (gain * (1 / CIRCLES))[:, :, None], (IMAGES, P))
    else:
        psi, gain = psi_and_gain(tl.sum(h * h, 1), FIT)
        mean = h * gain[:, None]
    return psi, mean


@triton.jit(do_not_specialize=SIZES)
def sums_by_tile(
    x,  # (B, N, D)
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
    P: tl.constexpr,
    CIRCLES: tl.constexpr,
    FIT: tl.constexpr,
    DENSE: tl.constexpr,
    FIELD: tl.constexpr,
    POSTERIOR: tl.constexpr,
    PRIOR: tl.constexpr,
    MEAN: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """Log-sums of one row and I images; and, of one side alone, the weighted mean of h or grad psi(h)."""
    b = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    row = tl.program_id(1)
    i = tl.load(rows + row)
    weights += (i - first).to(tl.int64) * sources * (D * D)
    a = tl.arange(0, P)
    own = _tile(x + i * D, b, images, tokens * D, D, P)
    highest = tl.full((IMAGES,), -3e38, tl.float32)
    total = tl.zeros((IMAGES,), tl.float32)
    prior_highest = highest
    prior_total = total
    sums = tl.zeros((IMAGES, P), tl.float32)
    for s in range(0, sources):
        j, there = source(neighbours, i, s, sources, DENSE)
        matrix = _tile(weights + s * (D * D), a, tl.where(there, D, 0), D, D, P)
        presynaptic = _tile(x + j * D, b, tl.where(there, images, 0), tokens * D, D, P)
        h = tl.dot(presynaptic, tl.trans(matrix), input_precision="ieee") * temperature
        if FIELD:
            h += _tile(field + i * D, b, images, tokens * D, D, P)
        if POSTERIOR:
            score = tl.where(there, tl.sum(own * h, 1), float("-inf"))
            highest, total, keep, weight = online(highest, total, score)
            if MEAN:
                sums = sums * keep[:, None] + weight[:, None] * h
        if PRIOR:
            psi, mean = _psi_and_mean(h, IMAGES, P, CIRCLES, FIT)
            psi = tl.where(there, psi, float("-inf"))
            prior_highest, prior_total, keep, weight = online(prior_highest, prior_total, psi)
            if MEAN:
                sums = sums * keep[:, None] + weight[:, None] * mean
    exists = b < images
    if POSTERIOR:
        tl.store(log_sums + b * count + row, highest + tl.log(total), mask=exists)
    if PRIOR:
        log_sums += images * count
        tl.store(log_sums + b * count + row, prior_highest + tl.log(prior_total), mask=exists)
        total = prior_total
    if MEAN:
        place = (b[:, None] * count + row) * D + a[None, :]
        tl.store(attended + place, sums / total[:, None], mask=exists[:, None] & (a < D)[None, :])


@triton.jit(do_not_specialize=SIZES)
def gradient_by_tile(
    x,
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
    P: tl.constexpr,
    CIRCLES: tl.constexpr,
    FIT: tl.constexpr,
    DENSE: tl.constexpr,
    CONTRAST: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """Gradient of one row by one source, over all images."""
    s = tl.program_id(0)
    row = tl.program_id(1)
    i = tl.load(rows + row)
    offset = ((i - first).to(tl.int64) * sources + s) * (D * D)
    j, there = source(neighbours, i, s, sources, DENSE)
    a = tl.arange(0, P)
    end = tl.where(there, D, 0)
    matrix = _tile(weights + offset, a, end, D, D, P) * temperature
    change = tl.zeros((P, P), tl.float32)
    for start in range(0, images, IMAGES):
        b = start + tl.arange(0, IMAGES)
        exists = b < images
        own = _tile(x + i * D, b, images, tokens * D, D, P)
        presynaptic = _tile(x + j * D, b, tl.where(there, images, 0), tokens * D, D, P)
        h = tl.dot(presynaptic, tl.trans(matrix), input_precision="ieee")
        log_sum = tl.load(log_sums + b * count + row, mask=exists, other=0.0)
        error = own * tl.exp(tl.sum(own * h, 1) - log_sum)[:, None]
        if CONTRAST:
            psi, mean = _psi_and_mean(h, IMAGES, P, CIRCLES, FIT)
            log_sum = tl.load(log_sums + (images + b) * count + row, mask=exists, other=0.0)
            error -= mean * tl.exp(psi - log_sum)[:, None]
        change = tl.dot(tl.trans(error), presynaptic, acc=change, input_precision="ieee")
    # nothing is written where there is no source: a NaN of some image must not reach it
    inside = (a < end)[:, None] & (a < D)[None, :]
    gradient += offset + a[:, None] * D + a[None, :]
    tl.store(gradient, change * scale, mask=inside)
