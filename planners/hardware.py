"""The sizes that fit on the planned device: network, batch, and voxels per scan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

PAPER_PATCH_VOXELS = 12 * 36 * 36  # of the paper's patch
PAPER_GRID_VOXELS = 72 * 324 * 396  # of its CT; 14 classes' probabilities on it are 0.5 GB, and prediction keeps a few
# Of one patch in a training step of the paper's network in float32: GB with stored, and with recomputed activations.
# Stored for the backward pass are .384 and .21 GB (U-Net .081 and .035 GB; tests/test_without_gpu.py counts them); the
# rest is an estimate of what only lives during the backward pass.
PATCH_GB = {"mre_net": (0.54, 0.39), "unet": (0.12, 0.08)}
FIXED_GB = 1.0  # weights, gradients, Adam's state, moving average, and the CUDA context
USABLE = 0.9  # share of a GPU's memory that is planned for
# The small network plans a finer grid where scans can be registered: the atlas prior then supplies the context that a
# patch of a finer grid lacks, and small organs need the voxels (docs/LOG.md, 2026-11-25).
REGISTRABLE_FACTOR = 3
REPORTED_GB = 0.5  # class map of a scan from which the plan reports the memory that prediction needs
POOLED_NORM_BATCH = 16  # a smaller batch gives the image-level branch's norm, one vector per patch, too few samples


@dataclass(frozen=True)
class Device:
    """The device planned for."""

    kind: str  # cuda, mps or cpu
    memory_gb: float  # GB (10^9 bytes), of each GPU
    gpus: int = 1  # that will train a fold together, each on its share of every mini-batch


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
    """The paper's network with its 24 patches on GPUs that hold them, a small one elsewhere: the same method on every
    GPU that is large enough. MRE-Net decides, so that recipes that are compared on one device share a size."""
    if device.kind != "cuda":
        return (
            SMALL_SIZE,
            f"{device.kind} with {device.memory_gb:.0f} GB: the small network, which trains in minutes to one hour",
        )
    wanted = _divisible(PAPER_SIZE.batch_size, device)
    batch, recompute = paper_batch(device, wanted)
    if batch == wanted:
        return (
            replace(PAPER_SIZE, batch_size=batch),
            f"{_described(device)}: the paper's network, {batch} patches per batch{_how(recompute)}",
        )
    needed = -(-wanted // device.gpus) * PATCH_GB["mre_net"][1] + FIXED_GB
    return (
        SMALL_SIZE,
        f"{_described(device)}: the small network, because {wanted} patches of the paper's network need about "
        f"{needed / USABLE:.0f} GB{' in each' if device.gpus > 1 else ''}",
    )


def paper_batch(device: Device, wanted: int = PAPER_SIZE.batch_size, architecture: str = "mre_net") -> tuple[int, bool]:
    """How many of the ``wanted`` patches (24 in the paper, 64 for its U-Net) a training step of the paper's network
    holds, and whether activations must be recomputed for it, which changes no number.

    On other devices than CUDA the number is not reduced: a CPU can swap memory to disk.
    """
    if device.kind != "cuda":
        return wanted, False
    wanted = _divisible(wanted, device)
    room = device.memory_gb * USABLE - FIXED_GB
    stored, recomputed = PATCH_GB[architecture]
    if wanted // device.gpus * stored <= room:
        return wanted, False
    return min(wanted, max(2, int(room // recomputed)) * device.gpus), True


def batch_reason(device: Device, batch: int, wanted: int, recompute: bool) -> str:
    """How many patches make a batch of the paper's size on ``device``, and why."""
    if device.kind != "cuda":
        return f"{batch} patches per batch"
    less = f" instead of {wanted}" if batch != wanted else ""
    return f"{batch} patches per batch{less} ({_described(device)}){_how(recompute)}"


def _divisible(batch: int, device: Device) -> int:
    """``batch``, or what each of the GPUs gets an equal share of."""
    return max(device.gpus, batch // device.gpus * device.gpus)


def _described(device: Device) -> str:
    return f"{f'{device.gpus} GPUs' if device.gpus > 1 else 'GPU'} with {device.memory_gb:.0f} GB"


def _how(recompute: bool) -> str:
    return "; activations are recomputed in the backward pass, so that they fit" if recompute else ""


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
