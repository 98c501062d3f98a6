"""The record of a plan's preprocessed cases, ``preprocessing.json``: with which settings and from which files they were
made. Every run that reads the cases compares it with the plan and with the raw dataset."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mre_lowshot import files
from mre_lowshot.config import Plan, PreprocessingConfig
from mre_lowshot.config.json import from_json, to_json
from mre_lowshot.data.dataset import Case, Dataset, read_description
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json

RECORD = "preprocessing.json"
REFERENCES = "gt_segmentations"  # nnU-Net's name for the copies of the label maps
_SETTINGS = ("dataset_name", "channel_names", "labels", "ignore_label", "file_ending", "preprocessing")


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when it was read; its path is relative to the folder that holds it."""

    file: str
    size: int  # bytes
    modified: int  # nanoseconds since the epoch
    sha256: str

    @classmethod
    def of(cls, path: Path, folder: Path) -> SourceFile:
        """The present state of ``path``."""
        status = path.stat()
        return cls(os.path.relpath(path, folder), status.st_size, status.st_mtime_ns, files.sha256(path))

    def is_same(self, folder: Path, *, hashed: bool = False) -> bool:
        """Whether the file is there with the same content: size and time are compared, and the hash where they differ
        (``hashed``: always)."""
        path = folder / self.file
        try:
            status = path.stat()
            if not hashed and (status.st_size, status.st_mtime_ns) == (self.size, self.modified):
                return True
            return status.st_size == self.size and files.sha256(path) == self.sha256
        except OSError:
            return False


