"""Write a trained model to one zip file: weights, plans, dataset.json and a model card."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mre_lowshot.config import FoldDecisions, Plan
from mre_lowshot.config.check import require_path, require_text
from mre_lowshot.config.json import to_json
from mre_lowshot.config.plan_files import first_difference, same_plan
from mre_lowshot.errors import UserError
from mre_lowshot.files import (
    atomic_write,
    not_written,
    partial_name,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
)
from mre_lowshot.inference import checkpoint, model_archive
from mre_lowshot.inference.model_card import card_text, day_trained, fold_entry, make_card, scores_of
from mre_lowshot.inference.models import trained_folds
from mre_lowshot.limits import bytes_text
from mre_lowshot.plain import shown
from mre_lowshot.workflows.predict import check_model_options, find_model, fold_numbers
from mre_lowshot.workflows.reporting import Reporter

# Keys of dataset.json that a shared model keeps: others (nnU-Net's list of files, for example) may name patients.
DATASET_KEYS = ("name", "description", "reference", "licence", "license", "release", "channel_names", "modality",
                "labels", "label_colours", "label_codes", "numTraining", "file_ending")  # fmt: skip
MAX_TEXT = 10_000  # bytes of the intended use
SHORTEST_NAME = 3  # a case name of fewer letters is not replaced in texts: it may be any number


@dataclass(frozen=True)
class ExportResult:
    """Result of `export_model`.

    Attributes:
        file: the zip file.
        folds: that it holds.
        scans_inside: labelled training scans in each fold, at most.
        card: content of model.json.
    """

    file: Path
    folds: tuple[int, ...]
    scans_inside: int
    card: Mapping[str, Any]


def export_model(
    output: str | Path,
    *,
    model: str | Path | None = None,
    dataset: str | int | None = None,
    level: str | None = None,
    plans_name: str | None = None,
    folds: Sequence[int | str] | None = None,
    without_atlas: bool = False,
    keep_names: bool = False,
    intended_use: str | None = None,
    overwrite: bool = False,
    workspace: str | Path | None = None,
    reporter: Reporter | None = None,
) -> ExportResult:
    """Write a trained model to a zip file, to predict with it elsewhere. The same model gives the same bytes.

    The checkpoints are written without the state of the training, so that they are smaller; predictions are the same to
    the last bit. Names of cases are replaced by case_1, case_2 ..., and of dataset.json only the description of the
    dataset is kept.

    Args:
        output: the zip file.
        model: a model's folder; None: the trained model that fits the next three, the newest where several do.
        dataset, level, plans_name: of the model.
        folds: to include; None: all that are trained.
        without_atlas: refuse a model that holds labelled scans because prediction needs them.
        keep_names: keep the names of the cases.
        intended_use: a text for the model card, instead of the general one.
        overwrite: replace a file of that name.
        workspace: folder with raw/, preprocessed/ and results/; None: see `data.workspace.Workspace`.
        reporter: receives messages.

    Raises:
        UserError: an option is wrong, no model fits, or the file exists or cannot be written.
    """
    reporter = reporter or Reporter()
    output = _checked_output(output, overwrite=overwrite)
    check_model_options(model, dataset, level, plans_name)
    if intended_use is not None and (not isinstance(intended_use, str) or not intended_use.strip()):
        raise UserError(f"--intended_use {shown(intended_use)}: must be a text")
    if intended_use is not None:
        require_text("--intended_use", intended_use, MAX_TEXT)
    folder, how = find_model(model, dataset, level, plans_name, workspace)
    if not folder.is_dir():
        raise UserError(f"-m {folder}: is no folder; give a model's folder, .../MRETrainer__MREPlans__1shot")
    reporter.info(f"model: {folder} ({how})")
    paths = trained_folds(folder, fold_numbers(folds))
    if len(paths) > model_archive.MAX_FOLDS:
        raise UserError(f"-f: {len(paths)} folds; at most {model_archive.MAX_FOLDS} fit into a model, choose some")
    with suppress(OSError):
        remove_leftovers(output.parent)
    staging = output.parent / partial_name(output.with_suffix(""))
    try:
        try:
            staging.mkdir(parents=True)
        except OSError as problem:
            raise UserError(not_written(output, problem)) from None
        try:
            content = _Export(staging, keep_names=keep_names, without_atlas=without_atlas)
            card = content.stage(folder, paths, intended_use)
        except UserError as problem:
            raise UserError(str(problem).replace(str(staging), str(output))) from None
        with atomic_write(output, check=lambda path: _read_back(path, output)) as temporary:
            model_archive.write_archive(temporary, card, content.files)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    inside = max(fold["labelled_scans_inside"] for fold in card["folds"])
    _report(output, card, reporter)
    return ExportResult(output, tuple(paths), inside, card)


def _checked_output(output: str | Path, *, overwrite: bool) -> Path:
    require_path("-o", output)
    output = Path(output)
    if output.suffix.lower() != model_archive.ENDING:
        raise UserError(f"-o {output}: must end in {model_archive.ENDING}")
    if output.is_dir():
        raise UserError(f"-o {output}: is a folder; give the name of a file")
    if os.path.lexists(output) and not overwrite:
        raise UserError(f"-o {output}: exists; give another name, or replace it with --overwrite")
    return output


def _read_back(path: Path, output: Path) -> None:
    try:
        model_archive.read_archive(path)
    except UserError as problem:
        raise UserError(f"{output}: cannot be written (read back: {problem}); give a folder on another disk") from None


class _Export:
    """Writes the members of a zip file into a temporary folder.

    Args:
        staging: the folder.
        keep_names: whether names of cases are kept.
        without_atlas: whether labelled scans are left out.
    """

    def __init__(self, staging: Path, *, keep_names: bool, without_atlas: bool) -> None:
        self.staging, self.keep_names, self.without_atlas = staging, keep_names, without_atlas
        self.files: dict[str, Path] = {}

    def stage(self, folder: Path, paths: Mapping[int, Path], intended_use: str | None) -> dict[str, Any]:
        """Write all members but model.json; its content."""
        plans: list[Plan] = []
        rows: list[dict[str, Any]] = []
        names: dict[str, str] = {}
        dataset: Any = None
        level = ""
        for fold, path in paths.items():
            plan, content = checkpoint.load(path, torch.device("cpu"))
            if plan.fold is None or plan.fold.fold != fold:
                raise UserError(
                    f"{path}: is of fold {plan.fold.fold if plan.fold else 'none'}, its folder is of {fold}"
                )
            level = level or plan.fold.level
            if plans and not same_plan(_shared(plans[0]), _shared(plan)):
                why = first_difference(_shared(plans[0]), _shared(plan))
                raise UserError(f"{folder}: fold {fold} was trained with another plan ({why}); choose folds with -f")
            if plan.fold.level != level:
                raise UserError(f"{folder}: fold {fold} is of level {plan.fold.level}, another of {level}; see -f")
            if self.without_atlas:
                _require_no_atlas(plan)
                content["atlases"] = []
            if not self.keep_names:
                plan = without_names(plan, names)
            plans.append(plan)
            dataset = dataset or reduced_dataset(content.get("dataset"))
            weights = checkpoint.weights_digest(plan, content["weights"])
            scores = scores_of(path.parent, plan.labels, weights)
            trained = day_trained(path.parent, path)
            rows.append(fold_entry(plan, content, scores=scores, weights=weights, trained=trained))
            self._write_fold(fold, plan, content)
        if not dataset:
            dataset = reduced_dataset(read_json(folder / model_archive.DATASET, "description of the dataset"))
        card = make_card(_shared(plans[0]), level, rows, names_replaced=not self.keep_names, intended_use=intended_use)
        write_json(self._place(model_archive.DATASET), dataset)
        write_json(self._place(model_archive.PLANS), to_json(_shared(plans[0])))
        write_text(self._place(model_archive.CARD_TEXT), card_text(card))
        return card

    def _write_fold(self, fold: int, plan: Plan, content: dict[str, Any]) -> None:
        training = content["training"]
        small: dict[str, Any] = {
            "format_version": plan.format_version,
            "weights": content["weights"],
            "versions": content.get("versions"),
            "atlases": content["atlases"],
            "plan": to_json(plan),
            "dataset": reduced_dataset(content.get("dataset")),
            "training": {"iteration": training["iteration"], "history": training["history"]},
        }
        checkpoint.write_content(self._place(f"fold_{fold}/{model_archive.CHECKPOINT}"), small)
        write_json(self._place(f"fold_{fold}/{model_archive.PLANS}"), to_json(plan))

    def _place(self, name: str) -> Path:
        self.files[name] = self.staging / name
        return self.files[name]


def _shared(plan: Plan) -> Plan:
    return replace(plan, fold=None)


def _require_no_atlas(plan: Plan) -> None:
    registration = plan.recipe.atlas.registration
    reasons = [f"recipe.atlas.registration is {registration!r}"] * (registration != "none")
    reasons += ["network.atlas_prior is true"] * plan.network.atlas_prior
    if reasons:
        raise UserError(
            f"--without_atlas: prediction with this model needs the labelled training scans ({' and '.join(reasons)}), "
            "so they cannot be left out; plan and train another model with -p NAME --set "
            "recipe.atlas.registration=none network.atlas_prior=false, or share this one as you would share the scans"
        )


def reduced_dataset(data: Any) -> dict[str, Any] | None:
    """The content of dataset.json with the keys `DATASET_KEYS` only."""
    return {key: data[key] for key in DATASET_KEYS if key in data} if isinstance(data, dict) else None


def without_names(plan: Plan, names: dict[str, str]) -> Plan:
    """``plan`` with case_1, case_2 ... in place of the names of its fold's cases, also in reasons; ``names`` holds the
    names replaced so far, and is added to."""
    fold = plan.fold
    if fold is None:
        return plan
    for name in sorted({*fold.train, *fold.test} - names.keys()):
        names[name] = f"case_{len(names) + 1}"

    found = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True) if len(name) >= SHORTEST_NAME)
    pattern = re.compile(rf"(?<!\w)(?:{found})(?!\w)" if found else r"(?!)")

    def text(line: str) -> str:
        return pattern.sub(lambda match: names[match[0]], line)

    def texts(reasons: dict[str, str]) -> dict[str, str]:
        return {key: text(line) for key, line in reasons.items()}

    changed: FoldDecisions = replace(
        fold,
        train=tuple(names[name] for name in fold.train),
        test=tuple(names[name] for name in fold.test),
        reasons=texts(fold.reasons),
    )
    return replace(plan, fold=changed, reasons=texts(plan.reasons))


def _report(output: Path, card: Mapping[str, Any], reporter: Reporter) -> None:
    folds = card["folds"]
    reporter.info(
        f"{output}: {bytes_text(output.stat().st_size)}, fold{'s' if len(folds) > 1 else ''} "
        f"{', '.join(str(fold['fold']) for fold in folds)}"
    )
    if unfinished := [str(fold["fold"]) for fold in folds if not fold["complete"]]:
        reporter.warning(f"note: training of fold {', '.join(unfinished)} is not complete")
    for fold in folds:
        if fold["scores_note"]:
            reporter.warning(f"note: fold {fold['fold']}: {fold['scores_note']}; mre_train --val scores it")
    reporter.warning(f"note: {card['privacy']}")
