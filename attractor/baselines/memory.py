"""The softmax memory: one step of attention over all stored training images.

    x(y) = sum_m softmax_m(-beta |y - m|^2 / 2) m

the posterior mean if images were drawn from memory and blurred with variance 1 / beta: the universal
Hopfield network (`universal`) of the Euclidean similarity and the softmax. Under a mask only the visible
pixels count in the distance. Sources: Ramsauer et al. 2020, arXiv 2008.02217 (modern Hopfield networks);
Millidge et al. 2022, arXiv 2202.04557 (the Euclidean similarity).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from attractor.baselines.separations import Softmax
from attractor.baselines.similarities import Euclidean
from attractor.baselines.universal import project
from attractor.images import Corrupted, Task

BETAS = (0.1, 0.2, 0.3, 0.5, 0.65, 0.8, 1.0, 1.25, 1.6, 2.0, 3.0, 5.0, 10.0, 20.0)
_SCORES = 2**23  # queries times memories at a time: two buffers of 32 MB
_CHUNK = 4096  # memories turned into float32 at a time: 13 MB for MNIST


class DenseMemory:
    """Stores every training image; `beta` maps the name of a task to its inverse temperature.

    Works on the device of `train`, in float32 and bounded memory (140 MB for MNIST): the scores are
    made for a block of images at a time, the memories turned into pixels in chunks.
    """

    similarity = Euclidean()
    separation = Softmax()

    def __init__(self, train: Tensor, *, beta: Mapping[str, float] | None = None) -> None:
        """`train` is uint8 (M, C, H, W); `beta`, in 1 / squared pixels, may be left to `select`.

        Raises ValueError for a beta that is not positive.
        """
        if any(not value > 0 for value in (beta or {}).values()):
            raise ValueError(f"beta is {beta}; every inverse temperature must be positive")
        self.train = train
        self.beta = dict(beta or {})

    def select(
        self, pixels: Tensor, tasks: Sequence[Task], *, seed: int, betas: Sequence[float] = BETAS
    ) -> None:
        """Set the beta of each task to that of `betas` with the least error on validation `pixels`.

        The distances do not depend on beta and are computed once.
        """
        for task in tasks:
            corrupted = task.corrupt(pixels, range(len(pixels)), seed=seed)
            predictions = self._predict(corrupted, betas)
            errors = [float(corrupted.squared_error(p).mean()) for p in predictions]
            self.beta[task.name] = betas[min(range(len(betas)), key=errors.__getitem__)]

    def reconstruct(self, corrupted: Corrupted) -> Iterator[Tensor]:
        """See `images.Reconstructor`; one shot. Raises ValueError for a task without a beta."""
        if corrupted.task not in self.beta:
            raise ValueError(
                f"no beta for task {corrupted.task!r}, only for {sorted(self.beta)}; select it on"
                " validation images or give it"
            )
        yield self._predict(corrupted, [self.beta[corrupted.task]])[0]

    def _predict(self, corrupted: Corrupted, betas: Sequence[float]) -> list[Tensor]:
        """One prediction (B, C, H, W) for each beta."""
        seen = corrupted.corrupted
        queries = seen.to(self.train.device, torch.float32)
        visible = torch.ones_like(queries)
        if corrupted.pixel_mask is not None:
            visible.masked_fill_(corrupted.pixel_mask.to(visible.device), 0)
            queries = queries * visible
        step = max(1, _SCORES // len(self.train))
        blocks = zip(queries.flatten(1).split(step), visible.flatten(1).split(step), strict=True)
        answers = torch.cat([self._answer(y, v, betas=betas) for y, v in blocks], 1)
        return list(answers.reshape(len(betas), *seen.shape).to(seen))

    def _answer(self, query: Tensor, visible: Tensor, *, betas: Sequence[float]) -> Tensor:
        """Predictions (betas, B, P) of a block of queries (B, P)."""
        scores = self._scores(query, visible)
        weights = torch.empty_like(scores)
        answer = torch.empty(len(betas), *query.shape, device=query.device)
        for row, beta in zip(answer, betas, strict=True):
            self.separation.exponentials(scores, beta=beta, out=weights)
            row.copy_(project(weights, self._chunks(), normalised=self.separation.normalised))
        return answer

    def _scores(self, query: Tensor, visible: Tensor) -> Tensor:
        """-|y - m|^2 / 2 over visible pixels, less its maximum over m; (B, M)."""
        scores = torch.empty(len(query), len(self.train), device=query.device)
        for part, m in zip(scores.split(_CHUNK, -1), self._chunks(), strict=True):
            # the chunk is ours to square in place
            part.copy_(self.similarity.relative(query, m, visible=visible, scratch=m))
        return scores.sub_(scores.amax(-1, keepdim=True))

    def _chunks(self) -> Iterator[Tensor]:
        """Memories as pixels (., P), in one buffer: fresh memory costs more than the product."""
        buffer = torch.empty(_CHUNK, self.train[0].numel(), device=self.train.device)
        for images in self.train.flatten(1).split(_CHUNK):
            yield buffer[: len(images)].copy_(images).div_(255)
