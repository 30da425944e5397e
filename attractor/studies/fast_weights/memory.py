"""What each form of the same memory holds while a sequence goes by, and how long it takes.

Counted are bytes of tensors: every storage that an operation of torch makes, from when it is made until it
is freed. Not counted are buffers inside a single operation, and Python itself.

`recurrent`, `chunked` and `parallel` are given a sequence and return T outputs; what is given is not
counted, and what is returned, which every map of sequences must return, stands apart from the rest. As a
stream the tokens come from a generator piece by piece, one for `step` or a chunk for `parallel`, the state
is handed on, and outputs are dropped once read: here all is counted. Seconds are those of the processor,
which other programs on the machine change little.
"""

import statistics
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attractor.studies.config import FastWeightsConfig
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
    """Bytes and seconds of the forms against T: Hebbian, identity features, one sequence, float64.

    "forms" are the three methods: "work" is the most bytes held less those of the outputs. "streams" are
    the same memory by token and by chunk, "work" is all. "state" is what is handed from token to token; for
    softmax attention these are all keys and values, here computed and not measured.
    """
    memory = FastWeights(config.dim, config.dim)
    forms: dict[str, dict[str, list[float]]] = {}
    streams: dict[str, dict[str, list[float]]] = {}
    calls: dict[str, Callable[..., tuple[Tensor, State]]] = {
        "recurrent": memory.recurrent,
        "chunked": partial(memory.chunked, chunk=config.chunk),
        "parallel": memory.parallel,
    }
    for length in config.lengths:
        keys, values, queries = _tokens(length, config.dim, Generator().manual_seed(seed))
        for name, call in calls.items():
            with TensorBytes() as counted:
                outputs, state = call(keys, values, queries=queries)
            form = forms.setdefault(name, {"work": [], "outputs": [], "state": [], "seconds": []})
            form["work"].append(counted.peak - outputs.nbytes)
            form["outputs"].append(outputs.nbytes)
            form["state"].append(_bytes(state))
            times = []
            for _ in range(_REPEATS):
                begin = time.process_time()
                call(keys, values, queries=queries)
                times.append(time.process_time() - begin)
            form["seconds"].append(statistics.median(times))
        for name, piece in (("step", 1), ("chunk", config.chunk)):
            with TensorBytes() as counted:
                state = _stream(memory, length, piece, seed=seed)
            stream = streams.setdefault(name, {"work": [], "state": []})
            stream["work"].append(counted.peak)
            stream["state"].append(_bytes(state))
    return {
        "lengths": list(config.lengths),
        "chunk": config.chunk,
        "forms": forms,
        "streams": streams,
        "keys_and_values": [2 * config.dim * length * _BYTES for length in config.lengths],
    }


def _bytes(state: State) -> int:
    return state.memory.nbytes + state.normaliser.nbytes


def _tokens(length: int, dim: int, generator: Generator) -> list[Tensor]:
    """Random keys, values and queries."""
    return [torch.randn(1, length, dim, generator=generator, dtype=torch.float64) for _ in range(3)]


def _stream(memory: FastWeights, length: int, piece: int, *, seed: int) -> State:
    """A sequence of random tokens that come by pieces and are not kept."""
    generator = Generator().manual_seed(seed)
    state = memory.empty(1)
    for start in range(0, length, piece):
        keys, values, queries = _tokens(min(piece, length - start), memory.dim, generator)
        if piece == 1:
            _, state = memory.step(state, keys[:, 0], value=values[:, 0], query=queries[:, 0])
        else:
            _, state = memory.parallel(keys, values, queries=queries, state=state)
    return state
