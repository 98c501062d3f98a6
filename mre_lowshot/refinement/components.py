"""Small components of classes that are one connected structure."""

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
    from acvl_utils.morphology.morphology_helper import label_with_component_sizes

    lesion = np.isin(labels, lesions) if len(lesions) else None
    for label in single_component:
        mask = labels == label
        components, sizes = label_with_component_sizes(mask if lesion is None else mask | lesion)
        if lesion is not None:  # of the class alone
            components[lesion] = 0
            counts = np.bincount(components.ravel())
            sizes = {n: int(counts[n]) for n in range(1, len(counts)) if counts[n]}
        small = [n for n, size in sizes.items() if size < LARGE_COMPONENT * max(sizes.values())]
        if small:
            labels[np.isin(components, small)] = 0
