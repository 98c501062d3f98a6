"""Volume, intensity and position of each structure of a label map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mre_lowshot.data.volume import Volume

_CHUNK = 1 << 20  # values that are converted to float64 at a time


@dataclass(frozen=True)
class Intensity:
    """Of one channel inside a structure: mean, standard deviation (of the population) and median."""

    mean: float
    std: float
    median: float


@dataclass(frozen=True)
class LabelStatistics:
    """A structure.

    Attributes:
        name, value: of the label.
        voxels: number of its voxels.
        volume_mm3: in mm3; ``volume_ml`` in ml.
        intensity: by channel; empty where it has no voxel.
        centroid: mean position of its voxels' centres in mm (x, y, z) in LPS; None where it has no voxel.
        extent: size of the box that holds its voxels, mm (x, y, z) along the scan's axes closest to right-left,
            anterior-posterior and inferior-superior; None where it has no voxel.
        touches_border: whether it reaches the border of the scan's grid, so that a part of it may lie outside and its
            volume is too small.
    """

    name: str
    value: int
    voxels: int
    volume_mm3: float
    intensity: Mapping[str, Intensity]
    centroid: tuple[float, float, float] | None
    extent: tuple[float, float, float] | None
    touches_border: bool

    @property
    def volume_ml(self) -> float:
        """In ml."""
        return self.volume_mm3 / 1000

    def to_json(self) -> dict[str, Any]:
        """Plain values, with units in their names."""
        return {
            "value": self.value,
            "voxels": self.voxels,
            "volume_mm3": self.volume_mm3,
            "volume_ml": self.volume_ml,
            "touches_border": self.touches_border,
            "intensity": {name: dict(found.__dict__) for name, found in self.intensity.items()},
            "centroid_lps_mm": None if self.centroid is None else list(self.centroid),
            "extent_mm": None if self.extent is None else list(self.extent),
        }


def label_statistics(
    scan: Volume, labels: Volume, label_names: Mapping[str, int], channels: Sequence[str] = ()
) -> tuple[LabelStatistics, ...]:
    """The structures of a label map, in the order of their values. At most the voxels of one structure are copied.

    Args:
        scan: (C, D, H, W), the scan's own intensities.
        labels: (D, H, W) on its grid.
        label_names: name to value; 0 is left out.
        channels: names of the channels; missing and repeated ones are numbered.

    Raises:
        ValueError: the two differ in shape.
    """
    array = labels.array
    if scan.array.ndim != 4 or scan.array.shape[1:] != array.shape:
        raise ValueError(f"label map {array.shape} is not on the grid of the scan {scan.array.shape}")
    names = channel_keys(channels, len(scan.array))
    boxes = label_boxes(array, label_names.values())
    found = []
    for name, value in sorted(label_names.items(), key=lambda item: item[1]):
        if value <= 0:
            continue
        box = boxes.get(value)
        if box is None:
            found.append(LabelStatistics(name, value, 0, 0.0, {}, None, None, touches_border=False))
            continue
        mask = array[box] == value
        intensity = {key: _intensity(channel[box][mask]) for key, channel in zip(names, scan.array, strict=True)}
        found.append(_structure(name, value, mask, box, labels, intensity))
    return tuple(found)


def channel_keys(channels: Sequence[str], count: int) -> list[str]:
    """A name of its own for each of ``count`` channels."""
    named = [*channels[:count], *[""] * (count - len(channels))]
    return [
        name if name and named.count(name) == 1 else f"{name or 'channel'}_{number}"
        for number, name in enumerate(named)
    ]


def label_boxes(array: np.ndarray, values: Iterable[int]) -> dict[int, tuple[slice, ...]]:
    """The box of the voxels of each label above 0; labels without voxels have none."""
    from scipy.ndimage import find_objects

    wanted = sorted(value for value in set(values) if value > 0)
    found = find_objects(array, max_label=max(wanted, default=1))
    return {value: found[value - 1] for value in wanted if found[value - 1] is not None}


def _structure(
    name: str,
    value: int,
    mask: np.ndarray,
    box: tuple[slice, ...],
    labels: Volume,
    intensity: Mapping[str, Intensity],
) -> LabelStatistics:
    grid, shape = labels.geometry, labels.array.shape
    others = ((1, 2), (0, 2), (0, 1))
    along = [mask.sum(axis=axes, dtype=np.int64) for axes in others]  # voxels in each plane
    voxels = int(along[0].sum())
    middle = [side.start + float((counts * np.arange(len(counts))).sum()) / voxels
              for side, counts in zip(box, along, strict=True)]  # fmt: skip
    x, y, z = (grid.affine() @ np.array([*middle[::-1], 1.0]))[:3]
    extent = [(side.stop - side.start) * step for side, step in zip(box, grid.spacing, strict=True)][::-1]
    border = any(
        side.start == 0 or side.stop == size for side, size in zip(box, shape, strict=True) if size > 1
    )  # the only slice of a 2D image has no border
    return LabelStatistics(
        name=name,
        value=value,
        voxels=voxels,
        volume_mm3=voxels * float(np.prod(grid.spacing)),
        intensity=intensity,
        centroid=(float(x), float(y), float(z)),
        extent=(float(extent[0]), float(extent[1]), float(extent[2])),
        touches_border=border,
    )


def _intensity(values: np.ndarray) -> Intensity:
    """Of float32 ``values``, which are reordered."""
    pieces = [values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK)]
    mean = float(sum(piece.sum(dtype=np.float64) for piece in pieces)) / len(values)
    squares = float(sum(((piece.astype(np.float64) - mean) ** 2).sum() for piece in pieces))
    half = len(values) // 2
    values.partition([max(half - 1, 0), half])
    low = values[half - 1] if len(values) % 2 == 0 else values[half]
    return Intensity(mean, (squares / len(values)) ** 0.5, (float(low) + float(values[half])) / 2)
