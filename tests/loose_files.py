"""Scans and label maps as loose files, for the tests of mre_import: written with other libraries than the package's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

Points = dict[tuple[float, ...], int]


def volume(shape: Sequence[int] = (6, 12, 14), seed: int = 0) -> np.ndarray:
    """A scan (slices, rows, columns) of int16, no two voxels of which are likely equal."""
    return np.random.default_rng(seed).integers(-1000, 2000, tuple(shape)).astype(np.int16)


def blocks(shape: Sequence[int] = (6, 12, 14), values: Sequence[int] = (1, 2)) -> np.ndarray:
    """A label map with a block of each value, in no symmetric place."""
    made = np.zeros(tuple(shape), np.uint8)
    for number, value in enumerate(values):
        made[1 : 3 + number, 2 + number : 5, 1 + 3 * number : 4 + 3 * number] = value
    return made


def image(
    array: np.ndarray,
    spacing: Sequence[float] = (0.7, 0.8, 3.0),
    origin: Sequence[float] = (-30.0, -20.0, 5.5),
    direction: Sequence[float] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
) -> sitk.Image:
    """An array (k, j, i) as a SimpleITK image; spacing and origin (x, y, z)."""
    made = sitk.GetImageFromArray(array)
    made.SetSpacing([float(v) for v in spacing])
    made.SetOrigin([float(v) for v in origin])
    made.SetDirection([float(v) for v in direction])
    return made


def write(path: Path, made: sitk.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(made, str(path), True)
    return path


def write_seg_nrrd(
    path: Path, layers: Sequence[np.ndarray], segments: Sequence[Mapping[str, object]], made: sitk.Image
) -> Path:
    """A segmentation as 3D Slicer writes it: one or several layers (k, j, i), on the grid of an image."""
    import nrrd

    direction, spacing = np.reshape(made.GetDirection(), (3, 3)), np.array(made.GetSpacing())
    vectors = (direction * spacing).T
    fields: dict[str, object] = {
        "space": "left-posterior-superior",
        "space origin": np.array(made.GetOrigin()),
        "encoding": "gzip",
    }
    if len(layers) == 1:
        data = np.transpose(layers[0], (2, 1, 0))
        fields |= {"space directions": vectors, "kinds": ["domain"] * 3}
    else:
        data = np.stack([np.transpose(layer, (2, 1, 0)) for layer in layers])
        fields |= {
            "space directions": np.concatenate([np.full((1, 3), np.nan), vectors]),
            "kinds": ["list", "domain", "domain", "domain"],
        }
    for number, segment in enumerate(segments):
        for key, value in segment.items():
            fields[f"Segment{number}_{key}"] = str(value)
    fields["Segmentation_MasterRepresentation"] = "Binary labelmap"
    path.parent.mkdir(parents=True, exist_ok=True)
    nrrd.write(str(path), data, fields)
    return path


def points(made: sitk.Image) -> dict[tuple[float, ...], float]:
    """The value of each voxel that is not 0 by its position in mm (LPS), rounded."""
    array = sitk.GetArrayFromImage(made)
    places = np.argwhere(array != 0)
    columns = np.reshape(made.GetDirection(), (3, 3)) * np.array(made.GetSpacing())
    world = np.array(made.GetOrigin()) + places[:, ::-1] @ columns.T
    return {tuple(w): float(array[tuple(p)]) for w, p in zip((np.round(world, 2) + 0.0).tolist(), places, strict=True)}


def files(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
