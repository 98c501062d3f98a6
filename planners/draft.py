"""The draft of a plan: the inputs of the planner, what is decided so far, and sizes that follow from both."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mre_lowshot.config import NetworkConfig, PatchConfig, PreprocessingConfig, Recipe
from mre_lowshot.data.vocabulary import is_ct
from mre_lowshot.planners import hardware
from mre_lowshot.planners.facts import N4, DatasetFacts
from mre_lowshot.planners.fingerprint import constant_background, content_shape
from mre_lowshot.preprocessing.pipeline import grid_size

_NOTHING_DECIDED = PreprocessingConfig("none", (), grid="native")


@dataclass(frozen=True)
class Draft:
    """An unfinished plan: the inputs (``facts``, ``fingerprint``, ``device``, ``n4``) and the decisions so far."""

    facts: DatasetFacts
    fingerprint: dict[str, Any]
    device: hardware.Device
    recipe: Recipe
    n4: N4 = "auto"
    reasons: dict[str, str] = field(default_factory=dict)
    preprocessing: PreprocessingConfig = field(default=_NOTHING_DECIDED)
    size: hardware.NetworkSize = hardware.SMALL_SIZE
    patch: PatchConfig = field(default_factory=PatchConfig)
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(1, 2))
    lesions: tuple[str, ...] = ()

    def decided(self, changes: dict[str, Any], **reasons: str) -> Draft:
        """The draft with fields replaced and reasons added."""
        return replace(self, **changes, reasons={**self.reasons, **reasons})

    @property
    def cases(self) -> list[dict[str, Any]]:
        return list(self.fingerprint["cases"].values())

    @property
    def label_names(self) -> list[str]:
        return list(self.facts.labels)

    @property
    def is_ct(self) -> bool:
        return any(is_ct(name) for name in self.facts.channel_names)

    @property
    def is_2d(self) -> bool:
        """Whether every scan is a single slice."""
        return all(case["shape"][0] == 1 for case in self.cases)

    @property
    def plans_2d(self) -> bool:
        """Whether the network is 2D: the median scan has one slice on the network's grid."""
        return len(self.median_grid()[0]) == 2

    @property
    def stripped(self) -> bool:
        """Constant background in every scan (skull-stripped and alike)."""
        return constant_background(self.fingerprint)

    @property
    def spacings(self) -> np.ndarray:
        """(n, 3) mm, of the scans."""
        return np.array([case["spacing"] for case in self.cases])

    @property
    def shapes(self) -> np.ndarray:
        """(n, 3) voxels, of the scans without constant padding."""
        return np.array([content_shape(case) for case in self.cases])

    def cropped_shapes(self) -> np.ndarray:
        """(n, 3) voxels, of the scans after cropping."""
        return np.array([_cropped_shape(case, self.preprocessing) for case in self.cases])

    def grid_sizes(self) -> np.ndarray:
        """(n, 3) voxels, of the scans on the network's grid."""
        pairs = zip(self.cropped_shapes(), self.cases, strict=True)
        return np.array([grid_size(tuple(s), tuple(c["spacing"]), self.preprocessing) for s, c in pairs])

    def median_grid(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Median size (voxels) and spacing (mm) of the network's grid, without the slice axis of 2D images."""
        sizes = self.grid_sizes()
        spacings = self.cropped_shapes() * self.spacings / sizes
        size = tuple(int(v) for v in np.median(sizes, axis=0))
        spacing = tuple(float(v) for v in np.median(spacings, axis=0))
        return (size[1:], spacing[1:]) if size[0] == 1 else (size, spacing)


def _cropped_shape(case: dict[str, Any], config: PreprocessingConfig) -> list[int]:
    if config.crop == "centre":
        return [round(n * f) for n, f in zip(content_shape(case), config.centre_fraction, strict=True)]
    key = {"nonzero": "nonzero_shape", "body": "body_shape", "given": "shape"}.get(config.crop)
    shape: list[int] = case[key] if key else content_shape(case)
    return shape
