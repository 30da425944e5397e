"""A memory of training images as a network of the lab: stored once, read as validation chooses.

`MemoryNetwork` holds images and their copies, a `Recollection` is one way to read them, `Heads` are
several. What is saved of the network is which images it stores; a run that is loaded reads them again.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from attractor.lab.errors import ConfigError
from attractor.lab.experiment.machine import available_bytes
from attractor.lab.experiment.recollection import Heads, Recollection
from attractor.lab.experiment.undivided import Undivided
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


class MemoryNetwork(Undivided):
    """Images to be stored, and how they become patterns; empty until `store`."""

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
        super().__init__(encoding, descriptions=descriptions, device=device)
        self.candidates = candidates
        self.grain = encoding.patch if grain is None else grain
        self._tokens = grid_side(encoding.side, patch=self.grain) ** 2
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
        shape = (len(self.symmetries), len(images), images[0].numel())
        levels = torch.empty(shape, dtype=images.dtype, device=self.device)
        for copy, level in zip(self.symmetries, levels, strict=True):
            level.copy_(to_patches(copy(images), patch=self.grain).flatten(1))
        self._patterns = PatternMemory(levels, tokens=self._tokens)
        self._stored = torch.arange(len(images))[None]

    def predictions(self, corrupted: Corrupted, reading: Any) -> Iterator[Tensor]:
        """Pixels (B, C, H, W) after t = 1, 2, ... up to `reading.limit`."""
        assert isinstance(reading, Recollection | Heads)
        answers = Answers(self, corrupted)
        for t in range(1, reading.limit + 1):
            yield answers.at(reading, t)

    def attention(self, reading: Recollection, t: int) -> LocalAttention:
        """That of iteration t, with no more neighbours than there are patterns."""
        attention, most = reading.attention(t), self.patterns.count * self.patterns.copies
        if attention.neighbours is None or attention.neighbours <= most:
            return attention
        return replace(attention, neighbours=most)

    def known(self, corrupted: Corrupted, reading: Recollection) -> Shortlist:
        """The evidence, and the stored images that it resembles."""
        memory = self.patterns
        pixels = to_patches(corrupted.corrupted, patch=self.grain).flatten(1).to(self.device)
        if corrupted.pixel_mask is None:
            return memory.search(noisy(pixels, variance=reading.noise_variance), self.compared)
        hidden = corrupted.pixel_mask.expand_as(corrupted.original)
        hidden = to_patches(hidden, patch=self.grain).to(self.device)  # (B, N, D)
        evidence = seen(pixels, ~hidden.flatten(1), variance=reading.ridge)
        return memory.search(evidence, self.compared, asked=hidden.any(2))

    def step(self, x: Tensor, attention: LocalAttention, shortlist: Shortlist) -> Tensor:
        """The next state (B, N, D)."""
        memory = LocalLinearMemory(self.patterns, attention, squared_distances=self._distances)
        return next(iterate(memory, x, Dynamics(_Clipped()), evidence=shortlist))


class Answers:
    """What a memory answers to one batch, in as many readings as are asked for.

    What several readings have in common is done once: the search, and the iterations before they part.
    """

    def __init__(self, network: MemoryNetwork, corrupted: Corrupted) -> None:
        self._network, self._corrupted = network, corrupted
        self._shortlists: dict[tuple[float, float], Shortlist] = {}
        self._states: dict[tuple[Any, ...], Tensor] = {}

    def at(self, reading: Recollection | Heads, t: int) -> Tensor:
        """Pixels (B, C, H, W) after iteration t."""
        if isinstance(reading, Heads):
            times = [min(t, each.last) for each in reading.readings]
            found = reading.predict([self.at(*each) for each in zip(reading.readings, times, strict=True)])
            hidden = self._corrupted.pixel_mask
            return found if hidden is None else torch.where(hidden, found, self._corrupted.corrupted)
        return from_patches(self._state(reading, t), patch=self._network.grain).clamp(0, 1).cpu()

    def _state(self, reading: Recollection, t: int) -> Tensor:
        network = self._network
        if t == 0:
            return to_patches(self._corrupted.corrupted, patch=network.grain).to(network.device)
        unit = (reading.ridge, reading.noise_variance)
        attended = [network.attention(reading, s) for s in range(1, t + 1)]
        key = (unit, *attended)
        if key not in self._states:
            before = self._state(reading, t - 1)
            with torch.inference_mode():
                if unit not in self._shortlists:
                    self._shortlists[unit] = network.known(self._corrupted, reading)
                self._states[key] = network.step(before, attended[-1], self._shortlists[unit])
        return self._states[key]


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
