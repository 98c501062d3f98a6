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
from collections.abc import Sequence

from mre_lowshot.data.dataset import Case
from mre_lowshot.data.scan_input import geometry_of_case
from mre_lowshot.grid import full_box
from mre_lowshot.inference.models import Model
from mre_lowshot.limits import available_memory, require_memory
from mre_lowshot.preprocessing.grid_limits import forward_bytes
from mre_lowshot.preprocessing.pipeline import GridTransform, grid_size

# Share of the available memory that scans which are worked on at the same time may take together. Each of them is
# compared with what is free when its turn comes, and must not be refused because of the others.
SHARED_MEMORY = 0.5
READING = 12  # bytes for each voxel of a channel: as it is stored (up to 8) and float32


def refinement_bytes(classes: int) -> int:
    """The estimated peak of the stage refine, bytes for each voxel of the plan's grid."""
    return 4 * (5 * classes + 12)


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
        "refine": grid * refinement_bytes(classes),
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


class MemoryOfCases:
    """Which cases may be worked on at the same time, estimated from the headers of their files.

    Args:
        model: that predicts them.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.limit = SHARED_MEMORY * available_memory()
        self._needed: dict[str, float] = {}

    def admit(self, cases: Sequence[Case]) -> bool:
        """Whether all of ``cases`` together stay within the limit."""
        return sum(map(self.bytes_of, cases)) <= self.limit

    def bytes_of(self, case: Case) -> float:
        """The estimated peak of a case, from its file to its label map; 0 where its header cannot be read, as nothing
        more is done with it then. The whole scan is counted, as the crop is not known yet."""
        if case.name not in self._needed:
            try:
                self._needed[case.name] = self._bytes_of(case)
            except Exception:  # named when the case is read
                self._needed[case.name] = 0.0
        return self._needed[case.name]

    def _bytes_of(self, case: Case) -> float:
        plan, geometry = self.model.plan, geometry_of_case(case)
        config, channels = plan.preprocessing, len(plan.channel_names)
        shape, spacing = tuple(geometry.shape), tuple(geometry.spacing)
        transform = GridTransform(shape, spacing, full_box(shape), grid_size(shape, spacing, config))
        atlases = sum(map(len, self.model.atlases))
        image = math.prod(map(float, shape)) * channels
        return max(
            READING * image,
            4 * image + forward_bytes(transform.box, transform.size, config),
            prediction_bytes(transform, channels=channels, classes=plan.network.classes, atlases=atlases),
        )
