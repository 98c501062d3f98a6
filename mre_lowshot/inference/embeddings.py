"""Embeddings of chosen voxels of a scan, and the prototypes of the classes: what a network has learned to compare."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from mre_lowshot.grid import coordinate_maps, voxel_positions
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.sliding_window import extrapolated, without_slice_axis
from mre_lowshot.inference.stages import RegisteredScan
from mre_lowshot.network.build import MRENet
from mre_lowshot.network.head import PrototypeHead
from mre_lowshot.sampling import location_maps


def embeddings_at(predictor: Predictor, scan: RegisteredScan, voxels: np.ndarray) -> np.ndarray:
    """Embeddings (n, N_e), float32, of voxels (n, axes) of a scan on the plan's grid, by the first fold's network.

    Each voxel is computed in a patch whose inner half contains it where the scan's border allows, so that no voxel lies
    at the border of its patch.

    Raises:
        TypeError: the model's network is no MRENet.
    """
    plan, network = predictor.plan, predictor.model.networks[0]
    if not isinstance(network, MRENet):
        raise TypeError("embeddings need an MRENet")
    image = without_slice_axis(scan.prepared.image) if plan.network.axes == 2 else scan.prepared.image
    patch, size = plan.patch.size, image.shape[1:]
    missing = [max(0, p - n) for p, n in zip(patch, size, strict=True)]
    padding = [(m // 2, m - m // 2) for m in missing]
    known, padded = scan.coordinates[0], np.pad(image, [(0, 0), *padding], mode="edge")
    known = known if known is None else extrapolated(known, padding)
    before = np.array([low for low, _ in padding])
    found: np.ndarray | None = None
    for start, chosen in _patches(voxels + before, patch, padded.shape[1:]):
        box = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
        maps = None
        if plan.network.coordinates == "volume":
            corner = [s - int(b) for s, b in zip(start, before, strict=True)]
            own = coordinate_maps(voxel_positions(corner, patch), size) if known is None else known[(slice(None), *box)]
            maps = torch.from_numpy(location_maps(own, predictor.priors[0]).astype(np.float32))[None]
            maps = maps.to(predictor.device)
        with torch.inference_mode():
            levels = network.backbone(torch.from_numpy(padded[(slice(None), *box)].copy())[None].to(predictor.device))
            features = network.embedding(levels, maps)[0].float().cpu().numpy()
        at = tuple((voxels[chosen] + before - start).T)
        if found is None:
            found = np.empty((len(voxels), len(features)), np.float32)
        found[chosen] = features[(slice(None), *at)].T
    return np.empty((0, 0), np.float32) if found is None else found


def prototypes_of(predictor: Predictor) -> np.ndarray | None:
    """The prototypes (K, M, N_e) of the first fold's network; None where it has a linear classifier."""
    head = getattr(predictor.model.networks[0], "head", None)
    if not isinstance(head, PrototypeHead):
        return None
    values = head.prototypes.detach().float().cpu().numpy()
    return values.reshape(predictor.plan.network.classes, -1, values.shape[1])


def _patches(
    voxels: np.ndarray, patch: tuple[int, ...], size: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Starts of patches, and the numbers of the voxels that each is for: those in the inner half of a patch around the
    first voxel that is left."""
    sides, room = np.array(patch), np.array(size) - np.array(patch)
    left = np.ones(len(voxels), bool)
    while left.any():
        centre = voxels[np.flatnonzero(left)[0]]
        start = np.clip(centre - sides // 2, 0, room)
        low, high = start + sides // 4, start + sides - sides // 4
        low, high = np.where(start == 0, 0, low), np.where(start == room, start + sides, high)
        chosen = np.flatnonzero(left & ((voxels >= low) & (voxels < high)).all(axis=1))
        yield start, chosen
        left[chosen] = False
