"""Several scans are worked on at the same time, each in a thread of its own, as far as the memory allows.

A scan passes its stages one after the other; most of them use one core, or wait for a GPU. While one scan is in such a
stage, the others use the rest of the machine. torch, SimpleITK, scipy and zlib release Python's interpreter lock.
"""

from __future__ import annotations

import atexit
import ctypes
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mre_lowshot.inference.tile_threads import keep_own_threads

Item = TypeVar("Item")
Result = TypeVar("Result")
WAITING = 2  # items beside those in work: one that is done, and one that is begun as soon as a thread is free
POLL_SECONDS = 0.1
# A thread is stopped between any two of its instructions. In rare cases it holds a lock then, and another one waits for
# it without end; the process must end nevertheless.
STOP_SECONDS = 60.0


class _Stopped(BaseException):
    """Raised in a thread whose work is no longer wanted."""


def in_order(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    *,
    threads: int,
    admit: Callable[[Sequence[Item]], bool],
    short: Callable[[Result], bool],
) -> Generator[Result, None, None]:
    """Call ``work`` for each item, several at a time, and yield the results in the order of ``items``. Where the
    iteration is ended early, the threads are stopped.

    Args:
        items: to work on.
        work: for an item; what it raises is raised here.
        threads: that work. With one, or one item, everything is done in the thread that iterates.
        admit: whether these items, the last of them a new one, may be held at the same time. A single item always is.
        short: whether a result shows that memory was short. An item that others were held with is done again alone.
    """
    if min(threads, len(items)) < 2:
        yield from map(work, items)
        return
    held: deque[_Held[Item, Result]] = deque()

    def next_result() -> Result:
        one = held.popleft()
        result = one.future.result()
        if one.accompanied and short(result):
            del result
            wait([other.future for other in held])
            return work(one.item)
        return result

    with _threads(min(threads, len(items))) as submit:
        for item in items:
            while held and not (len(held) < threads + WAITING and admit([*(one.item for one in held), item])):
                yield next_result()
            if held:  # the others are marked already; a variable here would keep a result that was taken
                held[0].accompanied = True
            held.append(_Held(item, submit(work, item), bool(held)))
        while held:
            yield next_result()


@dataclass
class _Held(Generic[Item, Result]):
    """An item in work or done, and whether others were held at the same time."""

    item: Item
    future: Future[Result]
    accompanied: bool


@contextmanager
def _threads(count: int) -> Iterator[Callable[..., Future[Any]]]:
    """Threads that work as long as the block lasts, and a function that gives them a call. Where the block is left
    early, they are stopped as soon as a call of a library returns; they are waited for, but not for ever."""
    calls: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], Any] | None] = queue.SimpleQueue()

    def serve() -> None:
        keep_own_threads()
        with suppress(_Stopped):
            while (call := calls.get()) is not None:
                future, function, argument = call
                try:
                    future.set_result(function(argument))
                except _Stopped:
                    raise
                except BaseException as problem:
                    future.set_exception(problem)
                del call, future, argument  # results are large

    def submit(function: Callable[..., Any], argument: Any) -> Future[Any]:
        future: Future[Any] = Future()
        calls.put((future, function, argument))
        return future

    def interrupt() -> None:
        with suppress(queue.Empty):
            while True:
                calls.get_nowait()
        for thread in working:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stopped))
        end(STOP_SECONDS)

    def end(patience: float | None = None) -> None:
        for _ in working:
            calls.put(None)
        until = None if patience is None else time.monotonic() + patience
        for thread in working:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))

    # daemons: an iteration that nothing ends must not keep the interpreter from ending
    working = [threading.Thread(target=serve, name=f"scan {number}", daemon=True) for number in range(count)]
    for thread in working:
        thread.start()
    atexit.register(interrupt)
    try:
        yield submit
    except BaseException:
        interrupt()
        raise
    else:
        end()
    finally:
        atexit.unregister(interrupt)


class Turns:
    """Lets items pass a stage one at a time, in the order of their numbers, which begin at 0. Each number must be
    ended."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = 0
        self._ended: set[int] = set()

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait until all earlier numbers have ended."""
        with self._changed:
            # a thread is stopped between two waits only
            while not self._changed.wait_for(lambda: self._next >= number, timeout=POLL_SECONDS):
                pass
        try:
            yield
        finally:
            self.end(number)

    def end(self, number: int) -> None:
        """Item ``number`` has passed the stage, or never comes to it."""
        with self._changed:
            self._ended.add(number)
            while self._next in self._ended:
                self._next += 1
            self._changed.notify_all()
