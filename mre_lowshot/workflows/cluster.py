"""Prediction on the workers of a dask scheduler: one task a scan. A scan whose worker is lost is done again elsewhere;
its files are put into place by this process alone, once."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from mre_lowshot.config import Plan
from mre_lowshot.data.dataset import Case
from mre_lowshot.errors import UserError
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.stages import Outcome
from mre_lowshot.workflows.case_writer import CaseWriter, WrittenCase, described
from mre_lowshot.workflows.cluster_client import ClusterClient, is_lost
from mre_lowshot.workflows.cluster_worker import Job, hashes_of, predict_on_worker
from mre_lowshot.workflows.reporting import Reporter

CONTINUE = "what is finished is kept; go on with --continue_prediction"


class ClusterPredictor(ClusterClient):
    """Predicts cases on the workers of a scheduler, which load the model themselves. Inputs, model and output folder
    have the same paths on all machines.

    Args:
        scheduler: address of the scheduler, or its scheduler file.
        model: path of the model.
        device: for the workers; for ``cuda`` a case needs a worker with the resource ``GPU``.
        options: further ones of `Predictor.load`.
        reporter: receives messages.

    Raises:
        UserError: as `Predictor.load`.
    """

    go_on = CONTINUE

    def __init__(
        self, scheduler: str, model: Path, *, device: str, options: Mapping[str, Any], reporter: Reporter
    ) -> None:
        super().__init__(scheduler, device=device, reporter=reporter)
        # here it is read for its plan, labels and hashes only
        self.model = Predictor.load(model, **{**options, "device": "cpu", "compile": False}).model
        self.path, self.options = model.absolute(), {**options, "device": device}

    @property
    def plan(self) -> Plan:
        """What the model's folds share."""
        return self.model.plan

    @property
    def colours(self) -> Mapping[int, str]:
        """``#rrggbb`` of each label value above 0."""
        return self.model.colours

    @contextmanager
    def connected(self, cases: Sequence[Case], output: Path) -> Iterator[None]:
        """Hold a connection to the scheduler; the workers are examined first.

        Args:
            cases: that may be predicted.
            output: the output folder.

        Raises:
            UserError: the scheduler does not answer, it has no worker, or a worker cannot take part.
        """
        seen = [self.path, *(image for case in cases[:1] for image in case.images)]
        with self.connection(seen, output):
            yield

    def predict_cases(
        self, cases: Sequence[Case], writer: CaseWriter, staging: Path
    ) -> Generator[WrittenCase, None, None]:
        """Each case once, in the order in which they are done, with its files in a folder in ``staging``. A case whose
        worker was lost is predicted on another one; a case that loses its workers again and again has failed.

        Raises:
            UserError: a worker cannot take part, or the scheduler is gone. The tasks that are left are cancelled then,
                as they are when the iteration is ended early.
        """
        job = Job(self.path, hashes_of(self.model), self.options, writer, staging.absolute())
        with closing(self.calls(predict_on_worker, [(job, case) for case in cases])) as tasks:
            for number, future in tasks:
                written = self._result(future, cases[number], writer)
                yield written
                if written.folder is not None:
                    shutil.rmtree(written.folder, ignore_errors=True)

    def _result(self, future: Any, case: Case, writer: CaseWriter) -> WrittenCase:
        failure = self.failure_of(future)
        if failure is None:
            written: WrittenCase = future.result()
            return written
        if isinstance(failure, UserError):
            raise UserError(f"{failure}; {CONTINUE}")
        if is_lost(failure):
            problem = (
                f"case {case.name}: the workers that predicted it were lost, several in a row; see their logs (often "
                "the memory was short), and give workers more memory (dask worker --memory-limit)"
            )
        else:
            problem = described(failure, case, self.reporter.warning)
        return writer.not_predicted(Outcome(case, problem=problem))
