"""Memory of glibc's allocator, which a training on the CPU uses again in every step.

By default glibc returns large blocks to the system as soon as they are freed. The next step asks for the same blocks,
and the system clears each page before it is used, while the other threads wait.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt(3). Blocks up to MMAP_THRESHOLD come from the heap; more than TRIM_THRESHOLD of free memory at
# the end of the heap is returned to the system.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1
LARGEST_ONCE = 32 * 2**20  # the most that glibc before 2.35 accepts as MMAP_THRESHOLD
# what glibc itself reaches in a process that has freed large blocks; afterwards the exact former values are unknown
USUAL = {MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20}


@contextmanager
def freed_memory_is_kept() -> Iterator[bool]:
    """Inside this block, freed memory stays with the process; afterwards it is returned to the system. Yields whether
    the C library is glibc; with another one nothing is changed. Values computed do not depend on it."""
    library = _glibc()
    if library is None:
        yield False
        return
    if not library.mallopt(MMAP_THRESHOLD, LARGEST):
        library.mallopt(MMAP_THRESHOLD, LARGEST_ONCE)
    library.mallopt(TRIM_THRESHOLD, LARGEST)
    try:
        yield True
    finally:
        for parameter, value in USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    try:
        library = ctypes.CDLL(None)
        if library.mallopt and library.malloc_trim:
            return library
    except (OSError, AttributeError):  # a C library without them
        pass
    return None
