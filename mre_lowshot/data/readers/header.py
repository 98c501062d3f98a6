"""What a reader finds in the header of an image file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mre_lowshot.data.geometry import Geometry


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    Attributes:
        geometry: the grid in LPS.
        components: values of a voxel; 3 in an RGB image.
        dtype: as stored in the file.
        notes: what is contradictory or missing in the header, and what was taken; one sentence each.
        is_scaled: whether a slope and an intercept apply to the voxels.
    """

    geometry: Geometry
    components: int
    dtype: np.dtype
    notes: tuple[str, ...] = ()
    is_scaled: bool = False

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.geometry.shape, dtype=object))

    @property
    def stored_bytes(self) -> int:
        """Bytes of the voxels as stored, without compression."""
        return self.voxels * self.components * self.dtype.itemsize

    @property
    def memory(self) -> int:
        """Bytes needed to read the file as float32."""
        return self.stored_bytes + (12 if self.is_scaled else 4) * self.voxels * self.components
