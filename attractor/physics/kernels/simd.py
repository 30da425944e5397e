"""Vector code for the CPU at hand, written in Python; `compiled` makes a function of it.

`Emitter` writes LLVM's intermediate language one instruction at a time. A lane is an image, and no
operation mixes lanes until `sum_lanes`, so what one image gives does not depend on those beside it.
Loops of Python unroll; `Emitter.loop` is a loop of the program.

exp and log: argument reduction and a polynomial, after Cephes (Moshier 1989); relative error below 2e-7.
NaN passes through exp, not through log.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits

Value = Any  # llvmlite has no types


@cache
def lanes() -> int:
    """Floats in a vector register of this machine; 8 are split where they do not fit."""
    return 16 if llvm.get_host_cpu_features().get("avx512f") else 8


class Emitter:
    """One function of pointers, integers and floats, as it is written."""

    def __init__(self, name: str, arguments: Sequence[ir.Type], width: int) -> None:
        self.width = width
        self.vector = ir.VectorType(F32, width)
        self.integers = ir.VectorType(I32, width)
        self.module = ir.Module(name)
        self.constants: list[float] = []
        self.function = ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [POINTER, *arguments]), name
        )
        self._table, *self.arguments = self.function.args
        self.builder = ir.IRBuilder(self.function.append_basic_block())
        self._entry = self.builder.block
        self._rounding = self._flush_denormals() if "86" in llvm.get_process_triple() else None

    def finish(self) -> None:
        """After the last instruction."""
        if self._rounding is not None:
            self._call_on_mode("ldmxcsr", self._rounding)
        self.builder.ret_void()

    def _flush_denormals(self) -> Value:
        """Numbers below 1e-38 are 0 inside the function; where the former mode is kept.

        A source that has lost has an attention of 1e-38 or less, and what is computed from it is denormal,
        which costs this machine a hundred cycles an operation: 25 times the time of a step.
        """
        before, now = (self.builder.alloca(I32) for _ in range(2))
        self._call_on_mode("stmxcsr", before)
        self.builder.store(self.builder.or_(self.builder.load(before), I32(0x8040)), now)
        self._call_on_mode("ldmxcsr", now)
        return before

    def _call_on_mode(self, name: str, place: Value) -> None:
        kind = ir.FunctionType(ir.VoidType(), [POINTER])
        self.builder.call(self._intrinsic(f"llvm.x86.sse.{name}", kind), [place])

    def splat(self, value: Value) -> Value:
        """The same float in every lane.

        Constants are read from a table that is handed to the function: in the code of a just-in-time
        compiler they would lie out of reach, at the cost of an instruction for the address of each.
        """
        if value == 0:
            return ir.Constant(self.vector, [0.0] * self.width)
        if isinstance(value, float | int):
            if value not in self.constants:
                self.constants.append(value)
            return self.broadcast(self.at(self._table, self.constants.index(value)))
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), value, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.width), [0] * self.width)
        return self.builder.shuffle_vector(one, one, zeros)

    def at(self, pointer: Value, *terms: Value | int | tuple[Value | int, ...], of: ir.Type = F32) -> Value:
        """pointer + the sum of the terms, each a number or a product of numbers, in elements."""
        fixed = sum(term for term in terms if isinstance(term, int))
        for term in terms:
            if not isinstance(term, int):
                offset: Value = None
                for factor in term if isinstance(term, tuple) else (term,):
                    number = I64(factor) if isinstance(factor, int) else factor
                    offset = number if offset is None else self.builder.mul(offset, number)
                pointer = self.builder.gep(pointer, [offset], source_etype=of)
        # last, so that it becomes part of the instruction that reads or writes
        return self.builder.gep(pointer, [I64(fixed)], source_etype=of)

    def load(self, pointer: Value) -> Value:
        return self.builder.load(pointer, typ=self.vector, align=4)

    def store(self, value: Value, pointer: Value) -> None:
        self.builder.store(value, pointer, align=4)

    def broadcast(self, pointer: Value) -> Value:
        """The float at `pointer`, in every lane."""
        return self.splat(self.builder.load(pointer, typ=F32, align=4))

    def local(self, start: Value, count: int = 1) -> Value:
        """Room for `count` vectors, set to `start`; LLVM keeps it in registers where it can."""
        with self.builder.goto_block(self._entry):
            room = self.builder.alloca(self.vector, size=I32(count))
            room.align = 4 * self.width
        for n in range(count):
            self.store(start, self.at(room, n * self.width))
        return room

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """A b + c."""
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        name = f"llvm.fma.v{self.width}f32"
        return self.builder.call(self._intrinsic(name, kind), [a, b, c])

    def add(self, a: Value, b: Value) -> Value:
        return self.builder.fadd(a, b)

    def sub(self, a: Value, b: Value) -> Value:
        return self.builder.fsub(a, b)

    def mul(self, a: Value, b: Value) -> Value:
        return self.builder.fmul(a, b)

    def div(self, a: Value, b: Value) -> Value:
        return self.builder.fdiv(a, b)

    def larger(self, a: Value, b: Value) -> Value:
        """The maximum; `b` where one of them is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def sqrt(self, x: Value) -> Value:
        """The square root, rounded once."""
        kind = ir.FunctionType(self.vector, [self.vector])
        return self.builder.call(self._intrinsic(f"llvm.sqrt.v{self.width}f32", kind), [x])

    def inverse_sqrt(self, x: Value) -> Value:
        """x^(-1/2), by the machine's estimate and Newton's iteration where it has them."""
        kind = ir.FunctionType(self.vector, [self.vector])
        root = self.builder.call(
            self._intrinsic(f"llvm.sqrt.v{self.width}f32", kind), [x], fastmath=("afn", "arcp", "reassoc")
        )
        return self.builder.fdiv(self.splat(1.0), root, flags=("afn", "arcp", "reassoc"))

    def polynomial(self, coefficients: Sequence[float], x: Value) -> Value:
        """By Horner's scheme, highest power first."""
        value = self.splat(coefficients[0])
        for coefficient in coefficients[1:]:
            value = self.fma(value, x, self.splat(coefficient))
        return value

    def exp(self, x: Value) -> Value:
        """The exponential of x <= 0; what would be below 1e-38 is 1e-38."""
        build = self.builder
        x = self.larger(self.splat(-87.0), x)
        shifted = self.fma(x, self.splat(1.44269504088896341), self.splat(_ROUND))
        n = self.sub(shifted, self.splat(_ROUND))
        r = self.fma(n, self.splat(-0.693359375), x)
        r = self.fma(n, self.splat(2.12194440e-4), r)
        value = self.fma(self.mul(r, r), self.polynomial(_EXP, r), self.add(r, self.splat(1.0)))
        exponent = build.shl(build.bitcast(shifted, self.integers), self._int(23))
        return build.bitcast(build.add(build.bitcast(value, self.integers), exponent), self.vector)

    def log(self, x: Value) -> Value:
        """The logarithm of normal x > 0; a NaN is lost."""
        build = self.builder
        bits = build.bitcast(x, self.integers)
        # the exponent at which the mantissa is in [sqrt 1/2, sqrt 2)
        offset = build.sub(bits, self._int(0x3F3504F3))
        exponent = build.sitofp(build.ashr(offset, self._int(23)), self.vector)
        mantissa = build.sub(bits, build.and_(offset, self._int(-0x800000)))
        z = self.sub(build.bitcast(mantissa, self.vector), self.splat(1.0))
        square = self.mul(z, z)
        value = self.mul(self.mul(self.polynomial(_LOG, z), z), square)
        value = self.fma(exponent, self.splat(-2.12194440e-4), value)
        value = self.fma(self.splat(-0.5), square, value)
        return self.fma(exponent, self.splat(0.693359375), self.add(value, z))

    def load_repeated(self, pointer: Value, count: int) -> Value:
        """`count` floats from `pointer` on, again and again until the vector is full."""
        few = self.builder.load(pointer, typ=ir.VectorType(F32, count), align=4)
        return self.builder.shuffle_vector(few, few, self._mask([n % count for n in range(self.width)]))

    def pack(self, vectors: Sequence[Value]) -> list[Value]:
        """The transpose of q vectors seen as q parts each: vector n has the parts n of all of them."""
        level, part, span = list(vectors), self.width // len(vectors), 1
        while span < len(level):
            lower, upper = [], []
            for lane in range(self.width):
                second = lane // part & span
                lower.append(lane - span * part + self.width if second else lane)
                upper.append(lane + self.width if second else lane + span * part)
            for n in range(len(level)):
                if not n & span:
                    pair = level[n], level[n + span]
                    level[n], level[n + span] = (
                        self.builder.shuffle_vector(*pair, self._mask(mask)) for mask in (lower, upper)
                    )
            span *= 2
        return level

    def sum_lanes(self, vectors: Sequence[Value]) -> Value:
        """The sums of neighbouring lanes, as many as there are vectors.

        Lane m p + n is the sum over lanes m p to m p + p - 1 of vectors[n], p their number. At every level
        two vectors become one: lanes whose number has the bit `span` belong to the second, the others to
        the first, and each receives its partner at the distance `span`. One blend, one permutation and one
        addition.
        """
        level, span = list(vectors), 1
        while len(level) > 1:
            own, partner = [], []
            for lane in range(self.width):
                second = self.width if lane & span else 0
                own.append(lane + second)
                partner.append((lane ^ span) + second)
            masks = self._mask(own), self._mask(partner)
            level = [
                self.add(*(self.builder.shuffle_vector(a, b, mask) for mask in masks))
                for a, b in zip(level[::2], level[1::2], strict=True)
            ]
            span *= 2
        return level[0]

    def sum(self, value: Value) -> Value:
        """The sum over all lanes, in every lane."""
        kind = ir.FunctionType(F32, [F32, self.vector])
        total = self._intrinsic(f"llvm.vector.reduce.fadd.v{self.width}f32", kind)
        return self.splat(self.builder.call(total, [F32(0.0), value]))

    def clear(self, pointer: Value, count: int) -> None:
        """Zeros in `count` floats."""
        whole = count - count % self.width
        with self.loop(whole, step=self.width) as n:
            if whole:
                self.store(self.splat(0.0), self.at(pointer, n))
        if count > whole:
            rest = ir.VectorType(F32, count - whole)
            self.builder.store(ir.Constant(rest, [0.0] * rest.count), self.at(pointer, whole), align=4)

    def add_lanes(self, values: Value, lanes: range, pointer: Value) -> None:
        """Add those lanes of a vector to as many floats at `pointer`."""
        part = self.builder.shuffle_vector(values, values, self._mask(list(lanes)))
        old = self.builder.load(pointer, typ=ir.VectorType(F32, len(lanes)), align=4)
        self.builder.store(self.builder.fadd(old, part), pointer, align=4)

    @contextmanager
    def loop(self, count: Value | int, *, step: int = 1) -> Iterator[Value]:
        """For index = 0, step, ... below count. A single turn is no loop."""
        if isinstance(count, int):
            if count <= step:
                yield I64(0)
                return
            count = I64(count)
        build = self.builder
        before = build.block
        body, after = (self.function.append_basic_block() for _ in range(2))
        build.cbranch(build.icmp_signed(">", count, I64(0)), body, after)
        build.position_at_end(body)
        index = build.phi(I64)
        index.add_incoming(I64(0), before)
        yield index
        following = build.add(index, I64(step))
        index.add_incoming(following, build.block)
        build.cbranch(build.icmp_signed("<", following, count), body, after)
        build.position_at_end(after)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """What follows happens only if the condition holds."""
        body, after = (self.function.append_basic_block() for _ in range(2))
        self.builder.cbranch(condition, body, after)
        self.builder.position_at_end(body)
        yield
        self.builder.branch(after)
        self.builder.position_at_end(after)

    def _int(self, value: int) -> Value:
        return ir.Constant(self.integers, [value] * self.width)

    def _mask(self, places: list[int]) -> Value:
        return ir.Constant(ir.VectorType(I32, len(places)), places)

    def _intrinsic(self, name: str, kind: ir.FunctionType) -> Value:
        return self.module.globals.get(name) or ir.Function(self.module, kind, name)
