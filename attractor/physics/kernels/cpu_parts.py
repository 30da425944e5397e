"""The pieces of the fused CPU kernel: fields, psi, and the loops over rows and sources.

Tokens are laid out (N, G, D, W): groups of W images, the lanes of a vector. Presynaptic tokens carry the
inverse temperature, so that the field J_ij x_j is the natural parameter h_ij.

psi and the gain are those of `bessel`: one logarithm and two polynomials, on the whole token (Sphere) or
pair by pair of components (Circles).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from attractor.physics.bessel import single_precision_fit
from attractor.physics.kernels.simd import I64, POINTER, Emitter, Value


@dataclass(frozen=True)
class Shape:
    """What is compiled for: D components, on the sphere (circles=0) or on that many circles."""

    dim: int
    circles: int
    width: int

    @property
    def gains(self) -> int:
        """Gains of a source."""
        return self.circles or 1

    @property
    def tile(self) -> int:
        """Components of a field made at once: a divisor of D, at most 8, whole circles."""
        step = 2 if self.circles else 1
        return max(t for t in range(step, 9, step) if self.dim % t == 0)

    @property
    def block(self) -> int:
        """Groups of images at a time in the gradient, so that a row stays in the cache."""
        return 64 // self.width

    @property
    def packed(self) -> int:
        """Components of an error beside each other in a vector, each for W/packed images.

        Their lanes are not summed with each other, which saves most of the sums over lanes.
        """
        return max(q for q in (1, 2, 4) if self.tile % q == 0)

    @property
    def gradient_tile(self) -> tuple[int, int]:
        """Rows, in units of `packed`, and columns of the gradient that stay in registers."""
        rows = max(a for a in range(1, 4) if self.dim // self.packed % a == 0)
        return rows, max(c for c in range(1, self.width // rows + 1) if self.dim % c == 0)


@contextmanager
def field(
    emit: Emitter,
    shape: Shape,
    weights: Value,
    source: Value,
    external: Value | None = None,
) -> Iterator[tuple[Value, list[Value]]]:
    """(first component, components) of h = J x_j + external, a tile of them at a time.

    The body is repeated for every tile. weights: J_ij (D, D); source: x_j (D, W); external: field_i (D, W).
    """
    d, w, height = shape.dim, shape.width, shape.tile
    rows = range(height)
    with emit.loop(d, step=height) as first:
        if external is None:
            start = [emit.splat(0.0)] * height
        else:
            start = [emit.load(emit.at(external, (first, w), a * w)) for a in rows]
        if d == height:
            h = _columns(emit, shape, weights, source, first, I64(0), start)
        else:
            room = [emit.local(emit.splat(0.0)) for _ in rows]
            for place, value in zip(room, start, strict=True):
                emit.store(value, place)
            with emit.loop(d, step=height) as column:
                h = [emit.load(place) for place in room]
                h = _columns(emit, shape, weights, source, first, column, h)
                for place, value in zip(room, h, strict=True):
                    emit.store(value, place)
            h = [emit.load(place) for place in room]
        yield first, h


def _columns(
    emit: Emitter,
    shape: Shape,
    weights: Value,
    source: Value,
    first: Value,
    column: Value,
    h: list[Value],
) -> list[Value]:
    """h + J[first:, column:] x_j[column:], a square of J."""
    d, w, side = shape.dim, shape.width, range(shape.tile)
    for c in side:
        x = emit.load(emit.at(source, (column, w), c * w))
        h = [
            emit.fma(emit.broadcast(emit.at(weights, (first, d), column, a * d + c)), x, h[a]) for a in side
        ]
    return h


def _psi_and_gain(emit: Emitter, squared: Value, dim: int) -> tuple[Value, Value]:
    """psi(k) and psi'(k)/k from k^2; see `bessel`."""
    order, shift = dim / 2 - 1, dim / 2 + 1
    remainder, scaled_gain = single_precision_fit(dim)
    squared = emit.add(squared, emit.splat(shift * shift))
    inverse = emit.inverse_sqrt(squared)
    s = emit.mul(squared, inverse)
    logarithm = emit.log(emit.mul(emit.add(s, emit.splat(shift)), emit.splat(1 / (2 * shift))))
    psi = emit.fma(emit.splat(-(order + 0.5)), logarithm, emit.sub(s, emit.splat(shift)))
    psi = emit.add(psi, emit.polynomial(remainder[::-1], inverse))
    return psi, emit.mul(inverse, emit.polynomial(scaled_gain[::-1], inverse))


