"""The scans and label maps of folders: DICOM series and image files, and which of the files are label maps."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mre_lowshot.data.dicom.files import divide_files, require_packages
from mre_lowshot.data.dicom.seg_reader import CLASSES, Seg, read_seg
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.importing.label_names import Lists, is_label_image, looks_like_labels, names_beside, names_inside
from mre_lowshot.data.importing.slicer import SlicerSegment, read_segments
from mre_lowshot.data.importing.words import folder_kind, marks_image, marks_label
from mre_lowshot.data.listing import FOREIGN_ENDINGS
from mre_lowshot.data.listing import shown as printable
from mre_lowshot.data.readers import file_ending, read_array, read_header
from mre_lowshot.data.volume import Volume, read_image
from mre_lowshot.errors import UserError

if TYPE_CHECKING:
    from mre_lowshot.data.dicom.series import Series

_CONTOURS = (
    "is a set of contours (RTSTRUCT), which is not read; convert it to DICOM SEG or seg.nrrd, for example in 3D Slicer"
)
_MODALITIES = {"CT": "CT", "MR": "MRI", "US": "US", "PT": "PET"}


@dataclass(frozen=True)
class Source:
    """What scans and label maps have in common.

    Attributes:
        path: of the file; of a series, the folder of its files.
        name: relative to the folder that was given; of a series, with its own name.
        stems: names to compare with those of other files.
        folders: those between the folder that was given and the file.
        patient, study: of DICOM; empty otherwise.
        notes: what is contradictory or missing in the header; one sentence each.
    """

    path: Path
    name: str
    stems: tuple[str, ...]
    folders: tuple[str, ...]
    patient: str = ""
    study: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan(Source):
    """A scan: a DICOM series, or an image file.

    Attributes:
        geometry: its grid.
        modality: the name of its channel where DICOM states the modality; empty otherwise.
        series: of a DICOM series; None of a file.
    """

    geometry: Geometry = field(default_factory=lambda: Geometry((1, 1, 1), (1.0, 1.0, 1.0)))
    modality: str = ""
    series: Series | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Its files, in the order of the slices."""
        return self.series.files if self.series else (self.path,)

    def read(self) -> Volume:
        """The image (1, D, H, W).

        Raises:
            UserError: it cannot be read, or has several components.
        """
        if self.series:
            from mre_lowshot.data.dicom.volume import read_series

            return read_series(self.series)
        volume = read_image(self.path)
        if len(volume.array) != 1:
            raise UserError(f"{self.path}: has {len(volume.array)} components a voxel; save each as a file of its own")
        return volume


@dataclass(frozen=True)
class LabelMap(Source):
    """A label map.

    Attributes:
        kind: ``DICOM SEG``, ``seg.nrrd`` or the ending of the file.
        why: why it is taken for a label map.
        geometry: its grid; None of a DICOM SEG, whose frames are placed on the scan's.
        names: value (of a file with segments: number of the segment) to name; empty where the file shows none.
        names_from: where the names come from.
        seg, segments: of a DICOM SEG, and of a ``seg.nrrd``.
        parts: files with one mask each that form this label map together.
    """

    kind: str = ""
    why: str = ""
    geometry: Geometry | None = None
    names: dict[int, str] = field(default_factory=dict)
    names_from: str = ""
    seg: Seg | None = None
    segments: tuple[SlicerSegment, ...] = ()
    parts: tuple[LabelMap, ...] = ()

    def stored(self, key: int) -> tuple[int, int]:
        """The value of a key of ``names`` as the file stores it, and its layer (0 where there is one only)."""
        return next(((s.value, s.layer) for s in self.segments if s.number == key), (key, 0))


