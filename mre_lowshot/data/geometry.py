"""The voxel grid of an image in the patient's space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

GEOMETRY_TOLERANCE = 1e-3  # mm or direction cosine; files written by different tools differ in the last float32 digits


@dataclass(frozen=True)
class Geometry:
    """The grid of an LPS-oriented array, and how the file that it came from was oriented.

    Attributes:
        shape: voxels (z, y, x) of the LPS array.
        spacing: mm (z, y, x) of the LPS array.
        origin: SimpleITK's, mm (x, y, z), of the LPS image.
        direction: SimpleITK's nine direction cosines of the LPS image.
        orientation: the file's own axis code, for example ``"RAS"``.
        dimensions: 2 where the file was a 2D image (one slice here), so that label maps are written as 2D images too.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    orientation: str = "LPS"
    dimensions: int = 3

    def to_json(self) -> dict[str, Any]:
        """Plain values, read back by `from_json`."""
        return {name: (v if isinstance(v, (str, int)) else list(v)) for name, v in self.__dict__.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Geometry:
        """The inverse of `to_json`."""
        shape, spacing, origin, direction = (tuple(data[k]) for k in ("shape", "spacing", "origin", "direction"))
        return cls(shape, spacing, origin, direction, data["orientation"], data.get("dimensions", 3))

    def differences(self, other: Geometry) -> list[str]:
        """Each difference from ``other``, with both values; empty when both describe the same grid, in whatever order
        of axes their files store it."""
        if self.shape != other.shape:
            return [f"size {self.shape} against {other.shape} (z, y, x)"]
        found = []
        for name in ("spacing", "origin", "direction"):
            mine, theirs = np.asarray(getattr(self, name)), np.asarray(getattr(other, name))
            if not np.allclose(mine, theirs, atol=GEOMETRY_TOLERANCE, rtol=1e-4):
                found.append(f"{name} {_rounded(mine)} against {_rounded(theirs)}")
        return found


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)
