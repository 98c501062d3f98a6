"""The equations of DataAug (Zhao et al., 2019): warping, local cross-correlation, the two smoothness terms, and the
U-Net that outputs a displacement field (spatial transform) or an intensity change (appearance transform)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW = 9  # voxels along each axis, of the local cross-correlation
EPSILON = 1e-5  # added to the product of the variances, which are sums over the window
LEVELS = 4  # of the U-Net, each at half the resolution
SLOPE = 0.2  # of the leaky ReLU


def warp(volume: Tensor, displacement: Tensor) -> Tensor:
    """``volume`` (B, C, *size) at x + u(x), trilinearly, with ``displacement`` u (B, 3, *size) in voxels (z, y, x).
    Outside, the edge voxels are repeated."""
    size = displacement.shape[2:]
    lines = [torch.arange(n, dtype=displacement.dtype, device=displacement.device) for n in size]
    positions = torch.stack(torch.meshgrid(*lines, indexing="ij")) + displacement
    scale = torch.tensor([2 / max(n - 1, 1) for n in size], dtype=positions.dtype, device=positions.device)
    grid = (positions * scale.view(3, 1, 1, 1) - 1).flip(1).movedim(1, -1)  # grid_sample wants (x, y, z)
    return F.grid_sample(volume, grid, padding_mode="border", align_corners=True)


def local_sum(volume: Tensor) -> Tensor:
    """The sum over the `WINDOW` around each voxel of (B, C, *size); 0 beyond the edges."""
    volume = F.pad(volume, [WINDOW // 2] * 6)
    for axis in range(3):
        volume = F.avg_pool3d(volume, [WINDOW if a == axis else 1 for a in range(3)], 1) * WINDOW
    return volume


def local_cross_correlation(one: Tensor, other: Tensor) -> Tensor:
    """The mean over voxels (and channels) of the squared correlation coefficient of two volumes (B, C, *size) in the
    window around each voxel, from 0 to 1."""
    count = WINDOW**3
    sums = [local_sum(v) for v in (one, other, one * one, other * other, one * other)]
    cross = sums[4] - sums[0] * sums[1] / count
    variances = [(s2 - s * s / count).clamp_min(0) for s, s2 in ((sums[0], sums[2]), (sums[1], sums[3]))]
    return (cross * cross / (variances[0] * variances[1] + EPSILON)).mean()


def _steps(field: Tensor, axis: int) -> Tensor:
    return field.diff(dim=axis + 2)


def smoothness(displacement: Tensor) -> Tensor:
    """The mean squared difference between neighbouring voxels of a field (B, 3, *size), averaged over the axes."""
    return torch.stack([_steps(displacement, axis).square().mean() for axis in range(3)]).mean()


def smoothness_within_structures(change: Tensor, contours: Tensor) -> Tensor:
    """The mean absolute difference between neighbouring voxels of an intensity ``change`` (B, C, *size), summed over
    the axes. A step to a voxel of the ``contours`` (B, 1, *size; 1 on the borders of the labels, else 0) costs
    nothing."""
    terms = []
    for axis in range(3):
        inside = (1 - contours).narrow(axis + 2, 1, contours.shape[axis + 2] - 1)
        terms.append((_steps(change, axis) * inside).abs().mean())
    return torch.stack(terms).sum()


def contours_of(label: Tensor) -> Tensor:
    """1 where a neighbour along an axis has another label, else 0: (*size) -> (1, 1, *size) float32."""
    found = torch.zeros(label.shape, dtype=torch.bool, device=label.device)
    for axis, length in enumerate(label.shape):
        differs = label.narrow(axis, 1, length - 1) != label.narrow(axis, 0, length - 1)
        found.narrow(axis, 1, length - 1).logical_or_(differs)
        found.narrow(axis, 0, length - 1).logical_or_(differs)
    return found.float()[None, None]


class TransformNetwork(nn.Module):
    """A 3D U-Net from two images (B, 2 C, *size) to a field (B, outputs, *size), which is nearly 0 before training.

    Encoder and decoder have `LEVELS` levels; convolutions of stride 2 halve the resolution, and interpolation to the
    nearest voxel doubles it.

    Args:
        in_channels: 2 C.
        outputs: channels of the field.
        width: feature channels at full resolution; twice as many below.
    """

    def __init__(self, in_channels: int, outputs: int, *, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.enter = nn.Conv3d(in_channels, width, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv3d(width if n == 0 else wide, wide, 3, stride=2, padding=1) for n in range(LEVELS)
        )
        skips = [wide] * (LEVELS - 1) + [width]  # from the coarsest one
        widths = [wide] * (LEVELS - 1) + [width]
        below = [wide, *widths[:-1]]
        self.up = nn.ModuleList(nn.Conv3d(b + s, w, 3, padding=1) for b, s, w in zip(below, skips, widths, strict=True))
        self.leave = nn.Conv3d(width, outputs, 3, padding=1)
        nn.init.normal_(self.leave.weight, std=1e-5)
        if self.leave.bias is not None:
            nn.init.zeros_(self.leave.bias)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        x = F.leaky_relu(self.enter(torch.cat([one, other], dim=1)), SLOPE)
        skips = []
        for module in self.down:
            skips.append(x)
            x = F.leaky_relu(module(x), SLOPE)
        for module in self.up:
            skip = skips.pop()
            x = F.interpolate(x, skip.shape[2:], mode="nearest")
            x = F.leaky_relu(module(torch.cat([x, skip], dim=1)), SLOPE)
        field: Tensor = self.leave(x)
        return field
