"""Slots as a network of the lab: a mixture of Hopfield networks, learned in closed form, read once.

`SlotNetwork` holds heads of slots, a `SlotReading` is one way to read them. All that the answers need is
saved, so a run that is loaded needs no images; covariances are not, since precisions say the same.
"""

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from attractor.images import Corrupted, PixelEncoding, from_patches, to_patches, to_pixels
from attractor.lab.errors import configuring
from attractor.lab.experiment.undivided import Undivided
from attractor.physics import (
    LowRankSlots,
    PixelEvidence,
    Shrinkage,
    SlotHead,
    SlotMixture,
    SlotReader,
    SlotRecipe,
    fit_head,
    noisy,
    seen,
)

_KNOWN = 1e-3  # variance of a visible pixel: so small that the slots keep it as it is


@dataclass(frozen=True)
class SlotReading:
    """One way to read slots; see `physics.SlotReader`.

    candidates: slots of a head that answer. inverse_temperature: of the posterior over them.
    noise_variance: of noisy images, which have no mask. steps: 1, the only t, once it is chosen.
    """

    candidates: int
    inverse_temperature: float
    noise_variance: float = 0.7
    steps: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for results.json."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "SlotReading":
        """The inverse of `to_json`."""
        return SlotReading(**values)

    def describe(self) -> str:
        """For tables and legends."""
        return f"{self.candidates:,} slots answer, inverse temperature {self.inverse_temperature:g}"


