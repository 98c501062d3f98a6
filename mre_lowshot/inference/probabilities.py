"""Class probabilities on a scan's own grid, written class by class: all of them need more memory than the scan."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import torch

from mre_lowshot.grid import as_slices, resize_linear
from mre_lowshot.preprocessing.pipeline import GridTransform
from mre_lowshot.refinement.calibration import exponent

LEVEL = 1  # of compression: six times as fast as numpy's 6, and the files are a few percent larger


def write_probabilities(path: Path, probabilities: np.ndarray, *, transform: GridTransform, temperature: float) -> None:
    """Write ``probabilities`` (K, D, H, W) float32 to an .npz file: the same values as `Prediction.probabilities`, with
    at most three maps of the size of the crop in memory.

    Args:
        path: of the file.
        probabilities: (K, *size) on the plan's grid.
        transform: of the scan to that grid.
        temperature: that they are scaled by, on the scan's own grid.
    """
    shape = (len(probabilities), *transform.native_shape)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive,
        archive.open("probabilities.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for label, channel in enumerate(scaled_classes(probabilities, transform.box_shape, temperature)):
            _write_class(file, channel, transform, outside=float(label == 0))


def scaled_classes(probabilities: np.ndarray, size: tuple[int, ...], temperature: float) -> Iterator[np.ndarray]:
    """Each class's map (D, H, W) resized to ``size``, that of the crop, and scaled as by `scale_temperature`."""
    if temperature == 1:
        yield from (resize_linear(channel, size) for channel in probabilities)
        return
    resized = (torch.from_numpy(resize_linear(channel, size)) for channel in chain(probabilities[:1], probabilities))
    power = exponent(next(resized), temperature)
    total = torch.zeros_like(power)
    for channel in resized:
        total += channel.pow(power)  # the array may be the caller's
    for channel in probabilities:
        yield (torch.from_numpy(resize_linear(channel, size)).pow(power) / total).numpy()


def _write_class(file: IO[bytes], channel: np.ndarray, transform: GridTransform, *, outside: float) -> None:
    """Write one class's map on the native grid, plane by plane."""
    depth, *plane = transform.native_shape
    (low, high), *inner = transform.box
    for z in range(depth):
        values = np.full(plane, outside, dtype="<f4")
        if low <= z < high:
            values[as_slices(tuple(inner))] = channel[z - low]
        file.write(values.data)
