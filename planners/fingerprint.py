"""What the images alone say about a dataset: sizes, spacings, intensities, background. Labels are not looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.files import read_json, write_json
from mre_lowshot.preprocessing.cropping import body_box, foreground_mask, mask_box

# A scan counts as skull-stripped (constant background) from this share of background voxels on: the stripped scans
# looked at have 81-88 %, others below 1 % (MRI) or, exported with clipped air, up to 76 % (CT, decided by name).
CONSTANT_BACKGROUND_SHARE = 0.5
BRAIN_MM = 200.0  # no brain is longer; an adult's head or body is


def case_fingerprint(image: np.ndarray, spacing: tuple[float, ...], orientation: str) -> dict[str, Any]:
    """Measure one LPS image (C, D, H, W) of ``spacing`` (z, y, x) mm.

    Gives shape, spacing, orientation code, per-channel intensity statistics, the share of voxels that differ from a
    constant background and the sizes of the non-zero and the body box.
    """
    mask = foreground_mask(image)
    channels = []
    for channel in image:
        low, quarter, middle, three, high = np.percentile(channel, [0.5, 25, 50, 75, 99.5])
        channels.append(
            {
                "min": float(channel.min()),
                "percentile_00_5": float(low),
                "percentile_25": float(quarter),
                "median": float(middle),
                "percentile_75": float(three),
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
    """Join the cases' fingerprints to what ``dataset_fingerprint.json`` holds; medians are per axis (z, y, x)."""
    spacings = np.array([c["spacing"] for c in cases.values()])
    shapes = np.array([c["shape"] for c in cases.values()])
    return {
        "dataset_name": name,
        "number_of_cases": len(cases),
        "note": "from images only (labelled and unlabelled); no label was looked at",
        "median_spacing": np.median(spacings, axis=0).tolist(),
        "median_shape": np.median(shapes, axis=0).tolist(),
        "cases": cases,
    }


def write_fingerprint(folder: Path, fingerprint: dict[str, Any]) -> None:
    """Write it to ``folder/dataset_fingerprint.json``; where nnU-Net has its own of that name, which it would trust
    unread, to ``mre_fingerprint.json``."""
    path = folder / "dataset_fingerprint.json"
    if path.is_file() and "cases" not in read_json(path, f"the fingerprint in {folder}"):
        path = folder / "mre_fingerprint.json"
    write_json(path, fingerprint)


def seen_ranges(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Lowest and highest spacing, extent (mm) and channel percentiles of the planned scans, for later warnings."""
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
    """Whether every scan has a constant background and no more than a brain inside (skull-stripped and alike): around
    a larger object it is air that the scanner wrote as 0, in this scan and perhaps not in the next."""
    return all(_stripped(case) for case in fingerprint["cases"].values())


def _stripped(case: dict[str, Any]) -> bool:
    longest = max(n * s for n, s in zip(case["nonzero_shape"], case["spacing"], strict=True))
    brain = case["shape"][0] == 1 or longest <= BRAIN_MM
    return bool(brain and case["background_share"] >= CONSTANT_BACKGROUND_SHARE)