class SlotNetwork(Undivided):
    """Heads of slots, each made from draws of its own; their predictions are averaged.

    It answers after `learn`, or once its weights are filled with those of a checkpoint.
    """

    def __init__(
        self,
        encoding: PixelEncoding,
        recipe: SlotRecipe,
        *,
        heads: int,
        descriptions: list[str],
        device: torch.device,
    ) -> None:
        """descriptions: of copies of the training images, see `images.symmetries`.

        Raises ValueError for copies that are none.
        """
        super().__init__(encoding, descriptions=descriptions, device=device)
        self.recipe = recipe
        self._count = heads
        self._weights: dict[str, Tensor] | None = None

    @property
    def pixels(self) -> int:
        """P, of all channels."""
        return self.encoding.tokens * self.encoding.dim

    @property
    def weights(self) -> dict[str, Tensor]:
        """What is learned, float32, as one row (1, ...): 0.means of the first head, and so on."""
        if self._weights is None:
            shapes = _shapes(self.recipe, self.pixels)
            self._weights = {
                f"{head}.{name}": torch.empty(1, *shape, device=self.device)
                for head in range(self._count)
                for name, shape in shapes.items()
            }
            for head in range(self._count):
                self._weights[f"{head}.log_weights"].fill_(torch.nan)  # which says that nothing is learned
        return self._weights

    @property
    def parameters(self) -> int:
        """Numbers in weights, means and symmetric precisions, from which the slots of low rank follow."""
        return self._count * self.recipe.slots * (1 + self.pixels + self.pixels * (self.pixels + 1) // 2)

    @property
    def heads(self) -> list[SlotHead]:
        """What was learned. Raises ValueError before that."""
        weights = self.weights
        if bool(weights["0.log_weights"].isnan().any()):
            raise ValueError("the slots have learned nothing: let them learn images first")
        names = _shapes(self.recipe, self.pixels)
        return [
            _head({name: weights[f"{head}.{name}"][0] for name in names}) for head in range(self._count)
        ]

    def learn(self, images: Tensor, recipe: SlotRecipe, *, seed: int) -> None:
        """All heads from uint8 (M, C, H, W) and their copies. Raises ValueError as `fit_head`."""
        weights: dict[str, Tensor] = {}
        first, *others = self.symmetries
        pixels = self._vectors(to_pixels(first(images)))
        for number in range(self._count):
            copied = (self._vectors(to_pixels(copy(images))) for copy in others)
            head = fit_head(pixels, recipe, generator=_draws(seed, number), copies=copied)
            weights |= {f"{number}.{name}": value[None] for name, value in _state(head).items()}
        self._weights = weights

    def predictions(self, corrupted: Corrupted, reading: Any) -> Iterator[Tensor]:
        """Pixels (B, C, H, W), once."""
        assert isinstance(reading, SlotReading)
        return self.tempered(corrupted, reading, [reading.inverse_temperature])

    def tempered(
        self, corrupted: Corrupted, reading: SlotReading, inverse_temperatures: Sequence[float]
    ) -> Iterator[Tensor]:
        """Pixels (B, C, H, W) at each inverse temperature; the slots are asked once for all of them."""
        with torch.inference_mode():
            evidence = self._evidence(corrupted, reading)
            asked = [_reader(head, corrupted, reading) for head in self.heads]
            answers = [reader.answer(evidence) for reader in asked]
        for temperature in inverse_temperatures:
            with torch.inference_mode():
                found = [
                    replace(reader, inverse_temperature=temperature).mean(*answer)
                    for reader, answer in zip(asked, answers, strict=True)
                ]
                x = torch.stack(found).mean(0).unflatten(1, (self.encoding.tokens, self.encoding.dim))
                pixels = from_patches(x, patch=self.encoding.patch).clamp(0, 1).cpu()
            yield pixels

    def _evidence(self, corrupted: Corrupted, reading: SlotReading) -> PixelEvidence:
        pixels = self._vectors(corrupted.corrupted)
        if corrupted.mask is None:
            return noisy(pixels, variance=reading.noise_variance)
        visible = ~corrupted.mask.to(self.device).repeat_interleave(self.encoding.dim, 1)
        return seen(pixels, visible, variance=_KNOWN)

    def _vectors(self, pixels: Tensor) -> Tensor:
        """Pixels (B, C, H, W) as (B, P), token after token."""
        return to_patches(pixels, patch=self.encoding.patch).flatten(1).to(self.device)


@dataclass(frozen=True)
class ClosedForm:
    """The rule of slots: k-means, moments and shrunk covariances of all training images, once."""

    shrinkage: Shrinkage
    iterations: int  # of k-means
    seed: int
    objective = ""

    def learn(self, network: SlotNetwork, images: Tensor) -> float:
        """From uint8 (P, C, H, W); the seconds that it took. Raises ConfigError for what makes no slots."""
        begin = time.perf_counter()
        recipe = replace(network.recipe, shrinkage=self.shrinkage, iterations=self.iterations)
        with configuring():
            network.learn(images, recipe, seed=self.seed)
        return time.perf_counter() - begin


def _shapes(recipe: SlotRecipe, pixels: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a head."""
    slots = recipe.slots
    return {
        "log_weights": (slots,),
        "means": (slots, pixels),
        "precisions": (slots, pixels, pixels),
        "log_determinants": (slots,),
        "loadings": (slots, pixels, recipe.rank),
        "noise": (),
        "screening_loadings": (slots, pixels, recipe.screening_rank),
        "screening_noise": (),
    }


def _state(head: SlotHead) -> dict[str, Tensor]:
    low = {"loadings": head.low_rank.loadings, "noise": head.low_rank.noise}
    screen = {"screening_loadings": head.screen.loadings, "screening_noise": head.screen.noise}
    return head.full.state_dict() | low | screen


def _head(state: Mapping[str, Tensor]) -> SlotHead:
    """The inverse of `_state`."""
    common = (state["log_weights"], state["means"])
    return SlotHead(
        SlotMixture(*common, precisions=state["precisions"], log_determinants=state["log_determinants"]),
        LowRankSlots(*common, state["loadings"], state["noise"]),
        LowRankSlots(*common, state["screening_loadings"], state["screening_noise"]),
    )


def _reader(head: SlotHead, corrupted: Corrupted, reading: SlotReading) -> SlotReader:
    """Full precision for masks, low rank for noise."""
    make = head.quick if corrupted.mask is None else head.exact
    return make(candidates=reading.candidates, inverse_temperature=reading.inverse_temperature)


def _draws(seed: int, head: int) -> Generator:
    """A stream of each head, apart from that of other rules."""
    return Generator().manual_seed(zlib.crc32(f"slots of head {head} of {seed}".encode()))
