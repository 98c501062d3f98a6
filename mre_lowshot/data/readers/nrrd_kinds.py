"""The kinds of the axes of an NRRD file: which axis holds the components of a voxel."""

from __future__ import annotations

from typing import Any

import numpy as np

_OF_SPACE = ("domain", "space", "time", "???", "none")
# Components of a voxel, by the kinds of the format's definition; None: any number.
_COMPONENTS: dict[str, int | None] = {
    "list": None, "point": None, "vector": None, "covariant-vector": None, "normal": None, "stub": 1, "scalar": 1,
    "complex": 2, "2-vector": 2, "3-color": 3, "rgb-color": 3, "hsv-color": 3, "xyz-color": 3, "4-color": 4,
    "rgba-color": 4, "3-vector": 3, "3-gradient": 3, "3-normal": 3, "4-vector": 4, "quaternion": 4,
    "2d-symmetric-matrix": 3, "2d-masked-symmetric-matrix": 4, "2d-matrix": 4, "2d-masked-matrix": 5,
    "3d-symmetric-matrix": 6, "3d-masked-symmetric-matrix": 7, "3d-matrix": 9, "3d-masked-matrix": 10,
}  # fmt: skip


def component_axis_of(fields: dict[str, Any]) -> int | None:
    """The axis of the components of a voxel; None where there is none.

    Raises:
        ValueError: the kinds are unknown, or contradict the sizes or the space directions.
    """
    kinds = [str(kind).lower() for kind in fields.get("kinds", ())]
    sizes = [int(n) for n in fields["sizes"]]
    if kinds and len(kinds) != len(sizes):
        raise ValueError(f"{len(kinds)} kinds for {len(sizes)} axes")
    directions = fields.get("space directions")
    rows = () if directions is None else directions
    without = [row is None or not np.isfinite(np.asarray(row, dtype=float)).any() for row in rows]
    for axis, kind in enumerate(kinds):
        if kind in _OF_SPACE:
            if kind in ("domain", "space") and axis < len(without) and without[axis]:
                raise ValueError(f"axis {axis} is of kind {kind}, but has no direction")
            continue
        if kind not in _COMPONENTS:
            raise ValueError(f"unknown kind {kind!r} of axis {axis}")
        if (number := _COMPONENTS[kind]) is not None and number != sizes[axis]:
            raise ValueError(f"axis {axis} is of kind {kind}, but has size {sizes[axis]}")
    found = [axis for axis, kind in enumerate(kinds) if kind not in _OF_SPACE]
    if not found and len(sizes) > 3:
        found = [axis for axis, missing in enumerate(without) if missing]
    if len(found) > 1:
        raise ValueError(f"kinds {' '.join(kinds)}: more than one axis of components")
    if found and found[0] not in (0, len(sizes) - 1):
        raise ValueError(f"kinds {' '.join(kinds)}: the components must be the first or the last axis")
    return found[0] if found and len(sizes) > 2 else None
