"""Multiply-adds, counted from the shapes of the operations that run; bytes kept for the backward pass; peak memory."""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def _product(left: Tensor, right: Tensor) -> int:
    return left.numel() * right.shape[-1]


def _convolution(source: Tensor, weight: Tensor, result: Tensor, transposed: bool) -> int:
    """Each voxel of the result reads as many numbers as ``weight[0]`` has; in a transposed convolution each voxel of
    the source writes them. Taps that read padding are counted, whether or not the kernel computes them."""
    return int((source if transposed else result).numel() * math.prod(weight.shape[1:]))


def _qr(matrix: Tensor) -> int:
    """The triangular factor by Householder reflections."""
    short, long = sorted(matrix.shape[-2:])
    return math.prod(matrix.shape[:-2]) * short**2 * (3 * long - short) // 3


class MultiplyAdds(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Adds up the multiply-adds of all matrix products, QR decompositions and convolutions, forward and backward, that
    run in its context.

    ``total`` holds the sum. Other operations (norms, activations, interpolation) are not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        known = packet in _COUNTED or packet is aten.convolution_backward
        if not known:
            with self:  # in inference mode composite operations arrive undivided: they are decomposed here
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if packet is aten.convolution_backward:
            grad, source, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
            self.total += _convolution(source, weight, grad, transposed) * (int(wanted[0]) + int(wanted[1]))
        elif known:
            self.total += _COUNTED[packet](args, result)
        return result


_COUNTED: dict[Any, Callable[[Any, Any], int]] = {
    aten.mm: lambda a, out: _product(a[0], a[1]),
    aten.bmm: lambda a, out: _product(a[0], a[1]),
    aten.addmm: lambda a, out: _product(a[1], a[2]),
    aten.baddbmm: lambda a, out: _product(a[1], a[2]),
    aten.mv: lambda a, out: a[0].numel(),
    aten.addmv: lambda a, out: a[1].numel(),
    aten.dot: lambda a, out: a[0].numel(),
    aten.linalg_qr: lambda a, out: _qr(a[0]),
    aten.convolution: lambda a, out: _convolution(a[0], a[1], out, a[6]),
}


def multiply_adds(call: Callable[[], object]) -> int:
    """The multiply-adds of one uncompiled call, on any device."""
    with MultiplyAdds() as counter:
        call()
    total: int = counter.total
    return total


def saved_bytes(call: Callable[[], object], parameters: Iterator[Tensor]) -> int:
    """Bytes that autograd keeps for the backward passes of one call: each storage once, without parameters. What the
    backward pass computes again is not kept and not counted."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor.detach())  # keeps its address from being used for another tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float | None]]:
    """Yield a dict whose ``gb`` is the peak memory of the context after it ends: memory allocated on a CUDA device,
    otherwise the rise of this process's resident memory (Linux with glibc; None where it cannot be measured)."""
    peak: dict[str, float | None] = {"gb": None}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak["gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        return
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # otherwise memory freed before would be used again without a rise
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident size
        before = _status("VmRSS")
    except (OSError, AttributeError, TypeError):  # not Linux with glibc
        yield peak
        return
    yield peak
    peak["gb"] = (_status("VmHWM") - before) / 1e9


def _status(key: str) -> int:
    """A memory size of this process in bytes, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))
