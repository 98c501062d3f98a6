"""Memory that a file or an option asks for, checked before it is allocated."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil

from mre_lowshot.errors import MemoryLimitError, UserError

OVERRIDE = "MRE_MEMORY_GB"  # environment variable: memory that may be used, instead of what is free
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> float:
    """Bytes that this process may still allocate: `OVERRIDE` (GB) where it is set, else what is free on the machine and
    in the control group of a container.

    Raises:
        UserError: `OVERRIDE` is not a number above 0.
    """
    given = os.environ.get(OVERRIDE)
    if given:
        try:
            gigabytes = float(given)
        except ValueError:
            gigabytes = math.nan
        if not gigabytes > 0:
            raise UserError(f"{OVERRIDE}={given!r}: must be a number above 0 (GB)")
        return gigabytes * 1e9
    return min(float(psutil.virtual_memory().available), _group_memory())


def _group_memory() -> float:
    """Bytes left in the control group of a container; infinity where there is no limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = (_CGROUP / "memory.current").read_text(encoding="ascii").strip()
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        cache = int(statistics.get("inactive_file", 0))  # given back when memory is short
        return math.inf if limit == "max" else float(int(limit) - int(used) + cache)
    except (OSError, ValueError):
        return math.inf


def require_memory(needed: float, what: str, fix: str) -> None:
    """Refuse what needs more memory than there is.

    Args:
        needed: bytes.
        what: begins the message: the file or case, and the size that it states.
        fix: what to do instead.

    Raises:
        MemoryLimitError: ``needed`` exceeds `available_memory`.
    """
    available = available_memory()
    if not needed <= available:
        raise MemoryLimitError(
            f"{what} needs {bytes_text(needed)} of memory, {bytes_text(available)} are available; {fix} "
            f"({OVERRIDE} sets another limit)"
        )


def bytes_text(count: float) -> str:
    """A number of bytes for messages: ``3.2 GB``, ``19.2 kB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if not count < size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
