"""Warnings of libraries are kept from the user where what matters in them is checked and named here."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


class Shared:
    """A context that changes a setting of the process and that several threads may hold at once: the first enters it,
    the last leaves it. Otherwise overlapping blocks would restore each other's setting."""

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._held = 0
        self._context: AbstractContextManager[object] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the context."""
        with self._lock:
            if not self._held:
                self._context = self._make()
                self._context.__enter__()
            self._held += 1
        try:
            yield
        finally:
            with self._lock:
                self._held -= 1
                if not self._held and self._context is not None:
                    self._context.__exit__(None, None, None)
                    self._context = None


@contextmanager
def _ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


without_warnings = Shared(_ignored).held
"""A context without Python's warnings, in any number of threads."""
