"""Which process owns a lock or a temporary file, and whether it still runs."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache

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


def started(pid: int | None = None) -> float:
    """When a process of this machine was started (seconds since the epoch); this process without ``pid``.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    return float(psutil.Process(os.getpid() if pid is None else pid).create_time())


def is_running(pid: int, since: float | None = None, *, not_after: float | None = None) -> bool:
    """Whether process ``pid`` of this machine runs.

    Args:
        pid: its number.
        since: when it was started; another process that has the same number by now does not count.
        not_after: likewise, where only an upper bound of that time is known (a file that it wrote).
    """
    try:
        found = started(pid)
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # another user's process: it exists
        return True
    if since is not None and abs(found - since) > CLOCK_TOLERANCE:
        return False
    return not_after is None or found <= not_after + CLOCK_TOLERANCE
