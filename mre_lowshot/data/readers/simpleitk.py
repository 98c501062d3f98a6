"""NRRD, MetaImage, PNG and TIFF through SimpleITK, whose (x, y, z) order is confined to this module."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.readers import COLOUR_ENDINGS, READABLE_ENDINGS, file_ending
from mre_lowshot.errors import UserError
from mre_lowshot.files import atomic_write


def read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Read a file in LPS: array (D, H, W) or (D, H, W, components), and its geometry.

    Raises:
        UserError: unreadable, or neither 2D nor 3D.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as problem:
        reason = str(problem).strip().splitlines()[-1].strip()
        if "orthonormal" in reason:
            raise UserError(
                f"{path}: its axes are not at right angles (gantry tilt, or a registration left in the header); "
                "resample it to a grid without shear"
            ) from None
        raise UserError(
            f"{path}: cannot be read as an image ({reason}); export it again as one of {', '.join(READABLE_ENDINGS)}"
        ) from None
    return from_sitk(image, str(path))


def from_sitk(image: sitk.Image, name: str = "image") -> tuple[np.ndarray, Geometry]:
    """A SimpleITK image in LPS: array (D, H, W) or (D, H, W, components), and its geometry. A 2D image becomes one
    slice of 1 mm.

    Raises:
        UserError: the image is neither 2D nor 3D; ``name`` begins the message.
    """
    dimensions = 2 if image.GetDimension() == 2 else 3
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3:
        raise UserError(
            f"{name}: has {image.GetDimension()} dimensions {image.GetSize()}; give 2D or 3D, one file per channel "
            "(split a time series or a stack of channels into case_0000, case_0001, ...)"
        )
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    image = sitk.DICOMOrient(image, "LPS")
    geometry = Geometry(
        shape=tuple(reversed(image.GetSize())),
        spacing=tuple(reversed(image.GetSpacing())),
        origin=tuple(image.GetOrigin()),
        direction=tuple(image.GetDirection()),
        orientation=code,
        dimensions=dimensions,
    )
    return sitk.GetArrayFromImage(image), geometry


def to_sitk(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    """(D, H, W) as a SimpleITK image in the file's own orientation; 2D where the file was 2D."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(tuple(reversed(geometry.spacing)))
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    image = sitk.DICOMOrient(image, geometry.orientation)
    oriented: sitk.Image = image[:, :, 0] if geometry.dimensions == 2 and image.GetSize()[2] == 1 else image
    return oriented


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (D, H, W), compressed, in the file's own orientation. 2D formats take one slice.

    Raises:
        UserError: several slices for a 2D format.
    """
    image = to_sitk(array, geometry)
    if file_ending(path) in COLOUR_ENDINGS and image.GetDimension() == 3:
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
    with atomic_write(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)
