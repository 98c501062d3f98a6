"""The network stage: a preprocessed scan through one or more networks, tile by tile, averaged."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Literal

import numpy as np
import torch
from torch import nn

from mre_lowshot.config import InferenceConfig, NetworkConfig, PatchConfig
from mre_lowshot.devices import has_memory, volume_device
from mre_lowshot.errors import MemoryLimitError, NumericalError, UserError, is_out_of_memory
from mre_lowshot.grid import Box, coordinate_maps, union_box, voxel_positions
from mre_lowshot.inference.compiled import Compiler, most_frequent_first
from mre_lowshot.inference.memory import refinement_bytes
from mre_lowshot.inference.tile_threads import MOST, compute
from mre_lowshot.inference.tiles import Tile, centre_tiles, count_tiles, gaussian_weight, overlap_tiles
from mre_lowshot.network.build import MRENet
from mre_lowshot.network.optimized.inference import InferenceNetwork, compare_outputs
from mre_lowshot.sampling import LocationPrior, location_maps
from mre_lowshot.transfers import to_host

MAX_TILES = 1_000_000  # of a scan: weeks on a CPU
GPU_BATCH, CPU_BATCH = 8, 4  # on the CPU more tiles do not stay in its caches
CONSTANT = 1e-4  # range of normalised intensities up to which a channel counts as constant
Progress = Callable[[int, int], None]  # tiles done, tiles in all
AtlasCoordinates = Sequence[np.ndarray | None]
"""For each network the voxels' coordinates in its atlases, (atlases * axes, *size); None: the scan's own volume."""
Precision = Literal["float32", "bf16", "auto"]


def log_to_stderr(line: str) -> None:
    """The default log: a line on stderr."""
    print(line, file=sys.stderr)


@dataclass(frozen=True)
class _Frame:
    """The scan's size, the voxels of padding before it, and its (padded) coordinates for each network. Coordinate maps
    refer to the scan without padding."""

    size: tuple[int, ...]
    before: tuple[int, ...]
    coordinates: AtlasCoordinates


class SlidingWindow:
    """Sliding-window inference with the networks of one or more folds.

    Tiles have the size of training patches (SE and image-level pooling see the patch). Probabilities of several
    networks, and of mirrored views, are averaged. Networks are replaced by their copies for inference
    (`network.optimized.inference`), which compute only the kept part of a tile to the end.

    Args:
        networks: of the folds; put on ``device`` and in evaluation mode.
        config: their network configuration.
        patch: tile size, and the centre kept by centre tiling.
        inference: tiling and test-time augmentation.
        device: to compute on.
        priors: the folds' atlas priors.
        tile_batch: tiles of a batch; halved, with a message, when the device's memory does not hold them. None: 8 on a
            GPU; on the CPU at most 4, so that all of `inference.tile_threads.MOST` batches at a time have work.
        precision: ``bf16`` computes convolutions in bfloat16, ``auto`` where the device supports it natively; both only
            if a tile of the first scan agrees with float32, otherwise float32 is used, with a message.
        compile: use torch.compile for the most frequent tiles; if it fails or the output differs, the uncompiled
            network is used, with a message.
        log: receives these messages.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        config: NetworkConfig,
        *,
        patch: PatchConfig,
        inference: InferenceConfig,
        device: torch.device,
        priors: Sequence[LocationPrior | None] | None = None,
        tile_batch: int | None = None,
        precision: Precision = "float32",
        compile: bool = False,
        log: Callable[[str], None] = log_to_stderr,
    ) -> None:
        networks = [network.to(device).eval() for network in networks]
        self.networks: list[nn.Module] = [
            InferenceNetwork(n) if isinstance(n, MRENet) else _Cropped(n) for n in networks
        ]
        self.low_precision: list[nn.Module] = []
        if precision == "bf16" or (precision == "auto" and has_bf16(device)):
            self.low_precision = [InferenceNetwork(n, torch.bfloat16) for n in networks if isinstance(n, MRENet)]
        self.compiler = Compiler(device, log) if compile else None
        if self.compiler is not None:
            self.networks, self.low_precision = (self.compiler.wrap(n) for n in (self.networks, self.low_precision))
        self.compared, self.log = len(self.low_precision) < len(networks), log
        self.config, self.patch, self.inference = config, patch, inference
        self.device = device
        self.tile_batch = tile_batch or (CPU_BATCH if device.type == "cpu" else GPU_BATCH)
        self.balanced = tile_batch is None and device.type == "cpu"
        self.priors = list(priors or [None] * len(networks))

    @property
    def has_state(self) -> bool:
        """Whether the tiles so far decide how the next ones are computed: scans must come one by one, in order."""
        return not self.compared or self.compiler is not None

    def posterior(
        self, image: np.ndarray, coordinates: AtlasCoordinates | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """`probabilities` as an array."""
        return self.probabilities(image, coordinates, progress).cpu().numpy()

    def probabilities(
        self, image: np.ndarray, coordinates: AtlasCoordinates | None = None, progress: Progress | None = None
    ) -> torch.Tensor:
        """Class probabilities (K, *size), float32, of an image (C, *size) on the plan's grid: on the device, or on the
        CPU where the device has too little memory for them and for their refinement.

        Args:
            image: (C, *size); for a 2D network (C, H, W) or one slice (C, 1, H, W).
            coordinates: for each network, where the scan was registered.
            progress: called with the tiles done and their number.

        Raises:
            NumericalError: a probability is not finite.
            UserError: several slices for a 2D network, or the device's memory does not hold a single tile.
        """
        if self.config.axes == 2 and image.ndim == 4:
            return self.probabilities(without_slice_axis(image), coordinates, progress)[:, None]
        before, padding = self._padding(image.shape[1:])
        padded = np.pad(image, [(0, 0), *padding], mode="edge") if any(map(any, padding)) else image
        inner = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
        maps = list(coordinates or [None] * len(self.networks))
        if padded is not image:
            maps = [m if m is None else extrapolated(m, padding) for m in maps]
        whole = self._cover(padded, _Frame(image.shape[1:], before, maps), progress)
        posterior = whole[(slice(None), *inner)]
        if not bool(to_host(torch.isfinite(posterior.sum()))[0]):  # the sum of finite probabilities is finite
            raise NumericalError("the network gave non-finite probabilities; no label map is written")
        return posterior

    def _padding(self, size: tuple[int, ...]) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Padding of a scan smaller than the patch, evenly on both sides (edge voxels are repeated there)."""
        missing = [max(0, p - n) for p, n in zip(self.patch.size, size, strict=True)]
        return tuple(m // 2 for m in missing), [(m // 2, m - m // 2) for m in missing]

    def _cover(self, image: np.ndarray, frame: _Frame, progress: Progress | None) -> torch.Tensor:
        size, patch, rule = image.shape[1:], self.patch.size, self.inference
        overlapped = rule.tiling == "overlap"
        count = count_tiles(size, patch, centre=None if overlapped else self.patch.centre, step=rule.step)
        if count > MAX_TILES:
            raise UserError(
                f"a scan of {size} voxels on the plan's grid needs {count} tiles, at most {MAX_TILES} are computed; "
                "take a larger -step_size, or plan a coarser grid or a larger patch"
            )
        tiles = list(
            overlap_tiles(size, patch, rule.step) if overlapped else centre_tiles(size, patch, self.patch.centre)
        )
        count = len(tiles)
        gaussian = overlapped and rule.weighting == "gaussian"
        where = self._sum_device(size)
        weight = (torch.from_numpy(gaussian_weight(patch)) if gaussian else torch.ones(patch)).to(where)
        total = torch.zeros((self.config.classes, *size), device=where)
        votes = torch.zeros(size, device=where)
        done = 0
        if rule.skip_empty:
            empty = {tile for tile in tiles if self._is_empty(image, tile)}
            for tile in empty:
                kept, output = tile.kept_slices(), tile.output_slices()
                total[0][output] += weight[kept]
                votes[output] += weight[kept]
            tiles, done = [tile for tile in tiles if tile not in empty], len(empty)
        for group, box, probabilities in self._batches(image, frame, tiles):
            for tile, probability in zip(group, probabilities.to(where), strict=True):
                kept, output = tile.kept_slices(), tile.output_slices()
                inside = tuple(slice(k.start - low, k.stop - low) for k, (low, _) in zip(kept, box, strict=True))
                total[(slice(None), *output)] += probability[(slice(None), *inside)] * weight[kept]
                votes[output] += weight[kept]
            done += len(group)
            if progress:
                progress(done, count)
        return total.div_(votes)

    def _sum_device(self, size: Sequence[int]) -> torch.device:
        """Where the tiles' probabilities are added, and later refined: on the device if its memory holds both."""
        device = volume_device(self.device)
        needed = math.prod(size) * refinement_bytes(self.config.classes)
        return device if has_memory(device, needed) else torch.device("cpu")

    def _is_empty(self, image: np.ndarray, tile: Tile) -> bool:
        """Whether every channel is constant in the tile's input, apart from a little interpolation ringing."""
        read = image[(slice(None), *tile.input_slices(self.patch.size))]
        return all(float(np.ptp(channel)) <= CONSTANT for channel in read)

    def _batches(
        self, image: np.ndarray, frame: _Frame, tiles: Sequence[Tile]
    ) -> Iterator[tuple[Sequence[Tile], Box, torch.Tensor]]:
        """Batches of at most ``tile_batch`` tiles, several at the same time on the CPU, grouped by the part that they
        keep where possible; the union of these parts; and the tiles' probabilities (T, K, *box)."""
        waiting = most_frequent_first(tiles) if self.compiler else sorted(tiles, key=lambda tile: tile.keep)
        threads = 1 if self.device.type != "cpu" or self.has_state else torch.get_num_threads()
        if len(waiting) < 2 * MOST:  # torch's threads share each batch
            threads = 1
        while waiting:
            size = self.tile_batch
            if self.balanced and len(waiting) >= 2 * MOST:  # by the number of tiles alone: the same with any threads
                size = math.ceil(len(waiting) / (MOST * math.ceil(len(waiting) / (MOST * size))))
            groups = [(group, union_box(tile.keep for tile in group)) for group in in_batches(waiting, size)]
            try:
                for (group, box), probabilities in compute(
                    groups, lambda pair: self._tiles(image, frame, *pair), threads=threads
                ):
                    yield group, box, probabilities
                    waiting = waiting[len(group) :]
            except RuntimeError as problem:
                if not is_out_of_memory(problem):
                    raise
                if size == 1 and threads == 1:
                    text = f"{self.device}: its memory does not hold a single tile; use device cpu"
                    raise MemoryLimitError(text) from None
                self.tile_batch, threads = min(self.tile_batch, max(1, size // 2)), 1  # another thread may have halved
                self.log(f"{self.device}: out of memory, continuing with {self.tile_batch} tiles at a time")
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    @torch.inference_mode()
    def _tiles(self, image: np.ndarray, frame: _Frame, tiles: Sequence[Tile], box: Box) -> torch.Tensor:
        """Probabilities (T, K, *box) of some tiles in ``box``, averaged over networks and mirrored views, on the
        device."""
        patch = self.patch.size
        images = np.stack([image[(slice(None), *t.input_slices(patch))] for t in tiles])
        batch = torch.from_numpy(images).to(self.device)
        if not self.compared:
            self._compare_precision(batch[:1], self._locations(tiles[:1], frame, ()), box)
        views = []
        for axes in _subsets(self.inference.mirror_axes):
            keep = tuple(
                (side - high, side - low) if axis in axes else (low, high)
                for axis, (side, (low, high)) in enumerate(zip(patch, box, strict=True))
            )
            views.append(self._view(batch, self._locations(tiles, frame, axes), axes, keep))
        return torch.stack(views).mean(dim=0)

    def _compare_precision(self, batch: torch.Tensor, locations: Sequence[torch.Tensor | None], box: Box) -> None:
        """Use the low-precision networks from now on if they agree with float32 on one tile."""
        self.compared = True
        for low, exact, maps in zip(self.low_precision, self.networks, locations, strict=True):
            problem = compare_outputs(low, exact, batch, maps, box)
            if problem:
                self.log(f"bfloat16 is not used: {problem}")
                return
        self.networks = self.low_precision

    def _locations(self, tiles: Sequence[Tile], frame: _Frame, axes: tuple[int, ...]) -> list[torch.Tensor | None]:
        """For each network the location maps of the tiles, mirrored over ``axes``: in the mirrored volume, mirrored
        content lies at mirrored coordinates, with the atlas's labels there."""
        if self.config.coordinates != "volume":
            return [None] * len(self.networks)
        locations: list[torch.Tensor | None] = []
        for known, prior in zip(frame.coordinates, self.priors, strict=True):
            maps = []
            for tile in tiles:
                if known is None:
                    own = self._coordinates(tile, frame)
                else:
                    own = known[(slice(None), *tile.input_slices(self.patch.size))]
                own = np.flip(own, tuple(a + 1 for a in axes)).copy()
                own.reshape(-1, self.config.axes, *self.patch.size)[:, list(axes)] *= -1  # in every atlas
                maps.append(location_maps(own, prior).astype(np.float32))
            locations.append(torch.from_numpy(np.stack(maps)).to(self.device))
        return locations

    def _coordinates(self, tile: Tile, frame: _Frame) -> np.ndarray:
        corner = [start - b for start, b in zip(tile.start, frame.before, strict=True)]
        return coordinate_maps(voxel_positions(corner, self.patch.size), frame.size)

    def _view(
        self,
        batch: torch.Tensor,
        locations: Sequence[torch.Tensor | None],
        axes: tuple[int, ...],
        keep: Box,
    ) -> torch.Tensor:
        dims = [a + 2 for a in axes]
        batch = batch.flip(dims) if dims else batch
        pairs = zip(self.networks, locations, strict=True)
        mean = torch.stack([torch.softmax(n(batch, x, keep).float(), dim=1) for n, x in pairs]).mean(dim=0)
        return mean.flip(dims) if dims else mean


class _Cropped(nn.Module):
    """Any other network: computed on the whole tile, then cropped to the kept part."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, coordinates: torch.Tensor | None, keep: Box) -> torch.Tensor:
        logits: torch.Tensor = self.network(image, coordinates)
        return logits[(slice(None), slice(None), *(slice(low, high) for low, high in keep))]


def without_slice_axis(image: np.ndarray) -> np.ndarray:
    """(C, 1, H, W) as a 2D network takes it: (C, H, W).

    Raises:
        UserError: there are several slices.
    """
    if image.shape[1] != 1:
        raise UserError(f"the scan has {image.shape[1]} slices, the network is 2D; predict them slice by slice")
    return image[:, 0]


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def extrapolated(maps: np.ndarray, padding: list[tuple[int, int]]) -> np.ndarray:
    """Coordinates (axes, *size), padded by linear extrapolation."""
    for axis, pad in enumerate(padding, start=1):
        widths = [(0, 0)] * maps.ndim
        widths[axis] = pad
        mode: dict[str, str] = {"mode": "reflect", "reflect_type": "odd"} if maps.shape[axis] > 1 else {"mode": "edge"}
        maps = np.pad(maps, widths, **mode)  # type: ignore[call-overload]
    return maps


def in_batches(tiles: Sequence[Tile], size: int) -> list[Sequence[Tile]]:
    """The tiles in their order, ``size`` at a time. A single one at the end takes another from the batch before it: for
    one tile and one thread torch's convolutions on the CPU take three times as long."""
    starts = list(range(0, len(tiles), size))
    if len(starts) > 1 and size > 2 and len(tiles) - starts[-1] == 1:
        starts[-1] -= 1
    return [tiles[start:end] for start, end in zip(starts, [*starts[1:], len(tiles)], strict=True)]


def _subsets(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))
