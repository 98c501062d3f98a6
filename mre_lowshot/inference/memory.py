"""Memory that the prediction of a preprocessed scan needs, estimated from its sizes: before it is allocated.

Bytes, with N voxels of the scan, B of its crop, M of the plan's grid, K classes and C channels::

    always      4 M C                          the preprocessed image
                24 M a                         coordinates in the a atlases of all folds (three float64)
    register    M (60 + 32 C)                  displacements and images of one registration
    network     4 M (2 K + 2)                  probabilities, votes, finiteness
    refine      4 M (5 K + 12)                 posterior, warped labels, result, two copies of CRF or EM step
    export      4 M K + 2 N + 8 B + 7 N        probabilities, label map, two resized classes, components and file
    saving      12 B                           one class, the sum of all and the exponent (save_probabilities)

The peak is the largest stage plus what is always there. Reading and preprocessing are checked where they begin
(`preprocessing.grid_limits`). It is an estimate from above: measured peaks lie below it (tests/test_memory.py).
"""

from __future__ import annotations

import math

from mre_lowshot.limits import require_memory
from mre_lowshot.preprocessing.pipeline import GridTransform


def prediction_bytes(transform: GridTransform, *, channels: int, classes: int, atlases: int = 0) -> float:
    """The estimated peak, bytes, by the formula above.

    Args:
        transform: of the scan to the plan's grid: its three sizes.
        channels: C.
        classes: K.
        atlases: of all folds together, mirrored ones included; 0: no registration.
    """
    native = math.prod(map(float, transform.native_shape))
    box, grid = math.prod(map(float, transform.box_shape)), math.prod(map(float, transform.size))
    always = grid * (4 * channels + 24 * atlases)
    stages = {
        "register": grid * (60 + 32 * channels) if atlases else 0.0,
        "network": 4 * grid * (2 * classes + 2),
        "refine": 4 * grid * (5 * classes + 12),
        "export": 4 * grid * classes + 9 * native + 8 * box,
        "saving": 4 * grid * classes + 2 * native + 12 * box,
    }
    return always + max(stages.values())


def require_prediction_memory(
    name: str, transform: GridTransform, *, channels: int, classes: int, atlases: int
) -> None:
    """Refuse a scan whose prediction needs more memory than there is; for the arguments see `prediction_bytes`.

    Raises:
        UserError: names the case, its sizes and the memory.
    """
    require_memory(
        prediction_bytes(transform, channels=channels, classes=classes, atlases=atlases),
        f"case {name}: predicting {transform.native_shape} voxels on the plan's grid of {transform.size} voxels with "
        f"{classes} classes",
        "crop the scan, average fewer folds (-f), or plan a coarser grid with -p NAME --set "
        "preprocessing.spacing=[z,y,x]",
    )
