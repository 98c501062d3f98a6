"""Labels carried from one scan to another by ANTs, in a program apart; each pair of scans once."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.apart import last_words
from mre_lowshot.dataset import Case
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json
from mre_lowshot.volume import geometry_of, read_labels, write_volume

WORKER = Path(__file__).with_name("ants_worker.py")
TRANSFORM = "SyN"
INTERPOLATOR = "genericLabel"  # ANTs' own for label maps; nearestNeighbor scores lower
SEED = 1
THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"


def environment() -> dict[str, str]:
    """The caller's, with one thread where the caller named no number of them."""
    return {THREADS: "1", **os.environ}


@dataclass(frozen=True)
class Ants:
    """ANTs in the environment of ``python``; what it carries is kept under ``folder``, by training scan."""

    python: Path
    folder: Path

    def version(self) -> str:
        """Of antspyx.

        Raises:
            UserError: it cannot be imported there.
        """
        done = self._run("version")
        if done.returncode:
            raise UserError(
                f"--ants_python {self.python}: cannot import ants ({last_words(done.stderr)}); install it there with "
                f"{self.python} -m pip install antspyx==0.6.3"
            )
        return last_words(done.stdout)

    def settings(self) -> dict[str, Any]:
        """What its label maps depend on."""
        return {"antspyx": self.version(), "transform": TRANSFORM, "interpolator": INTERPOLATOR, "seed": SEED}

    def file(self, train: Case, test: Case) -> Path:
        """Where the label map goes that ``train`` gives ``test``; its record lies beside it."""
        assert test.label  # a test scan is a labelled one
        return self.folder / train.name / test.label.name

    def carry(self, train: Case, test: Case) -> dict[str, Any]:
        """Have the labels of ``train`` on the grid of ``test``, registered now (``new``) or before.

        Gives ``seconds`` (reading to writing; 0 of a failed pair) and ``failed``, the reason or None. A pair that
        failed has an empty label map.

        Raises:
            UserError: a file cannot be read, or the program was stopped from outside.
        """
        out = self.file(train, test)
        record = out.parent / f"{test.name}.json"
        if out.is_file() and record.is_file():
            return {**read_json(record, "record of a registration"), "new": False}
        labels, seconds, failed = self._carried(train, test)
        made = {"seconds": seconds, "failed": failed}
        write_json(record, made)
        write_volume(out, labels, geometry_of(test.images[0]))  # last: where it is, the record is
        return {**made, "new": True}

    def _carried(self, train: Case, test: Case) -> tuple[np.ndarray, float, str | None]:
        grid = geometry_of(test.images[0])
        empty = np.zeros(grid.shape, np.int32)
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder, "carried.nii.gz")
            done = self._run(test.images[0], train.images[0], train.label, raw, TRANSFORM, INTERPOLATOR, SEED)
            if done.returncode in (-2, -9, -15):  # SIGINT, SIGKILL, SIGTERM: no fault of the registration's
                raise UserError(
                    f"{test.name} from {train.name}: ANTs was stopped by signal {-done.returncode} (9: memory ran out, "
                    "or someone's doing); run the command again to go on"
                )
            if done.returncode:
                crash = f" (signal {-done.returncode})" if done.returncode < 0 else ""
                return empty, 0.0, last_words(done.stderr) + crash
            try:
                made = read_labels(raw)
            except UserError as problem:
                return empty, 0.0, str(problem)
        if different := grid.differences(made.geometry):
            return empty, 0.0, f"the label map is not on the scan's grid: {'; '.join(different)}"
        return made.array, float(last_words(done.stdout)), None

    def _run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        # -I: that environment's packages only, and no module of this folder in their place
        command = [str(self.python), "-I", str(WORKER), *map(str, arguments)]
        try:
            return subprocess.run(command, capture_output=True, text=True, env=environment())
        except OSError as problem:
            raise UserError(
                f"--ants_python {self.python}: cannot be run ({problem.strerror}); name the environment's bin/python"
            ) from None


def majority(maps: Sequence[np.ndarray]) -> np.ndarray:
    """The value that most of the label maps hold at each voxel; of those that are level, the earlier map's."""
    votes = np.stack([np.sum([one == other for other in maps], axis=0, dtype=np.uint8) for one in maps])
    winner = votes.argmax(axis=0)[None]  # argmax takes the first of equals
    return np.take_along_axis(np.stack(maps), winner, axis=0)[0]
