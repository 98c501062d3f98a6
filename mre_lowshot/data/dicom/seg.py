"""Label maps as DICOM SEG on the frames of the series that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mre_lowshot.data.axes import inverse, turn_array
from mre_lowshot.data.colours import label_colours, rgb
from mre_lowshot.data.dicom.codes import Code, terms_of
from mre_lowshot.data.dicom.files import quiet, read_header, reading, require_packages
from mre_lowshot.data.dicom.frames import Frame
from mre_lowshot.data.dicom.seg_origin import date_of, state_loss
from mre_lowshot.data.dicom.series import Series
from mre_lowshot.data.volume import Volume
from mre_lowshot.errors import UserError
from mre_lowshot.files import atomic_write
from mre_lowshot.limits import require_memory

if TYPE_CHECKING:
    from pydicom import Dataset

KINDS = ("BINARY", "LABELMAP")
RESEARCH = "For research only"
_NAME = "mre_lowshot"
_PER_FRAME = 60_000  # bytes that a frame's description needs in memory


def write_seg(
    path: str | Path,
    labels: Volume,
    series: Series,
    *,
    label_names: Mapping[str, int],
    algorithm: tuple[str, str],
    kind: str = "BINARY",
    colours: Mapping[int, str] | None = None,
    codes: Mapping[str, Code] | None = None,
) -> None:
    """Write a label map as DICOM SEG: each of its slices belongs to the frame of the series it was made of.

    Slices without a label are left out. The UIDs are derived from those of the series, the algorithm and the labels:
    the same result is the same instance, and replaces it where it is sent again; results of one algorithm for one
    series form one series. Dates and times are those of the series, so that the same result is the same file.

    Args:
        path: of the file.
        labels: (D, H, W) on the grid of the series; 0 is background.
        series: as read by `data.dicom.volume.read_series`.
        label_names: name to value; the values above 0 are 1, 2, ... without gaps, and become the segment numbers.
        algorithm: name and version of the model.
        kind: ``BINARY`` (one bit a voxel, a frame for each label) or ``LABELMAP`` (read by few viewers so far).
        colours: ``#rrggbb`` of each label value (`data.colours`); None: those of a dataset.json that gives none.
        codes: name to (value, scheme, meaning) of labels that dataset.json gives codes for; the others get those of
            `data.dicom.codes`.

    Raises:
        UserError: the labels do not lie on the grid of the series or are not in ``label_names``, the kind is unknown, a
            header of the series is incomplete, or the file cannot be written.
    """
    require_packages()
    path = Path(path)
    if kind not in KINDS:
        raise UserError(f"DICOM SEG {kind!r}: is not one of {', '.join(KINDS)}")
    segments = _segments(label_names)
    stored = _on_frames(path, labels, series, segments)
    colours = label_colours(label_names) if colours is None else colours
    used = np.flatnonzero(stored.any(axis=(1, 2)))
    chosen = used if len(used) else np.array([len(stored) // 2])  # an empty one: a slice without labels
    count = len(segments) * len(chosen) if kind == "BINARY" else len(chosen)
    require_memory(
        2.0 * stored.nbytes + count * (_PER_FRAME + stored[0].size / (4 if kind == "BINARY" else 0.5)),
        f"{path}: a DICOM SEG of {count} frames",
        "write another format, or crop the scan",
    )
    with quiet():
        descriptions = _described(segments, algorithm, colours=colours, codes=codes or {})
        made = _segmentation(path, series, stored, chosen, kind=kind, descriptions=descriptions, algorithm=algorithm)
        with atomic_write(path) as temporary, _following_standard(path, series):
            made.save_as(temporary, enforce_file_format=True)


@contextmanager
def _following_standard(path: Path, series: Series) -> Iterator[None]:
    """Refuse a source that violates the standard, for which highdicom and pydicom raise many kinds of errors. Only
    calls to them belong inside: an error of our own must not look like one of the source.

    Raises:
        UserError: names the series.
    """
    try:
        yield
    except (OSError, MemoryError):  # of the disk or machine
        raise
    except Exception as problem:
        raise UserError(
            f"{path}: a DICOM SEG cannot refer to series {series.name} ({problem}); write another format"
        ) from None


def _segments(label_names: Mapping[str, int]) -> dict[int, str]:
    segments = {value: name for name, value in sorted(label_names.items(), key=lambda item: item[1]) if value > 0}
    if not segments or list(segments) != list(range(1, len(segments) + 1)):
        raise UserError(f"labels {dict(label_names)}: a DICOM SEG numbers its segments 1, 2, ...; renumber the labels")
    return segments


def _on_frames(path: Path, labels: Volume, series: Series, segments: Mapping[int, str]) -> np.ndarray:
    """The labels (slice, row, column) in the order of the series' frames, as unsigned integers."""
    if series.problem or series.geometry is None:
        raise UserError(f"{path}: series {series.name} cannot be read: {series.problem}")
    different = series.geometry.differences(labels.geometry)
    if different or labels.array.ndim != 3:
        found = "; ".join(different) or f"an array of {labels.array.ndim} axes"
        raise UserError(f"{path}: the label map is not on the grid of series {series.name}: {found}; resample it")
    array = labels.on_axes_of(series.geometry).array
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > len(segments):
        bad = low if low < 0 else high
        raise UserError(f"{path}: label {bad} is not in the labels {dict(segments)}; add it there or relabel")
    turned = turn_array(array, inverse(series.geometry.axes))
    return np.ascontiguousarray(turned, dtype=np.uint8 if len(segments) < 256 else np.uint16)


