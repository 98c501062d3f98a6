"""The grid of an NRRD file, from the fields for its space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.errors import UserError

_SPACES = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1), "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1), "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
_WITHOUT_PATIENT = ("scanner-xyz", "3d-right-handed")
_MM = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "")


def spatial_grid(path: Path, fields: dict[str, Any], axes: list[int], sizes: list[int]) -> tuple[Geometry, list[str]]:
    """The geometry of a file, and what is missing in its header.

    Args:
        path: for messages.
        fields: of the header, as pynrrd reads them.
        axes: numbers of the spatial axes, two or three.
        sizes: voxels along them.

    Raises:
        UserError: the grid cannot be used.
    """
    space = str(fields.get("space", "")).strip().lower()
    notes: list[str] = []
    _check_units(path, fields, axes)
    if not np.allclose(np.asarray(fields.get("measurement frame", np.eye(3)), float).shape, (3, 3)):
        raise UserError(f"{path}: its measurement frame is not 3 x 3; correct the header")
    signs = _SPACES.get(space)
    if signs is None:
        if space and space not in _WITHOUT_PATIENT:
            raise UserError(f"{path}: its space is {space!r}; use left-posterior-superior or right-anterior-superior")
        signs = (1, 1, 1)
        notes.append(
            f"orientation unknown: the space is {f'{space!r}' if space else 'not given'}, so its axes are taken as "
            "left, posterior and superior; copy the header of the original scan"
        )
    origin = np.zeros(3)
    given = fields.get("space directions")
    if given is not None:
        if len(given) <= max(axes):
            raise UserError(f"{path}: its space directions are fewer than its axes; correct the header")
        vectors = [_three(path, "space directions", given[axis]) for axis in axes]
        columns = np.column_stack(vectors)
    else:
        spacings = np.asarray(fields.get("spacings", np.full(max(axes) + 1, np.nan)), dtype=np.float64)
        if len(spacings) <= max(axes):
            raise UserError(f"{path}: its spacings are fewer than its axes; correct the header")
        steps = spacings[axes]
        missing = np.isnan(steps)
        if missing.any():
            steps[missing] = 1.0
            notes.append("no voxel size for some axes (no space directions, spacings nan): 1 mm is used")
        columns = np.zeros((3, len(axes)))
        columns[range(len(axes)), range(len(axes))] = steps
    if fields.get("space origin") is not None:
        origin = _three(path, "space origin", fields["space origin"])
    columns = np.diag(signs) @ columns
    if len(axes) == 2:
        normal = np.cross(columns[:, 0], columns[:, 1])
        length = np.linalg.norm(normal)
        columns = np.column_stack([columns, normal / length if length > 0 else [0.0, 0.0, 1.0]])
    size = (*sizes, 1)[:3]
    dimensions = 2 if len(axes) == 2 else 3
    return Geometry.of_file(columns, np.array(signs) * origin, size, name=str(path), dimensions=dimensions), notes


def _check_units(path: Path, fields: dict[str, Any], axes: list[int]) -> None:
    units = [str(unit).strip().lower() for unit in fields.get("space units", ())]
    if fields.get("space directions") is None and not units:
        given = [str(unit).strip().lower() for unit in fields.get("units", ())]
        units = [given[axis] for axis in axes if axis < len(given)]
    for unit in units:
        if unit.strip('"') not in _MM:
            raise UserError(
                f"{path}: its header gives positions in {unit}, which other programs read as mm; convert space "
                'directions and space origin to mm and set space units to "mm"'
            )


def _three(path: Path, name: str, vector: Any) -> np.ndarray:
    """A vector of two or three numbers as three."""
    values = np.atleast_1d(np.asarray(np.nan if vector is None else vector, dtype=np.float64))
    if values.shape not in ((2,), (3,)):
        raise UserError(f"{path}: its {name} holds {vector!r}; two or three numbers are needed: correct the header")
    return np.concatenate([values, np.zeros(3 - len(values))])
