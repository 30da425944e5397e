"""What an `Emitter` has written, compiled in memory by llvmlite: no compiler is needed."""

import ctypes

import llvmlite.binding as llvm
import torch
from torch import Tensor

from attractor.physics.kernels.simd import F32, I64, POINTER, Emitter


class Compiled:
    """A function in memory, callable with tensors and numbers; it releases the interpreter lock."""

    def __init__(self, emitter: Emitter) -> None:
        emitter.builder.ret_void()
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(str(emitter.module))
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(),
            features=llvm.get_host_cpu_features().flatten(),
            opt=3,
            codemodel="jitdefault",
        )
        tuning = llvm.create_pipeline_tuning_options(speed_level=3)
        builder = llvm.create_pass_builder(machine, tuning)
        builder.getModulePassManager().run(module, builder)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        kinds = {POINTER: ctypes.c_void_p, I64: ctypes.c_int64, F32: ctypes.c_float}
        arguments = [kinds[argument.type] for argument in emitter.function.args]
        self._constants = torch.tensor(emitter.constants, dtype=torch.float32)
        address = self._engine.get_function_address(emitter.function.name)
        self._function = ctypes.CFUNCTYPE(None, *arguments)(address)

    def __call__(self, *arguments: Tensor | int | float) -> None:
        """Tensors are given by their memory, which must be contiguous."""
        everything = (self._constants, *arguments)
        self._function(*(a.data_ptr() if isinstance(a, Tensor) else a for a in everything))
