"""One fold from beginning to end: split, decisions, training, and validation on the fold's other cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mre_lowshot.atlas.alignment import align_training_cases
from mre_lowshot.atlas.atlas import make_atlases
from mre_lowshot.atlas.mirrored import with_mirrored
from mre_lowshot.config import FoldDecisions, Plan
from mre_lowshot.config.json import to_json
from mre_lowshot.config.plan_files import results_folder
from mre_lowshot.data.splits import Split
from mre_lowshot.devices import where_it_fits
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json
from mre_lowshot.inference import checkpoint
from mre_lowshot.inference.export import Prediction, native_labels
from mre_lowshot.inference.models import Model
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.sliding_window import log_to_stderr
from mre_lowshot.locks import locked
from mre_lowshot.network.build import parameter_count
from mre_lowshot.planners.fold import decide_fold
from mre_lowshot.preprocessing.references import reading
from mre_lowshot.preprocessing.store import PreparedCase, load_case
from mre_lowshot.sampling import TrainingCase
from mre_lowshot.trainers.claim import take_folder
from mre_lowshot.trainers.distributed import SINGLE, Processes
from mre_lowshot.trainers.pretrained import load_pretrained
from mre_lowshot.trainers.replaced import discard, has_checkpoint
from mre_lowshot.trainers.symmetry import left_right_dice
from mre_lowshot.trainers.trainer import MRETrainer, check_inputs
from mre_lowshot.trainers.validation import ScoredFold, score_scans


class TrainMode(Enum):
    """How a fold is trained where it may have been trained before."""

    NEW = "new"  # refuse a fold that was trained, or begun
    CONTINUE = "continue"  # from the latest checkpoint
    OVERWRITE = "overwrite"  # replace what the fold holds, once there is a new checkpoint
    VALIDATE = "validate"  # load the latest checkpoint, for validation only


@dataclass(frozen=True)
class FoldJob:
    """Where a fold reads and writes.

    Attributes:
        plan: the dataset's plan.
        level: as in ``1shot``.
        fold: its number.
        split: names of its training and test cases.
        prepared: preprocessed/DatasetXXX_Name.
        results: the results root.
        device: to train on.
        seed: of weights and patches.
        processes: that train together.
        overwritten: folds that the same run trains again, whose results with an older plan are not kept.
        pretrained: checkpoint, or folder of a fold, whose weights a new training begins with.
    """

    plan: Plan
    level: str
    fold: int
    split: Split
    prepared: Path
    results: Path
    device: torch.device
    seed: int = 0
    processes: Processes = SINGLE
    overwritten: tuple[int, ...] = ()
    pretrained: Path | None = None

    @property
    def folder(self) -> Path:
        """The fold's results folder."""
        model = results_folder(self.results, self.plan.dataset_name, self.plan.plans_name, self.level)
        return model / f"fold_{self.fold}"

    @property
    def has_checkpoint(self) -> bool:
        """Whether the fold was trained, or begun."""
        return has_checkpoint(self.folder)

    def case(self, name: str) -> PreparedCase:
        """A preprocessed case of the dataset, made for the job's plan."""
        return load_case(self.prepared / self.plan.plans_name, name, self.plan)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the fold for writing. Only the first of several processes does.

        Raises:
            UserError: another run trains or scores it.
        """
        if not self.processes.first:
            yield
            return
        with locked(self.folder.parent, self.folder.name, f"trains or scores fold {self.fold}"):
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the preprocessed cases for reading. Only the first of several processes does.

        Raises:
            UserError: another run preprocesses them.
        """
        if not self.processes.first:
            yield
            return
        with reading(self.prepared, self.plan.plans_name):
            yield


def training_case(case: PreparedCase, axes: int) -> TrainingCase:
    """A prepared case for the sampler; a 2D image loses its slice axis."""
    image, label, spacing = case.image, case.needed_label(), case.transform.spacing
    if axes == 2:
        image, label, spacing = image[:, 0], label[0], spacing[1:]
    return TrainingCase(np.ascontiguousarray(image, dtype=np.float32), label, spacing)


