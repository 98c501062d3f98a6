"""Predicting a scan: the plain tile loop against `Predictor`, both with centre tiles and the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.counting import multiply_adds, peak_memory
from benchmarks.plain import PlainMRENet, plain_prediction
from benchmarks.setting import Setting
from benchmarks.sizes import prior_of
from benchmarks.timing import interleaved, ratio
from mre_lowshot.inference.predictor import Predictor, _Frame
from mre_lowshot.inference.tiles import centre_tiles
from mre_lowshot.network.build import build
from mre_lowshot.sampling import TrainingCase, coordinate_maps, location_maps, voxel_positions
from mre_lowshot.specs import InferenceSpec


def _trained(setting: Setting) -> tuple[nn.Module, PlainMRENet, str]:
    """Ours and plain with the same weights, and where these come from."""
    spec = setting.size.network
    if setting.weights is not None:
        told, weights = "of the checkpoint", setting.weights
    else:
        trainer, _ = setting.pair
        trainer.network.train()
        while trainer.iteration < setting.size.weights:
            trainer.step(*trainer.sampler[trainer.iteration])
        told = f"after {trainer.iteration} training steps on the synthetic scan"
        weights = copy.deepcopy(trainer.best_network.state_dict())
    ours, plain = build(spec), PlainMRENet(spec)
    for network in (ours, plain):
        network.load_state_dict(weights)
        network.to(setting.device).eval()
    return ours, plain, told


def _scan(setting: Setting) -> TrainingCase:
    """What is predicted: the case named, cut to the timed part on the CPU, or a synthetic one."""
    size = setting.size
    wanted = size.scan if setting.cuda else size.part
    if setting.scan is not None:
        middle = [slice(max(0, (n - w) // 2), max(0, (n - w) // 2) + w) for n, w in
                  zip(setting.scan.label.shape, wanted, strict=True)]  # fmt: skip
        image, label = setting.scan.image[(slice(None), *middle)], setting.scan.label[tuple(middle)]
        # the plain loop knows no scan smaller than a patch: the edges are repeated
        missing = [(0, max(0, p - n)) for p, n in zip(size.patch.size, label.shape, strict=True)]
        image, label = np.pad(image, [(0, 0), *missing], mode="edge"), np.pad(label, missing, mode="edge")
        return TrainingCase(np.ascontiguousarray(image), label, setting.scan.spacing)
    whole = setting.case()
    corner = tuple(slice(0, n) for n in wanted)
    return TrainingCase(whole.image[(slice(None), *corner)].copy(), whole.label[corner].copy(), whole.spacing)


def _as_in_the_scan(setting: Setting, predictor: Predictor, count: int) -> Callable[[], Any]:
    """``count`` tiles out of the whole scan's, batched as there: in a small part nearly every tile lies at a border and
    keeps more than its centre, so that its time says little of a scan's."""
    size, image = setting.size, setting.case().image
    tiles = sorted(centre_tiles(size.scan, size.patch.size, size.patch.centre), key=lambda tile: tile.keep)
    batches = [tiles[n : n + size.tile_batch] for n in range(0, len(tiles), size.tile_batch)]
    wanted = max(1, count // size.tile_batch)
    chosen = [batches[(2 * n + 1) * len(batches) // (2 * wanted)] for n in range(wanted)]
    frame = _Frame(size.scan, (0,) * len(size.scan), [None])
    return lambda: [list(predictor._batches(image, frame, batch)) for batch in chosen]


SAMPLED = "ours, as in the scan"
PRECISIONS: list[dict[str, Any]] = [{}, {"precision": "bf16"}]  # arguments of `Predictor` to try


def prediction(setting: Setting) -> dict[str, Any]:
    """Times, multiply-adds, peak memory; the largest difference of a probability and the share of equal labels."""
    size = setting.size
    ours, plain, weights = _trained(setting)
    case = _scan(setting)
    shape, prior = case.label.shape, prior_of(case, size.network)
    where = location_maps(coordinate_maps(voxel_positions([0] * len(shape), shape), shape), prior)
    image, coordinates = (torch.from_numpy(a.astype(np.float32)).to(setting.device) for a in (case.image, where))

    def plain_loop() -> Tensor:
        return plain_prediction(plain, image, coordinates, size.patch, size.network.classes, size.tile_batch)

    calls: dict[str, Callable[[], Any]] = {"plain": plain_loop}
    predictors: list[Predictor] = []
    for options in PRECISIONS:
        predictor = Predictor([ours], size.network, size.patch, InferenceSpec(), setting.device,
                              tile_batch=size.tile_batch, priors=[prior], **options)  # fmt: skip
        name = "ours " + options["precision"] if options else "ours"
        predictors.append(predictor)
        calls[name] = lambda predictor=predictor: torch.from_numpy(predictor.predict(case.image))  # type: ignore[misc]
    sampled = tuple(shape) != size.scan and setting.scan is None
    tiles = len(list(centre_tiles(shape, size.patch.size, size.patch.centre)))
    whole = len(list(centre_tiles(size.scan, size.patch.size, size.patch.centre)))
    setting.say(f"prediction of {'x'.join(map(str, shape))} voxels, {tiles} tiles, {size.tile_batch} at a time; "
                f"weights {weights}")  # fmt: skip
    result: dict[str, Any] = {"voxels": list(shape), "tiles": tiles, "weights": weights}
    probabilities = {}
    for name, call in calls.items():
        kept: list[Tensor] = []
        with peak_memory(setting.device) as peak:
            count = multiply_adds(lambda call=call, kept=kept: kept.append(call()))  # type: ignore[misc]
        probabilities[name] = kept[0]
        result[name] = {"multiply_adds": count, "peak_gb": peak["gb"]}
    if sampled:
        calls[SAMPLED] = _as_in_the_scan(setting, predictors[0], tiles)
        result[SAMPLED] = {"multiply_adds": multiply_adds(calls[SAMPLED]), "peak_gb": result["ours"]["peak_gb"]}
    times = interleaved(calls, setting.repeats, setting.device)
    for name, spread in times.items():
        own = result[name]
        own["seconds"] = spread.record()
        own["share_of_ceiling"] = setting.share(own["multiply_adds"], spread.median)
        own["scan_seconds"] = spread.median * whole / tiles
        told = "" if whole == tiles else f", {own['scan_seconds']:.1f} s a scan ({whole} tiles, extrapolated)"
        peak_told = "not known" if own["peak_gb"] is None else f"{own['peak_gb']:.2f} GB"
        setting.say(f"  {name:5} {spread} s{told}; {own['multiply_adds'] / 1e9 / tiles:.1f} GMAC a tile, "
                    f"{own['share_of_ceiling']:.0%} of the ceiling; peak {peak_told}")  # fmt: skip
    for name in list(calls)[1:]:
        gain = ratio(times, fast=name)
        if name == SAMPLED:
            result[name] |= {"ratio": gain.record()}
            setting.say(f"  plain / {name}: {gain}; the tiles that a scan of {whole} has, not those of the part")
            continue
        difference = float((probabilities["plain"] - probabilities[name]).abs().max())
        equal = float((probabilities["plain"].argmax(0) == probabilities[name].argmax(0)).double().mean())
        result[name] |= {"ratio": gain.record(), "largest_difference": difference, "equal_labels": equal}
        setting.say(f"  plain / {name}: {gain}; a probability differs by at most {difference:.1e}, "
                    f"labels equal on {equal:.4%} of voxels")  # fmt: skip
    return result
