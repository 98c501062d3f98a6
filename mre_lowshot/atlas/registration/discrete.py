"""Discrete registration with coupled convex optimisation, for large displacements.

Demons follow image gradients to the nearest optimum; an organ that lies 3 cm elsewhere is out of their reach. Here
every block of the scan is compared with the other scan at a dense set of displacements, and the choices of neighbouring
blocks are regularised step by step (Heinrich, Papiez, Schnabel, Handels 2014, "Non-parametric discrete registration
with convex optimisation"; as in Siebert, Hansen, Heinrich 2021, ConvexAdam, without Adam). Compared are
self-similarities of each scan (MIND-SSC; Heinrich et al. 2013) instead of intensities, and class probabilities where
both are available.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import torch
from torch import Tensor
from torch.nn import functional as F

from mre_lowshot.atlas.registration.volumes import mean_of, sampled, voxel_grid
from mre_lowshot.filters import along_axes, box_matrix

COUPLING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # weight of the neighbours' choice, round by round
CONSISTENCY_ROUNDS = 15
CLASS_WEIGHT = 10.0  # of a squared difference of class probabilities; a feature's is 1
CACHE = 200_000  # numbers that are worked on at a time


def self_similarity(image: Tensor, radius: int, distance: int) -> Tensor:
    """MIND-SSC features (12, *size), 0 to 1, of an image (*size), three axes.

    The six patches (of ``radius``) at ``distance`` from a voxel, both in voxels, are compared in the twelve pairs that
    are not opposite; feature = exp(-(D - min D) / mean D), D the pair's mean squared difference, over the twelve.
    """
    padded = F.pad(image[None, None], [distance] * 6, mode="replicate")[0, 0]
    shifted = []
    for axis, side in product(range(3), (0, 2 * distance)):
        corner = [distance] * 3
        corner[axis] = side
        shifted.append(padded[tuple(slice(c, c + n) for c, n in zip(corner, image.shape, strict=True))])
    pairs = [(a, b) for a, b in combinations(range(6), 2) if a // 2 != b // 2]
    boxes = [box_matrix(n, radius) for n in image.shape]
    differences = torch.stack([along_axes((shifted[a] - shifted[b]).square_(), boxes) for a, b in pairs])
    differences -= differences.amin(dim=0)
    spread = differences.mean(dim=0)
    typical = mean_of(spread)
    spread = spread.clamp(1e-3 * typical + 1e-12, 1e3 * typical + 1e-12)
    return differences.div_(spread).neg_().exp_()


def blocks_of(image: Tensor, step: Sequence[int], radius: int, distance: int, shares: Tensor | None = None) -> Tensor:
    """Features (F, *blocks) of an image (*size): means over blocks of ``step`` voxels. Blocks beyond the far edges are
    filled with the edge voxels.

    Args:
        image: (*size).
        step: side of a block in voxels, per axis.
        radius, distance: of the features, in voxels.
        shares: class probabilities (K, *size) of the image, further features.
    """
    rest = [n for size, s in zip(reversed(image.shape), reversed(step), strict=True) for n in (0, -size % s)]
    padded = F.pad(image[None, None], rest, mode="replicate")[0, 0]
    features = F.avg_pool3d(self_similarity(padded, radius, distance), tuple(step), stride=tuple(step))
    if shares is None:
        return features
    classes = F.avg_pool3d(F.pad(shares[None], rest, mode="replicate")[0], tuple(step), stride=tuple(step))
    return torch.cat([features, classes * CLASS_WEIGHT**0.5])


def displacement(fixed: Tensor, moving: Tensor, reach: int) -> Tensor:
    """Displacement (3, *blocks), in blocks, from features ``fixed`` to features ``moving``, both (F, *blocks):
    ``fixed`` at x matches ``moving`` at x + displacement(x).

    It is made consistent with the displacement found from ``moving`` to ``fixed``.

    Args:
        fixed, moving: of `blocks_of`.
        reach: search radius along each axis, in blocks.
    """
    forward, back = best(costs(fixed, moving, reach), reach), best(costs(moving, fixed, reach), reach)
    home = voxel_grid(fixed.shape[1:], fixed.device)
    for _ in range(CONSISTENCY_ROUNDS):
        forward, back = (
            (forward - sampled(back, home + forward)) / 2,
            (back - sampled(forward, home + back)) / 2,
        )
    return forward


def costs(fixed: Tensor, moving: Tensor, reach: int) -> Tensor:
    """Costs (displacements, *blocks) of features (F, *blocks): sums of squared differences, without the part that is
    the same for all displacements, smoothed twice over 3 x 3 x 3 blocks. Outside ``moving`` its features are 0, which
    match none."""
    (depth, height, length), width = fixed.shape[1:], 2 * reach + 1
    # |f - m|^2 without |f|^2 is a product of (-2 f, 1) and (m, |m|^2), here of a row of blocks and all rows in reach
    own = torch.cat([-2 * fixed, torch.ones_like(fixed[:1])]).permute(1, 2, 3, 0).contiguous()
    its = F.pad(torch.cat([moving, moving.square().sum(dim=0, keepdim=True)]), [reach] * 6)
    its = its.permute(1, 2, 3, 0).contiguous()
    row = length + 2 * reach
    channels, reached = own.shape[-1], width * row
    cost = fixed.new_empty(width, width, width, depth, height, length)
    for z, dz in product(range(depth), range(width)):
        rows = its[z + dz].as_strided(
            (height, channels, reached), (row * channels, 1, channels), its[z + dz].storage_offset()
        )
        products = torch.bmm(own[z], rows)
        at = products.as_strided((width, width, height, length), (row, 1, length * reached, reached + 1))
        cost[dz, :, :, z] = at
    twice = [box_matrix(n, 1, inside=True) @ box_matrix(n, 1, inside=True) for n in fixed.shape[1:]]
    return along_axes(cost.view(-1, depth, height, length), twice)


def best(cost: Tensor, reach: int) -> Tensor:
    """Displacement (3, *blocks), in blocks, of costs (displacements, *blocks) by coupled convex optimisation."""
    shape, width = cost.shape[1:], 2 * reach + 1
    blocks = shape[0] * shape[1] * shape[2]
    part = min(blocks, max(1, CACHE // len(cost)))
    rest = -blocks % part
    parts = F.pad(cost.flatten(1), (0, rest)).view(len(cost), -1, part).transpose(0, 1).contiguous()
    line = torch.arange(-reach, reach + 1, dtype=cost.dtype, device=cost.device)
    choices = torch.stack(torch.meshgrid(line, line, line, indexing="ij")).flatten(1).T
    # |d - u|^2 without |u|^2, which is the same for all displacements d
    terms = torch.cat([choices * -2, choices.square().sum(dim=1, keepdim=True)], dim=1)
    means = [box_matrix(n, 1, inside=True) for n in shape]

    def smooth(chosen: Tensor) -> Tensor:
        return along_axes(chosen[:, :blocks].view(3, *shape), means)

    buffer = torch.empty_like(parts[0])
    chosen = torch.cat([_first_lowest(one, width) for one in parts], dim=1) - reach
    for weight in COUPLING:
        around = F.pad(smooth(chosen).flatten(1), (0, rest))
        factors = torch.cat([around * weight, torch.full_like(around[:1], weight)]).view(4, -1, part).transpose(0, 1)
        pairs = zip(parts, factors, strict=True)
        found = [_first_lowest(torch.addmm(one, terms, its, out=buffer), width) for one, its in pairs]
        chosen = torch.cat(found, dim=1) - reach
    return smooth(chosen)


def _first_lowest(cost: Tensor, width: int) -> Tensor:
    """The index (3, blocks) along each axis of the displacement with the lowest cost (width^3, blocks): of equals, the
    first."""
    number = torch.arange(width, dtype=cost.dtype, device=cost.device)[:, None]

    def first(values: Tensor, lowest: Tensor) -> Tensor:  # torch's argmin takes ten times longer
        return torch.where(values == lowest, number, width).amin(dim=0)

    rows = cost.view(width, width, width, -1).amin(dim=2)
    planes = rows.amin(dim=1)
    lowest = planes.amin(dim=0)
    z = first(planes, lowest)
    row = rows.gather(0, z.long().expand(1, width, -1))[0]
    y = first(row, lowest)
    at = (z * width + y).long().expand(1, width, -1)
    x = first(cost.view(width * width, width, -1).gather(0, at)[0], lowest)
    return torch.stack([z, y, x])
