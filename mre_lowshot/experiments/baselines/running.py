"""A baseline on one fold: its cases, its training, and the scoring of its label maps, as mre_train does for a recipe.

What a baseline receives holds no label map of a test scan. Its probabilities on the grid of the prepared cases go to
the scan's own grid through `inference.export`, as those of our networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.config import Plan
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import read_labels
from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.experiments.baselines.base import Baseline, BaselineFold, Segmenter, go_on
from mre_lowshot.experiments.baselines.requirements import require_data
from mre_lowshot.experiments.resources import Resources
from mre_lowshot.files import read_json, sha256, write_json
from mre_lowshot.inference.export import Prediction, RefinedScan, export_scan
from mre_lowshot.inference.quality import Quality, estimate_quality
from mre_lowshot.preprocessing.record import read_record
from mre_lowshot.preprocessing.store import PreparedCase
from mre_lowshot.trainers.claim import take_folder
from mre_lowshot.trainers.fold import FoldJob, decisions_of, training_case
from mre_lowshot.trainers.training_log import TrainingLog
from mre_lowshot.trainers.validation import ScoredFold, score_scans

FOLDER = "baseline"  # in the fold's folder: the baseline's own files
SEGMENTED = "segmented.json"  # in it: the scans that are done, with the hash of each label map


class UnlabelledCases(Sequence[PreparedCase]):
    """Prepared cases without their label maps, each read when it is asked for.

    Args:
        job: the fold.
        names: of the cases.
        read: receives the hash of the files of each case that is read.
    """

    def __init__(self, job: FoldJob, names: Sequence[str], read: dict[str, str]) -> None:
        self.names = tuple(names)
        self._job, self._read = job, read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return UnlabelledCases(self._job, self.names[index], self._read)
        case = replace(self._job.case(self.names[index]), label=None)
        self._read[case.name] = case.source
        return case

    def __iter__(self) -> Iterator[PreparedCase]:
        return (self[n] for n in range(len(self)))


def run_baseline(
    baseline: Baseline,
    job: FoldJob,
    names: Sequence[str],
    *,
    iterations: int | None = None,
    on_case: Callable[[str], None] | None = None,
    log: Callable[[str], None],
    warn: Callable[[str], None],
    ask: Callable[[], None] = go_on,
) -> dict[str, Any]:
    """Train a baseline on a fold and score it on the fold's test scans; the summary.

    An interrupted run is continued: scans whose label maps are there are not segmented again. What the baseline itself
    keeps of an interrupted training is in its own folder.

    Args:
        baseline: the method.
        job: the fold, held for writing.
        names: all prepared cases of the dataset, for `BaselineFold.unlabelled`.
        iterations: of training; None: the baseline's own.
        on_case: called with the name of each test scan that was scored.
        log: receives progress.
        warn: receives warnings.
        ask: called every few seconds while the baseline learns; raises where the run has ended.

    Raises:
        UserError: the baseline does not work on this dataset, or the folder holds results of another plan, seed or
            split.
    """
    train = tuple(job.case(name) for name in job.split["train"])
    require_data(baseline, job.plan, train)
    cases = [training_case(case, job.plan.network.axes) for case in train]
    plan = replace(job.plan, fold=decisions_of(job, cases))
    folder = job.folder / FOLDER
    take_folder(job.folder, job.plan, plan, dataset_json=job.prepared / "dataset.json", begins=False)
    folder.mkdir(exist_ok=True)
    notes = TrainingLog(job.folder)
    resources = Resources.load(job.folder)
    read = {case.name: case.source for case in train}
    fold = BaselineFold(
        plan=plan,
        train=train,
        unlabelled=UnlabelledCases(job, _others(job, names), read),
        classes=job.plan.network.classes,
        device=job.device,
        seed=job.seed,
        iterations=iterations,
        folder=folder,
        log=_both(notes.log, log),
        ask=ask,
    )
    scored = ScoredFold(job.prepared, plan, job.folder / "validation")
    segmented = _Segmented(folder, scored, job, read)
    if any(segmented.kept(name) is None for name in job.split["val"]):
        with resources.training(job.folder, job.device):
            segmenter = baseline.fit(fold)
        notes.log(f"trained in {resources.train_seconds:.0f} s")
    else:
        segmenter = _no_segmenter

    def segment(case: PreparedCase) -> Prediction:
        if (kept := segmented.kept(case.name)) is not None:
            return kept
        with resources.scan(case.name, job.device):
            prediction = _prediction(segmenter, case, plan, components=baseline.components)
        resources.save(job.folder)
        segmented.note(case, prediction.quality)
        return prediction

    def done(name: str) -> None:
        segmented.save(name)
        if on_case:
            on_case(name)

    return score_scans(
        scored,
        job.split["val"],
        segment,
        more={"baseline": baseline.name},
        learned_from=segmented.learned_from,
        on_case=done,
        log=warn,
    )


def _others(job: FoldJob, names: Sequence[str]) -> list[str]:
    """The cases that are not trained on: those outside the split first, then the test cases."""
    train, test = set(job.split["train"]), list(job.split["val"])
    return [n for n in names if n not in train and n not in test] + test


def _prediction(segmenter: Segmenter, case: PreparedCase, plan: Plan, *, components: bool) -> Prediction:
    """The label map of a case on the scan's own grid."""
    probabilities = np.asarray(segmenter(replace(case, label=None)), dtype=np.float32)
    wanted = (plan.network.classes, *case.image.shape[1:])
    if probabilities.shape != wanted:
        raise ValueError(f"probabilities of shape {probabilities.shape} instead of {wanted}")
    if not np.isfinite(probabilities).all():
        raise NumericalError("a probability is not finite")
    refined = RefinedScan(
        name=case.name,
        probabilities=probabilities,
        quality=estimate_quality(probabilities, None),
        transform=case.transform,
        geometry=Geometry.from_json(case.geometry),
        warnings=case.warnings,
    )
    removes = components and plan.recipe.refinement.largest_component
    single = plan.fold.single_component if removes and plan.fold else ()
    return export_scan(refined, plan.labels, single)


