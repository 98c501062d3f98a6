"""Properties of a dataset's images: sizes, spacings, intensities, background. Labels are not used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.files import read_json, write_json
from mre_lowshot.grid import Box, as_slices, nominal_spacing
from mre_lowshot.preprocessing.cropping import body_box, foreground_mask, mask_box
from mre_lowshot.preprocessing.faults import correct_faults
from mre_lowshot.preprocessing.padding import content_box

# A scan counts as skull-stripped (constant background) from this share of background voxels on. Measured: stripped
# scans 81-88 %, others below 1 % (MRI) or, exported with clipped air, up to 76 % (CT, which is decided by name).
CONSTANT_BACKGROUND_SHARE = 0.5
# Inside its own bounding box a brain leaves 35 to 50 % to the background; an image that was padded leaves nothing.
PADDED_SHARE = 0.1
BRAIN_MM = 200.0  # longer than any brain, shorter than an adult's head or body


def case_fingerprint(
    image: np.ndarray, spacing: tuple[float, ...], orientation: str, *, ct: Sequence[bool] = ()
) -> dict[str, Any]:
    """Measure one LPS image as preprocessing sees it: outliers limited, constant padding left out.

    Args:
        image: (C, D, H, W).
        spacing: (z, y, x) mm.
        orientation: the file's axis code.
        ct: for each channel whether it is a CT.

    Returns:
        Shape with and without constant padding, spacing, orientation code, per-channel intensity statistics, the share
        of voxels in a constant background, and the sizes of the non-zero and the body box.
    """
    shape, original = list(image.shape[1:]), image
    image = correct_faults(image, ct)
    mask = foreground_mask(_cut(image, content_box(image, crop="nonzero", ct=ct)))
    content = content_box(image, crop="none", ct=ct)
    inner = _cut(image, content)
    inner_mask = mask[as_slices(content)] if list(mask.shape) == shape else mask
    channels = []
    for channel in inner:
        channels.append(
            {
                "min": float(channel.min()),
                **percentiles(channel),
                "max": float(channel.max()),
                "mean": float(channel.mean(dtype=np.float64)),
                "std": float(channel.std(dtype=np.float64)),
                "layout": layout(channel),
            }
        )
    return {
        "shape": shape,
        "content_shape": list(inner.shape[1:]),
        "spacing": [float(s) for s in spacing],
        "orientation": orientation,
        "outliers": 0 if image is original else int(np.count_nonzero(image != original)),
        "background_share": float(1 - mask.mean()),
        "content_background_share": float(1 - inner_mask.mean()),
        "nonzero_shape": _shape(mask_box(mask)),
        "body_shape": _shape(body_box(inner, spacing)),
        "channels": channels,
    }


def percentiles(channel: np.ndarray) -> dict[str, float]:
    """The percentiles of a channel (D, H, W) that plans and warnings use."""
    names = ("percentile_00_5", "percentile_25", "median", "percentile_75", "percentile_99_5")
    values = np.percentile(channel, [0.5, 25, 50, 75, 99.5])
    return {name: float(value) for name, value in zip(names, values, strict=True)}


BLOCKS = 4  # per axis of the layout


def layout(channel: np.ndarray) -> list[float]:
    """Where a channel (D, H, W) is bright and dark: means of `BLOCKS` blocks per axis, as z-scores; empty for an image
    with fewer voxels along an axis."""
    if min(channel.shape) < BLOCKS:
        return []
    means = channel
    for axis in range(3):
        starts = np.arange(BLOCKS) * channel.shape[axis] // BLOCKS
        counts = np.diff([*starts, channel.shape[axis]]).reshape([-1 if a == axis else 1 for a in range(3)])
        means = np.add.reduceat(means, starts, axis=axis, dtype=np.float64) / counts
    deviation = float(means.std())
    return [round(float(v), 3) for v in ((means - means.mean()) / deviation).ravel()] if deviation > 0 else []


def _cut(image: np.ndarray, box: Box) -> np.ndarray:
    return image[(slice(None), *as_slices(box))]


def _shape(box: tuple[tuple[int, int], ...]) -> list[int]:
    return [high - low for low, high in box]


def dataset_fingerprint(name: str, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of ``dataset_fingerprint.json`` from the cases' fingerprints; medians are per axis (z, y, x)."""
    spacings = np.array([c["spacing"] for c in cases.values()])
    shapes = np.array([c["shape"] for c in cases.values()])
    return {
        "dataset_name": name,
        "number_of_cases": len(cases),
        "note": "from images only (labelled and unlabelled); no label was used",
        "median_spacing": np.median(spacings, axis=0).tolist(),
        "median_shape": np.median(shapes, axis=0).tolist(),
        "cases": cases,
    }


