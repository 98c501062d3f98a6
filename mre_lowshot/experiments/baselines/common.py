"""What the baselines for one labelled scan share: the choice of it where there are several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mre_lowshot.preprocessing.store import PreparedCase
from mre_lowshot.resampling import resize_image

AVERAGE_SIDE = 32  # voxels along each axis, at most, of the scans that are averaged


def nearest_to_average(cases: Sequence[PreparedCase]) -> int:
    """The number of the scan with the smallest mean squared difference from the average of all, which are resized to a
    common small size for this; the first one if several are equally near."""
    if len(cases) == 1:
        return 0
    sides = np.median([case.image.shape[1:] for case in cases], axis=0)
    size = tuple(int(min(n, AVERAGE_SIDE)) for n in sides)
    images = np.stack([resize_image(case.image, size, order=1) for case in cases])
    average = images.mean(axis=0)
    return int(np.argmin(((images - average) ** 2).reshape(len(cases), -1).mean(axis=1)))
