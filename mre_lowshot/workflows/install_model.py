"""Put a model from a zip file into the results folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mre_lowshot.config import Plan
from mre_lowshot.config.check import require_file_name, require_path
from mre_lowshot.config.json import from_json
from mre_lowshot.config.plan_files import results_folder, same_plan
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError
from mre_lowshot.files import not_written, partial_name, remove_folder, remove_leftovers, sha256
from mre_lowshot.inference import model_archive
from mre_lowshot.inference.checkpoint import FINAL
from mre_lowshot.inference.model_archive import ModelArchive, read_archive
from mre_lowshot.inference.model_card import privacy
from mre_lowshot.inference.models import load_member
from mre_lowshot.limits import bytes_text
from mre_lowshot.locks import holders, locked
from mre_lowshot.workflows.reporting import Reporter

SPARE = 64 << 20  # bytes that stay free on the disk
_REPLACED = ".mre-replaced."  # begins the name of a model's folder while another one takes its place


@dataclass(frozen=True)
class InstallResult:
    """Result of `install_model`.

    Attributes:
        folder: the model's folder, to predict with.
        folds: that it holds.
        scans_inside: labelled training scans in each fold, at most.
        unchanged: the same model was installed before.
    """

    folder: Path
    folds: tuple[int, ...]
    scans_inside: int
    unchanged: bool = False


def install_model(
    archive: str | Path,
    *,
    overwrite: bool = False,
    workspace: str | Path | None = None,
    reporter: Reporter | None = None,
) -> InstallResult:
    """Put a model from a zip file of `export_model` into the results folder, whole or not at all.

    The file is verified before anything is written: members, sizes, hashes, plans and weights. Nothing in it is run.

    Args:
        archive: the zip file.
        overwrite: replace another model of the same name.
        workspace: folder with raw/, preprocessed/ and results/; None: see `data.workspace.Workspace`.
        reporter: receives messages.

    Raises:
        UserError: the file is no model or is damaged, another model of that name is there, or it cannot be written.
    """
    reporter = reporter or Reporter()
    require_path("the model", archive)
    results = Workspace.resolve(workspace).results
    found = read_archive(Path(archive))
    plan, level, inside = _verified_plan(found)
    folder = results_folder(results, plan.dataset_name, plan.plans_name, level)
    with locked(folder.parent, "install", "installs a model"):
        remove_leftovers(folder.parent)
        aside = folder.parent / f"{_REPLACED}{folder.name}"
        _restore(aside, folder)
        if _is_installed(found, folder):
            reporter.info(f"{folder}: this model is installed already")
            return InstallResult(folder, found.folds, inside, unchanged=True)
        if os.path.lexists(folder) and not overwrite:
            origin = "was installed" if (folder / model_archive.CARD).is_file() else "was trained here"
            raise UserError(
                f"{folder}: another model of this name {origin}; give another --workspace, or replace all that is in "
                "the folder with --overwrite"
            )
        if used := holders(folder, ""):
            raise UserError(f"{folder}: in use by another run ({', '.join(used)}); wait until it has ended")
        _require_space(found, folder)
        with _unpacked(found, folder.parent) as temporary:
            _swap(temporary, folder, aside)
    reporter.info(f"installed: {folder}, fold{'s' if len(found.folds) > 1 else ''} {', '.join(map(str, found.folds))}")
    reporter.info(f"modality: {', '.join(plan.channel_names)}; labels: {', '.join(plan.labels)}")
    reporter.info(f"training data, scores and limits: {folder / model_archive.CARD_TEXT}")
    reporter.warning(f"note: {privacy(inside)}")
    return InstallResult(folder, found.folds, inside)


def _verified_plan(archive: ModelArchive) -> tuple[Plan, str, int]:
    """The model's plan, its level, and the number of labelled scans in a fold at most, after all folds were loaded:
    their checkpoints are whole and of this plan.

    Raises:
        UserError: one is not.
    """
    plan = _plan(archive, model_archive.PLANS)
    dataset = archive.read_json(model_archive.DATASET)
    if not isinstance(dataset, dict):
        raise UserError(
            f"{archive.path}: {model_archive.DATASET} is no JSON object; export or download the model again"
        )
    level = archive.card.get("level")
    require_file_name(f"{archive.path}: level", level, 100)
    inside = 0
    for fold in archive.folds:
        _, inner, content = load_member(archive, f"fold_{fold}/{FINAL}", torch.device("cpu"))
        listed = _plan(archive, f"fold_{fold}/{model_archive.PLANS}")
        decisions = inner.fold
        fits = decisions is not None and decisions.fold == fold and decisions.level == level and inner == listed
        if plan.fold is not None or not fits or not same_plan(replace(inner, fold=None), plan):
            raise UserError(
                f"{archive.path}: fold {fold} is of another plan, level or fold than {model_archive.PLANS} and "
                f"{model_archive.CARD} state; export the model again"
            )
        inside = max(inside, len(content["atlases"]))
    return plan, str(level), inside


def _plan(archive: ModelArchive, name: str) -> Plan:
    return from_json(Plan, archive.read_json(name), f"{archive.path}: {name}")


def _is_installed(archive: ModelArchive, folder: Path) -> bool:
    """Whether every member is in ``folder``, unchanged, and no other fold."""
    folds = {f"fold_{fold}" for fold in archive.folds}
    if {path.name for path in folder.glob("fold_*")} != folds:
        return False
    paths = {folder / name: member for name, member in archive.members.items()}
    same_size = all(path.is_file() and path.stat().st_size == member.size for path, member in paths.items())
    return same_size and all(sha256(path) == member.sha256 for path, member in paths.items())


def _require_space(archive: ModelArchive, folder: Path) -> None:
    needed = sum(member.size for member in archive.members.values()) + SPARE
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise UserError(
            f"{folder}: {bytes_text(needed)} are needed, {bytes_text(free)} are free; make space, or give a "
            "--workspace on another disk"
        )


@contextmanager
def _unpacked(archive: ModelArchive, parent: Path) -> Iterator[Path]:
    """A temporary folder in ``parent`` with all members; it is deleted afterwards, if it still exists."""
    temporary = parent / partial_name(Path("model"))
    try:
        try:
            for name in archive.members:
                target = temporary.joinpath(*name.split("/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                model_archive.copy_member(archive, name, target)
        except OSError as problem:
            raise UserError(not_written(parent, problem)) from None
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, folder: Path, aside: Path) -> None:
    """Give the unpacked model its name. Where this ends halfway, the earlier model gets its name back (`_restore`)."""
    try:
        if os.path.lexists(folder):
            os.rename(folder, aside)
        os.rename(temporary, folder)
    except OSError as problem:
        raise UserError(not_written(folder, problem)) from None
    finally:
        _restore(aside, folder)


def _restore(aside: Path, folder: Path) -> None:
    """After a replacement, whole or interrupted: the earlier model is deleted, or gets its name back."""
    if not os.path.lexists(aside):
        return
    if os.path.lexists(folder):
        if aside.is_symlink():
            aside.unlink()
        with suppress(FileNotFoundError):
            remove_folder(aside)
    else:
        os.rename(aside, folder)
