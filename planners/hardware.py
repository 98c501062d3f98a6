"""The sizes that fit on the planned device: network, batch, and voxels per scan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

PAPER_PATCH_VOXELS = 12 * 36 * 36  # of the paper's patch
PAPER_GRID_VOXELS = 72 * 324 * 396  # of its CT; 14 classes' probabilities on it are 0.5 GB, and prediction keeps a few
PAPER_GB_PER_PATCH = 1.7  # the paper's network took 4 x 10.2 GB for 24 patches (its Table III)
GPU_GB_FOR_PAPER_SIZE = 11.5  # a "12 GB" card reports a little less
# The small network plans a finer grid where scans can be registered: the atlas prior then supplies the context that a
# patch of a finer grid lacks, and small organs need the voxels (docs/LOG.md, 2026-11-25).
REGISTRABLE_FACTOR = 3
REPORTED_GB = 0.5  # class map of a scan from which the plan reports the memory that prediction needs
POOLED_NORM_BATCH = 16  # a smaller batch gives the image-level branch's norm, one vector per patch, too few samples


@dataclass(frozen=True)
class Device:
    """The device planned for."""

    kind: str  # cuda, mps or cpu
    memory_gb: float  # GB (10^9 bytes)


@dataclass(frozen=True)
class NetworkSize:
    """One size of the network: widths, batch size, and the planned numbers of voxels of patches and scans."""

    name: Literal["paper", "small"]
    widths: tuple[int, ...]
    aspp_channels: int
    embedding_dim: int
    mixing_dim: int
    batch_size: int
    patch_voxels: int
    scan_voxels: int  # of a median preprocessed scan
    image_pixels: int  # of a median preprocessed 2D image, and of a 2D patch


PAPER_SIZE = NetworkSize("paper", (64, 128, 256), 256, 2048, 512, 24, PAPER_PATCH_VOXELS, PAPER_GRID_VOXELS, 128 * 128)
SMALL_SIZE = NetworkSize("small", (16, 32, 64), 32, 64, 64, 4, PAPER_PATCH_VOXELS, 500_000, 96 * 96)


def size_rule(device: Device) -> tuple[NetworkSize, str]:
    """The paper's network on a GPU of 12 GB or more, with the batch that fits; a small one elsewhere."""
    if device.kind == "cuda" and device.memory_gb >= GPU_GB_FOR_PAPER_SIZE:
        batch = paper_batch(device)
        return (
            replace(PAPER_SIZE, batch_size=batch),
            f"GPU with {device.memory_gb:.0f} GB: the paper's network, {batch} patches of about 1.7 GB each",
        )
    return (
        SMALL_SIZE,
        f"{device.kind} with {device.memory_gb:.0f} GB: the small network, which trains in minutes to one hour",
    )


def paper_batch(device: Device, wanted: int = PAPER_SIZE.batch_size) -> int:
    """The paper's 24 patches (64 for its U-Net), or as many as fit in a GPU's memory. On other devices the number is
    not reduced: a CPU can swap memory to disk."""
    if device.kind != "cuda":
        return wanted
    return int(min(wanted, max(2, device.memory_gb * 0.9 // PAPER_GB_PER_PATCH)))


def scan_voxels_rule(size: NetworkSize, registrable: bool) -> int:
    """The most voxels of a median preprocessed scan; `REGISTRABLE_FACTOR` times as many for the small network where
    scans can be registered."""
    return size.scan_voxels * (REGISTRABLE_FACTOR if registrable and size.name == "small" else 1)


def memory_rule(classes: int, median_size: tuple[int, ...]) -> str | None:
    """A note on the memory that prediction needs on a median scan's grid; None where it is little."""
    gigabytes = 4 * classes * float(np.prod(median_size)) / 1e9
    if gigabytes < REPORTED_GB:
        return None
    return (
        f"prediction keeps several arrays of {gigabytes:.1f} GB ({classes} classes on a median scan's grid) in the "
        "machine's memory; a coarser grid (-p NAME --set preprocessing.spacing=[z,y,x]) needs less"
    )