def make_trainer(job: FoldJob, mode: TrainMode = TrainMode.NEW) -> MRETrainer:
    """Load the fold's training cases, take the decisions that their labels determine, and set the trainer up.

    Raises:
        UserError: the folder holds results of another plan, or (mode NEW) a fold that was trained before; or the
            pretrained weights do not fit the plan.
    """
    if mode is TrainMode.NEW and job.has_checkpoint:
        raise UserError(
            f"{job.folder}: was trained already, or begun; --c continues, --val only validates, --overwrite trains it "
            "again"
        )
    # read before the folder is cleared: they may be the weights of the fold that is trained again
    begin_with = None
    if job.pretrained is not None:
        begin_with = load_pretrained(job.pretrained, job.plan, job.device, test=job.split["val"])
    prepared = [job.case(name) for name in job.split["train"]]
    inputs = {case.name: case.source for case in prepared}
    cases = [training_case(case, job.plan.network.axes) for case in prepared]
    del prepared
    loads = mode in (TrainMode.CONTINUE, TrainMode.VALIDATE)
    if loads and not (job.folder / checkpoint.LATEST).is_file() and job.has_checkpoint:
        raise UserError(
            f"{job.folder}: is of an installed model, without the state of the training; mre_predict uses it, and "
            "--overwrite trains the fold again"
        )
    saved = checkpoint.load(job.folder / checkpoint.LATEST, job.device) if loads else None
    if saved:
        check_inputs(saved[1]["training"].get("inputs"), inputs, job.folder / checkpoint.LATEST)
    decisions = decisions_of(job, cases, symmetry=[] if saved else None)
    if saved:  # what was found by registration is kept: another machine may round differently
        decisions = _with_saved(decisions, saved[0])
    plan = replace(job.plan, fold=decisions)
    if job.processes.first:
        others = {job.folder.parent / f"fold_{n}" for n in job.overwritten} - {job.folder}
        overwritten = (job.folder, *sorted(others)) if mode is TrainMode.OVERWRITE else ()
        take_folder(
            job.folder,
            job.plan,
            plan,
            dataset_json=job.prepared / "dataset.json",
            begins=mode in (TrainMode.NEW, TrainMode.OVERWRITE),
            overwritten=overwritten,
        )
    atlases = make_atlases(cases, plan)
    dataset = read_json(job.prepared / "dataset.json", "description of the dataset")
    if mode is not TrainMode.VALIDATE:
        cases = align_training_cases(cases, atlases, plan=plan, names=job.split["train"], device=job.device)
    trainer = MRETrainer(
        plan,
        cases,
        folder=job.folder,
        device=job.device,
        atlases=atlases,
        dataset=dataset,
        processes=job.processes,
        inputs=inputs,
    )
    if saved:
        trainer.resume(saved)
    elif begin_with is not None:
        trainer.begin_with(begin_with)
    if mode is TrainMode.OVERWRITE:
        trainer.after_save = partial(discard, job.folder, job.plan)
    if job.processes.first:
        _write_debug(job, trainer, cases)
    return trainer


def decisions_of(
    job: FoldJob, cases: Sequence[TrainingCase], *, symmetry: Sequence[Mapping[str, float]] | None = None
) -> FoldDecisions:
    """What the labels and images of a fold's training cases determine.

    Args:
        job: the fold.
        cases: its training cases, on the plan's grid.
        symmetry: left-right Dice by label, one mapping per case; None: computed by registration.
    """
    return decide_fold(
        job.plan,
        level=job.level,
        fold=job.fold,
        train=job.split["train"],
        test=job.split["val"],
        labels=[c.label for c in cases],
        seed=job.seed,
        images=[c.image for c in cases],
        symmetry=left_right_dice(cases, job.plan, job.device) if symmetry is None else symmetry,
    )


def _with_saved(decisions: FoldDecisions, begun: Plan) -> FoldDecisions:
    """``decisions`` with what the begun training's plan holds about mirrored atlases and tuned weights."""
    if begun.fold is None:
        return decisions
    kept = {n: reason for n, reason in begun.fold.reasons.items() if n in ("mirrored_atlases", "atlas_weight")}
    return replace(
        decisions,
        mirrored_atlases=begun.fold.mirrored_atlases,
        atlas_weight=begun.fold.atlas_weight,
        crf_weight=begun.fold.crf_weight,
        reasons={**decisions.reasons, **kept},
    )


def _write_debug(job: FoldJob, trainer: MRETrainer, cases: Sequence[TrainingCase]) -> None:
    """Write debug.json: what a bug report needs."""
    debug = {
        "versions": checkpoint.versions(),
        "device": str(job.device),
        "processes": job.processes.count,
        "precision": trainer.precision.name,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "parameters": parameter_count(trainer.network),
        "seed": job.seed,
        "recipe": to_json(job.plan.recipe),
        "network": to_json(job.plan.network),
        "training_voxels": [list(c.label.shape) for c in cases],
    }
    write_json(job.folder / "debug.json", debug)


def validate(
    job: FoldJob,
    trainer: MRETrainer,
    names: Sequence[str],
    folder: Path,
    *,
    on_case: Callable[[str], None] | None = None,
    around: Callable[[str], AbstractContextManager[object]] = nullcontext,
    log: Callable[[str], None] = log_to_stderr,
) -> dict[str, Any]:
    """Predict preprocessed cases, write the label maps on the scans' own grids and score them there.

    Writes ``folder/<case><ending>``, ``summary.json``, ``summary.csv`` and ``quality.csv``. A summary or label map that
    someone has changed is kept as ``summary.json.old``. ``around`` gives a context for the prediction of a case.

    Returns:
        The summary, with each case's quality score (``quality``) beside its metrics, the ``calibration`` of the
        probabilities on the plan's grid over all cases, and the Dice of the warped labels (``registration_alone``).
    """
    plan = trainer.plan
    atlases = with_mirrored(trainer.atlases, plan)
    model = Model.of_fold(plan, trainer.inference_network, atlases, job.folder, dataset=trainer.dataset)
    predictor = Predictor(model, device=job.device, log=log)

    warped: dict[str, np.ndarray] = {}

    def segment(case: PreparedCase) -> Prediction:
        with around(case.name):
            output = predictor.run_network(predictor.register(case))
            refined, moved = predictor.refine(output), output.warped
            del output  # the posterior, while the label map is made
            prediction = predictor.export(refined)
        if moved is not None:  # outside of what is timed: only a validation needs it
            warped[case.name] = where_it_fits(lambda w: native_labels(w, case.transform), moved, log)
        return prediction

    scored = checkpoint.weights_digest(plan, trainer.inference_network.state_dict())
    return score_scans(
        ScoredFold(job.prepared, plan, folder),
        names,
        segment,
        warped=warped,
        more={"weights_sha256": scored},
        on_case=on_case,
        log=log,
    )
