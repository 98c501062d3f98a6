"""Beyond the paper: the atlases' labels at the coordinates of a scan's voxels, fused over several atlases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from mre_lowshot.atlas.atlas import Atlas, Atlases
from mre_lowshot.atlas.lesions import without_lesions
from mre_lowshot.atlas.similarity import local_similarity, normalize_locally
from mre_lowshot.config import Plan
from mre_lowshot.grid import IGNORE, outside_volume, sample_image, sample_label, sample_shares

MIRRORED_WEIGHT = 0.5  # of a mirrored atlas: no brain is perfectly symmetric (docs/LOG.md)
OUTSIDE_WEIGHT = np.float32(1e-6)  # of an atlas at positions outside it, so that the other atlases decide
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
        """The network's input: (K - 1, *patch) float32, the share of the atlases that have each foreground class there.

        Args:
            coordinates: (atlases * axes, *patch).
            without: number of an atlas that is left out. Mirrored atlases always are.
        """
        atlases = islice(self._positions(coordinates), self.count - self.mirrored_count)
        used = [pair for number, pair in enumerate(atlases) if number != without]
        shares = np.zeros((self.classes - 1, *coordinates.shape[1:]), dtype=np.float32)
        for label, positions in used:
            sampled = sample_label(label, positions)
            shares += np.stack([sampled == k for k in range(1, self.classes)])
            shares[:, sampled == UNKNOWN] += np.float32(1 / self.classes)
        return shares / len(used)

    def fuse_labels(self, coordinates: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
        """The warped labels of all atlases as class probabilities: (K, *patch) float32, interpolated linearly.

        Locally weighted voting: with several atlases, each is weighted voxel by voxel by its similarity to the scan's
        ``image`` (C, *patch), as a badly registered atlas, or one of another body shape, looks different there. Where
        an atlas's edge cuts a structure, its continuation is unknown: every class has the same share, and atlases
        that reach further decide.
        """
        if self.count == 1:  # its weight does not matter
            return self._warped_shares(*next(self._positions(coordinates)))[0]
        own = None
        if image is not None and self.scans:
            own = normalize_locally(image.mean(axis=0))
        total = np.zeros((self.classes, *coordinates.shape[1:]), dtype=np.float32)
        weights = np.zeros(coordinates.shape[1:], dtype=np.float32)
        for number, (label, positions) in enumerate(self._positions(coordinates)):
            shares, outside = self._warped_shares(label, positions)
            base = 1 if number < self.count - self.mirrored_count else MIRRORED_WEIGHT
            weight = np.full(weights.shape, base, dtype=np.float32)
            if own is not None:
                warped = sample_image(self.scans[number][None], positions)[0]
                weight *= local_similarity(own, normalize_locally(warped))
            weight[outside] *= OUTSIDE_WEIGHT
            shares *= weight
            total += shares
            weights += weight
        total /= weights
        return total

    def _warped_shares(self, label: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class shares (K, *patch) of a label map at voxel positions, interpolated linearly; and which positions lie
        outside it (*patch)."""
        unknown = label == UNKNOWN
        if unknown.any():
            shares = sample_shares(np.where(unknown, self.classes, label), positions, self.classes + 1)
            shares[:-1] += shares[-1] / self.classes
            shares = shares[:-1]
        else:
            shares = sample_shares(label, positions, self.classes)
        outside = outside_volume(np.rint(positions), label.shape)
        shares[:, outside & (shares[0] < 0.5)] = 1 / self.classes
        return shares, outside


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
