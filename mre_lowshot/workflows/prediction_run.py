"""One prediction run: which cases are left to predict, and what is written for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from mre_lowshot.data.dataset import Case
from mre_lowshot.data.label_table import LabelTable
from mre_lowshot.data.scan_input import read_case
from mre_lowshot.data.volume import Volume
from mre_lowshot.errors import UserError, describe_failure
from mre_lowshot.files import printable
from mre_lowshot.grid import Box
from mre_lowshot.inference.formats import ModelLabels
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.quality import Quality, first_to_check, read_rows, write_qualities
from mre_lowshot.inference.stages import Outcome
from mre_lowshot.inference.statistics_table import StatisticsTable
from mre_lowshot.workflows.case_files import Statistics, add_missing_statistics, label_digest
from mre_lowshot.workflows.case_writer import CaseWriter, WrittenCase, described, listed_box
from mre_lowshot.workflows.cluster import ClusterPredictor
from mre_lowshot.workflows.corrected_pictures import refresh_corrected
from mre_lowshot.workflows.label_files import write_label_files
from mre_lowshot.workflows.outputs import OutputFolder
from mre_lowshot.workflows.reporting import Reporter


@dataclass(frozen=True)
class PredictResult:
    """Result of `predict`.

    Attributes:
        folder: with the label maps, run.json and quality.csv.
        files: label map of each case that is segmented, those of earlier runs included.
        qualities: of the cases segmented now.
        failed: one line for each scan that could not be segmented.
        warnings: of the cases segmented now, by case; only those that have any.
        record: run.json.
        statistics: of the structures of each case that was segmented or measured now, if they were asked for.
        report: the page, if it was asked for.
    """

    folder: Path
    files: Mapping[str, Path]
    qualities: Mapping[str, Quality] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    warnings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    record: Path | None = None
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    report: Path | None = None


class PredictionRun:
    """Predicts the cases that are not done, and writes their files, run.json and the tables.

    Args:
        predictor: of the model, in this process or on the workers of a scheduler.
        target: the output folder.
        crops: given boxes, by case.
        part: is added to the names of the tables.
        labels: names, colours and codes of the model's labels.
        reporter: receives progress and messages.
        verbose: report the seconds of each case.
        prefetch: how many further scans are worked on while one is predicted.
        read: reads the image of a case.
    """

    def __init__(
        self,
        predictor: Predictor | ClusterPredictor,
        target: OutputFolder,
        *,
        crops: Mapping[str, Box],
        part: str,
        labels: ModelLabels,
        reporter: Reporter,
        verbose: bool = False,
        prefetch: int = 1,
        read: Callable[[Case], Volume] = read_case,
    ) -> None:
        self.labels, self.verbose, self.prefetch, self.read = labels, verbose, prefetch, read
        self.writer = CaseWriter(target.root, target.request, labels, tuple(predictor.plan.channel_names), crops)
        self.predictor, self.target, self.crops, self.part, self.reporter = predictor, target, crops, part, reporter
        self.table = f"quality{part}.csv"
        self.statistics: dict[str, Statistics] = {}
        self.qualities: dict[str, Quality] = {}
        self.warnings: dict[str, tuple[str, ...]] = {}
        self.files: dict[str, Path] = {}
        self.failed: list[str] = []
        self._lost = 0  # scans without a label map
        self._unwritten: set[str] = set()  # cases whose row is not in the table yet
        self._measured: StatisticsTable | None = None
        self._earlier = 0  # label maps of earlier runs that are kept

    def run(self, cases: Sequence[Case], problems: Sequence[str], *, continued: bool) -> PredictResult:
        """Predict ``cases``; ``problems`` are of scans that form no case, ``continued`` skips what is done.

        Raises:
            UserError: the output folder cannot be used as it is. Nothing is predicted then.
        """
        self.failed += problems
        self._lost += len(problems)
        read_rows(self.target.root / self.table)  # another file of that name is refused before hours of work
        if self.target.request.statistics:
            self._measured = StatisticsTable(self.target.root, self.part)
        self.target.require_names(cases)
        self.target.require_writable()
        todo = self._left(cases) if continued else list(cases)
        self.target.require_room(todo)
        table = LabelTable.of(self.predictor.plan.labels, self.predictor.colours)
        write_label_files(
            self.target.root,
            self.target.record,
            table,
            overwrite=self.target.overwrite,
            reporter=self.reporter,
        )
        self._name_unrated()
        if warning := self.target.space_warning(todo, len(self.predictor.plan.labels)):
            self.reporter.warning(f"warning: {warning}")
        status = "interrupted"
        try:
            done = [case for case in cases if case.name in self.files]
            self._earlier = len(done)
            self._measure(done)
            refresh_corrected(
                self.target,
                done,
                labels=self.labels,
                note=lambda line: self.reporter.info(f"note: case {line}"),
                failed=lambda problem, case: self.failed.append(f"pictures: {self._described(problem, case)}"),
            )
            self._predict(todo)
            status = "failed" if self.failed else "complete"
        finally:
            self._finish(status)
        return self._report()

    def _name_unrated(self) -> None:
        """A note on the cases that are done, but have no quality score."""
        rated: set[str] = set()
        for path in self.target.root.glob("quality*.csv"):  # of all parts
            with suppress(UserError):
                rated |= set(read_rows(path))
        if unrated := sorted(name for name in self.files if printable(name) not in rated):
            self.reporter.info(
                f"note: {self.table} has no quality score for {', '.join(unrated)}; to get one, delete their label "
                "maps and predict them again"
            )

    def _left(self, cases: Sequence[Case]) -> list[Case]:
        """The cases that are not done; the others are counted as segmented."""
        left = []
        for case in cases:
            try:
                why = self.target.why_again(case, listed_box(self.crops.get(case.name)))
            except (UserError, OSError) as problem:  # its scan cannot be read: the prediction reports it
                why = describe_failure(problem)
            if why is None:
                self.files[case.name] = self.target.label_map(case)
            else:
                left.append(case)
                if why:
                    self.reporter.info(f"note: case {case.name} is predicted again: {why}")
        return left

    def _measure(self, done: Sequence[Case]) -> None:
        """The statistics of cases that are not predicted again."""
        if self._measured is None:
            return
        self.statistics |= add_missing_statistics(
            self._measured,
            self.target,
            done,
            labels=self.predictor.plan.labels,
            channels=self.predictor.plan.channel_names,
            failed=lambda problem, case: self.failed.append(f"statistics: {self._described(problem, case)}"),
        )

    def _predict(self, todo: Sequence[Case]) -> None:
        with self.reporter.bar(len(todo), description="predict", unit="scan") as bar:
            if isinstance(self.predictor, ClusterPredictor):
                with (
                    self.target.staged() as staging,
                    closing(self.predictor.predict_cases(todo, self.writer, staging)) as found,
                ):
                    for written in found:
                        self._take(written)
                        bar.update()
                return
            predicted = self.predictor.predict_cases(todo, crops=self.crops, ahead=self.prefetch, read=self.read)
            with closing(predicted) as outcomes:  # an interruption ends their threads
                for outcome in outcomes:
                    self._write(outcome)
                    del outcome  # its probabilities are large; free them before another scan is begun
                    bar.update()

    def _write(self, outcome: Outcome) -> None:
        """Write the files of a case that was predicted in this process."""
        if outcome.prediction is None:
            self._take(self.writer.not_predicted(outcome))
            return
        try:
            with self.target.staged() as staging:
                self._take(self.writer.write(outcome, staging, log=self.reporter.warning))
        except UserError as failure:  # the temporary folder cannot be made
            self._take(self.writer.not_predicted(replace(outcome, problem=self._described(failure, outcome.case))))

    def _take(self, written: WrittenCase) -> None:
        """Put the files of a case into place; a failure is noted."""
        case = written.case
        for note in written.notes:
            self.reporter.warning(f"note: {note}")
        if written.folder is not None:
            written = self._publish(written, written.folder)
        if problem := written.problem:
            path = self.target.label_map(case)
            note = f" ({path.name} is of an earlier run)" if path.exists() and case.name not in self.files else ""
            self.failed.append(problem + note)
        if case.name not in self.files:
            self._lost += 1
            with suppress(UserError):  # a disk that is full is reported by the next case or at the end
                self.target.record.add(case.name, written.entry, [])
            return
        for warning in self.warnings.get(case.name, ()):
            self.reporter.warning(f"warning: case {case.name}: {warning}")
        # written after each scan, so that an interrupted run has a row for each label map
        with suppress(UserError):  # tried again at the end
            self._write_tables()

    def _publish(self, written: WrittenCase, folder: Path) -> WrittenCase:
        """Give the files of a case their names; where that fails, the same case without them."""
        case, quality = written.case, written.quality
        try:
            self.target.publish(case, written.entry, staging=folder, outputs=written.outputs)
        except Exception as failure:
            return written.failed(self._described(failure, case).replace(str(folder), str(self.target.root)))
        path = self.target.root / written.label_map
        self.files[case.name] = path
        if quality is not None:
            self.qualities[case.name] = quality
            self._unwritten.add(case.name)
        if self._measured is not None and written.statistics is not None:
            self.statistics[case.name] = written.statistics
            self._measured.add(case.name, label_digest(path), written.statistics)
        if self.verbose and quality is not None:
            stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in written.entry["seconds"].items())
            files = ", ".join(file.name for file in self.target.label_maps(case) if file.exists())
            self.reporter.info(f"case {case.name}: {stages}; quality score {quality.score:.2f}; {files}")
        if written.warnings:
            self.warnings[case.name] = written.warnings
        return written

    def _described(self, failure: Exception, case: Case) -> str:
        return described(failure, case, self.reporter.warning)

    def _write_tables(self, *, finished: bool = False) -> None:
        qualities = {name: self.qualities[name] for name in self.qualities if name in self._unwritten}
        if qualities:
            labels = self.predictor.plan.labels
            write_qualities(self.target.root, qualities, labels, self.table, warnings=self.warnings)
            self._unwritten.clear()
        if self._measured is not None:
            self._measured.write(finished=finished)

    def _finish(self, status: str) -> None:
        """The last state of the tables and of run.json. What cannot be written is one more failure."""
        writers: tuple[Callable[[], None], ...] = (
            partial(self._write_tables, finished=True),
            partial(self.target.record.finish, status),
        )
        for write in writers:
            try:
                write()
            except UserError as problem:
                self.failed.append(str(problem))

    def _report(self) -> PredictResult:
        root = self.target.root
        if self.qualities:
            first = first_to_check(self.qualities)
            self.reporter.info(f"lowest quality scores, check these first: {first}; all scores in {root / self.table}")
        for text in self.failed:
            self.reporter.warning(f"failed: {text}")
        count = len(self.files)
        earlier = f" ({self._earlier} of them in earlier runs)" if self._earlier else ""
        self.reporter.info(f"{count} of {count + self._lost} scans segmented{earlier}, label maps in {root}")
        record = self.target.record.path
        return PredictResult(
            root, self.files, self.qualities, tuple(self.failed), self.warnings, record, self.statistics
        )
