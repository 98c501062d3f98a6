"""Copies between this process's memory and a device, and what is computed on the device without waiting for it.

A GPU works through a queue. Reading a value back, ``nonzero``, ``bincount`` and indexing with a mask wait until the
queue is empty, and the GPU then waits for new work. In a training step only `to_host` waits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor
"""What functions accept that compute in torch: an array (on the CPU), or a tensor on any device."""


def as_tensor(values: Array, device: torch.device | None = None) -> Tensor:
    """A tensor with the memory of an array, or a tensor itself; copied where it is not on ``device``."""
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values if min(values.strides, default=0) >= 0 else values.copy())
    return values if device is None else to_device(values, device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; a copy from pinned memory to a GPU is not waited for."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def to_host(*tensors: Tensor) -> list[Tensor]:
    """The tensors on the CPU, detached; waits for the device once."""
    copies = [tensor.detach().to("cpu", non_blocking=tensor.is_cuda) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def positions(mask: Tensor, count: int) -> Tensor:
    """The positions (``count``,) of the true elements of the flattened ``mask``, ascending, as int64.

    The same as ``mask.flatten().nonzero()[:, 0]``, whose length has to be read from the device.

    Args:
        mask: boolean, any shape.
        count: the number of its true elements.
    """
    flat = mask.flatten()
    place = torch.where(flat, flat.cumsum(0) - 1, count)  # the others are written to the last place and cut off
    found = place.new_empty(count + 1)
    return found.scatter_(0, place, torch.arange(len(flat), device=flat.device))[:count]


def true_positions(mask: Tensor) -> Tensor:
    """`positions` of a mask whose number of true elements is not known; waits for the device once."""
    if mask.device.type == "cpu":
        return mask.flatten().nonzero()[:, 0]
    return positions(mask, int(to_host(mask.sum())[0]))


def ranked(values: Tensor, ranks: Sequence[int]) -> Tensor:
    """The elements of ``values`` (N,) that have the given ``ranks`` in ascending order, from 0 on.

    On a GPU all are sorted: torch has no deterministic ``kthvalue`` there.
    """
    if values.device.type == "cpu":
        return torch.stack([values.kthvalue(rank + 1).values for rank in ranks])
    ordered = values.sort().values
    return torch.stack([ordered[rank] for rank in ranks])


def counts_of(labels: Tensor, classes: int) -> Tensor:
    """The number of elements of each class (K,), int64; ``labels`` are 0 to K - 1, others are not counted.

    The same as ``bincount``, which on a GPU reads the largest label first.
    """
    flat = labels.flatten()
    place = torch.where((flat >= 0) & (flat < classes), flat, classes)
    if labels.device.type == "mps":  # its ``bincount`` is one of the operations that `devices.mps_problem` compares
        return torch.bincount(place, minlength=classes + 1)[:classes]
    return place.new_zeros(classes + 1).scatter_add_(0, place, torch.ones_like(place))[:classes]