@dataclass(frozen=True)
class CaseSource:
    """The files of one case."""

    images: tuple[SourceFile, ...]
    label: tuple[SourceFile, ...]  # several where the voxels are in a file of their own
    reference: tuple[SourceFile, ...]  # the copy in `REFERENCES`
    crop: tuple[tuple[int, int], ...] | None = None  # its box in crops.json, where the plan uses it

    @property
    def content(self) -> str:
        """A hash of the images' and the label map's content, and of the box that they are cropped to."""
        parts = [f.sha256 for f in (*self.images, *self.label)]
        if self.crop is not None:
            parts.append(json.dumps(self.crop))
        return hashlib.sha256("".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """The content of ``preprocessing.json``."""

    settings: dict[str, Any]  # the plan's fields that the cases depend on
    raw: str  # folder of the raw dataset
    raw_relative: str  # the same from the folder of the preprocessed dataset, for a workspace that was moved
    cases: dict[str, CaseSource]
    crops: str | None = None  # SHA-256 of crops.json, where the plan uses it

    def contents(self, names: Iterable[str]) -> dict[str, str]:
        """Name -> hash of the content (`CaseSource.content`) of those of ``names`` that are in the record."""
        return {name: self.cases[name].content for name in names if name in self.cases}

    def changed(self, before: object) -> list[str]:
        """The cases whose content differs from ``before``, or that are gone: `contents` as read from a file. Nothing is
        compared where it is something else, as of an older version."""
        if not isinstance(before, dict):
            return []
        now = self.contents(before)
        return [str(name) for name, found in before.items() if now.get(name) != found]

    def raw_folder(self, folder: Path) -> Path | None:
        """The raw dataset, None where it no longer exists; ``folder`` is preprocessed/DatasetXXX_Name."""
        for found in (folder / self.raw_relative, Path(self.raw)):
            if (found / "dataset.json").is_file():
                return found
        return None

    def write(self, path: Path) -> None:
        """Write the record with a checksum of its own."""
        data = to_json(self)
        write_json(path, {**data, "checksum": _checksum(data)})


def settings_of(plan: Plan) -> dict[str, Any]:
    """The fields of a plan that preprocessed cases depend on, as JSON."""
    plain = {name: to_json(getattr(plan, name)) for name in _SETTINGS}
    loaded = from_json(PreprocessingConfig, plain["preprocessing"], "preprocessing")  # 1 and 1.0 are one value
    return {**plain, "preprocessing": to_json(loaded)}


def settings_hash(plan: Plan) -> str:
    """A hash of `settings_of`."""
    return _checksum(settings_of(plan))


def _checksum(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def fix_of(plan: Plan) -> str:
    """How cases that do not fit the plan are made again."""
    return f"run mre_plan_and_preprocess -d {plan.dataset_name} -p {plan.plans_name} --keep_plan"


def parts_of(path: Path) -> list[Path]:
    """The files of an image: with ``.mhd`` the header and the voxels' file."""
    if path.suffix.lower() != ".mhd":
        return [path]
    named = re.findall(r"ElementDataFile\s*=\s*(.+)", path.read_text(encoding="latin-1"))
    return [path, *(path.parent / name.strip() for name in named if (path.parent / name.strip()).is_file())]


def states(paths: Iterable[Path], folder: Path) -> tuple[SourceFile, ...]:
    """The present state of images with all their files.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        return tuple(SourceFile.of(part, folder) for path in paths for part in parts_of(path))
    except OSError as problem:
        raise UserError(
            f"{problem.filename}: cannot be read ({problem.strerror}); make it readable, or restore it"
        ) from None


def read_record(plan: Plan, folder: Path) -> Record:
    """The record of a plan's cases in ``folder`` (preprocessed/DatasetXXX_Name).

    Raises:
        UserError: there is none (no complete set of cases), it is damaged, or the settings differ from the plan's.
    """
    path, fix = folder / plan.plans_name / RECORD, fix_of(plan)
    if not path.is_file():
        raise UserError(f"{path.parent}: holds no complete set of preprocessed cases; {fix}")
    try:
        record = load_record(path)
    except UserError as problem:
        raise UserError(f"{problem}; or {fix}") from None
    wanted = settings_of(plan)
    if record.settings != wanted:
        different = [
            f"{name}: the cases' {record.settings.get(name)!r}, the plan's {value!r}"
            for name, value in wanted.items()
            if record.settings.get(name) != value
        ]
        raise UserError(
            f"{path}: the cases were preprocessed with other settings than the plan's; {fix} ({'; '.join(different)})"
        )
    return record


def load_record(path: Path) -> Record:
    """Read a record.

    Raises:
        UserError: it is missing or damaged.
    """
    data = read_json(path, "record of preprocessing")
    checksum = data.pop("checksum", None) if isinstance(data, dict) else None
    record = from_json(Record, data, str(path))
    if checksum != _checksum(data):
        raise UserError(f"{path}: is damaged, its checksum differs")
    return record


def check_sources(
    record: Record, plan: Plan, folder: Path, *, log: Callable[[str], None] = lambda _: None, most: int = 5
) -> None:
    """Compare the raw dataset and the copies of dataset.json and label maps with what the cases were made from.

    Args:
        record: of the plan's cases.
        plan: the plan.
        folder: preprocessed/DatasetXXX_Name.
        log: receives a note where the raw dataset is gone, or has cases that were not preprocessed.
        most: files that the message names.

    Raises:
        UserError: a file changed or is missing; names the files.
    """
    changed = [
        str(folder / file.file)
        for source in record.cases.values()
        for file in source.reference
        if not file.is_same(folder)
    ]
    try:
        changed += _changed_description(record, folder)
    except UserError as problem:  # missing, or edited into something else
        raise UserError(f"{problem}; {fix_of(plan)} copies it again") from None
    raw = record.raw_folder(folder)
    if raw is None:
        log(f"note: the raw dataset {record.raw} is no longer there; its files are not compared")
    else:
        changed += _changed_raw(record, plan, raw, log)
    if changed:
        shown = ", ".join(changed[:most]) + (f" and {len(changed) - most} more" if changed[most:] else "")
        raise UserError(
            f"{plan.dataset_name}: changed since the cases of plan {plan.plans_name} were preprocessed: {shown}; "
            f"{fix_of(plan)}, or restore the files"
        )


def _changed_raw(record: Record, plan: Plan, raw: Path, log: Callable[[str], None]) -> list[str]:
    """The files of the raw dataset that differ from the record; reports cases that were added."""
    changed = []
    there = {name for name in ("imagesTr", "labelsTr") if (raw / name).is_dir()}
    if gone := {"imagesTr", "labelsTr"} - there:
        log(f"note: {', '.join(str(raw / name) for name in sorted(gone))} is no longer there; not compared")
    for source in record.cases.values():
        for file in (*source.images, *source.label):
            if file.file.split(os.sep)[0] in gone:
                continue
            if not file.is_same(raw):
                missing = "" if (raw / file.file).exists() else " (missing)"
                changed.append(f"{raw / file.file}{missing}")
    if plan.preprocessing.crop == "given" and crops_hash(raw) != record.crops:
        changed.append(str(raw / "crops.json"))
    if gone or changed:
        return changed
    dataset = Dataset.load(raw)
    changed += _changed_description(record, raw)
    added = sorted({case.name for case in dataset.labelled} - record.cases.keys())
    if added and not changed:
        names = ", ".join(added[:5]) + (", ..." if added[5:] else "")
        log(f"note: labelled cases were added and are not preprocessed: {names}; {fix_of(plan)} adds them")
    return changed


def _changed_description(record: Record, folder: Path) -> list[str]:
    """Channels, labels and ending of the dataset.json in ``folder`` that differ from the record."""
    return [
        f"{folder / 'dataset.json'} ({name} {record.settings.get(name)!r}, now {to_json(value)!r})"
        for name, value in read_description(folder).items()
        if to_json(value) != record.settings.get(name)
    ]


def crops_hash(raw: Path) -> str | None:
    """The SHA-256 of the dataset's crops.json; None where there is none."""
    path = raw / "crops.json"
    return files.sha256(path) if path.is_file() else None


def reference_of(plan: Plan, folder: Path, name: str, record: Record | None = None) -> Path:
    """The copy of a case's label map, after comparing its content with the record's.

    Args:
        plan: the plan.
        folder: preprocessed/DatasetXXX_Name.
        name: of the case.
        record: of the plan's cases; None: read it.

    Raises:
        UserError: the label map is missing, damaged, or another than the case was made from.
    """
    record = record or read_record(plan, folder)
    source = record.cases.get(name)
    if source is None or not source.reference:
        raise UserError(f"case {name}: is not in {folder / plan.plans_name / RECORD}; {fix_of(plan)}")
    for file in source.reference:
        if not file.is_same(folder, hashed=True):
            raise UserError(
                f"case {name}: {folder / file.file} is missing or changed since preprocessing; {fix_of(plan)}"
            )
    return folder / source.reference[0].file


def source_of(
    case: Case, reference: Path, *, raw: Path, folder: Path, crop: tuple[tuple[int, int], ...] | None = None
) -> CaseSource:
    """The present state of a case's files.

    Args:
        case: of the raw dataset.
        reference: the copy of its label map.
        raw: folder of the raw dataset.
        folder: preprocessed/DatasetXXX_Name.
        crop: the box that it is cropped to, if one is given.
    """
    label = [case.label] if case.label else []
    return CaseSource(states(case.images, raw), states(label, raw), states([reference], folder), crop)
