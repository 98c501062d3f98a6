"""The first scan is read in a thread while torch is being imported. Only numpy is needed for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from mre_lowshot.data.dataset import Case, find_cases
from mre_lowshot.data.readers import READERS, file_ending
from mre_lowshot.data.scan_input import read_case
from mre_lowshot.data.volume import Volume
from mre_lowshot.files import read_json

_States = tuple[tuple[int, int, int], ...]  # of files: size, time of the last change, number


class FirstScan:
    """Reads the image files of one case in a thread, and passes its image on once. Whatever goes wrong, the caller
    reads the case again, and it is refused there."""

    def __init__(self) -> None:
        self._images: tuple[Path, ...] = ()
        self._states: _States = ()
        self._thread: threading.Thread | None = None
        self._found: list[Volume] = []

    def begin(self, inputs: Path, model: Path, *, output: Path, part_id: int = 0) -> None:
        """Begin to read the case that is predicted first.

        Args:
            inputs: folder of the scans, or a scan.
            model: folder of the model, whose plans.json has the number of channels. Of other models nothing is read.
            output: folder whose files are no input.
            part_id: number of the case.
        """
        with suppress(Exception):
            case = _first_case(inputs, model, output, part_id)
            self._images, self._states = case.images, _states(case.images)
            # here, so that no two threads import the same modules
            import_module(READERS[file_ending(case.images[0])])
            # a daemon: a command that refuses its options does not wait for it
            self._thread = threading.Thread(target=_read, args=(case, self._found), name="first scan", daemon=True)
            self._thread.start()

    def expect(self, cases: Sequence[Case]) -> None:
        """``cases`` are predicted; forget what was read if the first of them is another one."""
        if not cases or cases[0].images != self._images:
            self._thread, self._found = None, []

    def read(self, case: Case) -> Volume:
        """The image of a case: what was read, if it is the first case and its files have not changed since.

        Raises:
            UserError: it cannot be read.
        """
        if self._thread is not None and case.images == self._images:
            self._thread.join()
            self._thread = None
            if self._found and self._states == _states(case.images):
                return self._found.pop()
            self._found.clear()
        return read_case(case)


def _read(case: Case, found: list[Volume]) -> None:
    with suppress(Exception):
        found.append(read_case(case))


def _first_case(inputs: Path, model: Path, output: Path, part_id: int) -> Case:
    """The case that `workflows.inputs.find_inputs` finds first.

    Raises:
        Exception: of any kind: there is none.
    """
    if not inputs.is_dir():
        if not file_ending(inputs):
            raise ValueError("no image file")
        return Case("first", (inputs,))
    plan = read_json(model / "plans.json", "plan")
    return find_cases(inputs, len(plan["channel_names"]), None, ignore=(output,))[0][part_id]


def _states(paths: Sequence[Path]) -> _States:
    states = [path.stat() for path in paths]
    return tuple((state.st_size, state.st_mtime_ns, state.st_ino) for state in states)
