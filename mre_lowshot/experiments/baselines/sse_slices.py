"""Slices of a volume for sSE-guided few-shot segmentation: which slices hold a class, how query slices are paired with
support slices, and their size in the network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mre_lowshot.experiments.baselines.sse_network import LEVELS

MIN_PIXELS = 10  # a slice with at most this many pixels of a class does not count as one with the class
DIVISOR = 2**LEVELS
Extent = tuple[int, int]
"""First and last slice of a class, inclusive."""


def slices_with(mask: np.ndarray) -> np.ndarray:
    """Numbers of the slices along the first axis that hold more than `MIN_PIXELS` pixels of ``mask`` (D, H, W). If none
    does, those that hold any."""
    pixels = mask.reshape(len(mask), -1).sum(axis=1)
    found = np.flatnonzero(pixels > MIN_PIXELS)
    return found if len(found) else np.flatnonzero(pixels)


def extent_of(mask: np.ndarray) -> Extent | None:
    """The first and last of `slices_with` the class; None where there is none."""
    found = slices_with(mask)
    return (int(found[0]), int(found[-1])) if len(found) else None


def support_slices(extent: Extent, k: int | None) -> list[int]:
    """The middle slices of ``k`` groups of equal size, into which the support's ``extent`` is divided; None, or more
    than there are: every slice."""
    first, last = extent
    count = last - first + 1
    groups = count if k is None else min(k, count)
    return [first + int((group + 0.5) * count / groups) for group in range(groups)]


def groups_of_queries(
    slices: int, groups: int, *, support_extent: Extent, support_depth: int, query_extent: Extent | None = None
) -> dict[int, list[int]]:
    """The group of each query slice: group -> numbers of its slices.

    Args:
        slices: in the query volume.
        groups: number of groups, of `support_slices`.
        support_extent: of the class in the support volume.
        support_depth: slices of the support volume.
        query_extent: of the class in the query, where it is given: these slices are divided into groups of equal size,
            and the others are in no group. None: a slice's position in the query is taken to be the same fraction of
            the volume in the support, and slices beyond the support's extent are in the first or last group.
    """
    if query_extent is not None:
        first, last = query_extent
        chosen = np.arange(first, last + 1)
        share = (chosen - first + 0.5) / (last - first + 1)
    else:
        chosen = np.arange(slices)
        position = (chosen + 0.5) / slices * support_depth
        low, high = support_extent
        share = (position - low) / (high - low + 1)
    found = np.clip(np.floor(share * groups), 0, groups - 1).astype(int)
    return {int(group): [int(z) for z in chosen[found == group]] for group in np.unique(found)}


def network_size(size: Sequence[int], most: int) -> tuple[int, int]:
    """Size of slices (H, W) in the network: at most ``most`` along the longer side, with the same proportions, and both
    rounded up to a multiple of `DIVISOR`."""
    factor = min(1.0, most / max(size))
    height, width = (max(1, int(np.ceil(n * factor / DIVISOR))) * DIVISOR for n in size)
    return height, width


def to_network(slices: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) resized to ``size``, smoothed where they shrink."""
    if tuple(slices.shape[2:]) == size:
        return slices
    shrinks = any(new < old for new, old in zip(size, slices.shape[2:], strict=True))
    return F.interpolate(slices, size, mode="bilinear", align_corners=False, antialias=shrinks)


def mask_to_network(mask: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A binary mask (D, H, W) as float32 (D, *size); each value is the share of the mask in the pixel."""
    return to_network(torch.from_numpy(mask.astype(np.float32))[:, None], size)[:, 0]


def merge_classes(logits: Tensor) -> Tensor:
    """Class probabilities (K, *size) from the logits (K - 1, *size) of separate decisions class by class: the odds of
    each class against the background's 1, normalised. A voxel is background where every class is below 0.5, else of the
    class with the highest probability."""
    return torch.softmax(torch.cat([torch.zeros_like(logits[:1]), logits]), dim=0)
