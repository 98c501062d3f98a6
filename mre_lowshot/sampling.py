"""Patches out of cases: where, how augmented, with their coordinate maps. One item is one mini-batch.

Mini-batch number n depends on (seed, n) alone, so that training gives the same result with any number of loader
workers, and goes on after an interruption as if there had been none.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from mre_lowshot.augmentation import deform, intensity_transform, jitter
from mre_lowshot.likeness import likeness, normalised
from mre_lowshot.losses import IGNORE
from mre_lowshot.specs import Recipe

DRAWS = 50  # of a place with a labelled voxel, in a partly labelled scan


@dataclass(frozen=True)
class TrainingCase:
    """A preprocessed scan: image (C, *size) float32, label (*size) int16 with `losses.IGNORE`, spacing in mm.

    ``coordinates`` (atlases * axes, *size) are its voxels' places in each atlas, -1 to 1; None: its own volume is the
    frame. ``own`` is which of the atlases the scan itself is.
    """

    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, ...]
    coordinates: np.ndarray | None = None
    own: int | None = None


def voxel_positions(corner: Sequence[int], patch: Sequence[int]) -> np.ndarray:
    """Voxel indices (axes, *patch) of a patch whose first voxel is ``corner``; they may lie outside the volume."""
    lines = [np.arange(c, c + n, dtype=np.float64) for c, n in zip(corner, patch, strict=True)]
    return np.stack(np.meshgrid(*lines, indexing="ij"))


def coordinate_maps(positions: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Cartesian maps of voxels at ``positions``: each axis from -1 to 1 over the whole volume of ``size`` voxels,
    going on linearly outside it (paper, III-C); 0 along an axis of a single voxel. Float32, same shape."""
    last = np.asarray(size).reshape(-1, *[1] * (positions.ndim - 1)) - 1
    return ((2 * positions - last) / np.maximum(last, 1)).astype(np.float32)


IMAGE_WEIGHT = 0.5  # of what a mirror image says: no half is quite like the other (docs/LOG.md)
OUTSIDE = np.float32(1e-6)  # of an atlas's say, where a place lies outside it: the others have it
UNKNOWN = -2  # an ignored voxel of the atlas, as distinct from `IGNORE`, which stands for a place outside it


def class_shares(label: np.ndarray, classes: int) -> np.ndarray:
    """(K, *size) float32: 1 for the class of a label map (*size); an ignored voxel is 1/K of every class."""
    shares = np.stack([label == k for k in range(classes)]).astype(np.float32)
    shares[:, label == IGNORE] = 1 / classes
    return shares


