"""How many runs of an experiment are done, and how long the others may take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

from mre_lowshot.experiments.runner import summary_path_of
from mre_lowshot.workflows.experiment_tasks import Task


class RunTimes:
    """The seconds that runs took. One that was complete before is no measure of the others, and takes no time itself.

    Args:
        tasks: all runs, in their order.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        self._seconds: dict[str, list[float]] = {}  # by row: methods differ much
        self._ran: set[int] = set()

    @contextmanager
    def measured(self, number: int) -> Iterator[None]:
        """Measure run ``number``, which the block runs or skips."""
        complete, begun = _is_complete(self._tasks[number]), time.monotonic()
        yield
        if not complete:
            self._ran.add(number)
            self._seconds.setdefault(self._tasks[number].row.name, []).append(time.monotonic() - begun)

    def line(self, number: int) -> str:
        """What is done after run ``number``, and the time left: of each row the mean of its runs, or of all runs where
        it had none. Empty where the run was complete before, or nothing is left."""
        left = [task.row.name for task in self._tasks[number + 1 :] if not _is_complete(task)]
        if not left or number not in self._ran:
            return ""
        of_any = fmean(value for values in self._seconds.values() for value in values)
        seconds = sum(fmean(self._seconds[row]) if row in self._seconds else of_any for row in left)
        done = len(self._tasks) - len(left)
        return f"{done} of {len(self._tasks)} runs done; time left about {duration(seconds)}"


def _is_complete(task: Task) -> bool:
    return summary_path_of(task.job).is_file()


def duration(seconds: float) -> str:
    """A time for a person to read: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
