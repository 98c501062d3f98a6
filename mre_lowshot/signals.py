"""The signal that ended this run: commands answer it with exit code 128 + number (Ctrl-C 130, SIGTERM 143)."""

from __future__ import annotations

_received: int | None = None


def note(number: int) -> None:
    """Record that signal ``number`` arrived; a `KeyboardInterrupt` follows once the state is saved."""
    global _received
    _received = number


def received() -> int | None:
    """The number of the last signal that was recorded, or None."""
    return _received


def forget() -> None:
    """Record none: another command begins in this process."""
    global _received
    _received = None
