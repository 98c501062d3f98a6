"""Which process owns a lock or a temporary file, and whether it still runs."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

import psutil

CLOCK_TOLERANCE = 2.0  # seconds between two clocks of one machine (file system, process table)


@cache
def host() -> str:
    """The name of this machine (in a container, the container's)."""
    return platform.node() or "unknown"


@cache
def host_tag() -> str:
    """Eight characters that stand for `host` in file names."""
    return hashlib.sha256(host().encode()).hexdigest()[:8]


@cache
def boot() -> str:
    """A name for the time since this machine was started; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def started(pid: int | None = None) -> float:
    """When a process of this machine was started (seconds since the machine was); this process without ``pid``. A
    corrected clock does not change it.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    return float(psutil.Process(os.getpid() if pid is None else pid).create_time() - psutil.boot_time())


def is_running(pid: int, since: float | None = None, *, not_after: float | None = None) -> bool:
    """Whether process ``pid`` of this machine runs.

    Args:
        pid: its number.
        since: when it was started (`started`); another process that has the same number by now does not count.
        not_after: likewise, where only an upper bound of that time is known (of a file that it wrote; seconds since the
            epoch).
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if since is not None and abs(started(pid) - since) > CLOCK_TOLERANCE:
            return False
        return not_after is None or process.create_time() <= not_after + CLOCK_TOLERANCE
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # the latter: no process has such a number
        return False
    except psutil.Error:  # another user's process: it exists
        return True
