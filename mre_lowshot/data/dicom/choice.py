"""Which series of a folder are taken: by modality, and by what the user names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mre_lowshot.data.dicom.series import Series, read_files, read_folder
from mre_lowshot.data.vocabulary import is_ct, is_mri
from mre_lowshot.errors import UserError

LISTED = 8  # series named in a message
_MODALITIES = {"us": "US", "ultrasound": "US", "pet": "PT"}


def modality_of(channel: str) -> str:
    """The DICOM modality (CT, MR, US, PT) of scans with this channel; empty where its name has none."""
    if is_ct(channel):
        return "CT"
    return "MR" if is_mri(channel) else _MODALITIES.get(channel.strip().lower(), "")


def refusal(series: Series, modality: str = "") -> str:
    """Why a series is not taken by a model of scans of a ``modality``, and the fix; empty where it is taken."""
    if series.problem or not modality or series.modality == modality:
        return series.problem
    found = f"has modality {series.modality}" if series.modality else "has no modality"
    return f"{found}, and the model takes {modality}; leave it out, or give a model of its modality"


def selected(series: Sequence[Series], wanted: Sequence[str]) -> list[Series]:
    """The series that ``wanted`` names, each by its Series Instance UID, its name, its number in the study, or a part
    of its description (in whatever case); all of them where nothing is named.

    Raises:
        UserError: one of ``wanted`` names none.
    """
    if not wanted:
        return list(series)
    taken: set[int] = set()
    for text in wanted:
        found = {index for index, one in enumerate(series) if _is_named(one, text)}
        if not found:
            raise UserError(
                f"--series {text!r}: is no Series Instance UID, name or number of a series here, and no part of a "
                f"description; found: {names_of(series)}"
            )
        taken |= found
    return [one for index, one in enumerate(series) if index in taken]


def _is_named(series: Series, text: str) -> bool:
    text = text.strip()
    if not text:
        return False
    if text in (series.uid, series.key, series.name):
        return True
    if text.isdigit():
        return series.number.isdigit() and int(series.number) == int(text)
    return text.casefold() in series.description.casefold()


def names_of(series: Sequence[Series]) -> str:
    """The names of series, of the first ones where there are many."""
    more = f" and {len(series) - LISTED} more" if len(series) > LISTED else ""
    return (", ".join(one.name for one in series[:LISTED]) or "none") + more


def only_series(paths: Sequence[Path]) -> Series:
    """The only scan of a folder of DICOM files (of one path), or of a list of DICOM files.

    Raises:
        UserError: there is none, or there are several.
    """
    where = str(paths[0]) + (f" and {len(paths) - 1} more files" if len(paths) > 1 else "")
    found = read_folder(paths[0]).series if len(paths) == 1 else read_files(paths).series
    scans = [one for one in found if not one.problem]
    if len(scans) == 1:
        unread = [one for one in found if one.problem and not one.is_no_scan]
        notes = tuple(f"{one.name} in the same folder is not read: it {one.problem}" for one in unread)
        return dataclasses.replace(scans[0], notes=(*scans[0].notes, *notes))
    if scans:
        raise UserError(
            f"{where}: {len(scans)} series ({names_of(scans)}); give one of them, as find_series of "
            "mre_lowshot.data.dicom.series returns it"
        )
    if not found:
        raise UserError(f"{where}: no DICOM file; give the folder or the files of one series, or an image file")
    worst = next((one for one in found if not one.is_no_scan), found[0])
    raise UserError(f"{where}: no series that can be read; {worst.name} {worst.problem}")
