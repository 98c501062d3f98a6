"""Seconds that the stages of one scan take."""

from __future__ import annotations

import time


class Stopwatch:
    """Measures one stage after the other; `seconds` holds them by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.monotonic()

    def resume(self) -> None:
        """Begin a stage now: the time since the last one was spent waiting."""
        self._begun = time.monotonic()

    def lap(self, stage: str) -> None:
        """The stage ends, and the next one begins."""
        now = time.monotonic()
        self.seconds[stage] = round(now - self._begun, 3)
        self._begun = now
