"""Whether a scan resembles the training scans: warnings, never an error."""

from __future__ import annotations

import numpy as np

from mre_lowshot.config import Plan
from mre_lowshot.data.volume import Volume
from mre_lowshot.planners.fingerprint import CONSTANT_BACKGROUND_SHARE
from mre_lowshot.preprocessing.cropping import foreground_mask

TOLERANCE = 1.5  # factor outside the planned scans' range from which a warning is given


def differences_from_training(image: Volume, plan: Plan) -> list[str]:
    """Differences between the scan and the planned scans' ranges: spacing, extent, background, CT intensities."""
    warnings = []
    ranges, names = plan.training_ranges, ("z", "y", "x")
    spacing = np.asarray(image.geometry.spacing)
    extent = spacing * np.asarray(image.geometry.shape)
    for what, values, key, unit in (("spacing", spacing, "spacing", "mm"), ("extent", extent, "extent_mm", "mm")):
        low, high = np.asarray(ranges[key])
        for axis in np.flatnonzero((values < low / TOLERANCE) | (values > high * TOLERANCE)):
            warnings.append(
                f"{what} along {names[axis]} is {values[axis]:.3g} {unit}, training scans "
                f"{low[axis]:.3g} to {high[axis]:.3g} {unit}"
            )
    if plan.preprocessing.crop == "nonzero":
        constant = 1 - float(foreground_mask(image.array).mean())
        if constant < CONSTANT_BACKGROUND_SHARE:
            warnings.append(
                f"{constant:.0%} of it is constant background, the training scans are skull-stripped; skull-strip "
                "this scan too"
            )
    for index, scheme in enumerate(plan.preprocessing.normalization):
        if scheme.scheme != "clip":
            continue  # other intensities have no absolute scale
        low, high = ranges["channels"][index]["median"]
        value, margin = float(np.median(image.array[index])), 0.5 * (scheme.upper - scheme.lower)
        if not low - margin <= value <= high + margin:
            warnings.append(
                f"median intensity is {value:.0f} HU, training scans {low:.0f} to {high:.0f} HU; is the scan in HU?"
            )
    return warnings
