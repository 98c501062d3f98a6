"""The formats of label maps that are written: `FORMATS`, by the names of ``--output_format``.

A new format is one more line of `FORMATS`: what follows the case's name in the file's name, and a writer. What other
modules need to know of a format (which files it has, whether one is whole and belongs to a scan) is asked of it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mre_lowshot.config.json import suggest
from mre_lowshot.data.dataset import Case
from mre_lowshot.data.dicom.codes import Code
from mre_lowshot.data.dicom.files import require_packages
from mre_lowshot.data.dicom.seg import write_seg
from mre_lowshot.data.dicom.seg_check import check_seg, referred_series
from mre_lowshot.data.dicom.seg_reader import differences, read_on, read_seg
from mre_lowshot.data.dicom.series import Series
from mre_lowshot.data.importing.slicer import placed, read_segments, read_slicer
from mre_lowshot.data.readers import file_ending, nrrd
from mre_lowshot.data.scan_input import geometry_of_case
from mre_lowshot.data.seg_nrrd import ENDING
from mre_lowshot.data.volume import Volume, read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.files import printable
from mre_lowshot.inference.export import Prediction
from mre_lowshot.inference.models import Model


@dataclass(frozen=True)
class ModelLabels:
    """How a model's labels are called and drawn, and what they are made by.

    Attributes:
        names: name to value, background included.
        colours: ``#rrggbb`` of each value above 0.
        codes: name to coded term, of the labels that dataset.json gives one.
        algorithm: name and version of the model.
    """

    names: Mapping[str, int]
    colours: Mapping[int, str]
    codes: Mapping[str, Code] = field(default_factory=dict)
    algorithm: tuple[str, str] = ("mre_lowshot", "unknown")

    @classmethod
    def of(cls, model: Model) -> ModelLabels:
        """From the dataset.json that the model's checkpoint holds, and its plan.

        Raises:
            UserError: colours or codes in it that are none.
        """
        plan = model.plan
        level = f" {plan.fold.level}" if plan.fold else ""
        folds = ", ".join(map(str, model.folds))
        return cls(
            plan.labels,
            model.colours,
            model.codes,
            (f"{plan.dataset_name} {plan.plans_name}{level} fold {folds}", model.version),
        )


def _save(path: str | Path, prediction: Prediction, labels: ModelLabels, series: Series | None) -> None:
    prediction.save(path)


def _seg_of_kind(kind: str) -> Writer:
    def write(path: str | Path, prediction: Prediction, labels: ModelLabels, series: Series | None) -> None:
        if series is None:
            raise UserError(f"{path}: {NEEDS_DICOM}")
        write_seg(path, prediction.labels, series, label_names=labels.names, algorithm=labels.algorithm, kind=kind,
                  colours=labels.colours, codes=labels.codes)  # fmt: skip

    return write


Names = Mapping[str, int]  # name to value of a model's labels


class UnknownSegmentError(UserError):
    """A file with segments holds one whose name is none of the model's labels."""


def _image_misfit(path: Path, case: Case, names: Names) -> str:
    labels, grid = read_labels(path), geometry_of_case(case)
    if different := labels.geometry.differences(grid):
        return f"is not on the grid of the scan: {different[0]}"
    return _other_values(labels, names)


def _other_values(labels: Volume, names: Names) -> str:
    others = sorted({int(v) for v in np.unique(labels.array)} - set(names.values()))
    return f"holds the labels {others}, which the model does not have" if others else ""


def _seg_nrrd_misfit(path: Path, case: Case, names: Names) -> str:
    try:
        return _other_values(_read_seg_nrrd(path, case, names), names)
    except UserError as problem:
        return f"does not fit the scan: {str(problem).removeprefix(f'{path}: ')}"


def _seg_misfit(path: Path, case: Case, names: Names) -> str:
    if not case.series or case.series[0].uid not in referred_series(path):
        return "is a DICOM SEG of another series"
    try:
        seg = read_seg(path)
        _values_of(path, seg.segments, names, {n: n for n in seg.segments})
    except UserError as problem:
        return f"does not fit the scan: {str(problem).removeprefix(f'{path}: ')}"
    different = differences(seg, geometry_of_case(case), is_source=True)
    return f"is not on the grid of the scan: {different}" if different else ""


def _values_of(
    path: Path, segments: Mapping[int, str], names: Names | None, stored: Mapping[int, int]
) -> Mapping[int, int]:
    """The value of each segment (number to name): that of the label of its name, because a program that changed the
    file may have numbered its segments anew, for example without an empty one. The ``stored`` values (number to value)
    count without ``names``, and where two names are the same in the form that a file holds.

    Raises:
        UnknownSegmentError: a name is none of ``names``.
    """
    known = {_as_stored(name): value for name, value in (names or {}).items()}
    if names is None or len(known) < len(names):
        return stored
    values = {}
    for number, name in segments.items():
        if _as_stored(name) not in known:
            raise UnknownSegmentError(
                f"{path}: holds the segment {name!r}, and the model's labels are "
                f"{', '.join(name for name, value in names.items() if value)}; rename or remove the segment"
            )
        values[number] = known[_as_stored(name)]
    return values


def _as_stored(name: str) -> str:
    """A name as the formats with segments hold it: at most 64 characters, without the signs that they cannot hold."""
    flat = "".join(letter if letter.isprintable() else " " for letter in printable(name)).replace("\\", "/")
    return " ".join(flat.split())[:64].strip()


def _read(path: Path) -> None:
    read_labels(path)


def _read_image(path: Path, case: Case, names: Names | None = None) -> Volume:
    return read_labels(path, like=geometry_of_case(case))