@dataclass
class Found:
    """The content of the folders.

    Attributes:
        scans, labels: sorted by name.
        left_out: (name, reason) of what is no scan and no label map, or cannot be read as a scan.
        problems: label maps that cannot be read; one sentence each.
    """

    scans: list[Scan] = field(default_factory=list)
    labels: list[LabelMap] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_sources(
    folders: Sequence[Path] = (),
    *,
    images: Sequence[Path] = (),
    labels: Sequence[Path] = (),
    leave_out: Sequence[str] = (),
) -> Found:
    """The scans and label maps of folders and their subfolders, whatever the names of the files.

    Args:
        folders: with scans and label maps.
        images, labels: with scans only, and with label maps only.
        leave_out: patterns (``*old*``) of names, relative to the folder, of files that are not looked at.

    Raises:
        UserError: a folder is missing or cannot be read, or packages for DICOM are missing.
    """
    found, seen = Found(), set()
    lists: Lists = {}
    for root, kind in [*((f, "scan") for f in images), *((f, "label") for f in labels), *((f, "") for f in folders)]:
        root = Path(root)
        dicom, others = divide_files(root)
        base = root if root.is_dir() else root.parent
        matched = [path for path in [*dicom, *others] if _is_left_out(path, base, leave_out)]
        found.left_out += [(_relative(path, base), "matches --leave_out") for path in matched]
        _add_odd(root, base, found, leave_out)
        chosen = [path for path in dicom if path not in matched and path.resolve() not in seen]
        if chosen:
            _add_dicom(root, base, chosen, found, kind=kind)
        for path in others:
            if path not in matched and path.resolve() not in seen and not path.name.startswith("."):
                _add_file(path, base, found, kind=kind, lists=lists)
        seen |= {path.resolve() for path in [*dicom, *others]}
    found.scans.sort(key=lambda scan: (scan.patient, scan.name))
    found.labels.sort(key=lambda label: label.name)
    return found


def _add_odd(root: Path, base: Path, found: Found, leave_out: Sequence[str]) -> None:
    """Name what has the ending of an image and is no file: links to nowhere, pipes."""
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in sorted(names)):
            if path.is_file() or not file_ending(path) or _is_left_out(path, base, leave_out):
                continue
            link = path.is_symlink()
            name = printable(_relative(path, base))
            reason = "is a symbolic link to nothing; restore the file" if link else "is no regular file; leave it out"
            if link and marks_label(path.name[: -len(file_ending(path))]):
                found.problems.append(f"{name}: {reason}, or remove the link")
            elif (name, reason) not in found.left_out:
                found.left_out.append((name, reason))


def _is_left_out(path: Path, base: Path, patterns: Sequence[str]) -> bool:
    name = _relative(path, base)
    return any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(path.name, p) for p in patterns)


def _relative(path: Path, base: Path) -> str:
    try:
        return path.relative_to(base).as_posix()
    except ValueError:
        return path.as_posix()


def _folders(path: Path, base: Path) -> tuple[str, ...]:
    return Path(_relative(path, base)).parts[:-1]


def _add_dicom(root: Path, base: Path, chosen: Sequence[Path], found: Found, *, kind: str) -> None:
    require_packages()
    from mre_lowshot.data.dicom.series import read_folder

    wanted = set(chosen)
    for series in read_folder(root).series:
        files = [path for path in series.files if path in wanted]
        if not files:
            continue
        segs = [path for path in files if _is_seg(path)] if not series.frames else []
        for path in segs:
            if kind == "scan":
                found.left_out.append((_relative(path, base), "is a label map (DICOM SEG) in a folder of images"))
            else:
                _add_seg(path, base, found)
        rest = [path for path in files if path not in segs]
        if not rest:
            continue
        name = f"{_relative(rest[0].parent, base)}/{series.name}".removeprefix("./")
        if kind == "label" and not series.problem:
            fix = "export it as DICOM SEG, or convert it to NIfTI"
            found.problems.append(f"{name}: is a DICOM series in a folder of label maps; {fix}")
            continue
        if series.problem or len(files) < len(series.files):
            missing = "some of its files match --leave_out" if len(files) < len(series.files) else ""
            reason = _CONTOURS if "RTSTRUCT" in series.problem else series.problem or missing
            found.left_out.append((name if series.uid else _relative(rest[0], base), reason))
            continue
        found.scans.append(_scan(series, name, base))


