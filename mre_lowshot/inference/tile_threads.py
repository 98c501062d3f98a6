"""Threads that compute batches of tiles on the CPU at the same time.

A small network spends much of its time in layers that are too small for several threads, or not parallel at all.
Several batches with one thread each keep more cores busy, and give the same to the bit with one to `MOST` threads. With
more threads each batch gets several.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 4  # batches at the same time: each holds the activations of its tiles; further cores share them
_starting = threading.Lock()


def compute(
    items: Iterable[Item], work: Callable[[Item], Result], *, threads: int
) -> Generator[tuple[Item, Result], None, None]:
    """``work`` of each item, in the order of the items. With ``threads`` above 1 several items are worked on at the
    same time, at most `MOST`, each with its share of torch's threads. What ``work`` raises is raised here, and no
    further item is begun.

    Args:
        items: to work on; taken one after the other, as threads become free.
        work: for an item.
        threads: of torch, all items together.
    """
    if threads < 2:
        yield from ((item, work(item)) for item in items)
        return
    each = math.ceil(threads / MOST)
    count = threads // each
    with _starting:
        pool = _pool(count, each)
    begun: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            begun.append((item, pool.submit(work, item)))
            if len(begun) > count:  # one more than threads, so that one is ready to begin
                yield _next(begun)
        while begun:
            yield _next(begun)
    finally:
        for _, future in begun:
            future.cancel()
        wait([future for _, future in begun])


def keep_own_threads() -> None:
    """Let the calling thread have torch's number of threads of the process, which it takes when it first asks: while
    the threads for tiles begin, it would get theirs."""
    with _starting:
        torch.get_num_threads()


def _next(begun: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    item, future = begun[0]
    result = future.result()  # still in the queue meanwhile: where it raises, the caller waits for all
    begun.popleft()
    return item, result


@lru_cache(maxsize=4)
def _pool(count: int, each: int) -> ThreadPoolExecutor:
    """``count`` threads with ``each`` threads of torch, the same ones for all scans of this process."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "tiles", initializer=_begin, initargs=(each,))
    ready = threading.Barrier(count + 1, timeout=60)
    for _ in range(count):
        pool.submit(ready.wait)  # holds its thread until all are there
    ready.wait()
    # a thread keeps its own number; the default of threads to come is the process's, which the last call has set
    torch.set_num_threads(before)
    return pool


def _begin(each: int) -> None:
    torch.get_num_threads()  # a thread takes the process's number when it first asks, even after it was given its own
    torch.set_num_threads(each)


def _after_fork() -> None:
    """A forked process has none of the threads, and nothing would release a lock that one of them holds."""
    global _starting
    _starting = threading.Lock()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
