"""Images and label maps with their geometry: always LPS inside, always back on the file's own grid outside.

SimpleITK and its (x, y, z) order live here, in `preprocessing.shading` and in `registration` only; everywhere else
arrays are (C, D, H, W) or (D, H, W) and spacings are (z, y, x) in mm. SimpleITK is imported when a file is touched, so
that the modules which only handle arrays work where it is not installed.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mre_lowshot.errors import UserError
from mre_lowshot.files import whole_file
from mre_lowshot.nifti import check_nifti

if TYPE_CHECKING:
    import SimpleITK as sitk

FLAT_ENDINGS = (".png", ".tif", ".tiff")
READABLE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png", ".tif", ".tiff")
GEOMETRY_TOLERANCE = 1e-3  # mm or direction cosine; files written by different tools differ in the last float32 digits


@dataclass(frozen=True)
class Geometry:
    """Where an LPS-oriented array lies, and how the file it came from was oriented.

    ``shape`` and ``spacing`` are (z, y, x) of the LPS array, in voxels and mm; ``origin`` and ``direction`` are
    SimpleITK's, of the LPS image; ``orientation`` is the file's own axis code, e.g. ``"RAS"``; ``dimensions`` is 2
    where the file was a 2D image (one slice here), so that label maps are written as 2D images too.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    orientation: str = "LPS"
    dimensions: int = 3

    def to_json(self) -> dict[str, Any]:
        return {name: (v if isinstance(v, (str, int)) else list(v)) for name, v in self.__dict__.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Geometry:
        shape, spacing, origin, direction = (tuple(data[k]) for k in ("shape", "spacing", "origin", "direction"))
        return cls(shape, spacing, origin, direction, data["orientation"], data.get("dimensions", 3))

    def differences(self, other: Geometry) -> list[str]:
        """What differs from ``other``, in words with both values; empty when both describe the same grid, in whatever
        order of axes their files store it."""
        if self.shape != other.shape:
            return [f"size {self.shape} against {other.shape} (z, y, x)"]
        found = []
        for name in ("spacing", "origin", "direction"):
            mine, theirs = np.asarray(getattr(self, name)), np.asarray(getattr(other, name))
            if not np.allclose(mine, theirs, atol=GEOMETRY_TOLERANCE, rtol=1e-4):
                found.append(f"{name} {_rounded(mine)} against {_rounded(theirs)}")
        return found


@dataclass(frozen=True)
class Volume:
    """An image (C, D, H, W) float32, or a label map (D, H, W), in LPS, with its geometry."""

    array: np.ndarray
    geometry: Geometry
    path: Path | None = field(default=None, compare=False)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)


def file_ending(path: Path) -> str:
    """The ending that says the format, ``.nii.gz`` counted as one; empty when it is none we read."""
    name = path.name.lower()
    return next((e for e in READABLE_ENDINGS if name.endswith(e)), "")


