"""Mini-batches for sSE-guided few-shot segmentation: pairs of a support slice and a query slice of the same class."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mre_lowshot.augmentation import deform, intensity_transform
from mre_lowshot.config import AugmentationConfig
from mre_lowshot.experiments.baselines.sse_slices import mask_to_network, slices_with, to_network
from mre_lowshot.grid import IGNORE, sample_image, sample_label, voxel_positions
from mre_lowshot.sampling import TrainingCase


class Pairs(NamedTuple):
    """A mini-batch: images (B, C, h, w); masks of the class and where the query is annotated (B, h, w)."""

    support: Tensor
    support_mask: Tensor
    query: Tensor
    query_mask: Tensor
    query_known: Tensor


class PairSampler:
    """``sampler[n]`` is mini-batch number n, a function of (seed, n) only.

    A mini-batch has one class, drawn with a probability proportional to 1 - its share of the slices, and one volume.
    Support and query slices are drawn from the volume's slices with the class, independently.

    Args:
        cases: labelled volumes.
        classes: K; class 0 is background.
        size: of the slices in the network.
        batch: pairs in a mini-batch.
        augmentation: mirroring (the same for both slices of a pair), deformation and intensities (independent).
        seed: of all draws.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        classes: int,
        *,
        size: tuple[int, int],
        batch: int,
        augmentation: AugmentationConfig,
        seed: int,
    ) -> None:
        self.cases, self.size, self.batch, self.seed = list(cases), size, batch, seed
        self.augmentation, self.intensity = augmentation, intensity_transform(augmentation)
        self.slices = {k: [slices_with(case.label == k) for case in self.cases] for k in range(1, classes)}
        self.slices = {k: found for k, found in self.slices.items() if any(map(len, found))}
        depth = sum(len(case.label) for case in self.cases)
        weights = np.array([1 - sum(map(len, found)) / depth for found in self.slices.values()])
        self.weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / max(1, len(weights)))

    @property
    def classes(self) -> list[int]:
        """The classes that occur, which are trained."""
        return list(self.slices)

    def __getitem__(self, iteration: int) -> Pairs:
        rng = np.random.default_rng([self.seed, iteration])
        label = int(rng.choice(self.classes, p=self.weights))
        number = int(rng.choice([n for n, found in enumerate(self.slices[label]) if len(found)]))
        drawn = rng.choice(self.slices[label][number], size=(2, self.batch))
        axes = [axis for axis in self.augmentation.mirror_axes if axis > 0]
        mirrored = [[axis for axis in axes if rng.random() < 0.5] for _ in range(self.batch)]
        read = [
            self._slice(self.cases[number], int(z), label, mirror, rng)
            for row in drawn
            for z, mirror in zip(row, mirrored, strict=True)
        ]
        images = self._intensities(torch.cat([image for image, _, _ in read]), rng)
        masks, known = torch.cat([m for _, m, _ in read]), torch.cat([k for _, _, k in read])
        half = self.batch
        return Pairs(images[:half], masks[:half], images[half:], masks[half:], known[half:])

    def _slice(
        self, case: TrainingCase, z: int, label: int, mirror: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Image (1, C, h, w), mask and annotated part (1, h, w) of a slice, deformed and mirrored."""
        image, labels = case.image[:, z], case.label[z]
        if self.augmentation.spatial_probability:
            positions = voxel_positions((0, 0), labels.shape)
            moved = deform(positions, case.spacing[1:], labels.shape, self.augmentation, rng)
            image, labels = sample_image(np.ascontiguousarray(image), moved), sample_label(labels, moved)
        image, labels = (np.flip(part, tuple(axis - 3 for axis in mirror)) for part in (image, labels))
        known = (mask_to_network((labels != IGNORE)[None], self.size) > 0.5).float()
        pixels = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]
        return to_network(pixels, self.size), mask_to_network((labels == label)[None], self.size), known

    def _intensities(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Intensity augmentation, whose transforms draw from the global generators."""
        before = np.random.get_state(), random.getstate()  # noqa: NPY002
        seed = int(rng.integers(2**31))
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            return torch.from_numpy(self.intensity(images.numpy()))
        finally:
            np.random.set_state(before[0])  # noqa: NPY002
            random.setstate(before[1])