def _read_seg_nrrd(path: Path, case: Case, names: Names | None = None) -> Volume:
    _, segments = read_segments(path)
    if not segments:  # written by another program, as a plain label map
        return _read_image(path, case)
    if any(segment.layer for segment in segments):  # the values of two layers do not identify labels
        raise UserError(f"{path}: holds segments in several layers, which may overlap; merge them into one layer")
    grid = geometry_of_case(case)
    values = _values_of(path, {s.number: s.name for s in segments}, names, {s.number: s.value for s in segments})
    labels = read_slicer(path, segments, values)
    return Volume(placed(labels, grid), grid, path, labels.notes)  # Slicer crops what it saves


def _check_seg_nrrd(path: Path) -> None:
    nrrd.read(path, layers=True)


def _read_seg(path: Path, case: Case, names: Names | None = None) -> Volume:
    grid, seg = geometry_of_case(case), read_seg(path)
    return Volume(
        read_on(
            seg,
            grid,
            _values_of(path, seg.segments, names, {n: n for n in seg.segments}),
            is_source=True,
        ),
        grid,
        path,
    )


Writer = Callable[["str | Path", Prediction, ModelLabels, "Series | None"], None]
NEEDS_DICOM = (
    "a DICOM SEG refers to the DICOM series that it was made of, and this scan is none; choose another --output_format"
)


@dataclass(frozen=True)
class Format:
    """A format of label maps.

    Attributes:
        ending: follows the case's name.
        write: writes a prediction to a path; it may also write the files of ``beside``.
        beside: endings of further files that ``write`` writes into the same folder.
        needs_dicom: whether the scan must be a DICOM series.
        check: raises where a file of this format is damaged.
        read: a label map of this format, corrected by a person or not, on the grid of a case. Segments get the values
            of the labels of their names; without names, their numbers.
        misfit: why a whole file is not of this case and these labels (name to value); empty where it is.
    """

    ending: str
    write: Writer = _save
    beside: tuple[str, ...] = ()
    needs_dicom: bool = False
    check: Callable[[Path], None] = _read
    read: Callable[[Path, Case, Names | None], Volume] = _read_image
    misfit: Callable[[Path, Case, Names], str] = _image_misfit


_SEG = Format(".seg.dcm", _seg_of_kind("BINARY"), needs_dicom=True, check=check_seg, read=_read_seg, misfit=_seg_misfit)
FORMATS: dict[str, Format] = {
    "nifti": Format(".nii.gz"),
    "nrrd": Format(".nrrd"),
    "mha": Format(".mha"),
    "seg.nrrd": Format(ENDING, check=_check_seg_nrrd, read=_read_seg_nrrd, misfit=_seg_nrrd_misfit),
    "dicom-seg": _SEG,
    "dicom-labelmap": replace(_SEG, ending=".labelmap.dcm", write=_seg_of_kind("LABELMAP")),
}


def read_for_display(made: Format, path: Path, case: Case, names: Names) -> Volume:
    """As `Format.read`; where a segment has another name than ``names``, segments get their numbers."""
    try:
        return made.read(path, case, names or None)
    except UnknownSegmentError:
        return made.read(path, case, None)


DICOM_DEFAULT = "dicom-seg"
_CONTOURS = ("rtstruct", "dicomrtstruct", "rtss", "dicomrt", "rt")  # without - and _
_NO_CONTOURS = (
    "RTSTRUCT is not written: it holds contours instead of voxels, and the library that writes it from label maps "
    "(rt-utils) does not keep holes reliably; write dicom-seg and convert it, as docs/DICOM.md describes"
)
_VARIANTS = {".nii": "nifti", ".mhd": "mha"}  # further endings of a format
ENDINGS = tuple(found.ending for found in FORMATS.values())
BESIDE_ENDINGS = tuple(dict.fromkeys(ending for found in FORMATS.values() for ending in found.beside))


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no format, or given twice.

    Raises:
        UserError: names it, of RTSTRUCT with the reason; or the packages for DICOM are missing.
    """
    for name in names:
        if str(name).lower().replace("-", "").replace("_", "").replace(".", "") in _CONTOURS:
            raise UserError(f"--output_format {name}: {_NO_CONTOURS}")
        if name not in FORMATS:
            raise UserError(f"--output_format {name!r}: {suggest(str(name), tuple(FORMATS))}")
        if FORMATS[name].needs_dicom:
            require_packages()
    if len(set(names)) < len(names):
        raise UserError(f"--output_format {' '.join(names)}: names a format twice; remove one")


def formats_of(case: Case, names: Sequence[str]) -> list[Format]:
    """The formats of a case's label maps: those named, or the format of its scan where none is."""
    if names:
        return [FORMATS[name] for name in names]
    if case.series:
        return [FORMATS[DICOM_DEFAULT]]
    ending = file_ending(case.images[0])
    for found in FORMATS.values():
        if found.ending == ending:
            return [found]
    return [replace(FORMATS[_VARIANTS[ending]] if ending in _VARIANTS else Format(ending), ending=ending)]


def refuse_formats(cases: Sequence[Case], names: Sequence[str]) -> None:
    """Refuse formats that need DICOM for a scan that is none.

    Raises:
        UserError: names the format and the case.
    """
    for name in names:
        case = next((case for case in cases if not case.series), None)
        if FORMATS[name].needs_dicom and case is not None:
            others = ", ".join(n for n, found in FORMATS.items() if not found.needs_dicom)
            raise UserError(
                f"--output_format {name}: a DICOM SEG refers to a DICOM series, and case {case.name} is "
                f"{case.images[0].name}; give the DICOM series as input, or choose from {others}"
            )