def _described(
    segments: Mapping[int, str],
    algorithm: tuple[str, str],
    *,
    colours: Mapping[int, str],
    codes: Mapping[str, Code],
) -> list[Any]:
    import highdicom as hd
    from highdicom.color import CIELabColor
    from pydicom.sr.codedict import codes as known

    name, version = algorithm
    identification = hd.AlgorithmIdentificationSequence(
        name=_text(name), family=known.DCM.ArtificialIntelligence, version=_text(version), source=_NAME
    )
    found = []
    for number, label in segments.items():
        terms = terms_of(label, codes.get(label))
        description = hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=_text(label),
            segmented_property_category=hd.sr.CodedConcept(*terms.category),
            segmented_property_type=hd.sr.CodedConcept(*terms.type),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=identification,
            display_color=CIELabColor.from_rgb(*rgb(colours[number])),
        )
        if terms.side is not None:
            kind = description.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept(*terms.side)]
        found.append(description)
    return found


def _segmentation(
    path: Path,
    series: Series,
    stored: np.ndarray,
    chosen: np.ndarray,
    *,
    kind: str,
    descriptions: Sequence[Any],
    algorithm: tuple[str, str],
) -> Any:
    import highdicom as hd
    from pydicom.uid import generate_uid

    from mre_lowshot import __version__

    header = read_header(series.files[0], everything=True)
    with reading(series.files[0]):
        if not header.get("FrameOfReferenceUID"):
            raise UserError("has no Frame of Reference UID, which a DICOM SEG needs; write another format")
        common = _common(series, header)
    origin = [series.key, series.study_uid, *algorithm, kind]
    content = hashlib.sha256(stored.tobytes()).hexdigest()
    described = hashlib.sha256("".join(str(d) for d in descriptions).encode()).hexdigest()
    frames = [series.frames[i] for i in chosen]
    date, time = date_of(header)
    sources = [_source(common, frame, number) for number, frame in enumerate(frames)]
    with _following_standard(path, series):
        made = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=stored[chosen],
            segmentation_type=kind,
            segment_descriptions=descriptions,
            series_instance_uid=generate_uid(entropy_srcs=[*origin, "series"]),
            series_number=int(series.number) * 100 + 90 if series.number.isdigit() and len(series.number) < 6 else 9000,
            sop_instance_uid=generate_uid(entropy_srcs=[*origin, content, described]),
            instance_number=1,
            manufacturer=_NAME,
            manufacturer_model_name=_text(algorithm[0]),
            software_versions=__version__,
            device_serial_number="0",
            content_description=RESEARCH,
            content_label="SEGMENTATION",
            series_description=_text(f"{RESEARCH}: {series.description or 'segmentation'}"),
            specific_character_set="ISO_IR 192",  # UTF-8
            content_date=date,
            content_time=time,
        )
    _without_clock(made)
    _refer(made, series, frames)
    organization = generate_uid(entropy_srcs=[*origin, content, described, "dimensions"])
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    return made


