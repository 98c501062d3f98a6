"""Prediction of a scan: the plain tile loop against `SlidingWindow`, both with centre tiles and the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.flops import multiply_adds, peak_memory
from benchmarks.plain import PlainMRENet, plain_prediction
from benchmarks.setting import Setting
from benchmarks.sizes import own_prior
from benchmarks.timing import Spread, interleaved, ratio
from mre_lowshot.config import InferenceConfig
from mre_lowshot.grid import coordinate_maps, voxel_positions
from mre_lowshot.inference.sliding_window import Precision, SlidingWindow, _Frame
from mre_lowshot.inference.tiles import centre_tiles
from mre_lowshot.network.build import build
from mre_lowshot.sampling import LocationPrior, TrainingCase, location_maps

AS_IN_SCAN = "ours, as in the scan"
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")


def prediction(setting: Setting) -> dict[str, Any]:
    """Times, multiply-adds, peak memory; the largest difference of a probability and the share of equal labels."""
    size = setting.size
    ours, plain, weights = _networks(setting)
    case = _scan(setting)
    shape, prior = case.label.shape, own_prior(case, size.network)
    windows = {
        "ours" if precision == "float32" else f"ours {precision}": _window(setting, ours, prior, precision)
        for precision in PRECISIONS
    }
    calls: dict[str, Callable[[], Tensor]] = {"plain": _plain_loop(setting, plain, case, prior)}
    for name, window in windows.items():
        calls[name] = partial(_posterior, window, case.image)
    tiles, whole = (len(list(centre_tiles(n, size.patch.size, size.patch.centre))) for n in (shape, size.scan))
    setting.log(f"prediction of {'x'.join(map(str, shape))} voxels, {tiles} tiles, {size.tile_batch} at a time; "
                f"weights {weights}")  # fmt: skip
    measured: dict[str, Any] = {}
    probabilities = {}
    for name, call in calls.items():
        probabilities[name], measured[name] = _counted(setting, call)
    timed: dict[str, Callable[[], object]] = {**calls}
    if tuple(shape) != size.scan and setting.scan is None:
        timed[AS_IN_SCAN] = _tiles_of_scan(setting, windows["ours"], tiles)
        count = multiply_adds(timed[AS_IN_SCAN])
        measured[AS_IN_SCAN] = {"multiply_adds": count, "peak_gb": measured["ours"]["peak_gb"]}
    times = interleaved(timed, setting.repeats, setting.device)
    for name, spread in times.items():
        _add_time(setting, name, measured[name], spread, tiles=tiles, whole=whole)
    for name in windows:
        _add_agreement(setting, name, measured[name], times, probabilities)
    if AS_IN_SCAN in times:
        gain = ratio(times, fast=AS_IN_SCAN)
        measured[AS_IN_SCAN] |= {"ratio": gain.record()}
        setting.log(f"  plain / {AS_IN_SCAN}: {gain}; with tiles of the whole scan ({whole}), not those of the part")
    return {"voxels": list(shape), "tiles": tiles, "weights": weights, **measured}


def _networks(setting: Setting) -> tuple[nn.Module, PlainMRENet, str]:
    """Our network and the plain one with the same weights, and the origin of these."""
    config = setting.size.network
    if setting.weights is not None:
        origin, weights = "of the checkpoint", setting.weights
    else:
        trainer, _ = setting.pair
        trainer.network.train()
        while trainer.iteration < setting.size.weights:
            trainer.step(*trainer.sampler[trainer.iteration])
        origin = f"after {trainer.iteration} training steps on the synthetic scan"
        weights = copy.deepcopy(trainer.inference_network.state_dict())
    ours, plain = build(config), PlainMRENet(config)
    for network in (ours, plain):
        network.load_state_dict(weights)
        network.to(setting.device).eval()
    return ours, plain, origin


def _scan(setting: Setting) -> TrainingCase:
    """The scan to predict: the given case, on the CPU cropped to the part that is timed, or a synthetic one."""
    size = setting.size
    wanted = size.scan if setting.cuda else size.part
    if setting.scan is not None:
        middle = [slice(max(0, (n - w) // 2), max(0, (n - w) // 2) + w) for n, w in
                  zip(setting.scan.label.shape, wanted, strict=True)]  # fmt: skip
        image, label = setting.scan.image[(slice(None), *middle)], setting.scan.label[tuple(middle)]
        # the plain loop needs a scan of at least the patch's size: edges are repeated
        missing = [(0, max(0, p - n)) for p, n in zip(size.patch.size, label.shape, strict=True)]
        image, label = np.pad(image, [(0, 0), *missing], mode="edge"), np.pad(label, missing, mode="edge")
        return TrainingCase(np.ascontiguousarray(image), label, setting.scan.spacing)
    whole = setting.case()
    corner = tuple(slice(0, n) for n in wanted)
    return TrainingCase(whole.image[(slice(None), *corner)].copy(), whole.label[corner].copy(), whole.spacing)


def _window(setting: Setting, network: nn.Module, prior: LocationPrior | None, precision: Precision) -> SlidingWindow:
    size = setting.size
    return SlidingWindow(
        [network],
        size.network,
        patch=size.patch,
        inference=InferenceConfig(),
        device=setting.device,
        priors=[prior],
        tile_batch=size.tile_batch,
        precision=precision,
        log=setting.log,
    )


def _posterior(window: SlidingWindow, image: np.ndarray) -> Tensor:
    return torch.from_numpy(window.posterior(image))


def _plain_loop(
    setting: Setting, network: nn.Module, case: TrainingCase, prior: LocationPrior | None
) -> Callable[[], Tensor]:
    size, shape = setting.size, case.label.shape
    location = location_maps(coordinate_maps(voxel_positions([0] * len(shape), shape), shape), prior)
    image, maps = (torch.from_numpy(a.astype(np.float32)).to(setting.device) for a in (case.image, location))
    return partial(plain_prediction, network, image, maps, size.patch, size.network.classes, size.tile_batch)


def _tiles_of_scan(setting: Setting, window: SlidingWindow, count: int) -> Callable[[], object]:
    """``count`` tiles of the whole scan, in batches as there. In a small part nearly every tile lies at a border and
    keeps more than its centre, so that its time does not represent a scan's."""
    size, image = setting.size, setting.case().image
    tiles = sorted(centre_tiles(size.scan, size.patch.size, size.patch.centre), key=lambda tile: tile.keep)
    batches = [tiles[n : n + size.tile_batch] for n in range(0, len(tiles), size.tile_batch)]
    wanted = max(1, count // size.tile_batch)
    chosen = [batches[(2 * n + 1) * len(batches) // (2 * wanted)] for n in range(wanted)]
    frame = _Frame(size.scan, (0,) * len(size.scan), [None])
    return lambda: [list(window._batches(image, frame, batch)) for batch in chosen]


def _counted(setting: Setting, call: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """The result of a call, and its multiply-adds and peak memory."""
    kept: list[Tensor] = []
    with peak_memory(setting.device) as peak:
        count = multiply_adds(lambda: kept.append(call()))
    return kept[0], {"multiply_adds": count, "peak_gb": peak["gb"]}


def _add_time(setting: Setting, name: str, measured: dict[str, Any], spread: Spread, *, tiles: int, whole: int) -> None:
    measured["seconds"] = spread.record()
    measured["share_of_ceiling"] = setting.share(measured["multiply_adds"], spread.median)
    measured["scan_seconds"] = spread.median * whole / tiles
    scan = "" if whole == tiles else f", {measured['scan_seconds']:.1f} s a scan ({whole} tiles, extrapolated)"
    peak = "not measured" if measured["peak_gb"] is None else f"{measured['peak_gb']:.2f} GB"
    setting.log(f"  {name:5} {spread} s{scan}; {measured['multiply_adds'] / 1e9 / tiles:.1f} GMAC a tile, "
                f"{measured['share_of_ceiling']:.0%} of the ceiling; peak {peak}")  # fmt: skip


def _add_agreement(
    setting: Setting, name: str, measured: dict[str, Any], times: dict[str, Spread], probabilities: dict[str, Tensor]
) -> None:
    gain = ratio(times, fast=name)
    plain, other = probabilities["plain"], probabilities[name]
    difference = float((plain - other).abs().max())
    equal = float((plain.argmax(0) == other.argmax(0)).double().mean())
    measured |= {"ratio": gain.record(), "largest_difference": difference, "equal_labels": equal}
    setting.log(f"  plain / {name}: {gain}; a probability differs by at most {difference:.1e}, "
                f"labels equal on {equal:.4%} of voxels")  # fmt: skip
