"""Beyond the paper: a fold's training scans as atlases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mre_lowshot.config import Plan
from mre_lowshot.sampling import TrainingCase

MAX_ATLASES = 5  # a new scan is registered to each, and each training scan to each other


@dataclass(frozen=True)
class Atlas:
    """A preprocessed labelled scan.

    Attributes:
        image: (C, *size) float32.
        label: (*size) int16, `grid.IGNORE` where not annotated.
        spacing: mm, one value per axis.
        mirrored: whether it is the mirror image of a training scan (`atlas.mirrored`).
    """

    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, ...]
    mirrored: bool = False

    @classmethod
    def of(cls, case: TrainingCase) -> Atlas:
        """A training case as atlas, its image rounded as a checkpoint stores it: registration to it is the same in
        training and after loading."""
        return cls(case.image.astype(np.float16).astype(np.float32), case.label, case.spacing)

    def to_tensors(self) -> dict[str, Any]:
        """For a checkpoint; the image in half precision."""
        return {
            "image": torch.from_numpy(self.image.astype(np.float16)),
            "label": torch.from_numpy(self.label.astype(np.int16)),
            "spacing": list(self.spacing),
        }

    @classmethod
    def from_tensors(cls, data: dict[str, Any]) -> Atlas:
        """The inverse of `to_tensors`."""
        image = data["image"].cpu().numpy().astype(np.float32)
        return cls(image, data["label"].cpu().numpy(), tuple(data["spacing"]))


Atlases = tuple[Atlas, ...]
"""A fold's atlases: at most `MAX_ATLASES` of its training scans, followed by their mirror images where these are used.
Coordinates refer to the first. Empty where the plan needs none."""


def make_atlases(cases: Sequence[TrainingCase], plan: Plan) -> Atlases:
    """The fold's first `MAX_ATLASES` training scans where scans are registered and the network has an atlas prior; only
    the first where it is merely the frame of the coordinates."""
    registered, prior = plan.recipe.atlas.registration != "none", plan.network.atlas_prior
    chosen = cases[:MAX_ATLASES] if registered and prior else cases[: int(registered or prior)]
    return tuple(Atlas.of(case) for case in chosen)
