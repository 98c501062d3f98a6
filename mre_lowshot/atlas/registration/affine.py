"""Affine registration of scans that may cover different lengths of the body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mre_lowshot.atlas.registration.images import affine_transform, scan_of, transformed_positions
from mre_lowshot.atlas.registration.mutual_information import Level
from mre_lowshot.atlas.registration.volumes import downsampled, locally_normalised, mean_of, warped

STARTS = (-0.4, -0.2, 0.0, 0.2, 0.4)  # of the scan's length, along z
MIN_VOXELS = 4  # of an image, along each axis
RELAXATION = 0.6  # of the step, after the gradient has reversed its direction


def affine(fixed: Any, moving: Any, device: torch.device | None = None) -> Any:
    """Affine transform from ``fixed`` to ``moving`` (SimpleITK images): mutual information, coarse to fine.

    Scans cover different lengths of the body and people differ in size, and a start that is too far off converges to a
    wrong optimum. So several starts along the body axis (z), at the scans' own sizes and scaled to each other's width
    and depth, are optimised on a coarse grid. The result with the highest correlation, summed over all of ``fixed``
    and all of ``moving``, is refined. The sum matters: a start that lays one scan's end on the other's may correlate
    well in the overlap by chance. Both images are locally normalised for it; otherwise overlapping air would count as
    much as organs.

    Args:
        fixed, moving: images (`images.to_image`).
        device: to compute on; default: the CPU.

    Raises:
        RuntimeError: an image has fewer than `MIN_VOXELS` voxels along an axis or is constant, or no start leaves an
            overlap.
    """
    one, other = scan_of(fixed, device), scan_of(moving, device)
    for scan in (one, other):
        if min(scan.voxels.shape) < MIN_VOXELS:
            raise RuntimeError(f"an image has {' x '.join(map(str, scan.voxels.shape))} voxels")
        if not bool(scan.voxels.amin() < scan.voxels.amax()):
            raise RuntimeError("an image is constant")
    unit = one.unit
    halves = [np.array([float(f"{value / unit:.9g}") for value in scan.half]) for scan in (one, other)]
    starts = torch.from_numpy(_starts(*halves)).to(one.voxels.device)
    half = halves[1]

    def at(factor: int) -> tuple[Tensor, Tensor]:
        return downsampled(one.voxels, factor), downsampled(other.voxels, factor)

    def level(factor: int, most: int) -> Level:
        mine, its = at(factor)
        return Level.of(mine, its, most=most)

    found = _ascend(level(4, most=4000), starts, half, step=1.0, least=0.1, rounds=60)
    scores = _correlations(*at(2), found)
    if not np.isfinite(scores).any():
        raise RuntimeError("no start of the registration leaves an overlap of the images")
    best = found[int(np.argmax(scores))][None]
    for factor, step in ((2, 1.0), (1, 0.25)):
        best = _ascend(level(factor, most=16000), best, half, step=step, least=0.02, rounds=40)
    if not np.isfinite(_correlations(*at(2), best)).all():
        raise RuntimeError("the registration leaves no overlap of the images")
    places = best[0].cpu().numpy()
    matrix = other.half[:, None] * places[:, :3] / one.half
    return affine_transform(matrix, other.half * places[:, 3] + other.centre - one.centre, one.centre)


def _starts(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Initial transforms (N, 3, 4), for halves of the scans' extents (z, y, x): centre on centre, shifted along z by
    `STARTS`; first at the scans' own sizes, then with equal extents in the plane (the plan crops to the patient where
    it can) and z scaled by their geometric mean."""
    y, x = (moving / fixed)[1:]
    starts = []
    for scales in ((1.0, 1.0, 1.0), (np.sqrt(x * y), y, x)):
        for shift in STARTS:
            start = np.zeros((3, 4))
            start[:, :3] = np.diag(scales * fixed / moving)
            start[0, 3] = 2 * shift * fixed[0] / moving[0]
            starts.append(start)
    return np.stack(starts)


