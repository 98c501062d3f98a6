"""DataAug (Zhao et al., 2019): synthetic training patches, from the labelled scan and its learned transforms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mre_lowshot.augmentation import deform
from mre_lowshot.config import Plan
from mre_lowshot.experiments.baselines.learned_transforms import Transforms, to_coarse
from mre_lowshot.grid import sample_image, sample_label, voxel_positions
from mre_lowshot.sampling import BatchSampler, TrainingCase


@dataclass(frozen=True)
class Synthesis:
    """The labelled scan and its transforms, from which training patches are made.

    Attributes:
        atlas: the labelled scan.
        transforms: to n unlabelled scans.
    """

    atlas: TrainingCase
    transforms: Transforms

    def sample(self, positions: np.ndarray, spatial: int, appearance: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (C, *patch) and labels (*patch) of the synthetic scan at voxel ``positions`` (3, *patch): the atlas
        plus the change number ``appearance``, warped by the displacement number ``spatial``; n stands for none."""
        size, moved, number = self.atlas.label.shape, positions, len(self.transforms.changes)
        if spatial < number:
            field = self.transforms.displacements[spatial]
            moved = positions + sample_image(field, to_coarse(positions, size, field.shape[1:]))
        image = sample_image(self.atlas.image, moved)
        if appearance < number:
            change = self.transforms.changes[appearance]
            image = image + sample_image(change, to_coarse(moved, size, change.shape[1:]))
        return image, sample_label(self.atlas.label, moved)

    def warped_labels(self, spatial: int) -> np.ndarray:
        """The atlas's labels in the frame of scan number ``spatial``, (*size) int16."""
        whole = voxel_positions((0, 0, 0), self.atlas.label.shape)
        return self.sample(whole, spatial, len(self.transforms.changes))[1].astype(np.int16)


class SyntheticSampler(BatchSampler):
    """Mini-batches of synthetic scans, otherwise as `BatchSampler` with the atlas as its only case.

    For each patch one of the unlabelled scans or the atlas itself (no transform) is drawn for the spatial transform,
    and, independently or with ``coupled`` the same one, for the appearance transform.

    Args:
        synthesis: the atlas and its transforms.
        plan: its patch, recipe and classes.
        seed: of all draws.
        coupled: both transforms of a patch belong to the same scan.
    """

    def __init__(self, synthesis: Synthesis, plan: Plan, *, seed: int, coupled: bool = False) -> None:
        super().__init__([synthesis.atlas], plan.patch.size, plan.recipe, plan.network.classes, seed)
        self.synthesis, self.coupled = synthesis, coupled

    def _patch(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        case, size = self.cases[0], self.cases[0].label.shape
        positions = voxel_positions(self._corner(0, rng), self.patch)
        source = deform(positions, case.spacing, size, self.recipe.augmentation, rng)
        for axis in self.recipe.augmentation.mirror_axes:
            if rng.random() < 0.5:
                source = source.copy()
                source[axis] = size[axis] - 1 - source[axis]
        spatial, appearance = (int(n) for n in rng.integers(len(self.synthesis.transforms.changes) + 1, size=2))
        image, label = self.synthesis.sample(source, spatial, spatial if self.coupled else appearance)
        return image, self._coordinates(case, positions), label
