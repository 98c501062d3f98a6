"""Freed memory that a training uses again: fewer page faults, and returned to the system afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mre_lowshot import heap

CODE = """
import resource, torch
from mre_lowshot.heap import freed_memory_is_kept

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):  # so many that a heap which grows once more does not count
        one, other = torch.ones(2**24), torch.ones(2**23)  # 64 and 32 MB
        del one, other
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(8)
plain, start = faults(), resident()
with freed_memory_is_kept() as kept:
    faults()
    again, inside = faults(), resident()
print(kept, plain, again, start, inside, resident())
"""


@pytest.mark.skipif(heap._glibc() is None, reason="the allocator is not glibc's")
def test_memory_is_used_again_within_and_returned_afterwards():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    kept, *numbers = run.stdout.split()
    plain, again, start, inside, after = map(int, numbers)
    assert kept == "True"
    assert again < plain / 10
    assert inside > start + 60e6
    assert after < start + 20e6


def test_with_another_allocator_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("", ""))
    with heap.freed_memory_is_kept() as kept:
        assert not kept


def test_an_older_glibc_gets_the_largest_value_that_it_accepts(monkeypatch):
    calls = []

    class Older:
        def mallopt(self, parameter, value):
            accepted = parameter != heap.MMAP_THRESHOLD or value <= 32 * 2**20
            calls.append((parameter, value, accepted))
            return accepted

        def malloc_trim(self, _):
            calls.append("trim")

    monkeypatch.setattr(heap, "_glibc", Older)
    with heap.freed_memory_is_kept() as kept:
        assert kept
        assert [call for call in calls if call[2]] == [(-3, 32 * 2**20, True), (-1, 2**31 - 1, True)]
    assert calls[-1] == "trim"