def _ascend(level: Level, transforms: Tensor, half: np.ndarray, *, step: float, least: float, rounds: int) -> Tensor:
    """Follow the gradient of mutual information from each of several transforms (B, 3, 4) of places, with steps of a
    fixed length that shrinks whenever the gradient reverses its direction.

    Args:
        level: the images.
        transforms: where to start.
        half: of the moving image's extents, in the unit of length.
        step: length of the first steps, in the unit.
        least: stop at this length.
        rounds: at most.
    """
    scale = torch.from_numpy(half.copy()).to(transforms.device)[:, None]
    length = torch.full((len(transforms), 1, 1), step, dtype=transforms.dtype, device=transforms.device)
    before = torch.zeros_like(transforms)
    for number in range(rounds):
        _, gradient = level.value_and_gradient(transforms)
        gradient = gradient / scale
        turned = (gradient * before).sum(dim=(1, 2), keepdim=True) < 0
        length = torch.where(turned, RELAXATION * length, length)
        size = gradient.square().sum(dim=(1, 2), keepdim=True).sqrt()
        move = torch.where((length > least) & (size > 0), length / size.clamp_min(1e-300), 0.0)
        transforms = transforms + move * gradient / scale
        before = gradient
        if number % 8 == 7 and not bool((move > 0).any()):
            break
    return transforms


def _correlations(fixed: Tensor, moving: Tensor, transforms: Tensor) -> np.ndarray:
    """For each transform of places (B, 3, 4): correlation of the images over all of ``fixed`` and, with the inverse
    transform, over all of ``moving``, added; -inf where there is no inverse."""
    whole = np.zeros((len(transforms), 4, 4))
    whole[:, :3], whole[:, 3, 3] = transforms.cpu().numpy(), 1
    usable = np.abs(np.linalg.det(whole)) > 1e-6
    whole[~usable] = np.eye(4)
    scores = _correlation(fixed, moving, whole) + _correlation(moving, fixed, np.linalg.inv(whole))
    return np.where(usable, scores, -np.inf)


def _correlation(fixed: Tensor, moving: Tensor, transforms: np.ndarray) -> np.ndarray:
    """Correlation (B,), over the whole grid of ``fixed``, with ``moving`` after warping; both locally normalised
    there."""
    places = [positions(each, fixed.shape, moving) for each in transforms]
    moved = torch.stack([warped(moving, at) for at in places])
    sides = moving.new_tensor(moving.shape).view(3, 1, 1, 1)
    met = torch.stack([((at >= -0.5) & (at <= sides - 0.5)).all(dim=0).any() for at in places])
    one, other = (v - mean_of(v) for v in (locally_normalised(fixed), locally_normalised(moved)))
    spread = (mean_of(one**2) * mean_of(other**2)).sqrt()
    found = torch.where(spread > 0, mean_of(one * other) / spread.clamp_min(1e-12), -1.0)
    return found.flatten().double().where(met, -torch.inf).cpu().numpy()


def positions(transform: np.ndarray, size: Sequence[int], moving: Tensor) -> Tensor:
    """Positions (3, *size) in voxels of ``moving`` of the voxels of a grid, after a transform (3 or 4, 4) of places."""
    matrix = torch.from_numpy(index_matrix(transform, size, moving.shape)).to(moving.dtype).to(moving.device)
    at = matrix[:, 3].reshape(3, 1, 1, 1)
    for axis, n in enumerate(size):
        line = torch.arange(n, dtype=moving.dtype, device=moving.device)
        at = at + matrix[:, axis].reshape(3, 1, 1, 1) * line.reshape([-1 if a == axis else 1 for a in range(3)])
    return at


def index_matrix(transform: np.ndarray, fixed: Sequence[int], moving: Sequence[int]) -> np.ndarray:
    """A transform of places as one (3, 4) of voxel indices, between grids of these sizes."""
    to_place, half = np.eye(4), np.asarray(moving)[:, None] / 2
    to_place[:3, :3] = np.diag(2 / np.asarray(fixed))
    to_place[:3, 3] = 1 / np.asarray(fixed) - 1
    made: np.ndarray = half * (transform[:3] @ to_place)
    made[:, 3:] += half - 0.5
    return made


def nearest_affine(positions: np.ndarray, grid: Any) -> Any:
    """The affine transform of the voxels of ``grid`` (SimpleITK image) that fits their ``positions`` (3, *size) in mm,
    axes (z, y, x), in the least-squares sense."""
    own = transformed_positions(None, grid).reshape(3, -1)
    moments = np.vstack([own, np.ones(own.shape[1])])
    fitted = np.linalg.solve(moments @ moments.T, moments @ positions.reshape(3, -1).T).T
    return affine_transform(fitted[:, :3], fitted[:, 3], np.zeros(3))