def _common(series: Series, header: Dataset) -> Dataset:
    """What all frames of the source have in common, as highdicom copies it: missing attributes empty, values that
    violate the standard left out."""
    from pydicom import Dataset
    from pydicom.valuerep import DA, DS, TM

    made = Dataset()
    for element in header:
        if element.VR != "SQ" and element.tag.group in (0x0008, 0x0010, 0x0020, 0x0040) and not element.tag.is_private:
            made.add(element)
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                    "StudyDate", "StudyTime", "ReferringPhysicianName"):  # fmt: skip
        if made.get(keyword) is None:
            setattr(made, keyword, "")
    if made.PatientSex not in ("M", "F", "O", ""):
        made.PatientSex = ""
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(made[keyword].value)
        except (ValueError, TypeError):
            setattr(made, keyword, "")
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"  # see `_source`
    for keyword in ("SOPInstanceUID", "ImagePositionPatient"):  # each frame has its own
        made.pop(keyword, None)
    made.Modality = str(header.get("Modality") or "OT")
    state_loss(made, series)
    first = series.frames[0]
    made.Rows, made.Columns = first.shape
    made.ImageOrientationPatient = [DS(v, auto_format=True) for v in first.orientation]
    made.PixelSpacing = [DS(v, auto_format=True) for v in first.spacing]
    made.SpacingBetweenSlices = DS(series.spacing[0], auto_format=True)
    made.SliceThickness = header.get("SliceThickness") or made.SpacingBetweenSlices
    return made


def _source(common: Dataset, frame: Frame, number: int) -> Dataset:
    """A frame as a CT image of its own, with ``number`` as its UID; `_refer` puts the file and frame in its place.
    highdicom itself refuses multi-frame files with several stacks, or whose orientation is not a shared one."""
    from pydicom import Dataset
    from pydicom.valuerep import DS

    made = Dataset()
    made.update(common)
    made.SOPInstanceUID = f"2.25.{number + 1}"
    made.ImagePositionPatient = [DS(v, auto_format=True) for v in frame.position]
    return made


def _without_clock(made: Any) -> None:
    """Remove the dates that highdicom takes from the clock; they are optional. See `date_of`."""
    for item in (made, *(made.get("ContributingEquipmentSequence") or ())):
        for keyword in ("InstanceCreationDate", "InstanceCreationTime", "ContributionDateTime"):
            item.pop(keyword, None)


def _refer(made: Any, series: Series, frames: Sequence[Frame]) -> None:
    """Put the files and frames of the series in the places of those that `_source` made up."""
    from pydicom import Dataset

    done: set[int] = set()  # frames of several segments share an item
    for group in made.PerFrameFunctionalGroupsSequence:
        for derivation in group.DerivationImageSequence:
            for item in derivation.SourceImageSequence:
                if id(item) in done:
                    continue
                done.add(id(item))
                frame = frames[int(item.ReferencedSOPInstanceUID.rsplit(".", 1)[1]) - 1]
                item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = frame.sop
                if frame.multiframe:
                    item.ReferencedFrameNumber = frame.index + 1
    files = []
    for class_uid, instance_uid in dict.fromkeys(frame.sop for frame in series.frames):
        file = Dataset()
        file.ReferencedSOPClassUID, file.ReferencedSOPInstanceUID = class_uid, instance_uid
        files.append(file)
    source = Dataset()
    source.SeriesInstanceUID, source.ReferencedInstanceSequence = series.uid, files
    made.SourceImageSequence, made.ReferencedSeriesSequence = files, [source]


def _text(value: str) -> str:
    """As the value of a long string (LO)."""
    return value.replace("\\", "/").strip()[:64] or "unknown"
