"""One fold from beginning to end: split, decisions, training, validation on the fold's other cases."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mre_lowshot import checkpoint
from mre_lowshot.alignment import in_atlases, make_atlases, make_prior
from mre_lowshot.codec import to_json
from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.evaluation.calibration import Calibration
from mre_lowshot.evaluation.metrics import case_metrics
from mre_lowshot.evaluation.summary import CaseResult, summarise, write_summary
from mre_lowshot.files import read_json, write_json
from mre_lowshot.inference.confidence import soften, temperature
from mre_lowshot.inference.export import kept_single, located, native_labels
from mre_lowshot.inference.floors import joint_floors
from mre_lowshot.inference.pooling import joint_rule
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.quality import write_qualities
from mre_lowshot.mirroring import with_images
from mre_lowshot.network.build import parameter_count
from mre_lowshot.planners.fold import decide
from mre_lowshot.plans import claim, results_folder
from mre_lowshot.preprocessing.prepare import REFERENCES
from mre_lowshot.preprocessing.store import PreparedCase, load_case
from mre_lowshot.sampling import TrainingCase
from mre_lowshot.specs import FoldDecisions, Plan
from mre_lowshot.splits import Split
from mre_lowshot.trainers.distributed import ALONE, Processes
from mre_lowshot.trainers.symmetry import measured
from mre_lowshot.trainers.trainer import MRETrainer
from mre_lowshot.volume import Geometry, read_labels, write_volume


@dataclass(frozen=True)
class FoldJob:
    """Where a fold reads and writes: ``prepared`` is preprocessed/DatasetXXX_Name, ``results`` the results root.
    ``replaced``: the folds that the same run trains anew, whose results of an older plan need no keeping."""

    plan: Plan
    level: str
    fold: int
    split: Split
    prepared: Path
    results: Path
    device: torch.device
    seed: int = 0
    processes: Processes = ALONE
    replaced: tuple[int, ...] = ()

    @property
    def folder(self) -> Path:
        model = results_folder(self.results, self.plan.dataset_name, self.plan.plans_name, self.level)
        return model / f"fold_{self.fold}"

    def case(self, name: str) -> PreparedCase:
        return load_case(self.prepared / self.plan.plans_name, name)


def training_case(case: PreparedCase, axes: int) -> TrainingCase:
    """A prepared case as the sampler wants it; the single slice of a 2D image loses its first axis."""
    image, label, spacing = case.image, case.needed_label(), case.transform.spacing
    if axes == 2:
        image, label, spacing = image[:, 0], label[0], spacing[1:]
    return TrainingCase(np.ascontiguousarray(image, dtype=np.float32), label, spacing)


def make_trainer(job: FoldJob, resume: bool = False, overwrite: bool = False, train: bool = True) -> MRETrainer:
    """Load the fold's training cases, take the decisions their labels give, and set the trainer up; without ``train``
    for validation only.

    Raises:
        UserError: the folder holds results of another plan, or a finished fold (without ``overwrite`` or ``resume``).
    """
    if not resume and not overwrite and (job.folder / checkpoint.LATEST).is_file():
        raise UserError(
            f"{job.folder}: was trained already, or begun; --c goes on, --val only validates, --overwrite starts anew"
        )
    cases = [training_case(job.case(name), job.plan.network.axes) for name in job.split["train"]]
    labels, images = [c.label for c in cases], [c.image for c in cases]
    saved = checkpoint.load(job.folder / checkpoint.LATEST, job.device) if resume else None
    split, likeness = job.split, [] if saved else measured(cases, job.plan)
    decisions = decide(job.plan, job.level, job.fold, split["train"], split["val"], labels, job.seed, images, likeness)
    if saved:  # what was measured by registration is not measured again: another machine may round otherwise
        decisions = _as_begun(decisions, saved[0])
    plan = replace(job.plan, fold=decisions)
    if job.processes.first:
        _take_folder(job, plan, overwrite)
    atlases = make_atlases(cases, plan)
    dataset = read_json(job.prepared / "dataset.json", "description of the dataset")
    placed = in_atlases(cases, atlases, plan, job.split["train"]) if train else cases
    trainer = MRETrainer(plan, placed, job.folder, job.device, atlases, dataset, job.processes)
    if saved:
        trainer.resume(saved)
    if not job.processes.first:
        return trainer
    debug = {
        "versions": checkpoint.versions(),
        "device": str(job.device),
        "processes": job.processes.count,
        "precision": trainer.precision.name,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "parameters": parameter_count(trainer.network),
        "seed": job.seed,
        "recipe": to_json(plan.recipe),
        "network": to_json(plan.network),
        "training_voxels": [list(c.label.shape) for c in cases],
    }
    write_json(job.folder / "debug.json", debug)
    return trainer


def _as_begun(decisions: FoldDecisions, begun: Plan) -> FoldDecisions:
    """``decisions`` with what the plan of the training that goes on says of mirror images and was found on them."""
    if begun.fold is None:
        return decisions
    told = {name: reason for name, reason in begun.fold.reasons.items() if name in ("mirror_images", "prior_weight")}
    return replace(
        decisions,
        mirror_images=begun.fold.mirror_images,
        prior_weight=begun.fold.prior_weight,
        neighbour_weight=begun.fold.neighbour_weight,
        reasons={**decisions.reasons, **told},
    )


def _take_folder(job: FoldJob, plan: Plan, overwrite: bool) -> None:
    """Make the model's and the fold's folder this plan's; with ``overwrite`` delete what the fold holds."""
    model = job.folder.parent
    if overwrite:  # only now that all that is needed was read
        gone = {job.folder.name, *(f"fold_{n}" for n in job.replaced)}
        if any(path.parent.name not in gone for path in model.glob("fold_*/*.pth")):
            claim(model / "plans.json", job.plan)  # refused before anything is deleted
        else:
            (model / "plans.json").unlink(missing_ok=True)
        shutil.rmtree(job.folder, ignore_errors=True)
    claim(model / "plans.json", job.plan)
    shutil.copyfile(job.prepared / "dataset.json", model / "dataset.json")
    claim(job.folder / "plans.json", plan)


