"""Small components of classes that are one connected structure, found inside the box of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A component this large, as a share of the class's largest, is kept: halves that touch on the plan's grid may be
# separate on the scan's own.
LARGE_COMPONENT = 0.5


def keep_largest_component(labels: np.ndarray, single_component: Sequence[int], lesions: Sequence[int] = ()) -> None:
    """Set the small components of each class in ``single_component`` to background; in place. ``labels`` (D, H, W).

    The classes ``lesions`` connect what they divide: a part of an organ behind a lesion is no component of its own.
    """
    if not single_component:
        return
    from acvl_utils.morphology.morphology_helper import cc3d_label_with_component_sizes
    from scipy.ndimage import find_objects

    boxes = find_objects(labels, max(*single_component, *lesions, 1))
    of_lesions = [box for k in lesions if (box := boxes[k - 1]) is not None]
    for label in single_component:
        if (own := boxes[label - 1]) is None:
            continue
        inside = labels[_union([own, *of_lesions])]
        mask, lesion = inside == label, np.isin(inside, lesions) if of_lesions else None
        connected = mask if lesion is None else mask | lesion
        components, sizes = cc3d_label_with_component_sizes(connected, connectivity=26)
        if lesion is not None:  # of the class alone
            components[lesion] = 0
            counts = np.bincount(components.ravel())
            sizes = {n: int(counts[n]) for n in range(1, len(counts)) if counts[n]}
        small = [n for n, size in sizes.items() if size < LARGE_COMPONENT * max(sizes.values())]
        if small:
            inside[np.isin(components, small)] = 0


def _union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The smallest box around boxes."""
    return tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes, strict=True))