FILES = ("dataset_fingerprint.json", "mre_fingerprint.json")  # the second where the first is nnU-Net's


def write_fingerprint(folder: Path, fingerprint: dict[str, Any]) -> None:
    """Write ``folder/dataset_fingerprint.json``, or ``mre_fingerprint.json`` where nnU-Net has its own file of the
    first name (nnU-Net would use ours without checking it)."""
    path = folder / FILES[0]
    if path.is_file() and "cases" not in read_json(path, f"the fingerprint in {folder}"):
        path = folder / FILES[1]
    write_json(path, fingerprint)


def training_ranges(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Lowest and highest spacing, extent (mm) and channel percentiles of the planned scans, for warnings at
    prediction."""
    cases = list(fingerprint["cases"].values())
    spacings = np.array([c["spacing"] for c in cases])
    extents = np.array([np.multiply(c["spacing"], content_shape(c)) for c in cases])
    channels = []
    for index in range(len(cases[0]["channels"])):
        of_channel = [c["channels"][index] for c in cases]
        layouts = [c["layout"] for c in of_channel if c.get("layout")]
        channels.append(
            {
                "median": _range([c["median"] for c in of_channel]),
                "percentile_99_5": _range([c["percentile_99_5"] for c in of_channel]),
                **{name: _range([value(c) for c in of_channel]) for name, value in SCALE_FREE.items()},
                "layout": np.mean(layouts, axis=0).round(3).tolist() if len(layouts) == len(cases) else [],
            }
        )
    shapes = np.array([content_shape(c) for c in cases])
    return {
        "scans": len(cases),
        "spacing": [spacings.min(axis=0).tolist(), spacings.max(axis=0).tolist()],
        "extent_mm": [extents.min(axis=0).tolist(), extents.max(axis=0).tolist()],
        "shape": [shapes.min(axis=0).tolist(), shapes.max(axis=0).tolist()],
        "padding_share": _range([padding_share(c["shape"], content_shape(c)) for c in cases]),
        "background_share": _range([c.get("content_background_share", c["background_share"]) for c in cases]),
        "outliers": _range([c.get("outliers", 0) for c in cases]),
        "channels": channels,
    }


def padding_share(shape: Sequence[int], content: Sequence[int]) -> float:
    """Share of an image's voxels that are constant padding."""
    return 1 - math.prod(content) / math.prod(shape)


def _range(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)]


def _position(name: str) -> Callable[[Mapping[str, float]], float]:
    """Where a percentile lies between the 0.5th (0) and the 99.5th (1)."""

    def value(channel: Mapping[str, float]) -> float:
        low, high = channel["percentile_00_5"], channel["percentile_99_5"]
        return (channel[name] - low) / (high - low) if high > low else 0.0

    return value


# Of a channel's percentiles, for intensities that have no absolute scale: how they are distributed, and their width.
SCALE_FREE: dict[str, Callable[[Mapping[str, float]], float]] = {
    "position_25": _position("percentile_25"),
    "position_50": _position("median"),
    "position_75": _position("percentile_75"),
    "width": lambda channel: channel["percentile_99_5"] - channel["percentile_00_5"],
}


def content_shape(case: dict[str, Any]) -> list[int]:
    """Size (z, y, x) of a measured scan without constant padding."""
    shape: list[int] = case.get("content_shape", case["shape"])
    return shape


def constant_background(fingerprint: dict[str, Any]) -> bool:
    """Whether every scan has a constant background around an object no larger than a brain (skull-stripped and alike).
    Around a larger object it is air that the scanner wrote as 0, perhaps in this scan only."""
    return all(_stripped(case) for case in fingerprint["cases"].values())


def _stripped(case: dict[str, Any]) -> bool:
    sides = nominal_spacing(case["spacing"])  # in voxels alone where the unit cannot be that of a patient
    longest = max(n * s for n, s in zip(case["nonzero_shape"], sides, strict=True))
    brain = case["shape"][0] == 1 or longest <= BRAIN_MM
    padded = case.get("content_background_share", 1.0) < PADDED_SHARE
    return bool(brain and case["background_share"] >= CONSTANT_BACKGROUND_SHARE and not padded)
