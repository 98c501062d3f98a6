"""Propagation of labels from one scan to another by ANTs, in a separate process, once for each pair of scans."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.subprocess_env import last_line
from mre_lowshot.data.dataset import Case
from mre_lowshot.data.volume import geometry_of, read_labels, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json

WORKER = Path(__file__).with_name("ants_worker.py")
TRANSFORM = "SyN"
INTERPOLATOR = "genericLabel"  # ANTs' interpolator for label maps; nearestNeighbor scores lower
SEED = 1
THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"


def environment() -> dict[str, str]:
    """The environment of this process, with one thread unless it sets a number."""
    return {THREADS: "1", **os.environ}


@dataclass(frozen=True)
class Ants:
    """ANTs in another Python environment.

    Attributes:
        python: the environment's Python executable.
        folder: for the propagated label maps, by training scan.
    """

    python: Path
    folder: Path

    def version(self) -> str:
        """Version of antspyx.

        Raises:
            UserError: it cannot be imported in that environment.
        """
        done = self._run("version")
        if done.returncode:
            raise UserError(
                f"--ants_python {self.python}: cannot import ants ({last_line(done.stderr)}); install it there with "
                f"{self.python} -m pip install antspyx==0.6.3"
            )
        return last_line(done.stdout)

    def settings(self) -> dict[str, Any]:
        """Everything that determines its label maps."""
        return {"antspyx": self.version(), "transform": TRANSFORM, "interpolator": INTERPOLATOR, "seed": SEED}

    def file(self, train: Case, test: Case) -> Path:
        """Path of the label map propagated from ``train`` to ``test``; its record lies beside it."""
        assert test.label  # a test scan is a labelled one
        return self.folder / train.name / test.label.name

    def propagate(self, train: Case, test: Case) -> dict[str, Any]:
        """Write the labels of ``train`` on the grid of ``test``, unless they were written before.

        Returns:
            ``seconds`` (from reading to writing; 0 for a failed pair), ``failed`` (the reason, or None), and ``new``
            (false if the pair was registered before). The label map of a failed pair is empty.

        Raises:
            UserError: a file cannot be read, or a signal stopped the program.
        """
        out = self.file(train, test)
        record = out.parent / f"{test.name}.json"
        if out.is_file() and record.is_file():
            return {**read_json(record, "record of a registration"), "new": False}
        labels, seconds, failed = self._propagated(train, test)
        made = {"seconds": seconds, "failed": failed}
        write_json(record, made)
        write_volume(out, labels, geometry_of(test.images[0]))  # last: if it exists, its record exists
        return {**made, "new": True}

    def _propagated(self, train: Case, test: Case) -> tuple[np.ndarray, float, str | None]:
        grid = geometry_of(test.images[0])
        empty = np.zeros(grid.shape, np.int32)
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder, "propagated.nii.gz")
            done = self._run(test.images[0], train.images[0], train.label, raw, TRANSFORM, INTERPOLATOR, SEED)
            if done.returncode in (-2, -9, -15):  # SIGINT, SIGKILL, SIGTERM: not caused by the registration
                raise UserError(
                    f"{test.name} from {train.name}: ANTs was stopped by signal {-done.returncode} (9: out of memory, "
                    "or killed by a user); run the command again to continue"
                )
            if done.returncode:
                crash = f" (signal {-done.returncode})" if done.returncode < 0 else ""
                return empty, 0.0, last_line(done.stderr) + crash
            try:
                made = read_labels(raw)
            except UserError as problem:
                return empty, 0.0, str(problem)
        if different := grid.differences(made.geometry):
            return empty, 0.0, f"the label map is not on the scan's grid: {'; '.join(different)}"
        return made.on_axes_of(grid).array, float(last_line(done.stdout)), None

    def _run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        # -I: only that environment's packages, and no module of this folder instead of them
        command = [str(self.python), "-I", str(WORKER), *map(str, arguments)]
        try:
            return subprocess.run(command, capture_output=True, text=True, env=environment())
        except OSError as problem:
            raise UserError(
                f"--ants_python {self.python}: cannot be run ({problem.strerror}); give the environment's bin/python"
            ) from None


def majority_vote(maps: Sequence[np.ndarray]) -> np.ndarray:
    """The most frequent value of the label maps at each voxel; in a tie, that of the earliest map."""
    votes = np.stack([np.sum([one == other for other in maps], axis=0, dtype=np.uint8) for one in maps])
    winner = votes.argmax(axis=0)[None]  # argmax takes the first of equals
    found: np.ndarray = np.take_along_axis(np.stack(maps), winner, axis=0)[0]
    return found
