"""The update of `optimisers.Adam` on the CPU in one pass over memory, where torch takes ten.

Every operation is rounded once and belongs to one weight, in the vectors and in the tail alike, so the bits
do not depend on how weights are cut into rows. (torch's own fused Adam rounds its tails differently.)
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from attractor.physics.kernels.threads import shares

_SPAN = 64  # weights in the vector loop
_SPANS_PER_THREAD = 1000  # fewer are done before a second thread has begun


def fits(*tensors: Tensor) -> bool:
    """Whether `update` can be used: llvmlite is there, float32 on the CPU, dense and laid out alike."""
    first = tensors[0]
    return (
        find_spec("llvmlite") is not None
        and first.dtype == torch.float32
        and first.device.type == "cpu"
        and _in_memory(first).is_contiguous()
        and all(t.stride() == first.stride() and t.shape == first.shape for t in tensors)
        and all(t.dtype == first.dtype and t.device == first.device for t in tensors)
    )


def _in_memory(values: Tensor) -> Tensor:
    """The same with its axes in the order of memory."""
    return values.permute(sorted(range(values.dim()), key=values.stride, reverse=True))


def update(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    step_size: float,
    root_correction: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> bool:
    """Update mean, square and weight in place, as `optimisers.Adam`; whether the weights' sum is finite.

    m <- m + (1-b1)(g - m),  v <- b2 v + (1-b2) g^2,  w <- w + step_size m/(sqrt(v)/correction + epsilon)
    """
    everything = [_in_memory(t).view(-1) for t in (weight, gradient, mean, square)]
    numbers = (step_size, 1 / root_correction, 1 - beta1, beta2, 1 - beta2, epsilon)
    body, tail = _compiled()
    spans, rest = divmod(weight.numel(), _SPAN)

    parts = shares(spans, least=_SPANS_PER_THREAD)
    sums = torch.zeros(len(parts) + 1, _SPAN)

    def call(part: slice, sums: Tensor) -> tuple[int | float | Tensor, ...]:
        some = slice(part.start * _SPAN, part.stop * _SPAN)
        return *(t[some] for t in everything), part.stop - part.start, *numbers, sums

    body.in_parallel([call(part, own) for part, own in zip(parts, sums[:-1], strict=True)])
    tail(*(t[spans * _SPAN :] for t in everything), rest, *numbers, sums[-1])
    return bool(sums.sum().isfinite())


@cache
def _compiled():  # type: ignore[no-untyped-def]  # the classes are known only where llvmlite is
    from attractor.physics.kernels.compiled import Compiled
    from attractor.physics.kernels.simd import F32, I64, POINTER, Emitter, lanes

    def source(width: int, vectors: int) -> Compiled:
        emit = Emitter(f"adam_{width}", [*[POINTER] * 4, I64, *[F32] * 6, POINTER], width)
        *places, count = emit.arguments[:5]
        step_size, correction, new1, old2, new2, epsilon = (emit.splat(a) for a in emit.arguments[5:11])
        sums = [emit.local(emit.splat(0.0)) for _ in range(vectors)]
        with emit.loop(count) as n:
            for part in range(vectors):
                w, g, m, v = (emit.at(p, (n, width * vectors), part * width) for p in places)
                slope = emit.load(g)
                mean = emit.fma(new1, emit.sub(slope, emit.load(m)), emit.load(m))
                square = emit.fma(new2, emit.mul(slope, slope), emit.mul(old2, emit.load(v)))
                emit.store(mean, m)
                emit.store(square, v)
                root = emit.fma(emit.sqrt(square), correction, epsilon)
                new = emit.fma(emit.mul(step_size, mean), emit.div(emit.splat(1.0), root), emit.load(w))
                emit.store(new, w)
                emit.store(emit.add(emit.load(sums[part]), new), sums[part])
        for part, sum_ in enumerate(sums):
            emit.store(emit.load(sum_), emit.at(emit.arguments[11], part * width))
        return Compiled(emit)

    return source(lanes(), _SPAN // lanes()), source(1, 1)
