"""What each form of the same memory holds while a sequence goes by, and how long it takes.

Counted are bytes of tensors: every storage that an operation of torch makes, from when it is made until it
is freed, inputs of the piece at hand included. Not counted are buffers inside a single operation, and
Python itself. Tokens come from a generator piece by piece (one token, a chunk, or all of them), and
outputs are dropped once read, so that what grows with T is what the form itself needs. Seconds are those
of the processor, which other programs on the machine change little.
"""

import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attractor.lab.studies.config import FastWeightsConfig
from attractor.theory.fast_weights import FastWeights, State

_REPEATS = 3
_BYTES = 8  # of a float64


class TensorBytes(TorchDispatchMode):
    """Bytes of the storages made under it: `held` now, and at most so far, `peak`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if _is_tensor(each)}
        made = func(*args, **kwargs)
        for each in tree_leaves(made):
            if not _is_tensor(each):
                continue
            storage = each.untyped_storage()
            key = storage._cdata
            if key in self._sizes or key in given:  # a view, or in place
                continue
            self._sizes[key] = storage.nbytes()
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._freed, key)
        return made

    def _freed(self, key: int) -> None:
        self.held -= self._sizes.pop(key)


def _is_tensor(each: Any) -> bool:
    return isinstance(each, Tensor)


def measure(config: FastWeightsConfig, seed: int) -> dict[str, Any]:
    """Bytes and seconds of the three forms against T: Hebbian, identity features, one sequence, float64.

    "state" is what is handed from token to token; for softmax attention these are all keys and values, here
    computed and not measured.
    """
    memory = FastWeights(config.dim, config.dim)
    pieces: dict[str, Callable[[int], int]] = {
        "recurrent": lambda length: 1,
        "chunked": lambda length: config.chunk,
        "parallel": lambda length: length,
    }
    forms: dict[str, dict[str, list[float]]] = {}
    for name, piece in pieces.items():
        form = forms[name] = {"peak": [], "state": [], "seconds": []}
        for length in config.lengths:
            counted = TensorBytes()
            with counted:
                state = _pass(memory, length, piece(length), seed=seed)
            form["peak"].append(counted.peak)
            form["state"].append(state.memory.nbytes + state.normaliser.nbytes)
            times = []
            for _ in range(_REPEATS):
                begin = time.process_time()
                _pass(memory, length, piece(length), seed=seed)
                times.append(time.process_time() - begin)
            form["seconds"].append(statistics.median(times))
    return {
        "lengths": list(config.lengths),
        "chunk": config.chunk,
        "forms": forms,
        "keys_and_values": [2 * config.dim * length * _BYTES for length in config.lengths],
    }


def _pass(memory: FastWeights, length: int, piece: int, *, seed: int) -> State:
    """One sequence of random tokens, by pieces: a step for a single token, the parallel form for more."""
    generator = Generator().manual_seed(seed)
    state = memory.empty(1)
    for start in range(0, length, piece):
        size = min(piece, length - start)
        keys, values, queries = (
            torch.randn(1, size, memory.dim, generator=generator, dtype=torch.float64) for _ in range(3)
        )
        if size == 1:
            _, state = memory.step(state, keys[:, 0], value=values[:, 0], query=queries[:, 0])
        else:
            _, state = memory.parallel(keys, values, queries=queries, state=state)
    return state
