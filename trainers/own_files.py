"""Deleting a fold's results: only what training and validation have written; files that a person added stay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.summary import SUMMARY, TABLE, changed_summaries
from mre_lowshot.files import remove_folder
from mre_lowshot.inference import checkpoint, quality, written

_OWN = re.compile(r"(plans|debug|run|resources)\.json|progress\.png|training_log_[\d_]+\.txt|training_log\.jsonl")


def clear_fold(folder: Path) -> None:
    """Delete the results in a fold's folder. The folder goes as a whole where it holds nothing else.

    Raises:
        UserError: it cannot be deleted.
    """
    own, others = divide_files(folder)
    if not others:
        remove_folder(folder)
        return
    for path in own:  # checkpoints first: without one, the rest is not taken for a trained fold
        try:
            path.unlink(missing_ok=True)
        except OSError as problem:
            raise UserError(f"{path}: cannot be deleted ({problem.strerror}); delete it and try again") from None


def divide_files(folder: Path) -> tuple[list[Path], set[Path]]:
    """The files in a fold's folder that training and validation have written, checkpoints first, and all others."""
    own = list(_own_files(folder))
    return own, {path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()} - set(own)


def _own_files(folder: Path) -> Iterator[Path]:
    for name in (checkpoint.LATEST, checkpoint.FINAL):
        if (folder / name).is_file():
            yield folder / name
    yield from (path for path in sorted(folder.glob("*")) if path.is_file() and _OWN.fullmatch(path.name))
    yield from sorted((folder / "tensorboard").glob("events.out.tfevents.*"))
    validation = folder / "validation"
    if not validation.is_dir() or validation.is_symlink():
        return
    maps, changed = written.WrittenMaps(validation), set(changed_summaries(validation))
    tables = {SUMMARY, TABLE, quality.FILE, written.FILE}
    for path in sorted(validation.iterdir()):
        if path not in changed and (path.name in tables or maps.is_own(path)):
            yield path
