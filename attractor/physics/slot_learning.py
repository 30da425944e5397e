"""Slots in closed form: clusters of images, their means, and covariances shrunk towards a parent.

    C_s      = ( n_s S_s + n_0 C_parent ) / ( n_s + n_0 ) + ridge I,      S_s = <(x - m_s)(x - m_s)^T>_s
    C_parent = ( n_g S_g + n_1 S ) / ( n_g + n_1 ),                        S_g, S: pooled over slots

A parent stands for a cluster of slots: S_g is the mean of their S_s, weighted by their numbers of images
n_s, and S that over all slots. A slot has fewer images than pixels, so most directions are its parent's to
know.

It is the fixed point of the delta rule in `slot_rules`, and one pass over the images. Source: Friedman
1989, "Regularized discriminant analysis" (shrinkage towards a pooled covariance); Lloyd 1982 (k-means).
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

_CHUNK = 8192  # images compared with all centres at a time


@dataclass(frozen=True)
class Shrinkage:
    """How strongly covariances lean on those above: n_0, n_1 in images, ridge in squared pixels.

    Raises ValueError for negative numbers of images, and a ridge that is not positive.
    """

    parent: float = 100.0
    root: float = 1000.0
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if self.parent < 0 or self.root < 0:
            raise ValueError(f"parent and root count images, got {self.parent} and {self.root}")
        if not self.ridge > 0:
            raise ValueError(f"ridge is {self.ridge}; constant pixels need a positive one")


class SlotMoments:
    """Numbers n_s (S,), sums and second moments of the images of every slot, gathered batch by batch.

    Sums are taken of x - centre, near the mean, so that float32 does: covariances are small differences.
    """

    def __init__(self, centres: Tensor) -> None:
        """`centres` (S, P) are near the means, of k-means say."""
        slots, pixels = centres.shape
        self.centres = centres
        self.counts = centres.new_zeros(slots)
        self._sums = centres.new_zeros(slots, pixels)
        self._products = centres.new_zeros(slots, pixels, pixels)

    def add(self, x: Tensor, labels: Tensor) -> None:
        """Images x (B, P) of the slots `labels` (B,), int64."""
        slots, pixels = self.centres.shape
        if x.dim() != 2 or x.shape[1] != pixels or labels.shape != x.shape[:1]:
            raise ValueError(
                f"images and labels have shapes {tuple(x.shape)} and {tuple(labels.shape)}, "
                f"expected (B, {pixels}) and (B,)"
            )
        counts = torch.bincount(labels, minlength=slots)
        if len(counts) > slots:
            raise ValueError(f"labels go up to {len(counts) - 1}, but there are {slots} slots")
        self.counts += counts
        for s, members in enumerate(labels.argsort(stable=True).split(counts.tolist())):
            deviation = x[members] - self.centres[s]
            self._sums[s] += deviation.sum(0)
            self._products[s].addmm_(deviation.T, deviation)

    @property
    def means(self) -> Tensor:
        """m_s (S, P); the centre where a slot has no images. Parents may be clusters of them."""
        return self.centres + self._sums / self.counts.clamp_min(1)[:, None]

    def solve(self, parents: Tensor, *, shrinkage: Shrinkage) -> tuple[Tensor, Tensor, Tensor]:
        """log pi_s (S,), means m_s (S, P) and covariances C_s (S, P, P).

        `parents` (S,) names the parent of every slot. To save memory the covariances are made where the
        second moments were: call it once. Raises ValueError for a slot without images.
        """
        if parents.shape != self.counts.shape:
            raise ValueError(f"parents have shape {tuple(parents.shape)}, expected ({len(self.counts)},)")
        if empty := (self.counts == 0).nonzero().flatten().tolist():
            raise ValueError(f"slots {empty} have no images; leave them out, or use fewer slots")
        shift = self._sums / self.counts[:, None]
        covariances = self._products
        for covariance, count, offset in zip(covariances, self.counts, shift, strict=True):
            covariance.div_(count).sub_(torch.outer(offset, offset))
        pooled = _pooled(covariances, self.counts)
        for g in parents.unique().tolist():
            members = (parents == g).nonzero().flatten()
            size = self.counts[members].sum()
            parent = _pooled(covariances, self.counts, members)
            parent.mul_(size).add_(pooled, alpha=shrinkage.root).div_(size + shrinkage.root)
            for s in members.tolist():
                own, borrowed = float(self.counts[s]), shrinkage.parent
                covariances[s].mul_(own).add_(parent, alpha=borrowed).div_(own + borrowed)
        covariances.diagonal(dim1=1, dim2=2).add_(shrinkage.ridge)
        return (self.counts / self.counts.sum()).log(), self.means, covariances


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """The centre (S, P) nearest to each x (B, P), (B,) int64."""
    half = centres.square().sum(1) / 2
    return torch.cat([(part @ centres.T - half).argmax(1) for part in x.split(_CHUNK)])


def k_means(x: Tensor, clusters: int, *, generator: Generator, iterations: int = 8) -> Tensor:
    """Centres (S, P) of clusters of x (B, P): S images drawn, then `iterations` of Lloyd's two steps.

    A centre that loses all its images starts again at one that is drawn. Raises ValueError for fewer images
    than clusters.
    """
    if not 1 <= clusters <= len(x):
        raise ValueError(f"{len(x)} images cannot make {clusters} clusters; use 1 to {len(x)}")
    centres = x[_drawn(len(x), clusters, generator).to(x.device)]
    for _ in range(iterations):
        labels = nearest(x, centres)
        counts = torch.bincount(labels, minlength=clusters)
        centres = torch.zeros_like(centres).index_add_(0, labels, x) / counts.clamp_min(1)[:, None]
        if empty := int((counts == 0).sum()):
            centres[counts == 0] = x[_drawn(len(x), empty, generator).to(x.device)]
    return centres


def _drawn(images: int, count: int, generator: Generator) -> Tensor:
    return torch.randperm(images, generator=generator, device=generator.device)[:count]


def _pooled(covariances: Tensor, counts: Tensor, members: Tensor | None = None) -> Tensor:
    """sum_s n_s C_s / sum_s n_s, a matrix at a time."""
    every = range(len(counts)) if members is None else members.tolist()
    total = torch.zeros_like(covariances[0])
    for s in every:
        total.add_(covariances[s], alpha=float(counts[s]))
    return total / (counts.sum() if members is None else counts[members].sum())
