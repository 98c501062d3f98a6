"""training_log.jsonl: one JSON object per iteration, complete also after kills and continued trainings."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from mre_lowshot.errors import UserError
from mre_lowshot.files import atomic_write, json_line, not_written

NAME = "training_log.jsonl"
FLUSH_SECONDS = 1.0  # lines that a killed process loses; the next training fills them in from its checkpoint
FIELDS = {
    "loss": "loss",
    "dice": "patch_dice",
    "learning_rate": "learning_rate",
}  # of the history, and their names here


class StepLog:
    """Appends a line for each iteration to ``folder/training_log.jsonl``.

    Args:
        folder: of the fold.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: TextIO | None = None
        self._flushed = 0.0

    def begin(self, history: Mapping[str, Sequence[float]], iteration: int) -> None:
        """Open the log for the iterations after ``iteration``. Lines of later iterations, repeated and damaged ones are
        removed; missing ones are filled in from the history of the training (without seconds and memory)."""
        self.close()
        try:
            if iteration or self.path.exists():
                with (
                    atomic_write(self.path) as temporary,
                    temporary.open("w", encoding="utf-8", newline="\n") as out,
                ):
                    out.writelines(f"{json_line(row)}\n" for row in _complete(self._rows(), history, iteration))
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
        except OSError as problem:
            raise UserError(not_written(self.path, problem)) from None
        self._flushed = time.monotonic()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a line; nothing before `begin`. It is on its way to the disk after `FLUSH_SECONDS` at the latest."""
        if self._file is None:
            return
        try:
            self._file.write(f"{json_line(dict(row))}\n")
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()
        except OSError as problem:
            raise UserError(not_written(self.path, problem)) from None

    def flush(self) -> None:
        """Hand all lines to the operating system."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as problem:
                raise UserError(not_written(self.path, problem)) from None
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left, and close the file."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as problem:
                raise UserError(not_written(self.path, problem)) from None

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The readable lines of the file."""
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict) and type(row.get("iteration")) is int:
                    yield row


def _complete(
    rows: Iterator[dict[str, Any]], history: Mapping[str, Sequence[float]], iteration: int
) -> Iterator[dict[str, Any]]:
    """Rows of the iterations 1 to ``iteration``, each once, in order."""
    due = 1
    for row in rows:
        if due <= row["iteration"] <= iteration:
            yield from (_of_history(history, n) for n in range(due, row["iteration"]))
            yield row
            due = row["iteration"] + 1
    yield from (_of_history(history, n) for n in range(due, iteration + 1))


def _of_history(history: Mapping[str, Sequence[float]], iteration: int) -> dict[str, Any]:
    values = {name: history[key][iteration - 1] for key, name in FIELDS.items()}
    return {"iteration": iteration, **values, "seconds": None, "memory_mb": None}
