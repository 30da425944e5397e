"""The processes of a run: one, or as many as torchrun started, which share the rows of the couplings.

All of them do the same work in the same order (the same batches, choices and exits) on their own rows;
the first one alone keeps the run folder and speaks. Rows are gathered in `physics.Ranks`; what else the
processes tell each other is here. No process waits for one that has ended: its peers see its connections
close, and torchrun ends them.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from torch import cuda, distributed
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from attractor.lab.config.names import DeviceName, MapName
from attractor.lab.errors import ConfigError, Terminated
from attractor.physics.processes import LostProcessError, Ranks, collective

T = TypeVar("T")

# A process that lives may let the others wait for as long as it needs, for its figures or a download.
_PATIENCE = timedelta(days=7)
# What every process finds wrong is said by the first one; the others give it this long, seconds.
_GRACE = 3.0
_FAILURE = "attractor/failure"  # where a process leaves its last words


@dataclass(frozen=True)
class Processes:
    """The processes of a run; without `ranks` there is this one alone."""

    ranks: Ranks | None = None
    store: Store | None = None

    @property
    def count(self) -> int:
        return 1 if self.ranks is None else self.ranks.count

    @property
    def first(self) -> bool:
        """Whether this is the process that keeps the run folder and speaks."""
        return self.ranks is None or self.ranks.rank == 0

    def of_first(self, value: T) -> T:
        """What the first process holds."""
        return self.gathered(value)[0]

    def gathered(self, value: T) -> list[T]:
        """What each process holds, a small picklable object; none goes on before all are here."""
        if self.ranks is None:
            return [value]
        values: list[T] = [value] * self.count
        with collective():
            distributed.all_gather_object(values, value)
        return values

    def row_mean(self, value: float, rows: int) -> float:
        """The mean over all rows, from that over the `rows` of each process."""
        if self.ranks is None:
            return value
        parts = self.gathered((value, rows))
        return sum(mean * count for mean, count in parts) / sum(count for _, count in parts)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The body is run by the first process, then by the others: what it downloads is there for them."""
        if not self.first:
            self.gathered(None)
        yield
        if self.first:
            self.gathered(None)

    @contextmanager
    def last_words(self) -> Iterator[None]:
        """An error in the body is left for the others; one that their end has caused names its reason."""
        try:
            yield
        except (LostProcessError, Terminated) as error:
            if self.store is not None:
                try:
                    reason = self._reason(self.store)
                except Terminated:
                    # torchrun sends one to the peers of a process that has ended; `Signals` raises it once
                    reason = self._reason(self.store)
                raise type(error)(f"{error} ({reason})") from error
            raise
        except BaseException as error:
            if self.store is not None and self.ranks is not None:
                words = f"rank {self.ranks.rank}: {type(error).__name__}: {error}"
                self.store.set(_FAILURE, words)
            raise

    def _reason(self, store: Store) -> str:
        try:
            if store.check([_FAILURE]):
                return store.get(_FAILURE).decode()
        except RuntimeError:  # torchrun, which keeps the store, has ended too
            pass
        return "torchrun ends all processes when one of them dies, and when it is stopped itself"


def launched() -> tuple[int, int]:
    """(rank, number of processes) that torchrun gave to this one; (0, 1) without it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")), count) if count > 1 else (0, 1)


@contextmanager
def joined(device: DeviceName) -> Iterator[Processes]:
    """Meet the other processes, if torchrun started several. Raises ConfigError if it is not torchrun."""
    rank, count = launched()
    if count == 1:
        yield Processes()
        return
    on_gpu = device is DeviceName.cuda or (device is DeviceName.auto and cuda.is_available())
    try:
        store, rank, count = next(rendezvous("env://", timeout=_PATIENCE))
    except ValueError as error:
        raise ConfigError(f"WORLD_SIZE is {count}, but {error}; start with torchrun") from error
    if on_gpu:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= cuda.device_count():
            raise ConfigError(
                f"process {local} of this machine has no GPU of its own, there are {cuda.device_count()}; "
                "start fewer, or use device=cpu"
            )
        cuda.set_device(local)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=count,
        timeout=_PATIENCE,
    )
    yield Processes(Ranks(rank, count), store)
    # only after a good end: an error leaves peers behind that might never say goodbye
    distributed.destroy_process_group()


def after_the_first() -> None:
    """Wait before an error is said: if all processes found it, the first says it and ends them all."""
    time.sleep(_GRACE)


def refuse_clocks(max_seconds: float | None, processes: Processes) -> None:
    """Several processes have as many clocks, and would not agree on rate and last step (ConfigError)."""
    if processes.count > 1 and max_seconds is not None:
        raise ConfigError(
            f"train.max_seconds is {max_seconds:g}, but the clocks of several processes differ; "
            "use one process, or train.steps"
        )


def refuse_draws(maps: Iterable[MapName], processes: Processes) -> None:
    """Several processes cannot share random draws (ConfigError)."""
    if processes.count > 1 and MapName.gibbs in maps:
        raise ConfigError(
            "the map gibbs draws at random, which several processes cannot share; "
            "use one process, or other dynamics.maps"
        )
