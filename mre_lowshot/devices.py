"""Which device to use, and how much memory it has."""

from __future__ import annotations

import os

import torch

from mre_lowshot.errors import UserError


def resolve(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; anything else as torch names it.

    Raises:
        UserError: the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise UserError(f"-device {name}: not usable here ({reason}); use cpu or auto") from None
    return device


def make_deterministic() -> None:
    """From now on the same computation on the same device gives the same numbers. On CUDA some kernels are replaced by
    slower ones, and what has none is refused by torch with an error; call it before the device is used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it is started
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def memory_gb(device: torch.device) -> float:
    """Total memory of the device (of the machine, for the CPU), in GB (10^9 bytes)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return 8.0
