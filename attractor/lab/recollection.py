"""A memory of training images as a network of the lab: stored once, read as validation chooses.

`MemoryNetwork` holds images and their copies, a `Recollection` is one way to read them. What is saved of
the network is which images it stores; a run that is loaded reads them again.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attractor.images import (
    Corrupted,
    ImageSplits,
    PixelEncoding,
    from_patches,
    grid_side,
    squared_distances,
    to_patches,
)
from attractor.images.symmetries import copies
from attractor.lab.errors import ConfigError
from attractor.lab.machine import available_bytes
from attractor.physics import (
    Dynamics,
    LocalAttention,
    LocalLinearMemory,
    MeanField,
    PatternMemory,
    Shortlist,
    iterate,
    noisy,
    seen,
)
from attractor.physics.pattern_memory import working_bytes


@dataclass(frozen=True)
class Recollection:
    """One way to read a memory: see `physics.LocalAttention` for the fields that it shares.

    common: so many iterations attend once for the whole image, before every token attends for itself; the
    first one does not look at the state, which is not yet an answer. limit: iterations at most. ridge: the
    variance up to which visible pixels of a masked image are taken at their word. noise_variance: of noisy
    images, which have no mask. steps: the t at which the prediction is read.
    """

    neighbours: int | None
    inverse_temperature: float = 4.0
    relative: bool = True
    reach: float | None = None
    pull: float = 0.0
    softening: float = 0.0
    shrinkage: float = 0.0
    window: int | None = 256
    common: int = 0
    ridge: float = 1e-3
    noise_variance: float = 0.7
    limit: int = 1
    steps: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for results.json; JSON has no infinity."""
        return asdict(self) | {"softening": None if self.softening == float("inf") else self.softening}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Recollection":
        """The inverse of `to_json`."""
        softening = values["softening"]
        return Recollection(**(values | {"softening": float("inf") if softening is None else softening}))

    def attention(self, t: int) -> LocalAttention:
        """How iteration t = 1, 2, ... attends."""
        whole = t <= self.common or self.reach is None
        return LocalAttention(
            neighbours=self.neighbours,
            inverse_temperature=self.inverse_temperature,
            relative=self.relative,
            reach=None if whole else self.reach,
            pull=0.0 if t == 1 else self.pull,
            softening=self.softening,
            shrinkage=0.0 if whole else self.shrinkage,
            window=self.window,
        )

    def describe(self) -> str:
        """For tables and legends."""
        if self.neighbours is None:
            near = "" if self.reach is None else f", ridge growing with a reach of {self.reach:g} pixels"
            return f"linear regression on all patterns, ridge {self.ridge:g}{near}"
        unit = "" if self.relative else " absolute"
        words = [
            f"{self.neighbours:,} neighbours",
            f"inverse temperature {self.inverse_temperature:g}{unit}",
        ]
        if self.softening == float("inf"):
            words.append("no regression (softmax memory)")
        if self.reach is not None:
            words.append(f"reach of a token {self.reach:g} pixels")
            words += [f"{self.common} iterations in common first"] * bool(self.common)
        words += [f"pull {self.pull:g}"] * bool(self.pull)
        words += [f"shrinkage {self.shrinkage:g}"] * bool(self.shrinkage and self.reach)
        words += [f"softening {self.softening:g}"] * bool(0 < self.softening < float("inf"))
        return ", ".join(words)


