"""SIGTERM and SIGHUP end a run as Ctrl-C does: results so far are saved, and temporary files removed.

Batch systems send SIGTERM before they kill a job, and a terminal that is closed sends SIGHUP.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = ("SIGTERM", "SIGHUP", "SIGBREAK")  # Windows has no SIGHUP; its Ctrl-Break is SIGBREAK
REPEATED = 5.0  # seconds in which further signals of this kind do not interrupt the saving that the first one began


class Terminated(KeyboardInterrupt):
    """The process was asked to end by the signal ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Raise `Terminated`, a KeyboardInterrupt, in the main thread on the signals `ENDING` while the block runs.

    A signal that the process ignores (nohup) stays ignored, and so does one that has a handler already. Child processes
    that inherit the handler end without a message. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, last = os.getpid(), -REPEATED

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        before, last = last, time.monotonic()
        if last - before >= REPEATED:
            raise Terminated(number)

    numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
