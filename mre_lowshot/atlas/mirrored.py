"""Beyond the paper: the mirror image of a labelled scan as another atlas, where the anatomy is left-right symmetric.

Registered without flipping it back, the mirror image lays each half of the labelled scan on the other half, and so
contributes labels whose errors lie elsewhere. The network is trained without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mre_lowshot.atlas.atlas import Atlas, Atlases
from mre_lowshot.config import Plan
from mre_lowshot.data.vocabulary import contralateral, normalize_name
from mre_lowshot.grid import IGNORE


def swap_sides(labels: Mapping[str, int]) -> list[int]:
    """For each class, background first, its class in a mirror image: ``left_kidney`` for ``right_kidney``; itself
    where it has no side."""
    numbers = {normalize_name(name): number for name, number in labels.items()}
    found = {number: numbers.get(contralateral(name, labels) or "", number) for name, number in labels.items()}
    return [found[number] for number in range(len(labels))]


def mirrored(atlas: Atlas, labels: Mapping[str, int]) -> Atlas:
    """The atlas with left and right (the last axis) exchanged, and the sides in the names of ``labels``."""
    table = np.array([*swap_sides(labels), IGNORE], dtype=atlas.label.dtype)  # IGNORE, -1, is the last entry
    label = table[atlas.label[..., ::-1]]
    return replace(atlas, image=np.ascontiguousarray(atlas.image[..., ::-1]), label=label, mirrored=not atlas.mirrored)


def with_mirrored(atlases: Atlases, plan: Plan) -> Atlases:
    """A fold's atlases, followed by their mirror images where the fold's ``plan`` uses them."""
    if plan.fold is None or not plan.fold.mirrored_atlases:
        return atlases
    return (*atlases, *(mirrored(atlas, plan.labels) for atlas in atlases))
