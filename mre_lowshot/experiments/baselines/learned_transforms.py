"""DataAug (Zhao et al., 2019): learning the transforms from the labelled scan (the atlas) to unlabelled scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mre_lowshot.atlas.alignment import align
from mre_lowshot.atlas.atlas import Atlas
from mre_lowshot.config import Plan
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines.base import go_on
from mre_lowshot.experiments.baselines.transform_models import TransformNetwork, contours_of, warp
from mre_lowshot.experiments.baselines.transform_training import train_appearance, train_spatial
from mre_lowshot.grid import coarsen_spacing, coordinate_maps, sample_image, sample_label, voxel_positions
from mre_lowshot.preprocessing.store import PreparedCase
from mre_lowshot.resampling import resize_image

FULL_VOXELS, SMALL_VOXELS = 1_000_000, 32_000  # of the grid of the transforms, to which larger scans are downsampled
WIDTH = 16  # feature channels at full resolution, as the source; fewer are no faster on a CPU


@dataclass(frozen=True)
class Transforms:
    """Learned transforms from the atlas to each of n unlabelled scans, on a coarse grid over the atlas's volume.

    Attributes:
        displacements: (3, *coarse) each, in voxels of the atlas: the scan at x shows what the atlas shows at x + u(x).
        changes: (C, *coarse) each, intensities to add to the atlas.
        aligned: the scans on the atlas's grid, (C, *size) each, after affine registration.
    """

    displacements: tuple[np.ndarray, ...]
    changes: tuple[np.ndarray, ...]
    aligned: tuple[np.ndarray, ...]


def to_coarse(positions: np.ndarray, size: Sequence[int], coarse: Sequence[int]) -> np.ndarray:
    """Voxel ``positions`` (3, *any) of a grid of ``size`` on a grid of ``coarse`` voxels over the same volume, whose
    outer edges agree."""
    ratio = (np.asarray(coarse) / np.asarray(size)).reshape(-1, *[1] * (positions.ndim - 1))
    moved: np.ndarray = (positions + 0.5) * ratio - 0.5
    return moved


def coarse_size(size: tuple[int, ...], spacing: tuple[float, ...], voxels: int) -> tuple[int, ...]:
    """The grid of the transforms for an atlas of ``size``: at most ``voxels``, the finest axes coarsened first."""
    own = np.asarray(spacing, dtype=float)
    chosen = coarsen_spacing(voxels, own, own * size)
    return tuple(max(2, int(n * s / c + 1e-6)) for n, s, c in zip(size, own, chosen, strict=True))


def align_to(atlas: PreparedCase, scan: PreparedCase, plan: Plan, log: Callable[[str], None]) -> np.ndarray:
    """``scan`` on the grid of the ``atlas``, (C, *size): affinely registered, as the source's scans were before. Where
    registration fails the whole volumes are taken to correspond."""
    size, spacing = atlas.image.shape[1:], atlas.transform.spacing
    affine = replace(plan.recipe, atlas=replace(plan.recipe.atlas, registration="affine"))
    frame = replace(plan, recipe=affine, network=replace(plan.network, coordinates="volume"))
    moving = Atlas(scan.image, np.zeros(scan.image.shape[1:], np.int16), scan.transform.spacing)
    try:
        maps = align((moving,), atlas.image, spacing, plan=frame)
    except UserError as problem:
        log(f"case {scan.name}: {problem}; its volume is resized to the atlas's")
        maps = None
    if maps is None:
        maps = coordinate_maps(voxel_positions((0, 0, 0), size), size)
    last = np.asarray(scan.image.shape[1:]).reshape(-1, 1, 1, 1) - 1
    return sample_image(scan.image, (np.asarray(maps, dtype=np.float64) + 1) / 2 * last)


def learn_transforms(
    atlas: PreparedCase,
    scans: Sequence[PreparedCase],
    *,
    plan: Plan,
    iterations: int,
    device: torch.device,
    seed: int,
    log: Callable[[str], None],
    ask: Callable[[], None] = go_on,
) -> Transforms:
    """Train the spatial and then the appearance transform model, and apply them to every scan.

    Args:
        atlas: labelled.
        scans: unlabelled; their labels are not read.
        plan: of the row.
        iterations: of the spatial model; the appearance model takes half of them.
        device: to train on.
        seed: of weights and order.
        log: receives lines of progress.
        ask: as in `BaselineFold`.
    """
    size = atlas.image.shape[1:]
    voxels = FULL_VOXELS if plan.recipe.size == "paper" else SMALL_VOXELS
    coarse = coarse_size(size, atlas.transform.spacing, voxels)
    log(f"transforms on a grid of {' x '.join(map(str, coarse))} voxels")
    aligned = []
    for scan in scans:
        aligned.append(align_to(atlas, scan, plan, log))
        ask()
    low = atlas.image.min(axis=(1, 2, 3), keepdims=True)
    width = np.maximum(np.ptp(atlas.image, axis=(1, 2, 3), keepdims=True), 1e-6)
    source, *targets = (
        torch.from_numpy((resize_image(image, coarse, order=1) - low) / width)[None].float().to(device)
        for image in (atlas.image, *aligned)
    )
    torch.manual_seed(seed)
    spatial = TransformNetwork(2 * source.shape[1], 3, width=WIDTH).to(device)
    appearance = TransformNetwork(2 * source.shape[1], source.shape[1], width=WIDTH).to(device)
    train_spatial(spatial, source, targets, iterations=iterations, seed=seed, log=log, ask=ask)
    with torch.no_grad():
        forward = [spatial(source, target) for target in targets]
        returned = [warp(target, spatial(target, source)) for target in targets]
    half = max(1, iterations // 2)
    label = sample_label(atlas.needed_label(), to_coarse(voxel_positions((0, 0, 0), coarse), coarse, size))
    train_appearance(
        appearance, source, targets, forward=forward, returned=returned,
        contours=contours_of(torch.from_numpy(label)).to(device), iterations=half, seed=seed, log=log, ask=ask,
    )  # fmt: skip
    with torch.no_grad():
        changes = [appearance(source, back)[0].cpu().numpy() * width for back in returned]
    ratio = (np.asarray(size) / np.asarray(coarse)).astype(np.float32).reshape(3, 1, 1, 1)
    moved = tuple(field[0].cpu().numpy() * ratio for field in forward)
    return Transforms(moved, tuple(c.astype(np.float32) for c in changes), tuple(aligned))