def _no_segmenter(case: PreparedCase) -> np.ndarray:
    raise UserError(f"case {case.name}: its label map has changed since it was written; run the row again")


class _Segmented:
    """The scans of an interrupted run that need not be segmented again. ``read`` has the hash of the files of each case
    that the baseline learns from, and ``learned_from`` those cases, of earlier runs too. That set is filled in place,
    because `score_scans` holds it from the beginning."""

    def __init__(self, folder: Path, scored: ScoredFold, job: FoldJob, read: Mapping[str, str]) -> None:
        self.path, self.scored, self.job = folder / SEGMENTED, scored, job
        self._read, self._train = read, tuple(read)
        self.learned_from = set(read)
        self._record = read_record(job.plan, job.prepared)
        self._new: dict[str, tuple[Quality, dict[str, str]]] = {}
        try:
            content = read_json(self.path, "list of segmented scans")
            self._listed = {str(k): dict(v) for k, v in content.items()}
        except (UserError, AttributeError, TypeError, ValueError):
            self._listed = {}

    def kept(self, name: str) -> Prediction | None:
        """The prediction of an earlier run, without probabilities; None where there is none, or it was changed."""
        entry, path, plan = self._listed.get(name), self.scored.path_of(name), self.scored.plan
        try:
            if entry is None or sha256(path) != entry["sha256"]:
                return None
            if not {*self._train, name} <= entry["inputs"].keys() or self._record.changed(entry["inputs"]):
                return None
            case = self.job.case(name)
            learned = set(map(str, entry["learned_from"]))
            geometry = Geometry.from_json(case.geometry)
            quality = Quality(
                str(entry["basis"]), float(entry["score"]), {int(k): _float(v) for k, v in entry["classes"].items()}
            )
            found = Prediction(name, read_labels(path, like=geometry), quality, plan.labels)
            self.learned_from.update(learned)
            return found
        except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError):
            return None

    def note(self, case: PreparedCase, quality: Quality) -> None:
        """Keep the quality of a new prediction until its label map is written, and what it depends on."""
        self.learned_from.update(self._read)
        self._new[case.name] = quality, {**self._read, case.name: case.source}

    def save(self, name: str) -> None:
        """List a scan whose label map is written."""
        if name not in self._new:
            return
        quality, inputs = self._new.pop(name)
        self._listed[name] = {
            "sha256": sha256(self.scored.path_of(name)),
            "inputs": inputs,
            "learned_from": sorted(self._read),
            "basis": quality.basis,
            "score": quality.score,
            "classes": {str(k): v for k, v in quality.classes.items()},
        }
        write_json(self.path, self._listed)


def _float(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _both(one: Callable[[str], None], other: Callable[[str], None]) -> Callable[[str], None]:
    def log(line: str) -> None:
        one(line)
        other(line)

    return log
