"""A phantom's scan as DICOM in several orientations, at the same place in the world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import Space

from mre_lowshot.data.volume import read_image
from tests.dicom_series import ORIENTATIONS, positions, write_enhanced, write_series

SPACING = (8.25, 8.0, 8.5)  # of slices, rows, columns of the axial scan
SAGITTAL = (8.5, 8.25, 8.0)
NAME = "P1_3_Abdomen"


def phantom(space: Space) -> np.ndarray:
    """HU of a phantom (z, y, x) in LPS."""
    return np.rint(read_image(space.raw / "imagesTr/phantom_002_0000.nii.gz").array[0]).astype(np.int16)


def sagittal(array: np.ndarray) -> np.ndarray:
    """The slices of the same patient as a sagittal scan stores them: from right to left, rows from the head down."""
    return np.ascontiguousarray(array[::-1, :, ::-1].transpose(2, 0, 1))


def write_scan(folder: Path, hu: np.ndarray, how: str) -> list[Path]:
    """The phantom as a series; axial, sagittal and multi-frame at the same place in the world."""
    stored, z, _, x = hu + 1000, *(np.array(hu.shape) - 1) * np.array(SPACING)
    if how == "sagittal":
        start = np.array([-30 + x, -20, 5.5 + z])
        places = positions(hu.shape[2], ORIENTATIONS[how], SAGITTAL[0], start)
        return write_series(folder, sagittal(stored), how, spacing=SAGITTAL, at=places)
    if how == "enhanced":
        return [write_enhanced(folder / "scan", stored, spacing=SPACING, SeriesDescription="Abdomen")]
    return write_series(folder, stored, how, spacing=SPACING)
