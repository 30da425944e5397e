"""What an `Emitter` has written, compiled in memory by llvmlite: no compiler is needed."""

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from torch import Tensor

from attractor.physics.kernels import threads
from attractor.physics.kernels.simd import F32, I32, I64, POINTER, Emitter

Arguments = Sequence[Tensor | int | float]
_CTYPES = {POINTER: ctypes.c_void_p, I64: ctypes.c_int64, F32: ctypes.c_float}
_PACKED = {POINTER: "q", I64: "q", F32: "f4x"}  # eight bytes each
_THREAD, _THREADS = "omp_get_thread_num", "omp_get_num_threads"


class Compiled:
    """A function in memory, callable with tensors and numbers; it releases the interpreter lock."""

    def __init__(self, emitter: Emitter) -> None:
        emitter.finish()
        self._library = threads.openmp()
        if self._library is not None:
            for name in (_THREAD, _THREADS):
                address = ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value
                llvm.add_symbol(name, address)
            region = _region(emitter)
        self._engine = _engine(emitter.module)
        kinds = [argument.type for argument in emitter.function.args]
        self._packed = "".join(_PACKED[kind] for kind in kinds)
        self._constants = torch.tensor(emitter.constants, dtype=torch.float32)
        address = self._engine.get_function_address(emitter.function.name)
        self._function = ctypes.CFUNCTYPE(None, *(_CTYPES[kind] for kind in kinds))(address)
        if self._library is not None:
            self._region = self._engine.get_function_address(region.name)

    def __call__(self, *arguments: Tensor | int | float) -> None:
        """Tensors are given by their memory: contiguous, float32 or int64, on the CPU; else ValueError."""
        self._function(*self._plain(arguments))

    def in_parallel(self, calls: Sequence[Arguments]) -> None:
        """Call it once with each of the arguments, every call in a thread of its own; wait for all.

        No thread runs Python, so nothing of it, an interrupt least of all, comes between them. Without
        OpenMP they are done one after the other: an interrupt that comes between them is raised at the end.
        """
        if len(calls) == 1:
            self(*calls[0])
        elif self._library is not None:
            plain = [self._plain(call) for call in calls]
            everything = [len(calls), *(value for call in plain for value in call)]
            data = struct.pack("<q" + self._packed * len(calls), *everything)
            self._library.GOMP_parallel(self._region, data, len(calls), 0)
        else:
            left = iter(calls)
            try:
                for call in left:
                    self(*call)
            finally:
                for call in left:
                    self(*call)

    def _plain(self, arguments: Arguments) -> list[Any]:
        everything = (self._constants, *arguments)
        return [_memory(a) if isinstance(a, Tensor) else a for a in everything]


def _memory(values: Tensor) -> int:
    if (
        not values.is_contiguous()
        or values.device.type != "cpu"
        or values.dtype not in (torch.float32, torch.int64)
    ):
        given = f"{tuple(values.shape)} of {values.dtype} on {values.device}, strides {values.stride()}"
        raise ValueError(
            f"the fused kernel reads contiguous float32 or int64 in the memory of the CPU, got {given}"
        )
    return values.data_ptr()


def _engine(module: ir.Module) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    parsed = llvm.parse_assembly(str(module))
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="jitdefault",
    )
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(parsed, builder)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return engine


def _region(emitter: Emitter) -> ir.Function:
    """What every thread of OpenMP runs: its calls, from the number of all and the arguments of each.

    OpenMP may give fewer threads than there are calls, so a thread does every so-manieth of them.
    """
    kind = ir.FunctionType(ir.VoidType(), [POINTER])
    function = ir.Function(emitter.module, kind, f"{emitter.function.name}_region")
    start, body, end = (function.append_basic_block() for _ in range(3))
    build, (data,) = ir.IRBuilder(start), function.args
    number, step = (
        build.sext(build.call(ir.Function(emitter.module, ir.FunctionType(I32, []), name), []), I64)
        for name in (_THREAD, _THREADS)
    )
    count = build.load(data, typ=I64, align=8)
    build.cbranch(build.icmp_signed("<", number, count), body, end)
    build.position_at_end(body)
    call = build.phi(I64)
    call.add_incoming(number, start)
    kinds = [argument.type for argument in emitter.function.args]
    first = build.add(build.mul(call, I64(len(kinds))), I64(1))
    places = (build.gep(data, [build.add(first, I64(n))], source_etype=I64) for n in range(len(kinds)))
    arguments = (build.load(place, typ=kind, align=8) for place, kind in zip(places, kinds, strict=True))
    build.call(emitter.function, list(arguments))
    following = build.add(call, step)
    call.add_incoming(following, body)
    build.cbranch(build.icmp_signed("<", following, count), body, end)
    build.position_at_end(end)
    build.ret_void()
    return function
