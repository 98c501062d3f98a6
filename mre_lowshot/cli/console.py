"""The reporter of the commands: prints messages and shows progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from mre_lowshot.cli import common
from mre_lowshot.workflows.reporting import Bar, Item, Reporter

DELAY = 2  # seconds before a progress bar appears


class _TqdmBar(Bar):
    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def update(self, count: int = 1) -> None:
        self.bar.update(count)

    def show(self, **values: str) -> None:
        self.bar.set_postfix(**values)


class Console(Reporter):
    """Messages on stdout, warnings on stderr, progress bars where stderr is a terminal."""

    def info(self, line: str) -> None:
        try:
            with tqdm.external_write_mode(file=sys.stdout):
                print(line, flush=True)
        except OSError:  # closed by its reader (| head), or a full disk: the work goes on
            common.flush(sys.stdout)

    def warning(self, line: str) -> None:
        try:
            tqdm.write(line, file=sys.stderr)
        except OSError:
            common.flush(sys.stderr)

    def iterate(self, items: Sequence[Item], *, description: str, unit: str) -> Iterable[Item]:
        bar: Iterable[Item] = tqdm(items, desc=description, unit=unit, disable=None, delay=DELAY)
        return bar

    @contextmanager
    def bar(self, total: int, *, description: str, unit: str, initial: int = 0) -> Iterator[Bar]:
        with tqdm(total=total, initial=initial, desc=description, unit=unit, disable=None, delay=DELAY) as bar:
            yield _TqdmBar(bar)
