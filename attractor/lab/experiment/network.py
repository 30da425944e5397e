"""A trained network on images: encode, iterate, decode.

`AttractorNetwork` is the couplings and the code between pixels and tokens; a `Retrieval` is one way to
run it. Together they are a `Reconstructor`, like the baselines.
"""

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from attractor.images import Corrupted, Encoding
from attractor.lab.config.names import MapName, OrderName
from attractor.lab.experiment.recollection import Heads, Recollection
from attractor.lab.experiment.slot_network import SlotReading
from attractor.lab.experiment.transformers import Passes
from attractor.physics import (
    Attention,
    Backend,
    Dynamics,
    Evidence,
    Gibbs,
    LocalEnergy,
    MeanField,
    Ranks,
    Sequential,
    Synchronous,
    iterate,
)
from attractor.physics.dynamics import Map

# Largest change of a component, of at most 1, at which an image counts as arrived: ten units of the last
# place of float32. The error of its decoded pixels is far below what any table prints.
_ARRIVED = 1e-6


@dataclass(frozen=True)
class Retrieval:
    """One way to run a network: a map and its modifiers.

    inverse_temperature: times that of training. evidence: strength of the observation, the natural
    parameter in units of the observed token; 0 for free dynamics. steps: the t at which the prediction is
    read, None while it is not yet chosen.
    """

    map: MapName
    inverse_temperature: float = 1.0
    inertia: float = 0.0
    damping: float = 0.0
    order: OrderName = OrderName.synchronous
    evidence: float = 0.0
    steps: int | None = None
    seed: int = 0  # of the draws of gibbs, which depend on how images are batched too

    def to_json(self) -> dict[str, Any]:
        """Plain values, for results.json."""
        return asdict(self) | {"map": self.map.value, "order": self.order.value}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Retrieval":
        """The inverse of `to_json`."""
        names = {"map": MapName(values["map"]), "order": OrderName(values["order"])}
        return Retrieval(**(values | names))

    def describe(self) -> str:
        """For tables and legends."""
        words = [f"{self.map.value} map", f"inverse temperature x {self.inverse_temperature:g}"]
        words += [f"inertia {self.inertia:g}"] * bool(self.inertia)
        words += [f"damping {self.damping:g}"] * bool(self.damping)
        words += [f"evidence {self.evidence:g}"] * bool(self.evidence)
        words += ["token by token"] * (self.order is OrderName.sequential)
        return ", ".join(words)


Reading = (
    Retrieval | Passes | Recollection | Heads | SlotReading
)  # how a prediction is read from a network of each kind


class Network(Protocol):
    """What can be trained, saved and evaluated here: `AttractorNetwork`, `TransformerNetwork`, ..."""

    @property
    def encoding(self) -> Encoding: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def backend_name(self) -> str:
        """What computes it, in a word."""
        ...

    @property
    def ranks(self) -> Ranks | None:
        """The processes that share its rows, if several do."""
        ...

    @property
    def rows(self) -> range:
        """The rows of the weights that this process holds."""
        ...

    @property
    def weights(self) -> dict[str, Tensor]:
        """What is learned, by name: the tensors themselves, (rows, ...) each."""
        ...

    @property
    def parameters(self) -> int:
        """How many numbers are learned, by all processes."""
        ...

    def predictions(self, corrupted: Corrupted, reading: Any) -> Iterator[Tensor]:
        """Predicted pixels (B, C, H, W) after iteration t = 1, 2, ...; `reading` is one of its kind."""
        ...


class AttractorNetwork:
    """Couplings with their energy, and the encoding of pixels (B, C, H, W) as tokens (B, N, D)."""

    def __init__(self, energy: LocalEnergy, encoding: Encoding) -> None:
        self.energy = energy
        self.encoding = encoding

    @property
    def device(self) -> torch.device:
        """Where the couplings are, and the tokens; pixels are on the CPU."""
        return next(iter(self.energy.couplings.weights.values())).device

    @property
    def backend(self) -> Backend:
        """What computes the energies. Raises ValueError if the backend asked for cannot."""
        # each backend has a module of its name
        return Backend(type(self.energy.kernel).__module__.rpartition(".")[2])

    @property
    def backend_name(self) -> str:
        return self.backend.value

    @property
    def ranks(self) -> Ranks | None:
        return self.energy.ranks

    @property
    def rows(self) -> range:
        return self.energy.couplings.rows

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.energy.couplings.weights

    @property
    def parameters(self) -> int:
        return self.energy.couplings.parameters

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, C, H, W) to tokens (B, N, D) on the device of the couplings."""
        return self.encoding.encode(pixels).to(self.device)

    def start(self, corrupted: Corrupted) -> Tensor:
        """x_0: the corrupted image as tokens; a masked token, which says nothing, is the zero vector."""
        x = self.encode(corrupted.corrupted)
        if corrupted.mask is not None:
            x = x.masked_fill(corrupted.mask.unsqueeze(-1).to(x.device), 0.0)
        return x

    def states(self, corrupted: Corrupted, retrieval: Retrieval) -> Iterator[Tensor]:
        """x_1, x_2, ... (B, N, D), without end. Visible tokens of a masked image are clamped."""
        x = self.start(corrupted)
        evidence = None
        if retrieval.evidence:
            evidence = Evidence(field=retrieval.evidence * x, precision=retrieval.evidence)
        dynamics = Dynamics(
            map=_map(retrieval, corrupted),
            order=Sequential() if retrieval.order is OrderName.sequential else Synchronous(),
            inverse_temperature=self.energy.inverse_temperature * retrieval.inverse_temperature,
            inertia=retrieval.inertia,
            damping=retrieval.damping,
        )
        clamped = None if corrupted.mask is None else ~corrupted.mask.to(x.device)
        return iterate(self.energy, x, dynamics, clamped=clamped, evidence=evidence, tolerance=_ARRIVED)

    def predictions(self, corrupted: Corrupted, reading: Retrieval) -> Iterator[Tensor]:
        """The states, decoded, without end."""
        for x in self.states(corrupted, reading):
            yield self.encoding.decode(x).cpu()


@dataclass(frozen=True)
class Recall:
    """A network read in one way, as a `Reconstructor`."""

    network: Network
    retrieval: Reading

    def reconstruct(self, corrupted: Corrupted) -> Iterator[Tensor]:
        """Predicted pixels (B, C, H, W) after iteration t = 1, 2, ..."""
        return self.network.predictions(corrupted, self.retrieval)


def _map(retrieval: Retrieval, corrupted: Corrupted) -> Map:
    match retrieval.map:
        case MapName.attention:
            return Attention()
        case MapName.mean_field:
            return MeanField()
        case MapName.mean_field_projected:
            return MeanField(projected=True)
        case MapName.gibbs:
            # keyed by the images too, or all batches would share their draws
            content = zlib.crc32(corrupted.corrupted.contiguous().numpy().tobytes())
            return Gibbs(generator=Generator().manual_seed(retrieval.seed * 2**32 + content))


def log_pseudo_likelihood(network: AttractorNetwork, pixels: Tensor, *, batch_size: int) -> float:
    """Mean log p(x_i | x_others) of clean images, nats per token, relative to the spin measure."""
    with torch.inference_mode():
        total = 0.0
        for batch in pixels.split(batch_size):
            tokens = network.encode(batch)
            total += float(network.energy.log_conditional(tokens).double().sum())
    return total / (len(pixels) * network.energy.couplings.tokens)
