"""The loops of the fused CPU kernel, in vector code: one row at a time, a vector of images at a time.

    posterior   log sum_s exp(x_i . h_is),  sum_s alpha_is h_is               in one pass over the sources
    prior       log sum_s exp(psi(h_is)),   sum_s beta_is grad psi(h_is)      in one pass
    gradient    pass 1  fields: scores and squares of all sources, the maximum of the scores
                pass 2  exponentials of the scores and their sum, psi and gains, the maximum of psi
                pass 3  exponentials of psi and their sum
                pass 4  dJ_ij = <error_ij x_j^T>, some components at a time in registers, summed over lanes
                        once for all images

The layout is that of `cpu_parts`.
"""

from itertools import chain, product

from attractor.physics.kernels.cpu_parts import (
    Rows,
    Shape,
    dot,
    field,
    gains_of,
    psi_and_gains,
    store_squares,
)
from attractor.physics.kernels.simd import F32, I64, POINTER, Emitter, Value

_LOWEST = -3.0e38  # below every score; a difference to it does not overflow to NaN


def one_sided(shape: Shape, *, prior: bool, evidence: bool) -> Emitter:
    """`posterior`, or `prior`: the log-sum (R, G, W) and the weighted sum (R, G, D, W) of every row.

    Further arguments: 1/lambda, field_i (N, G, D, W), log-sums, weighted sums.
    """
    rows = Rows("prior" if prior else "posterior", shape, [F32, *[POINTER] * 4])
    emit, d, w = rows.emit, shape.dim, shape.width
    inverse_temperature, fields, log_sums, sums, _ = rows.more  # no workspace is needed
    zero = emit.splat(0.0)
    highest, total, score = (emit.local(zero) for _ in range(3))
    weighted, natural = emit.local(zero, d), emit.local(zero, d)
    gains = emit.local(zero, shape.gains)
    unscaled = emit.splat(inverse_temperature)
    with rows.each() as (place, row, weights), emit.loop(rows.groups) as group:
        emit.store(emit.splat(_LOWEST), highest)
        emit.store(zero, total)
        with emit.loop(d) as a:
            emit.store(zero, emit.at(weighted, (a, w)))
        own = rows.token(group, row)
        external = emit.at(fields, (row, rows.groups, d * w), (group, d * w)) if evidence else None
        with rows.each_source(row) as (slot, source):
            emit.store(zero, score)
            emit.store(zero, gains)
            matrix = emit.at(weights, (slot, d * d))
            with field(emit, shape, matrix, rows.token(group, source), external) as (first, h):
                for a, component in enumerate(h):
                    emit.store(component, emit.at(natural, (first, w), a * w))
                if prior:
                    store_squares(emit, shape, first, h, gains)
                else:
                    x = [emit.load(emit.at(own, (first, w), a * w)) for a in range(shape.tile)]
                    emit.store(dot(emit, list(zip(h, x, strict=True)), emit.load(score)), score)
            value = psi_and_gains(emit, shape, gains) if prior else emit.mul(emit.load(score), unscaled)
            keep, take = _online(emit, value, highest)
            emit.store(emit.fma(emit.load(total), keep, take), total)
            with emit.loop(d, step=shape.tile) as first:
                factors = [take]
                if prior:
                    gains_here = gains_of(emit, shape, gains, first, shape.tile)
                    factors = [emit.mul(take, gain) for gain in gains_here]
                for a in range(shape.tile):
                    there = emit.at(weighted, (first, w), a * w)
                    h_a = emit.load(emit.at(natural, (first, w), a * w))
                    factor = factors[a * len(factors) // shape.tile]
                    emit.store(emit.fma(factor, h_a, emit.mul(emit.load(there), keep)), there)
        logarithm = _log_sum(emit, emit.load(highest), emit.load(total))
        emit.store(logarithm, emit.at(log_sums, (place, rows.groups, w), (group, w)))
        with emit.loop(d) as a:
            mean = emit.div(emit.load(emit.at(weighted, (a, w))), emit.load(total))
            emit.store(mean, emit.at(sums, (place, rows.groups, d * w), (group, d * w), (a, w)))
    return emit


def _online(emit: Emitter, value: Value, highest: Value) -> tuple[Value, Value]:
    """What to multiply earlier terms with, and the new term, when the maximum is tracked on the way."""
    build, one = emit.builder, emit.splat(1.0)
    difference = emit.sub(value, emit.load(highest))
    higher = build.fcmp_ordered(">", difference, emit.splat(0.0))
    small = emit.exp(build.select(higher, emit.sub(emit.splat(0.0), difference), difference))
    emit.store(build.select(higher, value, emit.load(highest)), highest)
    return build.select(higher, small, one), build.select(higher, one, small)


def _log_sum(emit: Emitter, highest: Value, total: Value) -> Value:
    """highest + log(total), and NaN where the total is NaN, which `log` would lose."""
    nothing = emit.sub(total, total)
    return emit.add(emit.add(highest, nothing), emit.log(total))


def gradient(shape: Shape, *, contrast: bool) -> Emitter:
    """dJ = scale/lambda sum_b (alpha x_i - beta grad psi) (lambda x_j)^T; the objective (R, G, W).

    The objective of a row is NaN where dJ of these images is not finite. Further arguments: whether these
    are the first images, else they add to what is there; 1/lambda, scale/(lambda B), dJ, objectives, room
    for (S (2 + gains + D) + D + 4) G W floats, those of a block.
    """
    rows = Rows("contrast" if contrast else "positive", shape, [I64, F32, F32, *[POINTER] * 3])
    emit, d, w = rows.emit, shape.dim, shape.width
    first_images, inverse_temperature, scale, changes, objectives, room = rows.more
    zero, unscaled = emit.splat(0.0), emit.splat(inverse_temperature)
    record = (2 + shape.gains) * w
    # of a row and a block: fields (S, G, D, W); maximum and sum of exp(score), of exp(psi) (G, 4, W)
    size = shape.block
    fields = emit.at(room, (rows.sources, size * record))
    sums = emit.at(fields, (rows.sources, size * d * w))
    errors = emit.at(sums, size * 4 * w)  # of a source, (G, D, W)
    spoiled = emit.local(zero)  # 0, or NaN once some dJ of the row is not finite

    def kept(slot: Value, group: Value) -> Value:
        """Score, psi, and the squares that become gains, (2 + gains, W)."""
        return emit.at(room, (slot, size * record), (group, record))

    def natural(slot: Value, group: Value, first: Value) -> list[Value]:
        """Where a tile of h_is is kept."""
        here = emit.at(fields, (slot, size * d * w), (group, d * w), (first, w))
        return [emit.at(here, a * w) for a in range(shape.tile)]

    def sums_of(group: Value) -> tuple[Value, Value, Value, Value]:
        place = emit.at(sums, (group, 4 * w))
        return place, emit.at(place, w), emit.at(place, 2 * w), emit.at(place, 3 * w)

    def clear(group: Value) -> None:
        for place, start in zip(sums_of(group), (_LOWEST, 0.0) * 2, strict=True):
            emit.store(emit.splat(start), place)

    def score(row: Value, slot: Value, source: Value, matrix: Value, group: Value) -> None:
        here, own = kept(slot, group), rows.token(group, row)
        squares, (highest, *_) = emit.at(here, 2 * w), sums_of(group)
        emit.store(zero, here)
        if contrast:
            emit.store(zero, squares)
        with field(emit, shape, matrix, rows.token(group, source)) as (first, h):
            x = [emit.load(emit.at(own, (first, w), a * w)) for a in range(shape.tile)]
            for component, there in zip(h, natural(slot, group, first), strict=True):
                emit.store(component, there)
            emit.store(dot(emit, list(zip(h, x, strict=True)), emit.load(here)), here)
            if contrast:
                store_squares(emit, shape, first, h, squares)
        value = emit.mul(emit.load(here), unscaled)
        emit.store(value, here)
        emit.store(emit.larger(value, emit.load(highest)), highest)

    def normalise(slot: Value, group: Value) -> None:
        here, (highest, total, highest_psi, _) = kept(slot, group), sums_of(group)
        value = emit.exp(emit.sub(emit.load(here), emit.load(highest)))
        emit.store(value, here)
        emit.store(emit.add(emit.load(total), value), total)
        if contrast:
            psi = psi_and_gains(emit, shape, emit.at(here, 2 * w))
            emit.store(psi, emit.at(here, w))
            emit.store(emit.larger(psi, emit.load(highest_psi)), highest_psi)

    def weigh(slot: Value, group: Value) -> None:
        """Gains become gains times exp(psi - maximum)."""
        here, (_, _, highest, total) = kept(slot, group), sums_of(group)
        value = emit.exp(emit.sub(emit.load(emit.at(here, w)), emit.load(highest)))
        emit.store(emit.add(emit.load(total), value), total)
        for n in range(shape.gains):
            gain = emit.at(here, (2 + n) * w)
            emit.store(emit.mul(emit.load(gain), value), gain)

    def finish(place: Value, group: Value) -> None:
        """The objective; the sums become what the exponentials are multiplied with."""
        highest, total, highest_psi, total_psi = sums_of(group)
        objective = _log_sum(emit, emit.load(highest), emit.load(total))
        emit.store(emit.div(emit.splat(scale), emit.load(total)), total)
        if contrast:
            log_partition = _log_sum(emit, emit.load(highest_psi), emit.load(total_psi))
            objective = emit.sub(objective, log_partition)
            negative = emit.sub(zero, emit.splat(scale))
            emit.store(emit.div(negative, emit.load(total_psi)), total_psi)
        there = emit.at(objectives, (place, rows.groups, w), (rows.begin, w), (group, w))
        emit.store(objective, there)

    def error(row: Value, slot: Value, group: Value) -> None:
        """Scale (alpha x_i - beta gain h), into `errors`."""
        here, own, (_, positive, _, negative) = kept(slot, group), rows.token(group, row), sums_of(group)
        posterior = emit.mul(emit.mul(emit.load(here), emit.load(positive)), unscaled)
        prior = emit.load(negative) if contrast else zero
        with emit.loop(d, step=shape.tile) as first:
            h = [emit.load(there) for there in natural(slot, group, first)]
            # all loads before the first store, which might change what they load for all LLVM knows
            x = [emit.load(emit.at(own, (first, w), a * w)) for a in range(len(h))]
            gains = gains_of(emit, shape, emit.at(here, 2 * w), first, len(h)) if contrast else []
            weights = [emit.mul(prior, gain) for gain in gains]
            values = [emit.mul(posterior, component) for component in x]
            if contrast:
                each = [weights[a * len(weights) // len(h)] for a in range(len(h))]
                values = [emit.fma(*terms) for terms in zip(each, h, values, strict=True)]
            for a in range(0, len(h), shape.packed):
                there = emit.at(errors, (group, d * w), (first, w), a * w)
                for n, vector in enumerate(emit.pack(values[a : a + shape.packed])):
                    emit.store(vector, emit.at(there, n * w))

    def block(place: Value, row: Value, weights: Value) -> None:
        with emit.loop(rows.here) as group:
            clear(group)
        with rows.each_source(row) as (slot, source), emit.loop(rows.here) as group:
            score(row, slot, source, emit.at(weights, (slot, d * d)), group)
        # by themselves: so short that many of their long chains are under way at once
        with rows.each_source(row) as (slot, _), emit.loop(rows.here) as group:
            normalise(slot, group)
        if contrast:
            with rows.each_source(row) as (slot, _), emit.loop(rows.here) as group:
                weigh(slot, group)
        with emit.loop(rows.here) as group:
            finish(place, group)
        changes_of_row = emit.at(changes, (emit.builder.sub(row, rows.first), rows.sources, d * d))
        with rows.each_source(row) as (slot, source):
            with emit.loop(rows.here) as group:
                error(row, slot, group)
            change = emit.at(changes_of_row, (slot, d * d))
            with emit.when(emit.builder.icmp_signed("<", rows.begin, first_images)):
                emit.clear(change, d * d)
            _outer(emit, rows, shape, errors, source, change, spoiled)

    with rows.each() as (place, row, weights):
        emit.store(zero, spoiled)
        with rows.each_block(size):
            block(place, row, weights)
        nothing = emit.sum(emit.load(spoiled))
        with emit.loop(rows.groups) as group:
            there = emit.at(objectives, (place, rows.groups, w), (group, w))
            emit.store(emit.add(emit.load(there), nothing), there)
    return emit


def _outer(
    emit: Emitter, rows: Rows, shape: Shape, errors: Value, source: Value, change: Value, spoiled: Value
) -> None:
    """dJ_ij += sum over images of error x_j^T, a tile of components at a time.

    A vector of packed errors is met by x_j of the same W/q images, repeated for each of its q components.
    Whatever is not finite makes NaN of `spoiled`.
    """
    d, w, q = shape.dim, shape.width, shape.packed
    p, (height, columns) = w // q, shape.gradient_tile
    with emit.loop(d, step=height * q) as a0, emit.loop(d, step=columns) as c0:
        sums = [[emit.local(emit.splat(0.0)) for _ in range(columns)] for _ in range(height)]
        for sum_ in chain(*sums):
            emit.store(emit.splat(0.0), sum_)
        with emit.loop(rows.here) as group:
            error, x_j = emit.at(errors, (group, d * w), (a0, w)), rows.token(group, source)
            for part in range(q):
                left = [emit.load(emit.at(error, (a * q + part) * w)) for a in range(height)]
                for c in range(columns):
                    right = emit.load_repeated(emit.at(x_j, (c0, w), c * w + part * p), p)
                    for a in range(height):
                        sum_ = sums[a][c]
                        emit.store(emit.fma(left[a], right, emit.load(sum_)), sum_)
        for a, first in product(range(height), range(0, columns, p)):
            some = [emit.load(sum_) for sum_ in sums[a][first : first + p]]
            values = emit.sum_lanes(some + [emit.splat(0.0)] * (p - len(some)))
            emit.store(emit.fma(values, emit.splat(0.0), emit.load(spoiled)), spoiled)
            for n in range(q):
                lanes = range(n * p, n * p + len(some))
                emit.add_lanes(values, lanes, emit.at(change, (a0, d), c0, (a * q + n) * d + first))
