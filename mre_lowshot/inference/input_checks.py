"""Is this scan like those the model was made for? Warnings in words, never silent, never a refusal."""

from __future__ import annotations

import numpy as np

from mre_lowshot.planners.fingerprint import CONSTANT_BACKGROUND_SHARE
from mre_lowshot.preprocessing.cropping import foreground_mask
from mre_lowshot.specs import Plan
from mre_lowshot.volume import Volume

TOLERANCE = 1.5  # times outside the range seen in planning before a warning is given


def unlike_training(image: Volume, plan: Plan) -> list[str]:
    """What about the scan lies far from the scans that were planned on: spacing, extent, background, CT intensities."""
    warnings = []
    seen, names = plan.seen, ("z", "y", "x")
    spacing = np.asarray(image.geometry.spacing)
    extent = spacing * np.asarray(image.geometry.shape)
    for what, values, key, unit in (("spacing", spacing, "spacing", "mm"), ("extent", extent, "extent_mm", "mm")):
        low, high = np.asarray(seen[key])
        for axis in np.flatnonzero((values < low / TOLERANCE) | (values > high * TOLERANCE)):
            warnings.append(
                f"{what} along {names[axis]} is {values[axis]:.3g} {unit}, planned on "
                f"{low[axis]:.3g} to {high[axis]:.3g} {unit}"
            )
    if plan.preprocessing.crop == "nonzero":
        constant = 1 - float(foreground_mask(image.array).mean())
        if constant < CONSTANT_BACKGROUND_SHARE:
            warnings.append(
                f"{constant:.0%} of it is constant background, planned on skull-stripped scans; strip it as they were"
            )
    for index, scheme in enumerate(plan.preprocessing.normalization):
        if scheme.scheme != "clip":
            continue  # other intensities have no absolute scale
        low, high = seen["channels"][index]["median"]
        value, margin = float(np.median(image.array[index])), 0.5 * (scheme.upper - scheme.lower)
        if not low - margin <= value <= high + margin:
            warnings.append(
                f"median intensity is {value:.0f} HU, planned on {low:.0f} to {high:.0f} HU; is the scan in HU?"
            )
    return warnings
