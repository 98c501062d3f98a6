"""Mutual information of two images under affine transforms, and its gradient (Mattes et al. 2003), in torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BINS, MARGIN = 32, 2  # bins of the histogram along each image; empty ones at each end, for the B-splines
UNIT = 2**20  # of the histogram's counts: as integers they have the same sum in every order
PLANES = 16  # across each axis, at least, that samples lie in
CHUNK = 256  # samples whose gradients are summed by one product


@dataclass(frozen=True)
class Level:
    """Two images at one resolution.

    Places in an image are written as ``p``, from -1 to 1 between its outer edges along each axis, in which every
    resolution is the same.

    Attributes:
        points: (4, S) places p in the fixed image of S samples, and 1.
        bins: (S,) the samples' bins.
        moving: (D, H, W).
        low, width: of the moving image's bins.
    """

    points: Tensor
    bins: Tensor
    moving: Tensor
    low: Tensor
    width: Tensor

    @classmethod
    def of(cls, fixed: Tensor, moving: Tensor, most: int) -> Level:
        """Both images (D, H, W); at most ``most`` voxels of ``fixed`` are the samples, evenly spread."""
        every = -(-fixed.numel() // most)
        while every > 1 and any(
            every % n == 0 or n % every == 0 or n // math.gcd(every, n) < min(n, PLANES) for n in fixed.shape[1:]
        ):
            every += 1  # else the samples would lie in few planes
        at = torch.arange(0, fixed.numel(), every, device=fixed.device)
        index = torch.stack(
            [at // (fixed.shape[1] * fixed.shape[2]), at // fixed.shape[2] % fixed.shape[1], at % fixed.shape[2]]
        )
        size = torch.tensor(fixed.shape, device=fixed.device)[:, None]
        places = (2 * index + 1) / size - 1
        bins = _scaled(fixed.flatten()[at], *_range(fixed)).floor().clamp(MARGIN, BINS - MARGIN - 1).long()
        return cls(torch.cat([places, torch.ones_like(places[:1])]), bins, moving, *_range(moving))

    def value_and_gradient(self, transforms: Tensor) -> tuple[Tensor, Tensor]:
        """Of transforms (B, 3, 4) from places in ``fixed`` to places in ``moving``: mutual information (B,) of the
        samples that lie in ``moving``, and its gradient (B, 3, 4), float64."""
        size = torch.tensor(self.moving.shape, device=self.moving.device)
        half = (size / 2)[:, None]
        at = (transforms.to(self.points.dtype) @ self.points + 1) * half - 0.5  # (B, 3, S), in voxels
        inside = ((at >= -0.5) & (at <= size[:, None] - 0.5)).all(dim=1)
        value, slope = interpolate(self.moving, at)
        scaled = _scaled(value, self.low, self.width)
        first = scaled.floor().clamp(MARGIN, BINS - MARGIN - 1)
        weights, changes = _spline(scaled - first)
        batch = torch.arange(len(at), device=at.device)[:, None]
        cells = ((batch * BINS + self.bins) * BINS + first.long() - 1) + torch.arange(4, device=at.device)[
            :, None, None
        ]
        counts = (weights * inside * UNIT).round().long()
        joint = torch.zeros(len(at) * BINS * BINS, dtype=torch.int64, device=at.device)
        joint = joint.scatter_add_(0, cells.flatten(), counts.flatten()).view(-1, BINS, BINS).double()
        joint = joint / joint.sum(dim=(1, 2), keepdim=True).clamp_min(1)
        conditional = joint / joint.sum(dim=1, keepdim=True).clamp_min(1e-300)  # of the fixed bin, given the moving one
        logs = conditional.clamp_min(1e-12).log()
        fixed = joint.sum(dim=2, keepdim=True)
        information = (joint * (logs - fixed.clamp_min(1e-300).log())).sum(dim=(1, 2))
        number = inside.sum(dim=1)
        pull = (changes * logs.to(at.dtype).flatten()[cells]).sum(dim=0) * inside
        pull = pull / (number.clamp_min(1)[:, None] * self.width)
        gradient = self._summed(pull[:, None] * slope) * half
        return information, gradient

    def _summed(self, slopes: Tensor) -> Tensor:
        """Sum over the samples of slopes (B, 3, S) times places: (B, 3, 4), float64."""
        batch, _, count = slopes.shape
        rest = -count % CHUNK
        left = torch.nn.functional.pad(slopes, (0, rest)).view(batch * 3, -1, CHUNK).transpose(0, 1)
        right = torch.nn.functional.pad(self.points, (0, rest)).view(4, -1, CHUNK).permute(1, 2, 0)
        return torch.bmm(left, right).sum(dim=0, dtype=torch.float64).view(batch, 3, 4)


def interpolate(volume: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """A volume (D, H, W) at positions (B, 3, S) in voxels, interpolated linearly: values (B, S) and their slopes
    (B, 3, S). Beyond the edges the edge voxels are repeated; their slope is that of the nearest cell."""
    last = [n - 1 for n in volume.shape]
    strides = [volume.shape[1] * volume.shape[2], volume.shape[2], 1]
    corner, shares = torch.zeros_like(at[:, 0], dtype=torch.int64), []
    for axis in range(3):
        inside = at[:, axis].clamp(0, last[axis])
        low = inside.floor().clamp_max(max(last[axis] - 1, 0))
        shares.append(inside - low)
        corner += low.long() * strides[axis]
    z, y, x = (stride if n else 0 for stride, n in zip(strides, last, strict=True))
    offsets = torch.tensor([i + j + k for i in (0, z) for j in (0, y) for k in (0, x)], device=at.device)
    values = volume.flatten().index_select(0, (corner + offsets[:, None, None]).flatten())
    values = values.view(2, 2, 2, *corner.shape)
    dz, dy, dx = shares
    along_x = values[:, :, 1] - values[:, :, 0]
    values = torch.lerp(values[:, :, 0], values[:, :, 1], dx)
    along_y, along_x = values[:, 1] - values[:, 0], torch.lerp(along_x[:, 0], along_x[:, 1], dy)
    values = torch.lerp(values[:, 0], values[:, 1], dy)
    slopes = [values[1] - values[0], *(torch.lerp(along[0], along[1], dz) for along in (along_y, along_x))]
    return torch.lerp(values[0], values[1], dz), torch.stack(slopes, dim=1)


def _range(image: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest value, and the width of a bin."""
    low, high = image.amin(), image.amax()
    return low, ((high - low) / (BINS - 2 * MARGIN)).clamp_min(1e-12)


def _scaled(values: Tensor, low: Tensor, width: Tensor) -> Tensor:
    return (values - low) / width + MARGIN


def _spline(share: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the four bins around a value, ``share`` of a bin past the second, and their derivatives: (4, ...)."""
    rest, square = 1 - share, share**2
    cube = square * share
    weights = torch.stack([rest**3, 3 * cube - 6 * square + 4, 3 * (square - cube + share) + 1, cube]) / 6
    changes = torch.stack([-(rest**2), 3 * square - 4 * share, 1 + 2 * share - 3 * square, square]) / 2
    return weights, changes