def _is_seg(path: Path) -> bool:
    from mre_lowshot.data.dicom.files import read_header

    return str(read_header(path).get("SOPClassUID", "")) in CLASSES


def _scan(series: Series, name: str, base: Path) -> Scan:
    assert series.geometry is not None  # without a problem
    return Scan(
        path=series.files[0].parent,
        name=name,
        stems=tuple(text for text in (series.patient_id, series.name, series.description) if text),
        folders=_folders(series.files[0], base),
        patient=series.patient_id,
        study=series.study_uid,
        geometry=series.geometry,
        notes=series.notes,
        modality=_MODALITIES.get(series.modality, series.modality),
        series=series,
    )


def _add_seg(path: Path, base: Path, found: Found) -> None:
    try:
        seg = read_seg(path)
        unnamed = [number for number, name in seg.segments.items() if not name]
        if unnamed:
            raise UserError(f"{path}: segment {unnamed[0]} has no SegmentLabel; export it again with names")
    except UserError as problem:
        found.problems.append(str(problem))
        return
    found.labels.append(
        LabelMap(
            path=path, name=_relative(path, base), stems=(path.stem,), folders=_folders(path, base),
            patient=seg.patient_id, study=seg.study_uid, kind="DICOM SEG", why="DICOM SEG", names=dict(seg.segments),
            names_from="its segments", seg=seg,
        )
    )  # fmt: skip


def _add_file(path: Path, base: Path, found: Found, *, kind: str, lists: Lists) -> None:
    name, ending = _relative(path, base), file_ending(path)
    if not ending:
        if path.suffix.lower() in FOREIGN_ENDINGS:
            found.left_out.append((printable(name), "is of a format that is not read; convert it"))
        return
    common = Source(path, printable(name), (path.name[: -len(ending)],), _folders(path, base))
    try:
        segments: tuple[SlicerSegment, ...] = ()
        if ending == ".nrrd":
            header, segments = read_segments(path)
        else:
            header = read_header(path)
            if header.components > 1:
                raise UserError(f"{path}: has {header.components} components a voxel; save each as a file of its own")
        why = _why_label(common, segments, kind=kind)
    except UserError as problem:
        if kind == "scan" or (not kind and not marks_label(common.stems[0]) and folder_kind(common.folders) != "label"):
            found.left_out.append((common.name, str(problem).removeprefix(f"{path}: ")))
        else:
            found.problems.append(str(problem))
        return
    fields = {f.name: getattr(common, f.name) for f in dataclasses.fields(Source) if f.name != "notes"}
    if not why:
        found.scans.append(Scan(**fields, geometry=header.geometry, notes=header.notes))
        return
    try:
        names, source = _names(path, base, segments, lists)
    except UserError as problem:
        found.problems.append(str(problem))
        return
    shown_kind = "seg.nrrd" if segments else ending[1:]
    found.labels.append(
        LabelMap(**fields, kind=shown_kind, why=why, geometry=header.geometry, notes=header.notes, names=names,
                 names_from=source, segments=segments)
    )  # fmt: skip


def _names(path: Path, base: Path, segments: Sequence[SlicerSegment], lists: Lists) -> tuple[dict[int, str], str]:
    if segments:
        return {s.number: s.name for s in segments}, "its segments"
    if names := names_inside(path):
        return names, "its label table"
    return names_beside(path, base, lists)


def _why_label(source: Source, segments: Sequence[SlicerSegment], *, kind: str) -> str:
    """Why a file is a label map; empty where it is a scan."""
    if kind or segments:
        return {"scan": "", "label": "folder of label maps"}.get(kind, "its segments")
    if is_label_image(source.path):
        return "its intent code"
    stem = source.stems[0]
    if marks_label(stem):
        return "its name"
    if marks_image(stem):
        return ""
    by_folder = folder_kind(source.folders)
    if by_folder:
        return "its folder" if by_folder == "label" else ""
    return "its voxels" if looks_like_labels(read_array(source.path)[0]) else ""
