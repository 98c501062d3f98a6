"""A GPU where there is none: torch's ``meta`` device, with a GPU's refusals, and the waits of the host counted.

Tensors of the ``meta`` device have a shape and no values, and torch computes nothing on it. It accepts some operations
on tensors of two devices, which a GPU refuses; `OneDevice` refuses them all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
aten = torch.ops.aten
# Operations that read a value or a length back from the device. (A copy to the CPU is refused by torch itself.)
WAITS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten.unique_dim,
    aten._unique2,
    aten.is_nonzero,
    aten.equal,
    aten.histc,
    aten.repeat_interleave,
}
COPIES = {aten._to_copy, aten.copy_, aten._copy_from}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class OneDevice(TorchDispatchMode):
    """Refuse operations that wait for the device, and those on tensors of two devices, as a GPU does: single numbers
    (0-dimensional) may be the CPU's, and so may positions that index a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        on_device = [t for t in tensors if t.device == META]
        if on_device:
            self.operations += 1
            packet = func.overloadpacket
            masked = packet in INDEXED and any(t is not None and t.dtype == torch.bool for t in args[1])
            if packet in WAITS or masked:
                raise AssertionError(f"{func} waits for the device")
            others = {t.device for t in tensors if t.dim()} - {META}
            if others and packet not in COPIES and packet not in INDEXED:
                raise AssertionError(f"{func}: tensors on {META} and {others}")
        return func(*args, **(kwargs or {}))


class Reads:
    """Takes the place of `transfers.to_host`, which on ``meta`` has nothing to read: every value is 1. ``count`` is
    the number of times that a GPU would have been waited for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        self.count += any(t.device == META for t in tensors)
        return [torch.ones(t.shape, dtype=t.dtype) if t.device == META else t.detach() for t in tensors]
