"""The interface through which workflows report progress and messages."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
LOGGER = logging.getLogger("mre_lowshot")


class Bar:
    """Progress of one task; this one shows nothing."""

    def update(self, count: int = 1) -> None:
        """``count`` more steps are done."""

    def show(self, **values: str) -> None:
        """Values to show beside the progress."""


class Reporter:
    """Passes messages to Python's logging (logger ``mre_lowshot``) and shows no progress: the default in Python.

    The commands use a subclass that prints (`mre_lowshot.cli.console`).
    """

    def info(self, line: str) -> None:
        """A line of normal output."""
        LOGGER.info(line)

    def warning(self, line: str) -> None:
        """A line that the user should notice."""
        LOGGER.warning(line)

    def table(self, text: str) -> None:
        """Tables, in a format that a program may read."""
        self.info(text)

    def ask(self) -> None:
        """Called every few seconds in long work; a subclass raises where the work shall end."""

    def iterate(self, items: Sequence[Item], *, description: str, unit: str) -> Iterable[Item]:
        """``items``, with progress."""
        return items

    @contextmanager
    def bar(self, total: int, *, description: str, unit: str, initial: int = 0) -> Iterator[Bar]:
        """Progress of ``total`` steps, ``initial`` of which are done."""
        yield Bar()


class Marked(Reporter):
    """Passes everything on to another reporter, each line and each bar with a mark before it; tables have their own.

    Args:
        reporter: receives the lines.
        mark: as in ``[quick]``.
    """

    def __init__(self, reporter: Reporter, mark: str) -> None:
        self._to, self._mark = reporter, mark

    def info(self, line: str) -> None:
        self._to.info(self._marked(line))

    def warning(self, line: str) -> None:
        self._to.warning(self._marked(line))

    def table(self, text: str) -> None:
        self._to.table(text)

    def ask(self) -> None:
        self._to.ask()

    def iterate(self, items: Sequence[Item], *, description: str, unit: str) -> Iterable[Item]:
        return self._to.iterate(items, description=f"{self._mark} {description}", unit=unit)

    @contextmanager
    def bar(self, total: int, *, description: str, unit: str, initial: int = 0) -> Iterator[Bar]:
        with self._to.bar(total, description=f"{self._mark} {description}", unit=unit, initial=initial) as bar:
            yield bar

    def _marked(self, text: str) -> str:
        return "\n".join(f"{self._mark} {line}" for line in text.split("\n"))


class Silent(Reporter):
    """Reports nothing: for all processes of a training but the first."""

    def info(self, line: str) -> None:
        """Nothing."""

    def warning(self, line: str) -> None:
        """Nothing."""
