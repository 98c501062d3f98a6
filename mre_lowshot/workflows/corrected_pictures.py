"""What lies beside a label map that a person has corrected: its pictures are drawn again, and probabilities that are
not its own are named."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mre_lowshot import files
from mre_lowshot.data.dataset import Case
from mre_lowshot.data.listing import PICTURE_FOLDERS
from mre_lowshot.data.scan_input import read_case
from mre_lowshot.errors import UserError
from mre_lowshot.inference.formats import ModelLabels
from mre_lowshot.inference.record import FileState
from mre_lowshot.report.overlays import draw_case
from mre_lowshot.report.preview import draw_preview
from mre_lowshot.workflows.case_files import label_digest
from mre_lowshot.workflows.outputs import OVERLAYS, OutputFolder


def refresh_corrected(
    target: OutputFolder,
    cases: Sequence[Case],
    *,
    labels: ModelLabels,
    note: Callable[[str], None],
    failed: Callable[[Exception, Case], None],
) -> None:
    """Draw the pictures that are asked for of label maps that are kept and that no run has written as they are now.
    Pictures and probabilities of the label map before the correction are named.

    Args:
        target: the output folder.
        cases: that are not predicted again.
        labels: of the model.
        note: receives a line for each case with such files.
        failed: called with what went wrong with a case.
    """
    for case in cases:
        if target.is_predicted(case):
            continue
        try:
            _refresh(target, case, labels, note)
        except Exception as problem:  # whatever one scan fails with, the others are drawn
            failed(problem, case)


def _refresh(target: OutputFolder, case: Case, labels: ModelLabels, note: Callable[[str], None]) -> None:
    path = target.label_map(case)
    digest, earlier, foreign, drawn = label_digest(path), [], [], []
    for folder in PICTURE_FOLDERS:
        picture = target.root / folder / f"{case.name}.png"
        there, wanted = os.path.lexists(picture), folder in target.request.pictures
        if there and not target.record.is_own(picture, case.name):
            foreign += [f"{folder}/{picture.name}"] if wanted else []
        elif there and target.record.drawn_from(picture, case.name) == digest:
            continue
        elif wanted:
            drawn.append(folder)
        elif there:
            earlier.append(f"{folder}/{picture.name}")
    probabilities = target.root / f"{case.name}.npz"
    if target.record.is_own(probabilities, case.name):
        earlier.append(probabilities.name)
    if drawn:
        _draw(target, case, drawn, labels, digest)
        note(f"{case.name}: {', '.join(drawn)}: drawn from the label map as it is now")
    if earlier:
        note(
            f"{case.name}: {', '.join(earlier)}: of the label map that mre_predict wrote, not of the one that is there "
            "now"
        )
    if foreign:
        note(f"{case.name}: {', '.join(foreign)}: not written by mre_predict, so not drawn again")


def _draw(target: OutputFolder, case: Case, folders: Sequence[str], labels: ModelLabels, digest: str) -> None:
    path, made = next(iter(target.label_maps(case).items()))
    scan, title = read_case(case), f"{case.name}: label map not written by mre_predict"
    volume = made.read(path, case, labels.names)
    with target.staged() as staging:
        for folder in folders:
            new = staging / folder / f"{case.name}.png"
            if folder == OVERLAYS:
                draw_case(new, scan, volume, labels=labels.names, title=title, colours=labels.colours)
            else:
                draw_preview(new, scan, volume, label_names=labels.names, colours=labels.colours, title=title)
            target.record.note_picture(case.name, FileState.of(new, f"{folder}/{new.name}"), digest)
            _replace(new, target.root / folder / new.name)


def _replace(new: Path, final: Path) -> None:
    try:
        final.parent.mkdir(exist_ok=True)
        files.replace(new, final)
    except OSError as problem:
        raise UserError(files.not_written(final, problem)) from None
