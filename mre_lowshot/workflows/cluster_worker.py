"""What runs on a worker of a dask scheduler: it loads the model once, predicts the cases that it is sent, and writes
their files into the temporary folder of the run. The client gives the files their names and writes run.json."""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mre_lowshot.data.dataset import Case
from mre_lowshot.errors import UserError, describe_failure, log_unexpected
from mre_lowshot.files import not_written, partial_name, sha256
from mre_lowshot.inference.models import Model
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.stages import Outcome
from mre_lowshot.workflows.case_writer import CaseWriter, WrittenCase
from mre_lowshot.workflows.reporting import LOGGER

UNSEEN = "does not see"  # begins the problem of a worker that has other folders
_lock = threading.Lock()  # a predictor serves one thread at a time
_loaded: dict[str, tuple[Predictor, list[str]]] = {}  # at most one: that of the latest job


@dataclass(frozen=True)
class Job:
    """The part of a run that all its cases share.

    Attributes:
        model: path of the model.
        hashes: SHA-256 of its checkpoints.
        options: of `Predictor.load`.
        writer: of the run.
        staging: temporary folder of the run, in the output folder.
    """

    model: Path
    hashes: tuple[str, ...]
    options: Mapping[str, Any]
    writer: CaseWriter
    staging: Path

    @property
    def key(self) -> str:
        """Jobs with the same key use the same predictor."""
        return json.dumps([str(self.model), self.hashes, dict(self.options)], sort_keys=True)


def hashes_of(model: Model) -> tuple[str, ...]:
    """The SHA-256 of each checkpoint of a model."""
    return tuple(model.hashes or map(sha256, model.checkpoints))


def examine(
    files: Sequence[tuple[Path, int]], marker: Path, content: str, *, dask_worker: Any
) -> tuple[str, int, Mapping[str, float]]:
    """Called on each worker before a run.

    Args:
        files: that the worker must see, with their sizes in bytes.
        marker: a file in the output folder.
        content: what the client has written into it.
        dask_worker: given by dask.

    Returns:
        What keeps the worker from taking part (empty: nothing), its number of threads, and its resources.
    """
    problem = ""
    try:
        for path, size in files:
            if not path.exists() or (path.is_file() and path.stat().st_size != size):
                problem = f"{UNSEEN} {path}, or sees another file of that name"
                break
        if not marker.is_file() or marker.read_text(encoding="utf-8") != content:
            problem = problem or f"{UNSEEN} the output folder {marker.parent}"
        if not problem:
            own = marker.parent / partial_name(marker)
            own.write_text(content, encoding="utf-8", newline="")
            own.unlink()
    except OSError as failure:
        problem = not_written(marker.parent, failure)
    return problem, dask_worker.state.nthreads, dict(dask_worker.state.total_resources)


def predict_on_worker(job: Job, case: Case) -> WrittenCase:
    """Predict a case and write its files. Whatever goes wrong with it is named in the result.

    Raises:
        UserError: this worker cannot take part at all.
    """
    from distributed import get_worker

    address = get_worker().address
    with _lock:
        try:
            predictor, notes = _predictor(job)
        except UserError as problem:
            raise UserError(f"worker {address}: {problem}") from None
        notes.clear()
        written = _written(job, case, predictor, notes)
        return replace(written, notes=tuple(notes), entry={**written.entry, "worker": address})


def _written(job: Job, case: Case, predictor: Predictor, notes: list[str]) -> WrittenCase:
    folder = job.staging / uuid.uuid4().hex
    try:
        (outcome,) = predictor.predict_cases([case], crops=job.writer.crops, ahead=0)
        if not job.staging.is_dir():  # the run was interrupted meanwhile: leave nothing behind
            return job.writer.not_predicted(Outcome(case, problem=f"case {case.name}: the run has ended"))
        folder.mkdir()
        written = job.writer.write(outcome, folder, log=notes.append)
    except Exception as failure:
        log_unexpected(failure, notes.append)
        problem = describe_failure(failure, case.name).replace(str(job.staging), str(job.writer.root))
        written = job.writer.not_predicted(Outcome(case, problem=problem))
    if written.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return written


def _predictor(job: Job) -> tuple[Predictor, list[str]]:
    """The predictor of the job, loaded once in a process, and its messages."""
    if job.key not in _loaded:
        _loaded.clear()  # its memory is needed
        notes: list[str] = []
        predictor = Predictor.load(job.model, **job.options, log=notes.append)
        if hashes_of(predictor.model) != job.hashes:
            raise UserError(
                f"the checkpoints of {job.model} are not those that the run began with; give all workers the same "
                "files, and do not train meanwhile"
            )
        for line in notes:
            LOGGER.warning(line)
        _loaded[job.key] = predictor, notes
    return _loaded[job.key]
