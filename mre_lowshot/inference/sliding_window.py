"""A preprocessed scan to class probabilities: tiles through one or more networks, averaged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Literal

import numpy as np
import torch
from torch import nn

from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.inference.appearance import adapt, agree_with_neighbours
from mre_lowshot.inference.compiled import Compiler, commonest_first
from mre_lowshot.inference.fast import FastNetwork, Keep, agree
from mre_lowshot.inference.floors import keep_above
from mre_lowshot.inference.pooling import pooled, registrations_of
from mre_lowshot.inference.quality import Quality, estimate
from mre_lowshot.inference.tiles import Tile, centre_tiles, gaussian_weight, overlap_tiles
from mre_lowshot.network.build import MRENet
from mre_lowshot.sampling import Prior, coordinate_maps, location_maps, voxel_positions
from mre_lowshot.specs import HuFloor, InferenceSpec, NetworkSpec, PatchSpec

FLAT = 1e-4  # of the normalised intensities: less is no content
Progress = Callable[[int, int], None]  # tiles done, tiles in all
Fields = Sequence[np.ndarray | None]  # for each network the voxels' places in its atlases (atlases * axes, *size)
Realign = Callable[[Fields, np.ndarray], Fields]  # from a registration, and class probabilities (K, *size), another
REALIGNED = 2  # times
Precision = Literal["float32", "bf16", "auto"]


def tell(line: str) -> None:
    """How the predictor speaks unless told otherwise: a line on stderr."""
    print(line, file=sys.stderr)


@dataclass(frozen=True)
class _Frame:
    """The scan's size, and how many voxels of padding lie before it: coordinates refer to the scan alone, or are
    given a network (padded)."""

    size: tuple[int, ...]
    before: tuple[int, ...]
    fields: Fields


class Predictor:
    """Sliding-window inference with the networks of one or more folds, on ``device``.

    The tile size is that of training (SE and image-level pooling see the patch). Probabilities of several networks,
    and of mirrored views, are averaged. Networks are replaced by their copies for prediction (`inference.fast`), and
    only what is kept of a tile is computed to the end.

    ``floors``, in the image's units, keep classes off what is too dark for them (`inference.floors`).

    ``precision``: ``bf16`` computes convolutions in bfloat16, ``auto`` where the device is made for it; both only if a
    tile of the first scan comes out as in float32 (said through ``say`` if not, and float32 is used). ``compile``: by
    torch.compile for the tiles that come most, if it works and agrees (said if not). When the device's memory does not
    hold ``tile_batch`` tiles, it is halved, which is said, down to one.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        spec: NetworkSpec,
        patch: PatchSpec,
        inference: InferenceSpec,
        device: torch.device,
        tile_batch: int = 8,
        priors: Sequence[Prior | None] | None = None,
        floors: Sequence[HuFloor] = (),
        precision: Precision = "float32",
        compile: bool = False,
        say: Callable[[str], None] = tell,
    ) -> None:
        networks = [network.to(device).eval() for network in networks]
        self.networks: list[nn.Module] = [FastNetwork(n) if isinstance(n, MRENet) else _Cut(n) for n in networks]
        self.lower: list[nn.Module] = []
        if precision == "bf16" or (precision == "auto" and has_bf16(device)):
            self.lower = [FastNetwork(n, torch.bfloat16) for n in networks if isinstance(n, MRENet)]
        self.compiler = Compiler(device, say) if compile else None
        if self.compiler is not None:
            self.networks, self.lower = self.compiler.wrap(self.networks), self.compiler.wrap(self.lower)
        self.checked, self.say = len(self.lower) < len(networks), say
        self.spec, self.patch, self.inference = spec, patch, inference
        self.device, self.tile_batch = device, tile_batch
        self.priors = list(priors or [None] * len(networks))
        self.floors = floors

    def predict(
        self,
        image: np.ndarray,
        progress: Progress | None = None,
        coordinates: Fields | None = None,
    ) -> np.ndarray:
        """Class probabilities (K, *size), float32, of an image (C, *size) on the plan's grid: `predict_and_rate`'s."""
        return self.predict_and_rate(image, progress, coordinates)[0]

    def predict_and_rate(
        self,
        image: np.ndarray,
        progress: Progress | None = None,
        coordinates: Fields | None = None,
        realign: Realign | None = None,
    ) -> tuple[np.ndarray, Quality]:
        """Class probabilities (K, *size), float32, of an image (C, *size) on the plan's grid, and how far to trust
        them, by the network and the first registration.

        ``coordinates``: for each network the voxels' places in its atlases (atlases * axes, *size), where the image was
        aligned. Where registration and network agree less than the spec's ``realign_below``, ``realign`` is asked to
        register anew, by what was predicted too, and the labels that this registration brings are pooled instead.

        Raises:
            NumericalError: a probability is not finite.
            UserError: several slices for a 2D network.
        """
        flat = self.spec.axes == 2 and image.ndim == 4
        if flat and image.shape[1] != 1:
            raise UserError(f"the scan has {image.shape[1]} slices, the network is 2D; predict them slice by slice")
        image = image[:, 0] if flat else image
        posterior, brought = self.opinions(image, progress, coordinates)
        quality = estimate(posterior, brought)
        probabilities = self.mended(posterior, brought, image)
        rule = self.inference
        if realign is not None and brought is not None and rule.prior_weight and quality.score < rule.realign_below:
            probabilities = self._realigned(posterior, probabilities, coordinates or [], realign, image)
        return (probabilities[:, None] if flat else probabilities), quality

    def opinions(
        self, image: np.ndarray, progress: Progress | None = None, coordinates: Fields | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What the networks say of an image (C, *size), and the labels that registration brings it, each (K, *size);
        None for these where nothing was registered. `predict_and_rate` makes one answer of them.

        Raises:
            NumericalError: a probability is not finite.
        """
        before, padding = self._padding(image.shape[1:])
        padded = np.pad(image, [(0, 0), *padding], mode="edge") if any(map(any, padding)) else image
        inner = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
        fields = list(coordinates or [None] * len(self.networks))
        if padded is not image:
            fields = [f if f is None else _continued(f, padding) for f in fields]
        whole = self._cover(padded, _Frame(image.shape[1:], before, fields), progress)
        posterior = whole[(slice(None), *inner)]
        if not all(np.isfinite(channel).all() for channel in posterior):
            raise NumericalError("the network gave non-finite probabilities; no label map is made of them")
        return posterior, self._brought(fields, inner, image)

    def _realigned(
        self, posterior: np.ndarray, probabilities: np.ndarray, fields: Fields, realign: Realign, image: np.ndarray
    ) -> np.ndarray:
        """The network's posterior (K, *size) pooled with what another registration brings that knows the
        ``probabilities`` of the first, and so on."""
        whole = tuple(slice(n) for n in image.shape[1:])
        for _ in range(REALIGNED):
            try:
                fields = realign(fields, probabilities)
            except UserError as problem:  # what there is stays good
                self.say(f"what was predicted does not help registration: the scan {problem}")
                break
            probabilities = self.mended(posterior, self._brought(fields, whole, image), image)
        return probabilities

    def _brought(self, fields: Fields, inner: tuple[slice, ...], image: np.ndarray) -> np.ndarray | None:
        """The labels that registration brings an ``image`` (C, *size) from the atlases, (K, *size); None where nothing
        was registered."""
        total, count = None, 0
        for field, prior in zip(fields, self.priors, strict=True):
            if field is not None and prior is not None:
                brought = prior.posterior(field[(slice(None), *inner)], image)
                total, count = brought if total is None else np.add(total, brought, out=total), count + 1
        return None if total is None else np.divide(total, count, out=total)

    def mended(
        self, posterior: np.ndarray, brought: np.ndarray | None, image: np.ndarray, rule: InferenceSpec | None = None
    ) -> np.ndarray:
        """The posterior (K, *size), pooled with the labels that registration ``brought`` and mended by the image
        (C, *size), with the weights of ``rule`` (None: the predictor's)."""
        rule = rule or self.inference
        probabilities = pooled(posterior, brought, rule.prior_weight, registrations_of(self.priors))
        keep_above(probabilities, image, self.floors)
        adapt(probabilities, image, rule.intensity_weight)
        agree_with_neighbours(probabilities, image, rule.neighbour_weight)
        return probabilities

    def _padding(self, size: tuple[int, ...]) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """What a scan smaller than the patch lacks, evenly on both sides (its edges are repeated there)."""
        missing = [max(0, p - n) for p, n in zip(self.patch.size, size, strict=True)]
        return tuple(m // 2 for m in missing), [(m // 2, m - m // 2) for m in missing]

    def _cover(self, image: np.ndarray, frame: _Frame, progress: Progress | None) -> np.ndarray:
        size, patch, rule = image.shape[1:], self.patch.size, self.inference
        overlapped = rule.tiling == "overlap"
        tiles = list(
            overlap_tiles(size, patch, rule.step) if overlapped else centre_tiles(size, patch, self.patch.centre)
        )
        count = len(tiles)
        gaussian = overlapped and rule.weighting == "gaussian"
        weight = torch.from_numpy(gaussian_weight(patch)) if gaussian else torch.ones(patch)
        total = torch.zeros((self.spec.classes, *size))
        votes = torch.zeros(size)
        done = 0
        if rule.skip_empty:
            empty = {tile for tile in tiles if self._is_empty(image, tile)}
            for tile in empty:
                kept, output = tile.kept_slices(), tile.output_slices()
                total[0][output] += weight[kept]
                votes[output] += weight[kept]
            tiles, done = [tile for tile in tiles if tile not in empty], len(empty)
        for group, hull, probabilities in self._batches(image, frame, tiles):
            for tile, probability in zip(group, probabilities, strict=True):
                kept, output = tile.kept_slices(), tile.output_slices()
                inside = tuple(slice(k.start - low, k.stop - low) for k, (low, _) in zip(kept, hull, strict=True))
                total[(slice(None), *output)] += probability[(slice(None), *inside)] * weight[kept]
                votes[output] += weight[kept]
            done += len(group)
            if progress:
                progress(done, count)
        return total.div_(votes).numpy()

    def _is_empty(self, image: np.ndarray, tile: Tile) -> bool:
        """Whether every channel is constant in all that the tile reads (resampling leaves a little ringing)."""
        read = image[(slice(None), *tile.input_slices(self.patch.size))]
        return all(float(np.ptp(channel)) <= FLAT for channel in read)

    def _batches(
        self, image: np.ndarray, frame: _Frame, tiles: Sequence[Tile]
    ) -> Iterator[tuple[list[Tile], Keep, torch.Tensor]]:
        """At most ``tile_batch`` tiles, those that keep the same part together as far as that goes; the box of what
        they keep; and their probabilities (T, K, *box)."""
        waiting = commonest_first(tiles) if self.compiler else sorted(tiles, key=lambda tile: tile.keep)
        while waiting:
            group = waiting[: self.tile_batch]
            hull = [
                (min(low for low, _ in k), max(high for _, high in k))
                for k in zip(*(t.keep for t in group), strict=True)
            ]
            try:
                probabilities = self._tiles(image, frame, group, hull)
            except torch.OutOfMemoryError:
                if self.tile_batch == 1:
                    raise UserError(f"{self.device}: its memory does not hold a single tile; use -device cpu") from None
                self.tile_batch = max(1, self.tile_batch // 2)
                self.say(f"{self.device}: out of memory, going on with {self.tile_batch} tiles at a time")
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            yield group, hull, probabilities
            waiting = waiting[len(group) :]

    @torch.inference_mode()
    def _tiles(self, image: np.ndarray, frame: _Frame, tiles: Sequence[Tile], hull: Keep) -> torch.Tensor:
        """Probabilities (T, K, *hull) in part of some tiles, averaged over networks and mirrored views, on the CPU."""
        patch = self.patch.size
        images = np.stack([image[(slice(None), *t.input_slices(patch))] for t in tiles])
        batch = torch.from_numpy(images).to(self.device)
        if not self.checked:
            self._check(batch[:1], self._locations(tiles[:1], frame, ()), hull)
        views = []
        for axes in _subsets(self.inference.mirror_axes):
            keep = [
                (side - high, side - low) if axis in axes else (low, high)
                for axis, (side, (low, high)) in enumerate(zip(patch, hull, strict=True))
            ]
            views.append(self._view(batch, self._locations(tiles, frame, axes), axes, keep))
        return torch.stack(views).mean(dim=0).cpu()

    def _check(self, batch: torch.Tensor, locations: Sequence[torch.Tensor | None], hull: Keep) -> None:
        """Use the networks in low precision from now on if they answer on one tile as those in float32 do."""
        self.checked = True
        for low, exact, its in zip(self.lower, self.networks, locations, strict=True):
            problem = agree(low, exact, batch, its, hull)
            if problem:
                self.say(f"bfloat16 is not used: {problem}")
                return
        self.networks = self.lower

    def _locations(self, tiles: Sequence[Tile], frame: _Frame, axes: tuple[int, ...]) -> list[torch.Tensor | None]:
        """For each network its location maps of the tiles, mirrored over ``axes``: the mirrored content of a place
        stands, in the mirrored volume, at the mirrored coordinates, with the atlas's labels of there."""
        if self.spec.coordinates != "volume":
            return [None] * len(self.networks)
        locations: list[torch.Tensor | None] = []
        for field, prior in zip(frame.fields, self.priors, strict=True):
            maps = []
            for tile in tiles:
                if field is None:
                    own = self._coordinates(tile, frame)
                else:
                    own = field[(slice(None), *tile.input_slices(self.patch.size))]
                own = np.flip(own, tuple(a + 1 for a in axes)).copy()
                own.reshape(-1, self.spec.axes, *self.patch.size)[:, list(axes)] *= -1  # in every atlas
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
        keep: Keep,
    ) -> torch.Tensor:
        dims = [a + 2 for a in axes]
        batch = batch.flip(dims) if dims else batch
        pairs = zip(self.networks, locations, strict=True)
        mean = torch.stack([torch.softmax(n(batch, x, keep).float(), dim=1) for n, x in pairs]).mean(dim=0)
        return mean.flip(dims) if dims else mean


class _Cut(nn.Module):
    """Any other network: all of it is computed, then cut to what is kept."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, coordinates: torch.Tensor | None, keep: Keep) -> torch.Tensor:
        whole = self.network(image, coordinates)
        return whole[(slice(None), slice(None), *(slice(low, high) for low, high in keep))]


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _continued(field: np.ndarray, padding: list[tuple[int, int]]) -> np.ndarray:
    """Coordinates (axes, *size) padded as they go on linearly, not clamped."""
    for axis, pad in enumerate(padding, start=1):
        widths = [(0, 0)] * field.ndim
        widths[axis] = pad
        mode: dict[str, str] = {"mode": "reflect", "reflect_type": "odd"} if field.shape[axis] > 1 else {"mode": "edge"}
        field = np.pad(field, widths, **mode)  # type: ignore[call-overload]
    return field


def _subsets(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))
