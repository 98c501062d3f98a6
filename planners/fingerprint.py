"""Properties of a dataset's images: sizes, spacings, intensities, background. Labels are not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.files import read_json, write_json
from mre_lowshot.preprocessing.cropping import body_box, foreground_mask, mask_box

# A scan counts as skull-stripped (constant background) from this share of background voxels on. Measured: stripped
# scans 81-88 %, others below 1 % (MRI) or, exported with clipped air, up to 76 % (CT, which is decided by name).
CONSTANT_BACKGROUND_SHARE = 0.5
BRAIN_MM = 200.0  # longer than any brain, shorter than an adult's head or body


def case_fingerprint(image: np.ndarray, spacing: tuple[float, ...], orientation: str) -> dict[str, Any]:
    """Measure one LPS image (C, D, H, W) of ``spacing`` (z, y, x) mm.

    Returns:
        Shape, spacing, orientation code, per-channel intensity statistics, the share of voxels in a constant
        background, and the sizes of the non-zero and the body box.
    """
    mask = foreground_mask(image)
    channels = []
    for channel in image:
        low, q25, median, q75, high = np.percentile(channel, [0.5, 25, 50, 75, 99.5])
        channels.append(
            {
                "min": float(channel.min()),
                "percentile_00_5": float(low),
                "percentile_25": float(q25),
                "median": float(median),
                "percentile_75": float(q75),
                "percentile_99_5": float(high),
                "max": float(channel.max()),
                "mean": float(channel.mean(dtype=np.float64)),
                "std": float(channel.std(dtype=np.float64)),
            }
        )
    return {
        "shape": list(image.shape[1:]),
        "spacing": [float(s) for s in spacing],
        "orientation": orientation,
        "background_share": float(1 - mask.mean()),
        "nonzero_shape": _shape(mask_box(mask)),
        "body_shape": _shape(body_box(image, spacing)),
        "channels": channels,
    }


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


def write_fingerprint(folder: Path, fingerprint: dict[str, Any]) -> None:
    """Write ``folder/dataset_fingerprint.json``, or ``mre_fingerprint.json`` where nnU-Net has its own file of the
    first name (nnU-Net would use ours without checking it)."""
    path = folder / "dataset_fingerprint.json"
    if path.is_file() and "cases" not in read_json(path, f"the fingerprint in {folder}"):
        path = folder / "mre_fingerprint.json"
    write_json(path, fingerprint)


def training_ranges(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Lowest and highest spacing, extent (mm) and channel percentiles of the planned scans, for warnings at
    prediction."""
    cases = list(fingerprint["cases"].values())
    spacings = np.array([c["spacing"] for c in cases])
    extents = np.array([np.multiply(c["spacing"], c["shape"]) for c in cases])
    channels = []
    for index in range(len(cases[0]["channels"])):
        of_channel = [c["channels"][index] for c in cases]
        channels.append(
            {
                "median": [min(c["median"] for c in of_channel), max(c["median"] for c in of_channel)],
                "percentile_99_5": [
                    min(c["percentile_99_5"] for c in of_channel),
                    max(c["percentile_99_5"] for c in of_channel),
                ],
            }
        )
    return {
        "spacing": [spacings.min(axis=0).tolist(), spacings.max(axis=0).tolist()],
        "extent_mm": [extents.min(axis=0).tolist(), extents.max(axis=0).tolist()],
        "channels": channels,
    }


def constant_background(fingerprint: dict[str, Any]) -> bool:
    """Whether every scan has a constant background around an object no larger than a brain (skull-stripped and alike).
    Around a larger object it is air that the scanner wrote as 0, perhaps in this scan only."""
    return all(_stripped(case) for case in fingerprint["cases"].values())


def _stripped(case: dict[str, Any]) -> bool:
    longest = max(n * s for n, s in zip(case["nonzero_shape"], case["spacing"], strict=True))
    brain = case["shape"][0] == 1 or longest <= BRAIN_MM
    return bool(brain and case["background_share"] >= CONSTANT_BACKGROUND_SHARE)
