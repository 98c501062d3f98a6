"""Training patches: where they are drawn, how they are augmented, and their location maps. One item is a mini-batch.

Mini-batch number n depends on (seed, n) only, so that training gives the same result with any number of loader workers
and continues after an interruption as if there had been none.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mre_lowshot.augmentation import deform, intensity_transform, jitter
from mre_lowshot.config import Recipe
from mre_lowshot.grid import IGNORE, coordinate_maps, sample_image, sample_label, voxel_positions

MAX_DRAWS = 50  # of a patch that holds an annotated voxel, in a partly annotated scan


@dataclass(frozen=True)
class TrainingCase:
    """A preprocessed labelled scan.

    Attributes:
        image: (C, *size) float32.
        label: (*size) int16, `grid.IGNORE` where not annotated.
        spacing: mm, one value per axis.
        coordinates: (atlases * axes, *size), the voxels' coordinates in each atlas, -1 to 1; None: its own volume is
            the frame.
        own: number of the atlas that the scan itself is, if any.
    """

    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, ...]
    coordinates: np.ndarray | None = None
    own: int | None = None


class LocationPrior(Protocol):
    """Further location maps at given coordinates (beyond the paper: `atlas.label_fusion.AtlasPrior`)."""

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        ...

    @property
    def count(self) -> int:
        """Number of atlases."""
        ...

    def foreground_shares(self, coordinates: np.ndarray, *, without: int | None = None) -> np.ndarray:
        """(K - 1, *patch) float32 at ``coordinates`` (count * axes, *patch), atlas number ``without`` left out."""
        ...


def location_maps(coordinates: np.ndarray, prior: LocationPrior | None, *, without: int | None = None) -> np.ndarray:
    """The network's input besides the image: coordinates (axes, *patch) in the first atlas (or the scan's own volume),
    and the shares that the ``prior``, if any, has there."""
    if prior is None:
        return coordinates
    return np.concatenate([coordinates[: prior.axes], prior.foreground_shares(coordinates, without=without)])


class BatchSampler(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Mini-batches of a recipe: ``sampler[n]`` is (images (B, C, *patch), location maps (B, L, *patch), targets
    (B, *patch) int64), a function of (seed, n) only.

    Args:
        cases: the training scans.
        patch: voxels per axis.
        recipe: batch size, sampling and augmentation.
        classes: K.
        seed: of all draws.
        prior: adds atlas shares to the location maps.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        patch: tuple[int, ...],
        recipe: Recipe,
        classes: int,
        seed: int,
        prior: LocationPrior | None = None,
    ) -> None:
        self.cases, self.patch, self.recipe, self.seed = list(cases), patch, recipe, seed
        self.prior = prior
        self.intensity = intensity_transform(recipe.augmentation)
        self.voxels: list[dict[int, np.ndarray]] = []
        self.annotated: list[np.ndarray | None] = []  # of partly annotated cases
        for case in self.cases:
            annotated = case.label != IGNORE
            self.annotated.append(None if annotated.all() else np.flatnonzero(annotated))
            flat = case.label.ravel()
            found = {k: np.flatnonzero(flat == k) for k in range(1, classes)}
            self.voxels.append({k: v for k, v in found.items() if len(v)})

    def __len__(self) -> int:
        return self.recipe.optimizer.iterations

    def __getitem__(self, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, iteration])
        drawn = [self._patch(rng) for _ in range(self.recipe.sampling.batch_size)]
        images = np.stack([d[0] for d in drawn])
        before = np.random.get_state(), random.getstate()  # noqa: NPY002 - batchgenerators draws from both global generators
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

    def _mirrored(self, size: Sequence[int], rng: np.random.Generator) -> tuple[int, ...]:
        """The axes along which a patch shows the mirrored volume."""
        axes = self.recipe.augmentation.mirror_axes
        return tuple(axis for axis in axes if axis < len(size) and rng.random() < 0.5)

    def _corner(self, index: int, rng: np.random.Generator, mirrored: tuple[int, ...] = ()) -> list[int]:
        """First voxel of a patch: uniform over all positions inside, or (``foreground_fraction``) around a voxel of a
        random class; a patch larger than the volume is centred on it. In a partly annotated scan a patch without an
        annotated voxel is drawn again, and after `MAX_DRAWS` draws placed around one. The voxels are those of the
        volume ``mirrored`` along these axes."""
        label, annotated = np.flip(self.cases[index].label, mirrored), self.annotated[index]

        def place(voxel: np.integer) -> list[int]:
            """Of a voxel's number in the scan."""
            position = np.unravel_index(int(voxel), label.shape)
            return [
                n - 1 - int(v) if axis in mirrored else int(v)
                for axis, (n, v) in enumerate(zip(label.shape, position, strict=True))
            ]

        if self.voxels[index] and rng.random() < self.recipe.sampling.foreground_fraction:
            of_class = self.voxels[index][int(rng.choice(list(self.voxels[index])))]
            return self._draw_corner(label.shape, rng, place(rng.choice(of_class)))
        corner = self._draw_corner(label.shape, rng)
        if annotated is None or not len(annotated):
            return corner
        for _ in range(MAX_DRAWS):
            covered = tuple(slice(max(c, 0), c + p) for c, p in zip(corner, self.patch, strict=True))
            if (label[covered] != IGNORE).any():
                return corner
            corner = self._draw_corner(label.shape, rng)
        return self._draw_corner(label.shape, rng, place(rng.choice(annotated)))

    def _draw_corner(
        self, size: Sequence[int], rng: np.random.Generator, centre: Sequence[int] | None = None
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
        return sample_image(case.coordinates, positions)

    def _left_out(self, case: TrainingCase, rng: np.random.Generator) -> int | None:
        """The scan's own atlas in half of the patches, if there are other atlases: a new scan is not one of them."""
        several = self.prior is not None and self.prior.count > 1
        return case.own if several and rng.random() < 0.5 else None

    def _patch(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        index = int(rng.integers(len(self.cases)))
        case, augmentation = self.cases[index], self.recipe.augmentation
        size = case.label.shape
        # drawn before the patch, since mirroring is that of the whole volume and moves the voxels to be centred on
        mirrored = self._mirrored(size, rng)
        positions = voxel_positions(self._corner(index, rng, mirrored), self.patch)
        # location maps of the undeformed patch: spatial augmentation moves the content only
        jittered = self._coordinates(case, jitter(positions, augmentation, rng))
        location = location_maps(jittered, self.prior, without=self._left_out(case, rng))
        source = deform(positions, case.spacing, size, augmentation, rng)
        if mirrored:
            source = source.copy()
        for axis in mirrored:
            source[axis] = size[axis] - 1 - source[axis]
        return sample_image(case.image, source), location, sample_label(case.label, source)
