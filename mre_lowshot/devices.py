"""Selection of the torch device, its memory, and deterministic computation."""

from __future__ import annotations

import gc
import os
import re

import torch

from mre_lowshot.errors import UserError
from mre_lowshot.plain import shown

_NAME = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")


def resolve(name: str) -> torch.device:
    """The torch device ``name``; ``auto`` is CUDA if available, else the CPU.

    Raises:
        UserError: the name is none of auto, cpu, cuda, cuda:N, mps, or the device is not available.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        given = shown(name)[1:-1] if isinstance(name, str) else shown(name)
        raise UserError(f"-device {given}: not a device of mre_lowshot; use cuda, cuda:1, mps, cpu or auto")
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise UserError(f"-device {name}: not available ({reason}); use cpu or auto") from None
    return device


def make_deterministic() -> None:
    """Make computations reproducible: equal input gives equal results on the same device.

    Call it before the device is used. On CUDA torch selects slower deterministic kernels, and raises an error for
    operations without one.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at initialisation
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def memory_gb(device: torch.device) -> float:
    """Total memory of the device in GB (10^9 bytes); for the CPU, memory of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return 8.0


def free_memory() -> None:
    """Give back what is no longer used, after an out-of-memory error: Python's cycles and CUDA's cached blocks."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
