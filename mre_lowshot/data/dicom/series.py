"""The series of a folder of DICOM files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mre_lowshot.data.dicom.entries import Entry, read_entry, without_copies
from mre_lowshot.data.dicom.files import find_files, require_packages
from mre_lowshot.data.dicom.frames import LEAVE_OUT, Frame
from mre_lowshot.data.dicom.names import case_name, distinct
from mre_lowshot.data.dicom.stacks import Stack, make_stacks
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.errors import UserError


@dataclass(frozen=True)
class Series:
    """A volume stored as DICOM, or what is none, with the reason.

    Attributes:
        uid: Series Instance UID.
        part: number of the volume from 1, where the series holds several; otherwise 0.
        patient_id, study_uid, study_date, modality, description, number: from the header; empty where it has none.
        files: in the order of the slices.
        frames: the slices in order, along the direction of row x column.
        geometry: the LPS grid; its file axes are (column, row, slice). None where there is a problem.
        problem: why it cannot be read, and the fix; empty where it can.
        notes: what was left out, one sentence each.
        variant: what distinguishes the volume from the others of its series, for example ``EchoTime 4.6``.
        name: distinct from those of the other series, for file names.
    """

    uid: str
    part: int
    patient_id: str
    study_uid: str
    study_date: str
    modality: str
    description: str
    number: str
    files: tuple[Path, ...]
    frames: tuple[Frame, ...] = ()
    geometry: Geometry | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()
    variant: str = ""
    name: str = ""

    @property
    def key(self) -> str:
        """The UID, with the number of the volume where there are several."""
        return f"{self.uid}#{self.part}" if self.part else self.uid

    @property
    def is_no_scan(self) -> bool:
        """Whether it is something else than a scan: a localizer, a report, a label map, a picture in colours."""
        return self.problem.endswith(LEAVE_OUT)

    @property
    def place(self) -> Path:
        """A path that ends in its name, for messages: its files may be many, or shared with other volumes."""
        return self.files[0].parent / self.name

    @property
    def size(self) -> tuple[int, ...]:
        """Slices, rows, columns; empty where there is no regular grid."""
        return self.geometry.file_grid().shape if self.geometry else ()

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between slices, rows, columns in mm; empty where there is no regular grid."""
        return self.geometry.file_grid().spacing if self.geometry else ()


@dataclass(frozen=True)
class Contents:
    """What a folder holds: its series, and the number of files that are not DICOM (or are a DICOMDIR)."""

    series: tuple[Series, ...]
    others: int


def find_series(folder: Path) -> list[Series]:
    """The series of a folder and its subfolders, from the headers of all files, in order of patient, date and number.

    Raises:
        UserError: the folder is missing or cannot be read, or the packages for DICOM are missing.
    """
    return list(read_folder(folder).series)


def read_folder(folder: Path, ignore: Sequence[Path] = ()) -> Contents:
    """As `find_series`, with the number of other files. Folders in ``ignore`` are left out."""
    require_packages()
    paths, others = find_files(Path(folder), ignore)
    return read_files(paths, others)


def read_files(paths: Sequence[Path], others: int = 0) -> Contents:
    """The series of DICOM files.

    Raises:
        UserError: the packages for DICOM are missing.
    """
    require_packages()
    groups: dict[tuple[str, ...], list[Entry]] = {}
    found: list[Series] = []
    for path in paths:
        try:
            entry = read_entry(path)
        except UserError as refusal:
            found.append(_damaged(path, str(refusal).removeprefix(f"{path}: ")))
            continue
        if entry is None:
            others += 1
        else:
            groups.setdefault(entry.group, []).append(entry)
    damaged = Counter(series.files[0].parent for series in found)
    found += [_beside(series, damaged) for entries in groups.values() for series in _of_group(entries)]
    found.sort(key=lambda s: (s.patient_id, s.study_date, s.number.zfill(12), s.uid))
    return Contents(tuple(_numbered_and_named(found)), others)


def _damaged(path: Path, problem: str) -> Series:
    return Series("", 0, "", "", "", "", "", "", (path,), problem=problem)


def _beside(series: Series, damaged: Mapping[Path, int]) -> Series:
    """The series with a note where files of its folders, which may belong to it, cannot be read."""
    count = sum(damaged.get(folder, 0) for folder in {path.parent for path in series.files})
    note = f"{count} file(s) in the same folder cannot be read, and may belong to it"
    return dataclasses.replace(series, notes=(*series.notes, note)) if count else series


def _of_group(entries: Sequence[Entry]) -> list[Series]:
    """The series of entries of one group."""
    texts = entries[0].texts
    problem = next((entry.unfit or entry.problem for entry in entries if entry.unfit or entry.problem), "")
    base = Series(
        uid=texts["SeriesInstanceUID"],
        part=0,
        patient_id=texts["PatientID"],
        study_uid=texts["StudyInstanceUID"],
        study_date=texts["StudyDate"],
        modality=texts["Modality"],
        description=texts["SeriesDescription"],
        number=texts["SeriesNumber"],
        files=tuple(entry.path for entry in entries),
        problem=problem,
    )
    if problem:
        return [base]
    try:
        kept, dropped = without_copies(entries)
    except UserError as refusal:
        return [dataclasses.replace(base, problem=str(refusal))]
    notes: tuple[str, ...] = (f"{dropped} file(s) are copies of others and are left out",) if dropped else ()
    if any(entry.lossy for entry in kept):
        notes += ("its images were compressed with loss",)
    return [_of_stack(base, stack, notes) for stack in make_stacks([f for entry in kept for f in entry.frames])]


def _of_stack(base: Series, stack: Stack, notes: tuple[str, ...]) -> Series:
    return dataclasses.replace(
        base,
        files=tuple(dict.fromkeys(frame.path for frame in stack.frames)),
        frames=stack.frames,
        geometry=stack.geometry,
        problem=stack.problem,
        variant=stack.variant,
        notes=(*notes, *stack.notes),
    )


def _numbered_and_named(found: Sequence[Series]) -> list[Series]:
    volumes: dict[tuple[str, ...], int] = {}
    for series in found:
        key = (series.patient_id, series.study_uid, series.uid)
        volumes[key] = volumes.get(key, 0) + bool(series.frames)
    counted: dict[tuple[str, ...], int] = {}
    parts = []
    for series in found:
        key = (series.patient_id, series.study_uid, series.uid)
        counted[key] = counted.get(key, 0) + bool(series.frames)
        parts.append(counted[key] if series.frames and volumes[key] > 1 else 0)
    names = [
        case_name(s.patient_id, s.number, s.description, f"v{part}" if part else "")
        if s.uid
        else case_name(s.files[0].stem)
        for s, part in zip(found, parts, strict=True)
    ]
    keys = [f"{s.patient_id}\n{s.study_uid}\n{s.uid}#{part}\n{s.problem}" for s, part in zip(found, parts, strict=True)]
    return [
        dataclasses.replace(series, part=part, name=name)
        for series, part, name in zip(found, parts, distinct(names, keys), strict=True)
    ]