@dataclass(frozen=True)
class Prior:
    """The atlases' label maps (*size) int16, asked at coordinates (atlases * axes, *patch): each atlas at its own.
    Where an atlas is ignored, it knows nothing of the place: every class has the same share. The last ``images`` are
    mirror images of others (`mirroring`): the network is not told what they say, and in `posterior` each counts half.
    ``scans``, the atlases' images (*size), say there which of several to believe.
    """

    labels: tuple[np.ndarray, ...]
    classes: int
    images: int = 0
    scans: tuple[np.ndarray, ...] = ()

    def _places(self, coordinates: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each atlas's label map and the voxels (axes, *patch) of it that are asked for."""
        axes = self.labels[0].ndim
        for label, part in zip(self._marked, np.split(coordinates, len(coordinates) // axes), strict=True):
            yield label, (part + 1) / 2 * (np.asarray(label.shape).reshape(-1, *[1] * (part.ndim - 1)) - 1)

    @cached_property
    def _marked(self) -> tuple[np.ndarray, ...]:
        return tuple(np.where(label == IGNORE, UNKNOWN, label) for label in self.labels)

    def __call__(self, coordinates: np.ndarray, without: int | None = None) -> np.ndarray:
        """(K - 1, *patch) float32: the share of the atlases that have that foreground class at ``coordinates``, an
        ignored voxel counting 1/K; atlas number ``without`` has no say, nor have mirror images."""
        scans = islice(self._places(coordinates), len(self.labels) - self.images)
        asked = [at for number, at in enumerate(scans) if number != without]
        told = np.zeros((self.classes - 1, *coordinates.shape[1:]), dtype=np.float32)
        for label, places in asked:
            there = take_label(label, places)
            told += np.stack([there == k for k in range(1, self.classes)])
            told[:, there == UNKNOWN] += np.float32(1 / self.classes)
        return told / len(asked)

    def posterior(self, coordinates: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
        """(K, *patch) float32: the same of all atlases, background too, interpolated linearly. Of several atlases each
        counts, place by place, as much as it looks there like the scan's ``image`` (C, *patch), where that is given:
        an atlas that was registered badly, or is another kind of body, looks unlike (locally weighted voting). Where
        its edge cuts a structure, an atlas does not know how that goes on: every class has the same share there. Others
        that reach further have the say."""
        total = np.zeros((self.classes, *coordinates.shape[1:]), dtype=np.float32)
        counted = np.zeros(coordinates.shape[1:], dtype=np.float32)
        own = None
        if image is not None and self.scans and len(self.labels) > 1:
            own = normalised(image.mean(axis=0))
        for number, (label, places) in enumerate(self._places(coordinates)):
            shares = np.empty_like(total)
            for k in range(self.classes):
                shares[k] = take_image((label == k).astype(np.float32)[None], places)[0]
            if (label == UNKNOWN).any():
                shares += np.clip(1 - shares.sum(axis=0), 0, 1) / self.classes
            base = 1 if number < len(self.labels) - self.images else IMAGE_WEIGHT
            counts = np.full(counted.shape, base, dtype=np.float32)
            if own is not None:
                counts *= likeness(own, normalised(take_image(self.scans[number][None], places)[0]))
            outside = _outside(np.rint(places), label.shape)
            counts[outside] *= OUTSIDE
            shares[:, outside & (shares[0] < 0.5)] = 1 / self.classes
            shares *= counts
            total += shares
            counted += counts
        total /= counted
        return total


def location_maps(coordinates: np.ndarray, prior: Prior | None, without: int | None = None) -> np.ndarray:
    """What the network is told of the place: the coordinates (axes, *patch) in the first atlas, and what the
    ``prior``, if any, says of all (see there)."""
    if prior is None:
        return coordinates
    return np.concatenate([coordinates[: prior.labels[0].ndim], prior(coordinates, without)])


class BatchSampler(Dataset):
    """Mini-batches of a recipe: ``sampler[n]`` is (images (B, C, *patch), coordinates (B, axes, *patch), targets
    (B, *patch) int64), a function of (seed, n) only."""

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        patch: tuple[int, ...],
        recipe: Recipe,
        classes: int,
        seed: int,
        prior: Prior | None = None,
    ) -> None:
        self.cases, self.patch, self.recipe, self.seed = list(cases), patch, recipe, seed
        self.prior = prior
        self.intensity = intensity_transform(recipe.augmentation)
        self.voxels: list[dict[int, np.ndarray]] = []
        self.known: list[np.ndarray | None] = []  # of partly labelled cases: the voxels that are
        for case in self.cases:
            known = case.label != IGNORE
            self.known.append(None if known.all() else np.flatnonzero(known))
            flat = case.label.ravel()
            found = {k: np.flatnonzero(flat == k) for k in range(1, classes)}
            self.voxels.append({k: v for k, v in found.items() if len(v)})

    def __len__(self) -> int:
        return self.recipe.iterations

    def __getitem__(self, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, iteration])
        drawn = [self._patch(rng) for _ in range(self.recipe.batch_size)]
        images = np.stack([d[0] for d in drawn])
        before = np.random.get_state(), random.getstate()  # noqa: NPY002 - batchgenerators draws from both globals
        seed = int(rng.integers(2**31))
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            images = self.intensity(images)
        finally:
            np.random.set_state(before[0])  # noqa: NPY002
            random.setstate(before[1])
        coordinates = np.stack([d[1] for d in drawn])
        targets = np.stack([d[2] for d in drawn])
        return torch.from_numpy(images), torch.from_numpy(coordinates), torch.from_numpy(targets)

    def _corner(self, index: int, rng: np.random.Generator) -> list[int]:
        """First voxel of a patch: uniform over all places inside, or (balanced share) around a voxel of a class drawn
        at random; a patch larger than the volume is centred on it. Of a partly labelled scan, a place without any
        labelled voxel is drawn again, and in the end taken around one."""
        label, known = self.cases[index].label, self.known[index]
        if self.voxels[index] and rng.random() < self.recipe.balanced_share:
            of_class = self.voxels[index][int(rng.choice(list(self.voxels[index])))]
            return self._place(label.shape, rng, np.unravel_index(int(rng.choice(of_class)), label.shape))
        corner = self._place(label.shape, rng)
        if known is None or not len(known):
            return corner
        for _ in range(DRAWS):
            seen = tuple(slice(max(c, 0), c + p) for c, p in zip(corner, self.patch, strict=True))
            if (label[seen] != IGNORE).any():
                return corner
            corner = self._place(label.shape, rng)
        return self._place(label.shape, rng, np.unravel_index(int(rng.choice(known)), label.shape))

    def _place(
        self, size: Sequence[int], rng: np.random.Generator, centre: Sequence[np.integer] | None = None
    ) -> list[int]:
        corner = []
        for axis, (n, p) in enumerate(zip(size, self.patch, strict=True)):
            if n <= p:
                corner.append((n - p) // 2)
            elif centre is None:
                corner.append(int(rng.integers(0, n - p + 1)))
            else:
                jitter = int(rng.integers(-(p // 4), p // 4 + 1))
                corner.append(int(np.clip(centre[axis] - p // 2 + jitter, 0, n - p)))
        return corner

    @staticmethod
    def _coordinates(case: TrainingCase, positions: np.ndarray) -> np.ndarray:
        if case.coordinates is None:
            return coordinate_maps(positions, case.label.shape)
        return take_image(case.coordinates, positions)

    def _left_out(self, case: TrainingCase, rng: np.random.Generator) -> int | None:
        """In half of the patches the scan's own labels, where others bring theirs: a new scan has only those."""
        several = self.prior is not None and len(self.prior.labels) > 1
        return case.own if several and rng.random() < 0.5 else None

    def _patch(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        index = int(rng.integers(len(self.cases)))
        case, augmentation = self.cases[index], self.recipe.augmentation
        size = case.label.shape
        home = voxel_positions(self._corner(index, rng), self.patch)
        # of the undeformed place: augmentation moves content only
        told = self._coordinates(case, jitter(home, augmentation, rng))
        coordinates = location_maps(told, self.prior, self._left_out(case, rng))
        source = deform(home, case.spacing, size, augmentation, rng)
        for axis in augmentation.mirror_axes:
            if axis < len(size) and rng.random() < 0.5:
                source = source.copy()
                source[axis] = size[axis] - 1 - source[axis]
        return take_image(case.image, source), coordinates, take_label(case.label, source)


def take_image(image: np.ndarray, source: np.ndarray) -> np.ndarray:
    """(C, *size) at ``source`` (axes, *patch) voxels, interpolated linearly; beyond the edge, the edge voxel."""
    whole = np.rint(source)
    if np.array_equal(whole, source):
        return np.stack([channel[_clipped(whole, channel.shape)] for channel in image])
    size = np.asarray(image.shape[1:]).reshape(-1, *[1] * (source.ndim - 1))
    grid = 2 * source / np.maximum(size - 1, 1) - 1
    ordered = torch.from_numpy(np.moveaxis(grid[::-1], 0, -1).astype(np.float32))  # grid_sample wants (x, y, z)
    taken = F.grid_sample(torch.from_numpy(image)[None], ordered[None], padding_mode="border", align_corners=True)
    return taken[0].numpy()


def take_label(label: np.ndarray, source: np.ndarray) -> np.ndarray:
    """(*size) at the nearest voxel of ``source`` (axes, *patch), int64; `IGNORE` outside the volume."""
    nearest = np.rint(source)
    taken = label[_clipped(nearest, label.shape)].astype(np.int64)
    taken[_outside(nearest, label.shape)] = IGNORE
    return taken


def _outside(whole: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Which voxels ``whole`` (axes, *patch) lie outside a volume of ``size``, (*patch) bool."""
    last = np.asarray(size).reshape(-1, *[1] * (whole.ndim - 1)) - 1
    return np.any((whole < 0) | (whole > last), axis=0)


def _clipped(whole: np.ndarray, size: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.clip(axis, 0, n - 1).astype(np.intp) for axis, n in zip(whole, size, strict=True))
