"""Propagation of labels from one raw scan to another by ANTs (`ants_process`), once for each pair of scans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mre_lowshot.data.dataset import Case
from mre_lowshot.data.volume import geometry_of, write_volume
from mre_lowshot.experiments.baselines.ants_process import AntsProcess
from mre_lowshot.files import read_json, write_json


@dataclass(frozen=True)
class Ants:
    """ANTs, and the label maps that it made.

    Attributes:
        process: ANTs.
        folder: for the propagated label maps, by training scan.
    """

    process: AntsProcess
    folder: Path

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
        assert train.label
        out = self.file(train, test)
        record = out.parent / f"{test.name}.json"
        if out.is_file() and record.is_file():
            return {**read_json(record, "record of a registration"), "new": False}
        grid, pair = geometry_of(test.images[0]), f"{test.name} from {train.name}"
        warped = self.process.warp(test.images[0], grid, train.images[0], train.label, pair=pair)
        made = {"seconds": warped.seconds, "failed": warped.failed}
        write_json(record, made)
        write_volume(out, warped.labels, grid)  # last: if it exists, its record exists
        return {**made, "new": True}