def dot(emit: Emitter, pairs: Sequence[tuple[Value, Value]], total: Value) -> Value:
    """total + sum of products, in two chains, since each addition waits for the one before it."""
    chains = [total, emit.splat(0.0)]
    for n, (a, b) in enumerate(pairs):
        chains[n % 2] = emit.fma(a, b, chains[n % 2])
    return emit.add(*chains)


def store_squares(emit: Emitter, shape: Shape, first: Value, h: list[Value], there: Value) -> None:
    """Add |h|^2 of a tile to what is at `there` (W), or write |h_k|^2/K of its circles there (K, W)."""
    if not shape.circles:
        emit.store(dot(emit, list(zip(h, h, strict=True)), emit.load(there)), there)
        return
    for pair in range(len(h) // 2):
        x, y = h[2 * pair : 2 * pair + 2]
        squared = emit.mul(emit.fma(x, x, emit.mul(y, y)), emit.splat(1 / shape.circles))
        circle = emit.builder.add(emit.builder.sdiv(first, I64(2)), I64(pair))
        emit.store(squared, emit.at(there, (circle, shape.width)))


def psi_and_gains(emit: Emitter, shape: Shape, there: Value) -> Value:
    """psi, from the squares at `there`, which become the gains."""
    if not shape.circles:
        psi, gain = _psi_and_gain(emit, emit.load(there), shape.dim)
        emit.store(gain, there)
        return psi
    total = emit.splat(0.0)
    for circle in range(shape.circles):
        place = emit.at(there, circle * shape.width)
        psi, gain = _psi_and_gain(emit, emit.load(place), 2)
        emit.store(emit.mul(gain, emit.splat(1 / shape.circles)), place)
        total = emit.add(total, psi)
    return total


def gains_of(emit: Emitter, shape: Shape, gains: Value, first: Value, height: int) -> list[Value]:
    """What `height` components from `first` on are multiplied with: one gain, or one for each circle."""
    if not shape.circles:
        return [emit.load(gains)]
    circle = emit.builder.sdiv(first, I64(2))
    return [emit.load(emit.at(gains, (circle, shape.width), n * shape.width)) for n in range(height // 2)]


class Rows:
    """The loops over rows and sources that all functions share."""

    def __init__(self, name: str, shape: Shape, more: Sequence[object]) -> None:
        # rows, their number, the first row held; neighbours, S; tokens, G; weights
        common = [POINTER, I64, I64, POINTER, I64, POINTER, I64, POINTER]
        self.emit = Emitter(name, [*common, *more], shape.width)
        self.shape = shape
        arguments = self.emit.arguments
        self.rows, self.count, self.first, self.neighbours, self.sources = arguments[:5]
        self.tokens, self.groups, self.weights = arguments[5:8]
        self.more = arguments[8:]
        # the groups at hand: how many, and where they begin
        self.begin, self.here = I64(0), self.groups

    @contextmanager
    def each(self) -> Iterator[tuple[Value, Value, Value]]:
        """(place in `rows`, token i, its J_i (S, D, D))."""
        emit, d = self.emit, self.shape.dim
        with emit.loop(self.count) as place:
            row = emit.builder.load(emit.at(self.rows, place, of=I64), typ=I64)
            held = emit.builder.sub(row, self.first)
            yield place, row, emit.at(self.weights, (held, self.sources, d * d))

    @contextmanager
    def each_block(self, size: int) -> Iterator[None]:
        """At most `size` groups at a time; `token` counts them from the first."""
        build = self.emit.builder
        with self.emit.loop(self.groups, step=size) as begin:
            rest = build.sub(self.groups, begin)
            self.here = build.select(build.icmp_signed("<", rest, I64(size)), rest, I64(size))
            self.begin = begin
            yield
        self.begin, self.here = I64(0), self.groups

    @contextmanager
    def each_source(self, row: Value) -> Iterator[tuple[Value, Value]]:
        """(slot s, token j), but for missing sources."""
        emit = self.emit
        with emit.loop(self.sources) as slot:
            place = emit.at(self.neighbours, (row, self.sources), slot, of=I64)
            source = emit.builder.load(place, typ=I64)
            with emit.when(emit.builder.icmp_signed(">=", source, I64(0))):
                yield slot, source

    def token(self, group: Value, token: Value) -> Value:
        """x of a token, (D, W)."""
        size, group = self.shape.dim * self.shape.width, self.emit.builder.add(self.begin, group)
        return self.emit.at(self.tokens, (token, self.groups, size), (group, size))
