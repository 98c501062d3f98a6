"""A preprocessed scan to class probabilities: tiles through one or more networks, averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations

import numpy as np
import torch
from torch import nn

from mre_lowshot.errors import NumericalError
from mre_lowshot.inference.tiles import Tile, centre_tiles, gaussian_weight, overlap_tiles
from mre_lowshot.sampling import coordinate_maps, voxel_positions
from mre_lowshot.specs import InferenceSpec, NetworkSpec, PatchSpec

Progress = Callable[[int, int], None]  # tiles done, tiles in all


class Predictor:
    """Sliding-window inference with the networks of one or more folds, on ``device``.

    The tile size is that of training (SE and image-level pooling see the patch). Probabilities of several networks,
    and of mirrored views, are averaged.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        spec: NetworkSpec,
        patch: PatchSpec,
        inference: InferenceSpec,
        device: torch.device,
        tile_batch: int = 8,
    ) -> None:
        self.networks = [network.to(device).eval() for network in networks]
        self.spec, self.patch, self.inference = spec, patch, inference
        self.device, self.tile_batch = device, tile_batch

    def predict(self, image: np.ndarray, progress: Progress | None = None) -> np.ndarray:
        """Class probabilities (K, *size), float32, of an image (C, *size) on the plan's grid.

        Raises:
            NumericalError: a probability is not finite.
        """
        flat = self.spec.axes == 2 and image.ndim == 4
        image = image[:, 0] if flat else image
        padded, inner = self._pad(image)
        probabilities = self._cover(padded, progress)[(slice(None), *inner)]
        if not np.isfinite(probabilities).all():
            raise NumericalError("the network gave non-finite probabilities; no label map is made of them")
        return probabilities[:, None] if flat else probabilities

    def _pad(self, image: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...]]:
        """Repeat the edges of a scan smaller than the patch, evenly on both sides; give it and where the scan lies."""
        missing = [max(0, p - n) for p, n in zip(self.patch.size, image.shape[1:], strict=True)]
        before = [m // 2 for m in missing]
        self._origin = tuple(-b for b in before)
        self._size = image.shape[1:]
        inner = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
        if not any(missing):
            return image, inner
        return np.pad(image, [(0, 0)] + [(b, m - b) for b, m in zip(before, missing, strict=True)], mode="edge"), inner

    def _cover(self, image: np.ndarray, progress: Progress | None) -> np.ndarray:
        size, patch, rule = image.shape[1:], self.patch.size, self.inference
        overlapped = rule.tiling == "overlap"
        tiles = list(overlap_tiles(size, patch, rule.step) if overlapped else centre_tiles(size, patch, self.patch.centre))
        gaussian = overlapped and rule.weighting == "gaussian"
        weight = torch.from_numpy(gaussian_weight(patch)) if gaussian else torch.ones(patch)
        total = torch.zeros((self.spec.classes, *size))
        votes = torch.zeros(size)
        for first in range(0, len(tiles), self.tile_batch):
            group = tiles[first : first + self.tile_batch]
            for tile, probability in zip(group, self._tiles(image, group), strict=True):
                kept, output = tile.kept_slices(), tile.output_slices()
                total[(slice(None), *output)] += probability[(slice(None), *kept)] * weight[kept]
                votes[output] += weight[kept]
            if progress:
                progress(min(first + self.tile_batch, len(tiles)), len(tiles))
        return (total / votes).numpy()

    @torch.inference_mode()
    def _tiles(self, image: np.ndarray, tiles: Sequence[Tile]) -> torch.Tensor:
        """Probabilities (T, K, *patch) of some tiles, averaged over networks and mirrored views, on the CPU."""
        patch = self.patch.size
        images = np.stack([image[(slice(None), *t.input_slices(patch))] for t in tiles])
        batch = torch.from_numpy(images).to(self.device)
        coordinates = None
        if self.spec.coordinates == "volume":
            maps = [self._coordinates(t) for t in tiles]
            coordinates = torch.from_numpy(np.stack(maps)).to(self.device)
        views = [self._view(batch, coordinates, axes) for axes in _subsets(self.inference.mirror_axes)]
        return torch.stack(views).mean(dim=0).cpu()

    def _coordinates(self, tile: Tile) -> np.ndarray:
        corner = [s + o for s, o in zip(tile.start, self._origin, strict=True)]
        return coordinate_maps(voxel_positions(corner, self.patch.size), self._size)

    def _view(self, batch: torch.Tensor, coordinates: torch.Tensor | None, axes: tuple[int, ...]) -> torch.Tensor:
        dims = [a + 2 for a in axes]
        if dims:
            # the mirrored content of this place stands, in the mirrored volume, at the mirrored coordinates
            batch = batch.flip(dims)
            if coordinates is not None:
                coordinates = coordinates.flip(dims)
                coordinates[:, list(axes)] *= -1
        mean = torch.stack([torch.softmax(n(batch, coordinates).float(), dim=1) for n in self.networks]).mean(dim=0)
        return mean.flip(dims) if dims else mean


def _subsets(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))
