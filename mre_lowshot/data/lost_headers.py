"""Headers that lost their position: of two files with as many voxels, the one whose header a tool has left at its
defaults. Resampling would shift its content; a copy of the other's header is what is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mre_lowshot.data.geometry import Geometry

UNKNOWN = "orientation unknown"  # begins the note of a header without a position
TOLERANCE = 1e-3  # of a default header's values, which are whole numbers


def is_default(geometry: Geometry) -> bool:
    """Whether a header is what tools write without one: spacing 1, axes parallel to the patient's, position 0."""
    last = np.array(geometry.shape[::-1]) - 1.0  # the origin of an axis that is turned round lies at its other end
    origin = np.abs(np.array(geometry.origin))
    at_zero = (origin < TOLERANCE) | (np.abs(origin - last) < TOLERANCE)
    straight = np.allclose(np.abs(np.array(geometry.direction)), np.eye(3).ravel(), atol=TOLERANCE)
    return bool(np.allclose(geometry.spacing, 1) and at_zero.all() and straight)


def lost_header(grids: Sequence[Geometry], notes: Sequence[Sequence[str]]) -> int | None:
    """Which of two files (0 or 1) has lost its header; None where neither or both have, or their sizes differ.

    Args:
        grids: of the two files.
        notes: of their headers, as in `data.volume.Volume`.
    """
    if grids[0].file_grid().shape != grids[1].file_grid().shape or grids[0].dimensions == 2:
        return None
    for lost in (
        [any(note.startswith(UNKNOWN) for note in of_file) for of_file in notes],
        [is_default(grid) for grid in grids],
    ):
        if lost[0] != lost[1]:
            return lost.index(True)
    return None


def grid_fix(
    grids: Sequence[Geometry],
    notes: Sequence[Sequence[str]],
    paths: Sequence[Path],
    *,
    names: tuple[str, str],
    resample: str,
) -> str:
    """What to do with two files whose grids differ.

    Args:
        grids, notes: as in `lost_header`.
        paths: of the files.
        names: what they are, for the message.
        resample: the fix where no header was lost.
    """
    lost = lost_header(grids, notes)
    if lost is None:
        return resample
    return (
        f"the {names[lost]} has lost its position, so resample neither; copy the header of the other into it: "
        f"{copy_command(paths[1 - lost], paths[lost])}"
    )


def channel_fix(
    first: Geometry, other: Geometry, notes: tuple[Sequence[str], Sequence[str]], paths: tuple[Path, Path]
) -> str:
    """What to do with two channels of a scan whose grids differ; ``notes`` and ``paths`` are those of the two."""
    names = (f"channel {paths[0].name}", f"channel {paths[1].name}")
    return grid_fix([first, other], notes, paths, names=names, resample="resample one onto the other")


def copy_command(source: Path, target: Path) -> str:
    """A command that copies the header of ``source`` into ``target``."""
    names = [f"{path.parent.name}/{path.name}" for path in (source, target)]
    return (
        f"python -c \"import SimpleITK as s; i, m = map(s.ReadImage, ('{names[0]}', '{names[1]}')); "
        f"m.CopyInformation(i); s.WriteImage(m, '{names[1]}', True)\""
    )
