"""What is written for a predicted case, in the process that predicted it: its files in a temporary folder, and what
run.json says of it. The process that holds the output folder gives the files their names (`workflows.outputs`)."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mre_lowshot import devices
from mre_lowshot.data.dataset import Case
from mre_lowshot.errors import describe_failure, is_out_of_memory, log_unexpected
from mre_lowshot.grid import Box
from mre_lowshot.inference.export import Prediction
from mre_lowshot.inference.formats import ModelLabels, formats_of
from mre_lowshot.inference.input_checks import Difference
from mre_lowshot.inference.quality import Quality
from mre_lowshot.inference.record import FileState
from mre_lowshot.inference.stages import Outcome
from mre_lowshot.workflows.case_files import Statistics, write_extras
from mre_lowshot.workflows.input_files import input_states
from mre_lowshot.workflows.outputs import Request


@dataclass(frozen=True)
class WrittenCase:
    """A case whose files lie in a temporary folder, or the reason why there are none.

    Attributes:
        case: the case.
        entry: of the case in run.json.
        problem: why it, or one of its files, failed; empty where all went well.
        label_map: name of the first label map that was written; empty where there is none.
        outputs: the files in ``folder``.
        folder: the temporary folder.
        quality, statistics: of the prediction.
        warnings: of the prediction.
        notes: messages of the predictor, where it runs in another process.
    """

    case: Case
    entry: Mapping[str, Any]
    problem: str = ""
    label_map: str = ""
    outputs: tuple[FileState, ...] = ()
    folder: Path | None = None
    quality: Quality | None = None
    statistics: Statistics | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def failed(self, problem: str) -> WrittenCase:
        """The same case where its files could not be put into place."""
        images = [{"file": str(path)} for path in self.case.images]
        entry = {**self.entry, "status": "failed", "reason": problem, "inputs": images, "quality": None}
        return WrittenCase(self.case, entry, problem, notes=self.notes)


@dataclass(frozen=True)
class CaseWriter:
    """Writes the files of predicted cases.

    Args:
        root: the output folder, which messages name instead of the temporary one.
        request: what is asked for.
        labels: names, colours and codes of the model's labels.
        channels: names of the scans' channels.
        crops: given boxes, by case.
    """

    root: Path
    request: Request
    labels: ModelLabels
    channels: tuple[str, ...]
    crops: Mapping[str, Box]

    def write(self, outcome: Outcome, staging: Path, *, log: Callable[[str], None]) -> WrittenCase:
        """Write all files of a case into ``staging``, an empty folder. The label map is kept where another file fails;
        any failure is named in the result. ``log`` receives the tracebacks that are asked for."""
        case, prediction = outcome.case, outcome.prediction
        if prediction is None:
            return self.not_predicted(outcome)
        begun = time.monotonic()
        try:
            name, problem = self._write_label_maps(prediction, case, staging, log)
            extra_problem, statistics = self._write_extras(prediction, case, staging, log)
            paths = sorted(path for path in staging.rglob("*") if path.is_file())
            outputs = tuple(FileState.of(path, path.relative_to(staging).as_posix()) for path in paths)
            problem = extra_problem or problem
            entry = self._entry(outcome, failed=problem, write_seconds=time.monotonic() - begun)
        except Exception as failure:
            return self.not_predicted(replace(outcome, problem=self._described(failure, case, staging, log)))
        return WrittenCase(
            case,
            entry,
            problem,
            name,
            outputs,
            staging,
            prediction.quality,
            statistics,
            prediction.warnings,
        )

    def not_predicted(self, outcome: Outcome) -> WrittenCase:
        """A case without a label map."""
        problem = outcome.problem or f"case {outcome.case.name}: was not predicted"
        return WrittenCase(outcome.case, self._entry(outcome, failed=problem), problem)

    def _write_label_maps(
        self, prediction: Prediction, case: Case, staging: Path, log: Callable[[str], None]
    ) -> tuple[str, str]:
        """Write the label map in each format; the name of the first one written, and the problem of one that cannot be.
        It is raised where none can be written."""
        written: list[str] = []
        failures: list[Exception] = []
        for made in formats_of(case, self.request.formats):
            name = f"{case.name}{made.ending}"
            try:
                made.write(staging / name, prediction, self.labels, case.series[0] if case.series else None)
                written.append(name)
            except Exception as failure:
                failures.append(failure)
        if not written:
            raise failures[0]
        return written[0], self._described(failures[0], case, staging, log) if failures else ""

    def _write_extras(
        self, prediction: Prediction, case: Case, staging: Path, log: Callable[[str], None]
    ) -> tuple[str, Statistics | None]:
        """Probabilities, pictures and statistics, if they are asked for: the problem, empty where there is none, and
        the statistics."""
        try:
            return "", write_extras(prediction, case, staging, request=self.request, channels=self.channels)
        except Exception as failure:
            return self._described(failure, case, staging, log), None

    def _described(self, failure: Exception, case: Case, staging: Path, log: Callable[[str], None]) -> str:
        return described(failure, case, log).replace(str(staging), str(self.root))

    def _entry(self, outcome: Outcome, *, failed: str, write_seconds: float | None = None) -> dict[str, Any]:
        """The entry of a case in run.json; ``failed`` is empty where all went well."""
        case, prediction = outcome.case, outcome.prediction
        seconds = {**outcome.seconds, **({} if write_seconds is None else {"write": round(write_seconds, 3)})}
        quality = prediction.quality if prediction is not None and write_seconds is not None else None
        warnings = prediction.warnings if prediction is not None else ()
        differences = [w.to_json() for w in warnings if isinstance(w, Difference) and w.training_range]
        return {
            "status": "failed" if failed else "done",
            "reason": failed or None,
            "series": [one.key for one in case.series] or None,
            "inputs": input_states(case) if quality else [{"file": str(path)} for path in case.images],
            "crop": listed_box(self.crops.get(case.name)),
            "quality": {"score": quality.score, "basis": quality.basis} if quality else None,
            "warnings": [str(warning) for warning in warnings],
            "differences_from_training": differences,
            "seconds": {**seconds, "total": round(sum(seconds.values()), 3)},
            "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }


def described(failure: Exception, case: Case, log: Callable[[str], None]) -> str:
    """One line for a failure with ``case``; memory is freed where it was short."""
    log_unexpected(failure, log)
    text = describe_failure(failure, case.name)
    if is_out_of_memory(failure):
        devices.free_memory()
    return text


def listed_box(box: Box | None) -> list[list[int]] | None:
    """A box as it is stored in JSON."""
    return None if box is None else [list(sides) for sides in box]
