"""What happened in training: history, a text log, and the curves as a picture."""

from __future__ import annotations

import time
from pathlib import Path


class Logbook:
    """Collects one row an iteration, writes lines to ``training_log_<date>.txt`` and draws ``progress.png``; without
    ``writes`` it only collects."""

    def __init__(self, folder: Path, history: dict[str, list[float]] | None = None, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self.history = history or {"iteration": [], "loss": [], "dice": [], "learning_rate": []}
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"training_log_{time.strftime('%Y_%m_%d_%H_%M_%S')}.txt"

    def say(self, line: str) -> None:
        """Add a line, with the time, to the text log."""
        if not self.writes:
            return
        with self.log.open("a", encoding="utf-8") as out:
            out.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    def add(self, iteration: int, loss: float, dice: float, learning_rate: float) -> None:
        """Record one iteration (NaN Dice: no foreground in the batch)."""
        for key, value in zip(self.history, (iteration, loss, dice, learning_rate), strict=True):
            self.history[key].append(value)

    def recent(self, key: str, count: int = 20) -> float:
        """Mean of the last ``count`` values that are not NaN."""
        values = [v for v in self.history[key][-count:] if v == v]
        return sum(values) / len(values) if values else float("nan")

    def draw(self) -> None:
        """Write ``progress.png``."""
        if not self.writes:
            return
        from mre_lowshot.evaluation.figures import progress

        progress(self.folder / "progress.png", self.history)
