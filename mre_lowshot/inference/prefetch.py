"""Preparing the next scan while a GPU computes the present one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from mre_lowshot.data.dataset import Case

Prepared = TypeVar("Prepared")


def prefetch(
    cases: Iterable[Case], prepare: Callable[[Case], Prepared], *, ahead: bool
) -> Iterator[tuple[Case, Callable[[], Prepared]]]:
    """Yield each case and a function that returns it preprocessed (or raises).

    With ``ahead`` the next one is prepared in a thread meanwhile, so that a GPU need not wait; on the CPU the two would
    only compete for the cores.
    """
    if not ahead:
        for case in cases:
            yield case, partial(prepare, case)
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting: deque[tuple[Case, Callable[[], Prepared]]] = deque()
        for case in cases:
            waiting.append((case, thread.submit(prepare, case).result))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting
