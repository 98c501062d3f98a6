"""The mirror image of a labelled scan as another atlas, where left and right are alike.

A brain's halves are the same anatomy drawn twice. Registered as it is, never turned back, the mirror image lays each
half on the other, and so brings a second opinion, which errs in other places. The network is trained without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mre_lowshot.alignment import Atlas, Atlases
from mre_lowshot.losses import IGNORE
from mre_lowshot.planners.rules import other_side, spelled
from mre_lowshot.specs import Plan


def partners(labels: Mapping[str, int]) -> list[int]:
    """For each class, background first, the class that it is in a mirror image: ``left_kidney`` for ``right_kidney``,
    else itself."""
    numbers = {spelled(name): number for name, number in labels.items()}
    found = {number: numbers.get(other_side(name) or "", number) for name, number in labels.items()}
    return [found[number] for number in range(len(labels))]


def image_of(atlas: Atlas, labels: Mapping[str, int]) -> Atlas:
    """The scan with left and right (the last axis) exchanged, and sides in the names of ``labels``."""
    table = np.array([*partners(labels), IGNORE], dtype=atlas.label.dtype)  # IGNORE, -1, finds the last
    label = table[atlas.label[..., ::-1]]
    return replace(atlas, image=np.ascontiguousarray(atlas.image[..., ::-1]), label=label, mirrored=not atlas.mirrored)


def with_images(atlases: Atlases, plan: Plan) -> Atlases:
    """A fold's atlases, and their mirror images where the fold's ``plan`` uses them."""
    if plan.fold is None or not plan.fold.mirror_images:
        return atlases
    return (*atlases, *(image_of(atlas, plan.labels) for atlas in atlases))
