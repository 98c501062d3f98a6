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
# Fewer patches give the image-level branch's norm, one vector per patch, too few samples. Counted are those over which
# the statistics are computed: of one process, or of the whole mini-batch with synchronised norms.
POOLED_NORM_BATCH = 16
LEAST_NORM_BATCH = 2  # what training requires of a process that has this norm


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
        why = f"{device.kind} with {device.memory_gb:.0f} GB: the small network, which trains in minutes to one hour"
        return small_size(device, why)
    wanted = _divisible(PAPER_SIZE.batch_size, device)
    batch, recompute = paper_batch(device)
    if batch == wanted:
        less = _instead_of(PAPER_SIZE.batch_size, batch)
        return (
            replace(PAPER_SIZE, batch_size=batch),
            f"{_described(device)}: the paper's network, {batch} patches per batch{less}{_how(recompute)}",
        )
    needed = -(-wanted // device.gpus) * PATCH_GB["mre_net"][1] + FIXED_GB
    return small_size(
        device,
        f"{_described(device)}: the small network, because {wanted} patches of the paper's network need about "
        f"{needed / USABLE:.0f} GB{' in each' if device.gpus > 1 else ''}",
    )


def small_size(device: Device, why: str) -> tuple[NetworkSize, str]:
    """The small network, with as many patches as the processes share equally; ``why`` it is taken, and that number
    where it differs."""
    batch = _divisible(SMALL_SIZE.batch_size, device)
    if batch != SMALL_SIZE.batch_size:
        less = _instead_of(SMALL_SIZE.batch_size, batch)
        why = f"{why}; {batch} patches per batch{less}, as many on each of {device.gpus} {_processes(device)}"
    return replace(SMALL_SIZE, batch_size=batch), why


def paper_batch(
    device: Device, wanted: int = PAPER_SIZE.batch_size, architecture: str = "mre_net", *, least: int = 1
) -> tuple[int, bool]:
    """How many of the ``wanted`` patches (24 in the paper, 64 for its U-Net) a training step of the paper's network
    holds, and whether activations must be recomputed for it, which changes no number. Every process gets the same
    number, ``least`` or more.

    On other devices than CUDA memory does not reduce the number: a CPU can swap memory to disk.
    """
    wanted = _divisible(wanted, device, least)
    if device.kind != "cuda":
        return wanted, False
    room = device.memory_gb * USABLE - FIXED_GB
    stored, recomputed = PATCH_GB[architecture]
    if wanted // device.gpus * stored <= room:
        return wanted, False
    return min(wanted, max(2, int(room // recomputed)) * device.gpus), True


def batch_reason(device: Device, batch: int, wanted: int, recompute: bool) -> str:
    """How many patches make a batch of the paper's size on ``device``, and why."""
    less = _instead_of(wanted, batch)
    where = f" ({_described(device)})" if device.kind == "cuda" or device.gpus > 1 else ""
    return f"{batch} patches per batch{less}{where}{_how(recompute)}"


def pooled_norm_rule(device: Device, batch: int, *, synchronised: bool) -> tuple[bool, str]:
    """Whether the image-level branch has a norm, and why not: training computes its statistics in each process, over
    that process's share of the ``batch``, or ``synchronised`` over all."""
    if (vectors := batch if synchronised else batch // device.gpus) >= POOLED_NORM_BATCH:
        return True, ""
    each = f" in each of {device.gpus} processes" if vectors != batch else ""
    return False, (
        f"off: with {vectors} {'patch' if vectors == 1 else 'patches'} per batch{each} its statistics would come from "
        f"{vectors} {'vector' if vectors == 1 else 'vectors'}"
    )


def _divisible(batch: int, device: Device, least: int = 1) -> int:
    """``batch``, or what each of the processes gets an equal share of, ``least`` patches or more if there are several:
    training refuses another number."""
    return max(least, batch // device.gpus) * device.gpus if device.gpus > 1 else batch


def _instead_of(wanted: int, batch: int) -> str:
    return f" instead of {wanted}" if batch != wanted else ""


def _processes(device: Device) -> str:
    return "GPUs" if device.kind == "cuda" else "processes"


def _described(device: Device) -> str:
    if device.kind != "cuda":
        return f"{device.gpus} processes"
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
