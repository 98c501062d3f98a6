"""Beyond the paper: the atlases' labels at the coordinates of a scan's voxels, fused over several atlases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mre_lowshot.atlas.atlas import Atlas, Atlases
from mre_lowshot.atlas.lesions import without_lesions
from mre_lowshot.atlas.registration.volumes import locally_normalised, sampled
from mre_lowshot.atlas.similarity import local_similarity
from mre_lowshot.config import Plan
from mre_lowshot.devices import slabs
from mre_lowshot.grid import IGNORE, LabelMap, sample_label
from mre_lowshot.transfers import Array, as_tensor, true_positions

MIRRORED_WEIGHT = 0.5  # of a mirrored atlas: no brain is perfectly symmetric (docs/LOG.md)
OUTSIDE_WEIGHT = 1e-6  # of an atlas outside it, and where it is not annotated: the other atlases decide
UNKNOWN = -2  # an ignored voxel of an atlas, as distinct from `IGNORE`, a position outside it


def class_shares(label: np.ndarray, classes: int) -> np.ndarray:
    """One-hot (K, *size) float32 of a label map (*size); an ignored voxel is 1/K of every class."""
    shares = np.stack([label == k for k in range(classes)]).astype(np.float32)
    shares[:, label == IGNORE] = 1 / classes
    return shares


@dataclass(frozen=True)
class AtlasPrior:
    """The atlases' label maps, each sampled at its part of the coordinates (atlases * axes, *patch).

    Attributes:
        labels: the atlases' label maps (*size) int16. Ignored voxels have the same share of every class.
        classes: K.
        mirrored_count: how many of the last atlases are mirror images of others. They are no input of the network, and
            have weight `MIRRORED_WEIGHT` in `fuse_labels`.
        scans: the atlases' images (*size), channels averaged, for the weights of several atlases.
    """

    labels: tuple[np.ndarray, ...]
    classes: int
    mirrored_count: int = 0
    scans: tuple[np.ndarray, ...] = ()

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return self.labels[0].ndim

    @property
    def count(self) -> int:
        """Number of atlases, mirrored ones included."""
        return len(self.labels)

    def _positions(self, coordinates: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each atlas's label map, and the coordinates as its voxel positions (axes, *patch)."""
        for label, part in zip(self._marked, np.split(coordinates, len(coordinates) // self.axes), strict=True):
            yield label, (part + 1) / 2 * (np.asarray(label.shape).reshape(-1, *[1] * (part.ndim - 1)) - 1)

    @cached_property
    def _marked(self) -> tuple[np.ndarray, ...]:
        return tuple(np.where(label == IGNORE, UNKNOWN, label) for label in self.labels)

    def foreground_shares(self, coordinates: np.ndarray, *, without: int | None = None) -> np.ndarray:
        """The network's input: (K - 1, *patch) float32, the share of the atlases that have each foreground class there,
        among those that are annotated there; 1/K where none is.

        Args:
            coordinates: (atlases * axes, *patch).
            without: number of an atlas that is left out. Mirrored atlases always are.
        """
        atlases = islice(self._positions(coordinates), self.count - self.mirrored_count)
        used = [pair for number, pair in enumerate(atlases) if number != without]
        shares = np.zeros((self.classes - 1, *coordinates.shape[1:]), dtype=np.float32)
        known = np.zeros(coordinates.shape[1:], dtype=np.float32)
        for label, positions in used:
            sampled = sample_label(label, positions)
            shares += np.stack([sampled == k for k in range(1, self.classes)])
            known += sampled != UNKNOWN
        shares[:, known == 0] = np.float32(1 / self.classes)
        return shares / np.maximum(known, 1)

    def fuse_labels(
        self, coordinates: Array, image: Array | None = None, *, device: torch.device | None = None
    ) -> Tensor:
        """The warped labels of all atlases as class probabilities: (K, *patch) float32, interpolated linearly, on
        ``device`` (default: the CPU).

        Locally weighted voting: with several atlases, each is weighted voxel by voxel by its similarity to the scan's
        ``image`` (C, *patch), as a badly registered atlas, or one of another body shape, looks different there. Where
        an atlas's edge cuts a structure, its continuation is unknown: every class has the same share, and atlases
        that reach further decide. So do annotated atlases where another one is not annotated.
        """
        maps = as_tensor(coordinates, device).float()
        parts = maps.split(self.axes)
        atlases = [_WarpedAtlas.of(label, self.classes, maps.device) for label in self._marked]
        weights: list[Tensor | float] = [1.0]  # of a single one, which does not matter
        if len(atlases) > 1:
            weights = list(self._weights(parts, None if image is None else as_tensor(image, maps.device)))
        fused = maps.new_empty(self.classes, *maps.shape[1:])
        for slab in slabs(maps.shape[1], 4 * fused[0, 0].numel(), maps.device):
            shares, information = zip(
                *(a.shares(part[:, slab]) for a, part in zip(atlases, parts, strict=True)), strict=True
            )
            if len(atlases) == 1:
                fused[:, slab] = shares[0]
                continue
            here = [weight[slab] if isinstance(weight, Tensor) else weight for weight in weights]
            its = [i * w for i, w in zip(information, here, strict=True)]
            total = sum(share.mul_(weight) for share, weight in zip(shares, its, strict=True))
            fused[:, slab] = total / sum(its)
        return fused

    def _weights(self, parts: Sequence[Tensor], image: Tensor | None) -> Iterator[Tensor | float]:
        """Each atlas's weight: (*patch), or one number where there is nothing to compare."""
        own = None if image is None or not self.scans else locally_normalised(image.float().mean(dim=0))
        for number, part in enumerate(parts):
            base = 1.0 if number < self.count - self.mirrored_count else MIRRORED_WEIGHT
            if own is None:
                yield base
                continue
            scan = as_tensor(self.scans[number], part.device).float()
            warped = sampled(scan[None], _voxels(part, scan.shape))[0]
            yield base * local_similarity(own, locally_normalised(warped))


@dataclass(frozen=True)
class _WarpedAtlas:
    """An atlas's label map, to be sampled on a device; ``unknown``: it has ignored voxels, as class K."""

    label: LabelMap
    classes: int
    unknown: bool

    @classmethod
    def of(cls, label: np.ndarray, classes: int, device: torch.device) -> _WarpedAtlas:
        ignored = label == UNKNOWN
        unknown = bool(ignored.any())
        marked = np.where(ignored, label.dtype.type(classes), label) if unknown else label
        return cls(LabelMap.of(marked, classes + unknown, device), classes, unknown)

    def shares(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Class shares (K, *patch) at ``coordinates`` (axes, *patch), interpolated linearly; and how far the atlas has
        information there (*patch): 1, or `OUTSIDE_WEIGHT` outside it and at voxels that are not annotated."""
        size = self.label.label.shape
        positions = _voxels(coordinates, size)
        shares = self.label.shares(positions)
        information = positions.new_ones(positions.shape[1:])
        if self.unknown:
            information -= shares[-1] * (1 - OUTSIDE_WEIGHT)
            shares = shares[:-1].add_(shares[-1] / self.classes)
        outside = torch.zeros(positions.shape[1:], dtype=torch.bool, device=positions.device)
        for line, n in zip(positions.round(), size, strict=True):
            outside |= (line < 0) | (line > n - 1)
        cut = true_positions(outside & (shares[0] < 0.5))
        shares.flatten(1).index_fill_(1, cut, 1 / self.classes)
        return shares, information.masked_fill_(outside, OUTSIDE_WEIGHT)


def _voxels(coordinates: Tensor, size: Sequence[int]) -> Tensor:
    """Coordinates (axes, *patch) from -1 to 1 as voxel positions in a volume of ``size``."""
    last = torch.tensor([n - 1 for n in size], dtype=coordinates.dtype).to(coordinates.device)
    return (coordinates + 1) / 2 * last.view(-1, *[1] * (coordinates.ndim - 1))


def build_prior(atlases: Sequence[Atlas], classes: int, lesions: Sequence[int] = ()) -> AtlasPrior:
    """The prior of several atlases over ``classes`` classes; the classes ``lesions`` take no part in it."""
    mirrored = sum(atlas.mirrored for atlas in atlases)
    scans = tuple(atlas.image.mean(axis=0) for atlas in atlases) if len(atlases) > 1 else ()
    labels = tuple(without_lesions(atlas.label, lesions, atlas.spacing) for atlas in atlases)
    return AtlasPrior(labels, classes, mirrored, scans)


def atlas_prior_of(atlases: Atlases, plan: Plan) -> AtlasPrior | None:
    """The atlas prior of the plan's network; None where it has none."""
    if not atlases or not plan.network.atlas_prior:
        return None
    return build_prior(atlases, plan.network.classes, plan.lesion_classes)