class MemoryNetwork:
    """Images to be stored, and how they become patterns; empty until `store`.

    It counts as one row, which no other process can share.
    """

    rows = range(1)
    backend_name = "torch"
    ranks = None

    def __init__(
        self,
        encoding: PixelEncoding,
        *,
        descriptions: list[str],
        grain: int | None,
        candidates: int | None,
        device: torch.device,
    ) -> None:
        """descriptions: of copies, see `images.symmetries`; candidates: images whose copies are compared.

        grain: side of the squares that attend for themselves, the tokens of the memory; those of the
        encoding unless given. Raises ValueError for copies that are none, or a grain that does not divide
        the side.
        """
        self.encoding, self.candidates, self.device = encoding, candidates, device
        self.grain = encoding.patch if grain is None else grain
        self._tokens = grid_side(encoding.side, patch=self.grain) ** 2
        self.symmetries = copies(descriptions, side=encoding.side)
        self._stored = torch.empty(1, 0, dtype=torch.int64)
        self._patterns: PatternMemory | None = None
        distances = squared_distances(encoding.channels, encoding.side, patch=self.grain)
        self._distances = distances.to(device)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The places of the stored images among the training images, as one row (1, M)."""
        return {"stored": self._stored}

    @property
    def parameters(self) -> int:
        """Pixels of the stored images, copies not counted."""
        return self._stored.numel() * self.encoding.tokens * self.encoding.dim

    @property
    def patterns(self) -> PatternMemory:
        """What is stored. Raises ValueError before `store`."""
        if self._patterns is None:
            raise ValueError("the memory is empty: store images first")
        return self._patterns

    @property
    def compared(self) -> int:
        """Stored images whose copies are compared with an image."""
        count = self.patterns.count
        return count if self.candidates is None else min(self.candidates, count)

    def store(self, images: Tensor) -> None:
        """Store uint8 (M, C, H, W), all of them. Raises ConfigError for more than the machine can hold."""
        refuse_more_than_fits(len(images), images[0].numel(), copies=len(self.symmetries))
        levels = [to_patches(copy(images), patch=self.grain).flatten(1) for copy in self.symmetries]
        self._patterns = PatternMemory(torch.stack(levels).to(self.device), tokens=self._tokens)
        self._stored = torch.arange(len(images))[None]

    def predictions(self, corrupted: Corrupted, reading: Any) -> Iterator[Tensor]:
        """Pixels (B, C, H, W) after t = 1, 2, ... up to `reading.limit`."""
        assert isinstance(reading, Recollection)
        with torch.inference_mode():
            shortlist = self._known(corrupted, reading)
            x = to_patches(corrupted.corrupted, patch=self.grain).to(self.device)
        attention = None
        for t in range(1, reading.limit + 1):
            if attention != (attention := self._attention(reading, t)):
                memory = LocalLinearMemory(self.patterns, attention, squared_distances=self._distances)
                states = iterate(memory, x, Dynamics(_Clipped()), evidence=shortlist)
            x = next(states)
            yield from_patches(x, patch=self.grain).clamp(0, 1).cpu()

    def _attention(self, reading: Recollection, t: int) -> LocalAttention:
        """That of iteration t, with no more neighbours than there are patterns."""
        attention, most = reading.attention(t), self.patterns.count * self.patterns.copies
        if attention.neighbours is None or attention.neighbours <= most:
            return attention
        return replace(attention, neighbours=most)

    def _known(self, corrupted: Corrupted, reading: Recollection) -> Shortlist:
        """The evidence, and the stored images that it resembles."""
        memory = self.patterns
        pixels = to_patches(corrupted.corrupted, patch=self.grain).flatten(1).to(self.device)
        if corrupted.pixel_mask is None:
            return memory.search(noisy(pixels, variance=reading.noise_variance), self.compared)
        hidden = corrupted.pixel_mask.expand_as(corrupted.original)
        hidden = to_patches(hidden, patch=self.grain).to(self.device)  # (B, N, D)
        evidence = seen(pixels, ~hidden.flatten(1), variance=reading.ridge)
        return memory.search(evidence, self.compared, asked=hidden.any(2))


class _Clipped(MeanField):
    """The conditional mean within [0, 1], where pixels are."""

    def __call__(self, energy: Any, x: Tensor, *, evidence: Any, rows: range | None) -> Tensor:
        return super().__call__(energy, x, evidence=evidence, rows=rows).clamp(0, 1)


@dataclass(frozen=True)
class Storing:
    """The rule of a memory: all training images are stored, once."""

    objective = ""

    def learn(self, network: MemoryNetwork, images: Tensor) -> float:
        """Store uint8 (P, C, H, W); the seconds that it took."""
        begin = time.perf_counter()
        network.store(images)
        return time.perf_counter() - begin


def refill(network: MemoryNetwork, stored: Tensor, splits: ImageSplits) -> None:
    """Store again the training images at the places `stored` (1, M) of a checkpoint."""
    if stored.numel() != len(splits.train):
        raise ConfigError(
            f"the run stored {stored.numel()} images, the data set has {len(splits.train)}; check data.root"
        )
    network.store(splits.train[stored[0]])


def refuse_more_than_fits(images: int, pixels: int, *, copies: int) -> None:
    """ConfigError, with the number of images that would fit, if the memory of the machine is too small."""
    available = available_bytes()
    if available is None:
        return
    needed, fixed = working_bytes(images, pixels, copies=copies), working_bytes(0, pixels, copies=copies)
    if needed > available:
        each = (needed - fixed) / images
        fit = int((available - fixed) / each)
        instead = f"{fit:,} images would fit: use data.train_images={fit}, or" if fit > 0 else "use"
        raise ConfigError(
            f"{images:,} images with {copies - 1} copies each need {needed / 1e9:.1f} GB, and "
            f"{available / 1e9:.1f} GB are free; {instead} fewer model.copies"
        )