def validate(
    job: FoldJob, trainer: MRETrainer, names: Sequence[str], folder: Path, on_case: Callable[[str], None] | None = None
) -> dict:
    """Predict preprocessed cases, write the label maps on the scans' own grids and score them there.

    Writes ``folder/<case><ending>``, ``summary.json``, ``summary.csv`` and ``quality.csv``; gives the summary, with
    the quality estimate of each case (``quality``) beside its metrics and the ``calibration`` of the probabilities, on
    the plan's grid, over all of them.
    """
    plan = job.plan
    atlases = with_images(trainer.atlases, trainer.plan)
    priors = [make_prior(atlases, plan)]
    predictor = Predictor(
        [trainer.best_network],
        plan.network,
        plan.patch,
        joint_rule([trainer.plan]),
        job.device,
        priors=priors,
        floors=joint_floors([trainer.plan]),
    )
    labels = {name: value for name, value in plan.labels.items() if value}
    results, failed, qualities, calibration = [], {}, {}, Calibration()
    for name in names:
        case = job.case(name)
        out = folder / f"{name}{plan.file_ending}"
        try:
            fields, realign = located([atlases], case, plan)
            probabilities, qualities[name] = predictor.predict_and_rate(case.image, None, fields, realign)
        except (UserError, NumericalError) as problem:  # the others are scored all the same
            failed[name] = f"case {name}: {problem}"
            continue
        predicted = native_labels(probabilities, case.transform, kept_single([trainer.plan]))
        if plan.recipe.inference.calibrate:
            soften(probabilities, temperature(probabilities, qualities[name]))
        calibration.add(probabilities, case.needed_label())
        write_volume(out, predicted, Geometry.from_json(case.geometry))
        reference = job.prepared / REFERENCES / f"{name}{plan.file_ending}"
        truth = read_labels(reference)
        metrics = case_metrics(truth.array, predicted, labels, truth.geometry.spacing, plan.ignore_label)
        results.append(CaseResult(name, metrics, str(out), str(reference)))
        if on_case:
            on_case(name)
    summary = {**summarise(results, labels, ignore_label=plan.ignore_label), "failed_cases": failed}
    for row in summary["metric_per_case"]:
        row["quality"] = qualities[row["case"]].score
    summary["calibration"] = calibration.to_data()
    write_summary(summary, folder)
    write_qualities(folder, qualities, plan.labels)
    return summary
