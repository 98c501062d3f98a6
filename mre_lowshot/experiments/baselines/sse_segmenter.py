"""sSE-guided few-shot segmentation of a scan: slice by slice and class by class, guided by one annotated volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from mre_lowshot.experiments.baselines.sse_network import TwoArms
from mre_lowshot.experiments.baselines.sse_slices import (
    Extent,
    extent_of,
    groups_of_queries,
    mask_to_network,
    merge_classes,
    support_slices,
    to_network,
)
from mre_lowshot.preprocessing.store import PreparedCase

QUERIES = 8  # slices segmented at once
ABSENT = -20.0  # logit of a class that the support does not have


@dataclass(frozen=True)
class FewShotSegmenter:
    """Segments scans with a trained network and one annotated support volume.

    Attributes:
        network: trained, in evaluation mode.
        support: the labelled volume.
        classes: K.
        k: number of annotated support slices of each class; None: all.
        size: (h, w) of slices in the network.
        device: to compute on.
    """

    network: TwoArms
    support: PreparedCase
    classes: int
    k: int | None
    size: tuple[int, int]
    device: torch.device

    def __call__(self, case: PreparedCase) -> np.ndarray:
        return self.segment(case)

    @torch.inference_mode()
    def segment(self, case: PreparedCase, extents: Mapping[int, Extent] | None = None) -> np.ndarray:
        """Class probabilities (K, D, H, W), float32.

        Args:
            case: the query.
            extents: first and last slice of each class in the query, as Roy et al. take from its reference; a class
                without one, and all slices outside, are background. None: nothing of the query is known; a slice is
                paired by its position in the volume.
        """
        label = self.support.needed_label()
        depth, height, width = case.image.shape[1:]
        queries = torch.from_numpy(np.ascontiguousarray(case.image.swapaxes(0, 1), dtype=np.float32))
        logits = torch.full((self.classes - 1, depth, height, width), ABSENT)
        for k in range(1, self.classes):
            mask = label == k
            extent = extent_of(mask)
            if extent is None or (extents is not None and k not in extents):
                continue
            chosen = support_slices(extent, self.k)
            groups = groups_of_queries(
                depth,
                len(chosen),
                support_extent=extent,
                support_depth=len(label),
                query_extent=extents[k] if extents is not None else None,
            )
            for group, numbers in groups.items():
                logits[k - 1, numbers] = self._group(queries[numbers], chosen[group], mask)
        return merge_classes(logits).numpy()

    def _group(self, queries: torch.Tensor, support: int, mask: np.ndarray) -> torch.Tensor:
        """Logits (D, H, W) of query slices (D, C, H, W), guided by slice number ``support``."""
        image = torch.from_numpy(np.ascontiguousarray(self.support.image[:, support], dtype=np.float32))[None]
        inside = mask_to_network(mask[support][None], self.size)
        gates = self.network.gates(to_network(image, self.size).to(self.device), inside.to(self.device))
        parts = []
        for part in queries.split(QUERIES):
            found = self.network.segment(to_network(part, self.size).to(self.device), gates)
            resized = F.interpolate(found[:, None], part.shape[2:], mode="bilinear", align_corners=False)
            parts.append(resized[:, 0].cpu())
        return torch.cat(parts)
