"""ANTs as a separate process, in the Python environment that has antspyx: label maps warped from one scan to another.

Shared by the baseline (`ants`) and the comparison of raw scans (``python -m benchmarks.against_ants``).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines.base import go_on

WORKER = Path(__file__).with_name("ants_worker.py")
VERSION = "0.6.3"  # of antspyx, as measured
TRANSFORM = "SyN"
INTERPOLATOR = "genericLabel"  # ANTs' interpolator for label maps; nearestNeighbor scores lower
SEED = 1
ASK_SECONDS = 1.0  # between two calls of `AntsProcess.ask`
THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"


def environment() -> dict[str, str]:
    """The environment of this process, with one thread unless it sets a number."""
    return {THREADS: "1", **os.environ}


def last_line(text: str) -> str:
    """The last line of a program's output that is not blank."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


@dataclass(frozen=True)
class WarpedLabels:
    """A label map warped by ANTs.

    Attributes:
        labels: (D, H, W) on the grid of the scan; all 0 where the registration failed.
        seconds: from reading to writing; 0 where it failed.
        failed: the reason, or None.
    """

    labels: np.ndarray
    seconds: float
    failed: str | None = None


@dataclass(frozen=True)
class AntsProcess:
    """ANTs in a Python environment.

    Attributes:
        python: the environment's Python executable.
        given: how the user named it, for messages, as ``--ants_python``.
        ask: called every second while the program runs; where it raises, the program is stopped.
    """

    python: Path
    given: str
    ask: Callable[[], None] = go_on

    def version(self) -> str:
        """Version of antspyx.

        Raises:
            UserError: it cannot be imported in that environment.
        """
        done = self._run("version")
        if done.returncode:
            raise UserError(
                f"{self.given} {self.python}: cannot import ants ({last_line(done.stderr)}); install it there with "
                f"{self.python} -m pip install antspyx=={VERSION}"
            )
        return last_line(done.stdout)

    def settings(self) -> dict[str, Any]:
        """Everything that determines its label maps."""
        return {"antspyx": self.version(), "transform": TRANSFORM, "interpolator": INTERPOLATOR, "seed": SEED}

    def warp(self, fixed: Path, grid: Geometry, moving: Path, labels: Path, *, pair: str) -> WarpedLabels:
        """The labels of a scan on the grid of another one, with SyN and antspyx's default settings.

        Args:
            fixed: image file of the scan to segment.
            grid: its grid.
            moving: image file of the labelled scan.
            labels: its label map.
            pair: names the two scans in messages.

        Raises:
            UserError: a signal stopped the program, or it cannot be run.
        """
        empty = np.zeros(grid.shape, np.int32)
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder, "warped.nii.gz")
            done = self._run(fixed, moving, labels, raw, TRANSFORM, INTERPOLATOR, SEED)
            if done.returncode in (-2, -9, -15):  # SIGINT, SIGKILL, SIGTERM: not caused by the registration
                raise UserError(
                    f"{pair}: ANTs was stopped by signal {-done.returncode} (9: out of memory, or killed by a user); "
                    "run the command again to continue"
                )
            if done.returncode:
                crash = f" (signal {-done.returncode})" if done.returncode < 0 else ""
                return WarpedLabels(empty, 0.0, last_line(done.stderr) + crash)
            try:
                made = read_labels(raw)
            except UserError as problem:
                return WarpedLabels(empty, 0.0, str(problem))
        if different := grid.differences(made.geometry):
            return WarpedLabels(empty, 0.0, f"the label map is not on the scan's grid: {'; '.join(different)}")
        return WarpedLabels(made.on_axes_of(grid).array, float(last_line(done.stdout)))

    def _run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        # -I: only that environment's packages, and no module of this folder instead of them
        command = [str(self.python), "-I", str(WORKER), *map(str, arguments)]
        try:
            started = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
            )
        except OSError as problem:
            raise UserError(
                f"{self.given} {self.python}: cannot be run ({problem.strerror}); give the environment's bin/python"
            ) from None
        with started as process:
            try:
                while True:
                    try:
                        out, err = process.communicate(timeout=ASK_SECONDS)
                        return subprocess.CompletedProcess(command, process.returncode, out, err)
                    except subprocess.TimeoutExpired:
                        self.ask()
            except BaseException:  # Ctrl-C, or the run has ended
                process.kill()
                raise


def majority_vote(maps: Sequence[np.ndarray]) -> np.ndarray:
    """The most frequent value of the label maps at each voxel; in a tie, that of the earliest map."""
    votes = np.stack([np.sum([one == other for other in maps], axis=0, dtype=np.uint8) for one in maps])
    winner = votes.argmax(axis=0)[None]  # argmax takes the first of equals
    found: np.ndarray = np.take_along_axis(np.stack(maps), winner, axis=0)[0]
    return found
