"""History of a training, a text log, and the curves as a picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mre_lowshot.errors import UserError
from mre_lowshot.files import not_written
from mre_lowshot.plotting import new_figure, save_figure
from mre_lowshot.trainers.step_log import FIELDS, StepLog

KEYS = ("iteration", "loss", "dice", "learning_rate")
SMOOTHING = 0.97  # weight of the past in the curves' running mean


class TrainingLog:
    """Collects one row per iteration, writes it to ``training_log.jsonl`` and lines to ``training_log_<date>.txt``, and
    draws ``progress.png``; with ``writes`` false it only collects. ``used_memory`` returns bytes."""

    def __init__(
        self,
        folder: Path,
        history: dict[str, list[float]] | None = None,
        writes: bool = True,
        used_memory: Callable[[], float] | None = None,
    ) -> None:
        self.folder, self.writes = folder, writes
        self._steps, self._used_memory, self._since = StepLog(folder), used_memory, time.perf_counter()
        self.history = history or {key: [] for key in KEYS}
        if writes:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as problem:
                raise UserError(not_written(folder, problem)) from None
        self.path = folder / f"training_log_{time.strftime('%Y_%m_%d_%H_%M_%S')}.txt"

    def log(self, line: str) -> None:
        """Add a line, with the time, to the text log."""
        if not self.writes:
            return
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as out:
                out.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        except OSError as problem:
            raise UserError(not_written(self.path, problem)) from None

    def add(self, iteration: int, loss: float, dice: float, learning_rate: float) -> None:
        """Record one iteration (NaN Dice: no foreground in the batch)."""
        row = dict(zip(KEYS, (iteration, loss, dice, learning_rate), strict=True))
        for key, value in row.items():
            self.history[key].append(value)
        now = time.perf_counter()
        if self.writes:
            self._steps.add(
                {
                    "iteration": iteration,
                    **{name: row[key] for key, name in FIELDS.items()},
                    "seconds": round(now - self._since, 4),
                    "memory_mb": round(self._used_memory() / 1e6, 1) if self._used_memory else None,
                }
            )
        self._since = now

    @contextmanager
    def steps(self, iteration: int) -> Iterator[None]:
        """While the block trains from ``iteration`` on, each `add` writes a line of ``training_log.jsonl``.

        Raises:
            UserError: it cannot be written.
        """
        try:
            if self.writes:
                self._steps.begin(self.history, iteration)
            self.restart_clock()
            yield
        finally:
            self._steps.close()

    def flush(self) -> None:
        """Write all lines so far: those of a checkpoint are never missing."""
        self._steps.flush()

    def restart_clock(self) -> None:
        """The next iteration begins now: what was saved or drawn before is not part of its seconds."""
        self._since = time.perf_counter()

    def recent(self, key: str, count: int = 20) -> float:
        """Mean of the last ``count`` values that are not NaN."""
        values = [v for v in self.history[key][-count:] if v == v]
        return sum(values) / len(values) if values else float("nan")

    def draw(self) -> None:
        """Write ``progress.png``."""
        if self.writes:
            draw_progress(self.folder / "progress.png", self.history)


def checked_history(data: Mapping[str, Sequence[float]], iteration: int, total: int) -> dict[str, list[float]]:
    """A copy of the history of a training, as read from a checkpoint.

    Args:
        data: the history.
        iteration: the last one that was trained.
        total: iterations of the recipe.

    Raises:
        ValueError: it does not have one row of numbers for each iteration.
    """
    if not 0 <= iteration <= total:
        raise ValueError(f"iteration {iteration} of {total}")
    history = {key: list(data[key]) for key in KEYS}
    if history["iteration"] != list(range(1, iteration + 1)):
        raise ValueError(f"the history does not have the iterations 1 to {iteration}")
    for key, values in history.items():
        if len(values) != iteration or not all(type(value) in (int, float) for value in values):
            raise ValueError(f"the history of {key} does not have {iteration} numbers")
    return history


def smoothed(values: np.ndarray, weight: float = SMOOTHING) -> np.ndarray:
    """An exponential running mean with an unbiased start; over gaps (NaN) the mean continues."""
    mean, total, result = 0.0, 0.0, np.full(len(values), np.nan)
    for index, value in enumerate(values):
        if np.isfinite(value):
            mean, total = weight * mean + (1 - weight) * value, weight * total + (1 - weight)
        if total:
            result[index] = mean / total
    return result


def draw_progress(path: Path, history: Mapping[str, Sequence[float]]) -> None:
    """Draw a training to ``path`` (PNG): loss and the patches' Dice above, learning rate below.

    ``history`` holds lists of equal length under ``iteration``, ``loss``, ``dice`` and ``learning_rate``; NaN is a gap,
    and a missing key other than ``iteration`` is left out.
    """
    steps = np.asarray(history["iteration"], dtype=float)
    figure = new_figure(9, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    right = upper.twinx()
    for axes, key, text, ink in ((upper, "loss", "loss", "#1f5fa8"), (right, "dice", "Dice of patches", "#c0560f")):
        values = np.asarray(history.get(key, []), dtype=float)
        axes.set_ylabel(text, color=ink)
        axes.tick_params(axis="y", colors=ink)
        if np.isfinite(values).any():
            axes.plot(steps, values, color=ink, alpha=0.22, linewidth=0.7)
            axes.plot(steps, smoothed(values), color=ink, linewidth=1.8, marker="o" if len(values) == 1 else "")
    right.set_ylim(0, 1)
    if np.nanmin(np.asarray(history.get("loss", []), dtype=float), initial=0) >= 0:
        upper.set_ylim(bottom=0)
    rate = np.asarray(history.get("learning_rate", []), dtype=float)
    if np.isfinite(rate).any():
        lower.plot(steps, rate, color="#444444", linewidth=1.4, marker="o" if len(rate) == 1 else "")
    lower.set(xlabel="iteration", ylabel="learning rate")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    figure.tight_layout()
    save_figure(figure, path)