def _read(path: Path) -> sitk.Image:
    import SimpleITK as sitk

    if not path.is_file():
        raise UserError(f"{path}: the file is missing")
    if file_ending(path) in (".nii", ".nii.gz"):
        check_nifti(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as problem:
        reason = str(problem).strip().splitlines()[-1].strip()
        if "orthonormal" in reason:
            raise UserError(
                f"{path}: its axes are not at right angles (a tilted gantry, or a registration left in the header): "
                "resample it to a grid without shear"
            ) from None
        raise UserError(
            f"{path}: cannot be read as an image ({reason}); export it again as one of {', '.join(READABLE_ENDINGS)}"
        ) from None
    return image


def _to_lps(image: sitk.Image, path: Path) -> tuple[sitk.Image, Geometry]:
    """Give a 3D image in LPS and its geometry, with the file's own axis code. 2D images become one slice (1 mm)."""
    import SimpleITK as sitk

    dimensions = 2 if image.GetDimension() == 2 else 3
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3:
        raise UserError(
            f"{path}: has {image.GetDimension()} dimensions {image.GetSize()}; 2D or 3D is needed, one file a channel "
            "(split a time series or a stack of channels into case_0000, case_0001, ...)"
        )
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    turned = sitk.DICOMOrient(image, "LPS")
    return turned, _geometry(turned, code, dimensions)


def _geometry(image: sitk.Image, code: str, dimensions: int) -> Geometry:
    return Geometry(
        shape=tuple(reversed(image.GetSize())),
        spacing=tuple(reversed(image.GetSpacing())),
        origin=tuple(image.GetOrigin()),
        direction=tuple(image.GetDirection()),
        orientation=code,
        dimensions=dimensions,
    )


def read_image(path: Path) -> Volume:
    """Read one channel file (or an RGB image: three channels) as float32 (C, D, H, W) in LPS.

    Raises:
        UserError: missing, unreadable, or neither 2D nor 3D.
    """
    import SimpleITK as sitk

    image, geometry = _to_lps(_read(path), path)
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    else:
        array = array[None]
    return Volume(np.ascontiguousarray(array, dtype=np.float32), geometry, path)


def read_channels(paths: list[Path]) -> Volume:
    """Read the channel files of a case and stack them to (C, D, H, W).

    Raises:
        UserError: a file cannot be read, or two channels do not lie on one grid.
    """
    volumes = [read_image(path) for path in paths]
    first = volumes[0]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        different = first.geometry.differences(volume.geometry)
        if different:
            raise UserError(
                f"{path}: is not on the grid of {paths[0].name}: {'; '.join(different)}; resample one onto the other"
            )
    return Volume(np.concatenate([v.array for v in volumes]), first.geometry, paths[0])


def read_labels(path: Path) -> Volume:
    """Read a label map as integers (D, H, W) in LPS.

    Raises:
        UserError: missing, unreadable, several components, or values that are not whole numbers.
    """
    import SimpleITK as sitk

    image, geometry = _to_lps(_read(path), path)
    array = sitk.GetArrayFromImage(image)
    if array.ndim != 3:
        raise UserError(
            f"{path}: a label map must be scalar, not a colour image with {array.shape[-1]} components; save it in "
            "grey values, a number a class"
        )
    if not np.issubdtype(array.dtype, np.integer):
        whole = np.rint(array)
        bad = ~np.isfinite(array) | (np.abs(array - whole) > 1e-3)
        if bad.any():
            raise UserError(
                f"{path}: {int(bad.sum())} label voxels are not whole numbers (for example {array[bad][0]}); "
                "was the label map resampled with interpolation? Resample with nearest neighbour"
            )
        array = whole
    return Volume(array.astype(np.int32), geometry, path)


def geometry_of(path: Path) -> Geometry:
    """The geometry of an image or label file (of its LPS form)."""
    return _to_lps(_read(path), path)[1]


def write_volume(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (D, H, W) on the grid it was read from: turned back to the file's own orientation, compressed.

    One slice goes to 2D formats (PNG, TIFF) as a 2D image, and to others where it was read from one. Label maps are
    stored as uint8 (uint16 above 255 labels), anything else as float32.

    Raises:
        UserError: the ending is not a format written here.
    """
    import SimpleITK as sitk

    if not file_ending(path):
        raise UserError(f"{path}: unknown image ending; use one of {', '.join(READABLE_ENDINGS)}")
    if tuple(array.shape) != tuple(geometry.shape):
        raise ValueError(f"array {array.shape} does not fit the grid {geometry.shape}")
    if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        array = array.astype(np.uint8 if array.max(initial=0) < 256 else np.uint16)
    else:
        array = array.astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(tuple(reversed(geometry.spacing)))
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    image = sitk.DICOMOrient(image, geometry.orientation)
    if file_ending(path) in FLAT_ENDINGS or (geometry.dimensions == 2 and image.GetSize()[2] == 1):
        if image.GetSize()[2] > 1:
            raise UserError(f"{path}: {file_ending(path)} holds one slice, not {image.GetSize()[2]}; use .nii.gz")
        image = image[:, :, 0]
    if file_ending(path) == ".mhd":  # two files, and the header names the other: it comes last
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial.", dir=path.parent) as folder:
            sitk.WriteImage(image, str(Path(folder, path.name)), useCompression=True)
            for part in sorted(Path(folder).iterdir(), key=lambda p: p.suffix == ".mhd"):
                os.replace(part, path.parent / part.name)
        return
    with whole_file(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)
