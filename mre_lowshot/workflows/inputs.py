"""What a prediction is given: image files in nnU-Net's layout, or a folder of DICOM; which scans of it are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mre_lowshot.data.dataset import Case, find_cases
from mre_lowshot.data.dicom.choice import LISTED, modality_of, refusal, selected
from mre_lowshot.data.dicom.files import find_files, holds_dicom, is_dicom, walk
from mre_lowshot.data.dicom.series import Series, read_folder
from mre_lowshot.data.listing import CONVERT, name_problem, shown
from mre_lowshot.data.readers import COLOUR_ENDINGS, READABLE_ENDINGS, file_ending
from mre_lowshot.errors import UserError
from mre_lowshot.workflows.dicom_channels import NOT_SELECTED, assign_channels

_DAMAGED = 3  # files without a series that are named one by one


@dataclass(frozen=True)
class ListedScan:
    """A scan that was found.

    Attributes:
        name: of its case.
        files: that it consists of.
        reason: why it is not taken; empty where it is.
        series: its series, where it is DICOM.
        channel: that it is of its case, where the model takes several.
    """

    name: str
    files: tuple[Path, ...]
    reason: str = ""
    series: Series | None = None
    channel: str = ""


@dataclass(frozen=True)
class Inputs:
    """What was found.

    Attributes:
        cases: the scans to predict.
        problems: of scans that are refused, one line each.
        left_out: DICOM series that are no scans (localizers, reports, label maps), one line each.
        scans: every scan or series, taken or not.
    """

    cases: tuple[Case, ...]
    problems: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    scans: tuple[ListedScan, ...] = ()


def find_inputs(
    inputs: Path,
    *,
    channels: Sequence[str] | None,
    output: Path | None = None,
    series: Sequence[str] = (),
) -> Inputs:
    """The scans of a folder, or of one file.

    A folder with image files directly in it holds these; a folder without, and with DICOM files in it or its
    subfolders, holds DICOM series. Whatever looks like an image and is not taken is a problem.

    Args:
        inputs: folder or file.
        channels: names of the model's channels; None: any model's.
        output: folder whose files are no input.
        series: DICOM series to take (`data.dicom.choice.selected`); empty: all. For a model of several channels one
            for each channel, or none (`workflows.dicom_channels`).

    Raises:
        UserError: nothing is selected, the packages for DICOM are missing, a file is of another format, or the folder
            holds neither images nor DICOM.
    """
    ignore = (output,) if output is not None else ()
    if _is_dicom_input(inputs, ignore):
        return _of_dicom(inputs, ignore, channels=channels, wanted=series)
    if series:
        raise UserError(f"--series selects DICOM series, and {inputs} holds none that is read; leave it out")
    count = len(channels) if channels is not None else 1
    if not inputs.is_dir():
        return _of_file(inputs, count)
    cases, problems = find_cases(inputs, count, None, ignore=ignore)
    problems += _dicom_below(inputs, ignore)
    if not _has_images(inputs):  # not a scan that fails, but the wrong folder
        raise UserError("\n".join(problems))
    return Inputs(tuple(cases), tuple(problems), scans=tuple(ListedScan(case.name, case.images) for case in cases))


def _is_dicom_input(inputs: Path, ignore: Sequence[Path]) -> bool:
    if inputs.is_dir():
        return not _has_images(inputs) and holds_dicom(inputs, ignore)
    return inputs.is_file() and not file_ending(inputs) and is_dicom(inputs)


def _has_images(folder: Path) -> bool:
    """Whether files in a folder are images by their names; True where it cannot be listed, which is named later."""
    try:
        return any(file_ending(path) for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return True


def _of_file(path: Path, channels: int) -> Inputs:
    if not path.exists():
        raise UserError(f"{path}: is missing; give a folder or an image file")
    if not path.is_file():
        raise UserError(f"{path}: is no regular file (a pipe, socket or device); give a folder or an image file")
    ending = file_ending(path)
    if not ending:
        raise UserError(f"{path}: is none of {', '.join(READABLE_ENDINGS)}, nor DICOM; {CONVERT}")
    if channels != 1 and ending not in COLOUR_ENDINGS:  # one colour image holds all channels
        raise UserError(f"{path}: the model takes {channels} channels; give a folder with case_0000, ...")
    name = path.name[: -len(ending) or None].removesuffix("_0000")
    if problem := name_problem(name):
        raise UserError(f"{shown(path.name)}: the name {problem}; rename the file")
    return Inputs((Case(name, (path,)),), scans=(ListedScan(name, (path,)),))


def _dicom_below(folder: Path, ignore: Sequence[Path]) -> list[str]:
    """A problem where subfolders of a folder of images hold DICOM."""
    try:
        below = [path for path in find_files(folder, ignore)[0] if path.parent != folder]
    except UserError:  # a subfolder that cannot be read
        return []
    if not below:
        return []
    return [
        f"{folder}: {len(below)} DICOM file(s) in subfolders ({below[0].relative_to(folder)}) are not read beside the "
        "images; give them in a folder of their own"
    ]


def _of_dicom(inputs: Path, ignore: Sequence[Path], *, channels: Sequence[str] | None, wanted: Sequence[str]) -> Inputs:
    found = read_folder(inputs, ignore).series
    if channels is not None and len(channels) > 1:
        made = _several_channels(found, channels, wanted)
    else:
        made = _one_channel(found, modality_of(channels[0]) if channels else "", wanted)
    problems = list(made.problems)
    chosen = {scan.name for scan in made.scans if scan.reason != NOT_SELECTED}
    damaged = [f"{one.files[0]}: {one.problem}" for one in found if not one.uid and one.name in chosen]
    problems += [line for line in damaged[:_DAMAGED] if line not in problems]
    if damaged[_DAMAGED:]:
        problems.append(f"{inputs}: {len(damaged) - _DAMAGED} more files cannot be read; export them again (--list)")
    problems += _images_beside(inputs, ignore)
    if not made.cases and not problems:
        problems.append(f"{inputs}: holds no DICOM series that is a scan (see --list); give the folder of the scans")
    return replace(made, problems=tuple(problems))


def _one_channel(found: Sequence[Series], modality: str, wanted: Sequence[str]) -> Inputs:
    """Each series is a case. Files that cannot be read are named by the caller."""
    chosen = {one.name for one in selected(found, wanted)}
    cases, problems, left_out, scans = [], [], [], []
    for one in found:
        reason = refusal(one, modality) if one.name in chosen else NOT_SELECTED
        scans.append(ListedScan(one.name, one.files, reason, one))
        if one.name not in chosen or not one.uid:
            continue
        if not reason:
            cases.append(Case(one.name, one.files, series=(one,)))
        elif one.is_no_scan and not wanted:
            left_out.append(f"series {one.name} {reason}")
        else:
            problems.append(f"series {one.name} {reason}")
    return Inputs(tuple(cases), tuple(problems), tuple(left_out), tuple(scans))


def _several_channels(found: Sequence[Series], channels: Sequence[str], wanted: Sequence[str]) -> Inputs:
    """Each study is a case."""
    made = assign_channels(found, channels, wanted)
    reasons, assigned = made.reasons, made.channels
    scans = [ListedScan(one.name, one.files, reasons[one.name], one, assigned.get(one.name, "")) for one in found]
    unlisted = ("", NOT_SELECTED, *made.problems)
    left_out = [f"series {s.name} {s.reason}" for s in scans if s.series and s.series.uid and s.reason not in unlisted]
    return Inputs(tuple(made.cases), tuple(made.problems), tuple(left_out), tuple(scans))


def _images_beside(inputs: Path, ignore: Sequence[Path]) -> list[str]:
    """A problem where subfolders of a folder of DICOM hold other images."""
    images = [path for path in walk(inputs, ignore) if file_ending(path)] if inputs.is_dir() else []
    if not images:
        return []
    return [
        f"{inputs}: {len(images)} other image file(s) ({images[0].relative_to(inputs)}) are not read beside DICOM; "
        "give them in a folder of their own"
    ]


def first_lines(lines: Sequence[str]) -> list[str]:
    """The first lines, and how many more there are."""
    more = [f"and {len(lines) - LISTED} more; see --list"] if len(lines) > LISTED else []
    return [*lines[:LISTED], *more]
