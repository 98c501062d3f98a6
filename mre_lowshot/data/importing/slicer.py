"""Segmentations of 3D Slicer (``seg.nrrd``): named segments, in one layer or several, cropped to what is labelled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.data.axes import turn_array
from mre_lowshot.data.dicom.seg_reader import LATER_WINS, overlap_text
from mre_lowshot.data.geometry import CORNER_TOLERANCE, GEOMETRY_TOLERANCE, ORIGIN_TOLERANCE, Geometry
from mre_lowshot.data.readers import nrrd
from mre_lowshot.data.readers.header import Header
from mre_lowshot.data.volume import Volume
from mre_lowshot.errors import UserError
from mre_lowshot.limits import require_memory

_FIELD = re.compile(r"Segment(\d{1,6})_(\w+)")


@dataclass(frozen=True)
class SlicerSegment:
    """A segment: its number in the file (from 1), name, layer, and the value of its voxels in that layer."""

    number: int
    name: str
    layer: int
    value: int


def read_segments(path: Path) -> tuple[Header, tuple[SlicerSegment, ...]]:
    """The header of a NRRD file and its segments; none where it has no fields for them. Old files
    have neither layers nor values: each segment has a layer of its own.

    Raises:
        UserError: the header cannot be read, or its segments are contradictory.
    """
    header, fields = nrrd.read_fields(path)
    found: dict[int, dict[str, Any]] = {}
    for name, value in fields.items():
        if match := _FIELD.fullmatch(str(name)):
            found.setdefault(int(match[1]), {})[match[2]] = value
    segments = []
    is_old = len(found) == header.components and not any({"Layer", "LabelValue"} & set(e) for e in found.values())
    for number, (index, entry) in enumerate(sorted(found.items()), start=1):
        try:
            layer = int(entry.get("Layer", index if is_old else 0))
            value = int(entry.get("LabelValue", 1 if is_old else index + 1))
        except ValueError:
            raise UserError(f"{path}: Segment{index} has a layer or label value that is no number; export it again"
                            ) from None  # fmt: skip
        name = " ".join(str(entry.get("Name") or entry.get("ID") or f"Segment_{index + 1}").split())
        if not 0 <= layer < header.components or value < 1:
            raise UserError(
                f"{path}: segment {name!r} is value {value} of layer {layer}, of {header.components}; export it again"
            )
        segments.append(SlicerSegment(number, name, layer, value))
    if len({(s.layer, s.value) for s in segments}) < len(segments):
        raise UserError(f"{path}: two segments have one value in one layer; export it again")
    if header.components > 1 and not segments:
        raise UserError(f"{path}: has {header.components} components and no segments; save one value a voxel")
    return header, tuple(segments)


def read_slicer(
    path: Path, segments: tuple[SlicerSegment, ...], groups: Mapping[int, int], *, overlap: str = ""
) -> Volume:
    """The label map (D, H, W) int32 of a file with segments, on its own grid.

    Args:
        path: of the file.
        segments: from `read_segments`.
        groups: number of a segment to the value that is wanted; segments of one value may overlap.
        overlap: as in `dicom.seg_reader.read_on`; the order is that of the file.

    Raises:
        UserError: it cannot be read, holds a value without a segment, or segments overlap.
    """
    header, _ = nrrd.read_fields(path)
    require_memory(header.memory + 8.0 * header.voxels, f"{path}: {header.voxels} voxels", "crop the segmentation")
    array, header = nrrd.read(path, layers=True)
    array = turn_array(array, header.geometry.axes)
    layers = array[..., None] if array.ndim == 3 else array
    if layers.dtype.kind == "f":
        raise UserError(f"{path}: its voxels are not whole numbers; export it as a segmentation or binary label map")
    for layer in range(layers.shape[-1]):
        known = [s.value for s in segments if s.layer == layer]
        if len(unknown := np.setdiff1d(np.unique(layers[..., layer]), [0, *known])):
            raise UserError(f"{path}: value {unknown[0]} of layer {layer} belongs to no segment; export it again")
    masks = ((s.number, layers[..., s.layer] == s.value) for s in segments)
    names = {s.number: s.name for s in segments}
    return Volume(stacked(path, masks, groups, names=names, overlap=overlap), header.geometry, path, header.notes)


def stacked(
    path: Path,
    masks: Iterable[tuple[int, np.ndarray]],
    groups: Mapping[int, int],
    *,
    names: Mapping[int, str],
    overlap: str,
) -> np.ndarray:
    """One label map (D, H, W) int32 of several masks.

    Args:
        path: begins the message.
        masks: number and mask (D, H, W) of each; at least one.
        groups: number to the value that is wanted; masks of one value may overlap.
        names: number to name, for messages.
        overlap: ``later_wins``: where masks overlap, the later one counts; empty: they are refused.

    Raises:
        UserError: masks overlap.
    """
    found = owner = np.zeros(0, np.int32)
    clashes: dict[tuple[int, int], int] = {}
    for number, where in masks:
        if not found.size:
            found, owner = np.zeros(where.shape, np.int32), np.zeros(where.shape, np.int32)
        clash = where & (owner != 0) & (found != groups[number])
        for other in np.unique(owner[clash]).tolist():
            clashes[other, number] = int((owner[clash] == other).sum())
        found[where], owner[where] = groups[number], number
    if clashes and overlap != LATER_WINS:
        raise UserError(f"{path}: {overlap_text(clashes, names)}")
    return found


def offset_on(grid: Geometry, part: Geometry) -> tuple[int, ...] | None:
    """The first voxel (z, y, x) of ``part`` in ``grid`` where both have the same voxels, of which ``part`` holds a
    box; None where they do not. ``part`` has the axes of ``grid``."""
    if not np.allclose(grid.spacing, part.spacing, rtol=GEOMETRY_TOLERANCE, atol=0) or not np.allclose(
        grid.direction, part.direction, rtol=0, atol=GEOMETRY_TOLERANCE
    ):
        return None
    back = np.linalg.inv(grid.affine())
    corner = np.array([*part.shape[::-1]]) - 1.0
    first, last = (back @ part.affine() @ np.array([*at, 1.0]) for at in (np.zeros(3), corner))
    start = np.rint(first[:3])
    if np.abs(first[:3] - start).max() > ORIGIN_TOLERANCE or np.abs(last[:3] - start - corner).max() > CORNER_TOLERANCE:
        return None
    return tuple(int(v) for v in start[::-1])


def placed(volume: Volume, grid: Geometry) -> np.ndarray:
    """A cropped label map on the whole ``grid``: background around it. No voxel changes its position.

    Raises:
        UserError: its voxels are not those of the grid, or labels lie outside.
    """
    turned = volume.on_axes_of(grid)
    offset = offset_on(grid, turned.geometry)
    if offset is None:
        raise UserError("; ".join(grid.differences(volume.geometry)) or "the grids differ")
    inner, outer = [], []
    for start, size, whole in zip(offset, turned.geometry.shape, grid.shape, strict=True):
        low, high = max(start, 0), max(min(start + size, whole), 0)
        outer.append(slice(low, max(high, low)))
        inner.append(slice(low - start, max(high, low) - start))
    found = np.zeros(grid.shape, np.int32)
    found[tuple(outer)] = turned.array[tuple(inner)]
    if np.count_nonzero(found) != np.count_nonzero(turned.array):
        raise UserError("has labels outside the scan; crop it to the scan")
    return found
