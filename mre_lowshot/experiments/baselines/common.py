"""What the baselines for volumes share: they refuse 2D images, and choose one labelled scan where there are several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines.base import BaselineFold
from mre_lowshot.grid import resize_image
from mre_lowshot.preprocessing.store import PreparedCase

AVERAGE_SIDE = 32  # voxels along each axis, at most, of the scans that are averaged


def require_volumes(fold: BaselineFold, method: str, *, axes: Sequence[int] = (0, 1, 2)) -> None:
    """Refuse what ``method`` cannot learn from.

    Args:
        fold: to learn from.
        method: begins the message.
        axes: along which a scan needs several voxels.

    Raises:
        UserError: no labelled scan, 2D images, or a scan of one slice.
    """
    if not fold.train:
        raise UserError(f"{method}: the fold has no labelled scan; it needs one")
    for case in fold.train:
        size = case.image.shape[1:]
        if fold.plan.network.axes != 3 or len(size) != 3 or any(size[axis] < 2 for axis in axes):
            raise UserError(
                f"{method}: case {case.name} has {' x '.join(map(str, size))} voxels and the plan's network "
                f"{fold.plan.network.axes} axes; the method needs volumes of several slices, leave this row out"
            )


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
