"""SimpleITK images, whose (x, y, z) order is confined to this module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from mre_lowshot.data.axes import inverse, turn_array
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.errors import UserError


def from_sitk(image: sitk.Image, name: str = "image") -> tuple[np.ndarray, Geometry]:
    """A SimpleITK image in LPS: array (D, H, W) or (D, H, W, components), and its geometry. A 2D image becomes one
    slice of 1 mm.

    Raises:
        UserError: the image is neither 2D nor 3D, or its grid cannot be used; ``name`` begins the message.
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
    columns = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    origin = np.array(image.GetOrigin())
    geometry = Geometry.of_file(columns, origin, image.GetSize(), name=name, dimensions=dimensions)
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind not in "iuf":
        raise UserError(f"{name}: has voxels of type {array.dtype}; give integers or real numbers")
    return turn_array(array, geometry.axes), geometry


def to_sitk(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    """(D, H, W) as a SimpleITK image in the file's own orientation; 2D where the file was 2D."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(turn_array(array, inverse(geometry.axes))))
    grid = geometry.file_grid()
    image.SetSpacing(tuple(reversed(grid.spacing)))
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    oriented: sitk.Image = image[:, :, 0] if geometry.dimensions == 2 and image.GetSize()[2] == 1 else image
    return oriented


def write_slice(path: Path, array: np.ndarray, spacing: tuple[float, float]) -> None:
    """Write (H, W), compressed; ``spacing`` along x and y.

    Raises:
        RuntimeError: it cannot be written.
    """
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path), useCompression=True)


def decode(path: str, *, header_only: bool) -> tuple[dict[str, Any], memoryview | bytes]:
    """A file's header as plain values, and its voxels.

    Raises:
        RuntimeError: it cannot be read.
    """
    if header_only:
        reader = sitk.ImageFileReader()
        reader.SetFileName(path)
        reader.ReadImageInformation()
        example = sitk.Image([1, 1], _scalar(reader.GetPixelID()))
        dtype = sitk.GetArrayViewFromImage(example).dtype
        return _about(reader, reader.GetNumberOfComponents(), dtype), b""
    image = sitk.ReadImage(path)
    array = np.ascontiguousarray(sitk.GetArrayFromImage(image))  # a view would not outlive the image
    return _about(image, image.GetNumberOfComponentsPerPixel(), array.dtype), array.data.cast("B")


def _about(image: Any, components: int, dtype: np.dtype) -> dict[str, Any]:
    return {
        "size": image.GetSize(),
        "spacing": image.GetSpacing(),
        "components": max(1, components),
        "dtype": dtype.str,
    }


def _scalar(kind: int) -> int:
    """The pixel type of the components of a vector pixel type."""
    for name in ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64"):
        if kind == getattr(sitk, f"sitkVector{name}"):
            return int(getattr(sitk, f"sitk{name}"))
    return int(kind)
