"""The voxel grid of an image in the patient's space."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mre_lowshot.data.axes import IDENTITY, Turn, axis_code, closest_turn, compose, inverse, turn_of_code
from mre_lowshot.errors import UserError

# Two files of one grid, written by different tools, differ in the last digits. All tolerances are shares of a voxel, so
# that they hold at any voxel size.
ORIGIN_TOLERANCE = 0.02  # voxels that the first voxel may lie elsewhere
CORNER_TOLERANCE = 0.25  # voxels that the farthest corner may lie elsewhere
GEOMETRY_TOLERANCE = 1e-3  # of a spacing, and of direction cosines
_FLOAT32 = 4 * float(np.finfo(np.float32).eps)  # headers hold coordinates as float32: relative rounding error
MIN_SPACING, MAX_SPACING = 1e-6, 500.0  # mm; what lies outside is an error in the header


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
        axes: for each axis (z, y, x) of the LPS array the axis of the file (1, 2 or 3), negative where reversed; that
            of ``orientation`` where it is not given.
        header: the file's own header, for label maps in the same format; empty where there is none.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    orientation: str = "LPS"
    dimensions: int = 3
    axes: Turn = ()
    header: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.axes:
            object.__setattr__(self, "axes", turn_of_code(self.orientation))

    @classmethod
    def of_file(
        cls,
        columns: np.ndarray,
        origin: np.ndarray,
        size: tuple[int, ...],
        *,
        name: str,
        dimensions: int = 3,
        header: str = "",
    ) -> Geometry:
        """The LPS grid of a file.

        Args:
            columns: (3, 3), the step to the next voxel along each of the file's axes, mm in LPS.
            origin: of the file's first voxel, mm in LPS.
            size: voxels along each of the file's axes.
            name: begins the messages.
            dimensions: 2 for a 2D image.
            header: see `Geometry.header`.

        Raises:
            UserError: no voxels, a spacing or origin that cannot be, or axes that are not at right angles.
        """
        cosines, spacing = _checked(np.asarray(columns, dtype=np.float64), np.asarray(origin, float), size, name)
        turn = closest_turn(cosines, in_plane=dimensions == 2)
        own = cls(
            shape=tuple(int(n) for n in reversed(size)),
            spacing=tuple(reversed(spacing.tolist())),
            origin=tuple(float(v) for v in origin),
            direction=tuple(cosines.ravel().tolist()),
            orientation=axis_code(turn),
            dimensions=dimensions,
            axes=IDENTITY,
            header=header,
        )
        return own.turned(turn)

    def turned(self, turn: Turn) -> Geometry:
        """The same grid with the axes of its array turned (`data.axes`); the file stays as it is."""
        if turn == IDENTITY:
            return self
        direction = np.reshape(self.direction, (3, 3))
        origin, columns = np.array(self.origin, dtype=np.float64), []
        for axis in turn[::-1]:
            column = direction[:, abs(axis) - 1]
            if axis < 0:
                origin = origin + column * self.spacing[axis] * (self.shape[axis] - 1)
            columns.append(column if axis > 0 else -column)
        return dataclasses.replace(
            self,
            shape=tuple(self.shape[3 - abs(axis)] for axis in turn),
            spacing=tuple(self.spacing[3 - abs(axis)] for axis in turn),
            origin=tuple(origin.tolist()),
            direction=tuple((np.stack(columns, axis=1).ravel() + 0.0).tolist()),
            axes=compose(self.axes, turn),
        )

    def file_grid(self) -> Geometry:
        """This grid in the order of the file's axes, as an array (k, j, i)."""
        return self.turned(inverse(self.axes))

    def affine(self) -> np.ndarray:
        """(4, 4): from voxel indices (x, y, z) of the array to mm in LPS."""
        made = np.eye(4)
        made[:3, :3] = np.reshape(self.direction, (3, 3)) * np.array(self.spacing[::-1])
        made[:3, 3] = self.origin
        return made

    def to_json(self) -> dict[str, Any]:
        """Plain values, read back by `from_json`."""
        return {name: (v if isinstance(v, (str, int)) else list(v)) for name, v in self.__dict__.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Geometry:
        """The inverse of `to_json`."""
        shape, spacing, origin, direction = (tuple(data[k]) for k in ("shape", "spacing", "origin", "direction"))
        rest = (data["orientation"], data.get("dimensions", 3), tuple(data.get("axes", ())), data.get("header", ""))
        return cls(shape, spacing, origin, direction, *rest)

    def turn_from(self, other: Geometry) -> Turn:
        """The turn that lays the axes of ``other`` on those of this grid. At 45 degrees two files of one grid may
        differ in the order of their LPS axes."""
        mine, theirs = (np.reshape(grid.direction, (3, 3)) for grid in (self, other))
        return closest_turn(mine.T @ theirs)

    def differences(self, other: Geometry) -> list[str]:
        """Each difference from ``other``, with both values; empty when both describe the same grid, in whatever order
        of axes their files store it. `Volume.on_axes_of` gives both arrays the same order."""
        other = other.turned(self.turn_from(other))
        if self.shape != other.shape:
            return [f"size {self.shape} against {other.shape} (z, y, x)"]
        mine, theirs = self.affine(), other.affine()
        far = np.array([*self.shape[::-1], 1.0]) - [1, 1, 1, 0]
        steps = np.array(self.spacing)
        reach = max(np.abs(self.origin).max(), np.abs((mine @ far)[:3]).max())
        rounding = _FLOAT32 * float(reach / steps.min())
        back = np.reshape(self.direction, (3, 3)).T
        start = np.abs(back @ (mine - theirs)[:3, 3]) / steps[::-1]
        corners = np.array(np.meshgrid(*([0, n - 1] for n in self.shape[::-1]))).reshape(3, -1)
        moved = np.abs(back @ (mine - theirs)[:3, :3] @ corners) / steps[::-1, None]
        found = []
        if not np.allclose(self.spacing, other.spacing, rtol=GEOMETRY_TOLERANCE, atol=0):
            found.append(f"spacing {_rounded(self.spacing)} against {_rounded(other.spacing)}")
        if not start.max() <= ORIGIN_TOLERANCE + rounding:
            found.append(f"origin {_rounded(self.origin)} against {_rounded(other.origin)}")
        if not np.allclose(self.direction, other.direction, rtol=0, atol=GEOMETRY_TOLERANCE):
            found.append(f"direction {_rounded(self.direction)} against {_rounded(other.direction)}")
        if not found and not moved.max() <= CORNER_TOLERANCE + 2 * rounding:
            found.append(
                f"spacing {_rounded(self.spacing)} against {_rounded(other.spacing)} and direction "
                f"{_rounded(self.direction)} against {_rounded(other.direction)} (the farthest corners lie "
                f"{moved.max():.3g} voxels apart)"
            )
        return found


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") + 0.0 for value in values)


def _checked(
    columns: np.ndarray, origin: np.ndarray, size: tuple[int, ...], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Direction cosines (3, 3) and spacing (3,) of a file's axes."""
    if len(size) != 3 or min(size) < 1:
        raise UserError(f"{name}: has a size of {tuple(size)} voxels; every axis needs at least 1: export it again")
    spacing = np.sqrt((columns**2).sum(axis=0)) if np.isfinite(columns).all() else np.full(3, np.nan)
    if not ((spacing >= MIN_SPACING) & (spacing <= MAX_SPACING)).all():
        raise UserError(
            f"{name}: its header gives a voxel size of {_rounded(tuple(spacing))} mm (the file's axes); it must lie "
            f"between {MIN_SPACING:g} and {MAX_SPACING:g} mm: correct the header, or export the file again"
        )
    if not (np.isfinite(origin).all() and (np.abs(origin) < 1e7).all()):
        raise UserError(
            f"{name}: its header gives the position of the first voxel as {_rounded(tuple(origin))} mm; it must be "
            "finite and below 10 km: correct the header, or export the file again"
        )
    cosines = columns / spacing
    shear = np.abs(cosines.T @ cosines - np.eye(3))
    moved = shear * (np.array(size) - 1) * spacing / spacing[:, None]  # voxels along axis i at the end of axis j
    if ((shear > 1e-4) & ((shear > GEOMETRY_TOLERANCE) | (moved > CORNER_TOLERANCE))).any():
        raise UserError(
            f"{name}: its axes are not at right angles (gantry tilt, or a registration left in the header): cosine "
            f"{shear.max():.3g} between two of them; resample it to a grid without shear"
        )
    if shear.max() > 1e-6:  # rounding in the header
        left, _, right = np.linalg.svd(cosines)
        cosines = left @ right
    return cosines, spacing
