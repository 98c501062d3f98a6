"""The frames of a DICOM file: where each lies in the patient, and how its values are scaled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mre_lowshot.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

# Attributes in which volumes of one series differ that lie at the same positions, the most specific first. Those of
# enhanced (multi-frame) files follow those of classic ones.
VARIANTS = (
    "EchoNumbers", "EchoTime", "EffectiveEchoTime", "DiffusionBValue", "DiffusionGradientOrientation",
    "TemporalPositionIdentifier", "TemporalPositionIndex", "TriggerTime", "NominalCardiacTriggerDelayTime",
    "NominalPercentageOfCardiacPhase", "InversionTime", "FlipAngle", "StackID", "AcquisitionNumber",
    "FrameAcquisitionNumber", "SequenceName", "ImageType", "FrameType", "ComplexImageComponent", "ConvolutionKernel",
    "KVP", "ContrastBolusAgent", "FrameReferenceTime", "ActualFrameDuration", "AcquisitionDateTime",
    "FrameAcquisitionDateTime", "AcquisitionTime", "SeriesTime",
)  # fmt: skip
LEAVE_OUT = "leave it out"  # ends why something is no scan
_COSINES = 1e-3  # tolerance of direction cosines: their length and right angle
# Objects that no scan is stored in: keyword in the name of their SOP class.
_NO_SCANS = {
    "Segmentation": "a label map (DICOM SEG)",
    "RT Structure": "a set of contours (RTSTRUCT)",
    "RT Dose": "a dose distribution (RTDOSE)",
    "RT Plan": "a treatment plan",
    "Presentation State": "a presentation state",
    "SR Storage": "a structured report",
    "Structured Report": "a structured report",
    "Encapsulated": "a document",
    "Parametric Map": "a parametric map",
    "Raw Data": "raw data",
    "Whole Slide": "a slide of microscopy",
}
_LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")  # JPEG, baseline and extended
_LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"  # a SOP class that pydicom does not name


@dataclass(frozen=True)
class Frame:
    """One slice as it is stored: a file, or a frame of a multi-frame file.

    Attributes:
        path: of the file.
        index: of the frame in the file, from 0.
        multiframe: whether the file is of a kind that holds several frames, and describes each.
        sop: SOP class and instance UID of the file.
        position: of the first pixel's centre, mm (x, y, z) in LPS.
        orientation: direction cosines of a row (of increasing column number), then of a column.
        spacing: mm between rows, and between columns.
        shape: rows and columns.
        rescale: slope and intercept from stored values to the quantity measured.
        reference: Frame of Reference UID.
        variant: attributes of `VARIANTS` that the frame has, with their values as text.
        lossy: the pixels were compressed with loss.
    """

    path: Path
    index: int
    multiframe: bool
    sop: tuple[str, str]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    shape: tuple[int, int]
    rescale: tuple[float, float]
    reference: str
    variant: dict[str, str]
    lossy: bool = False


def unsuitable(header: Dataset) -> str:
    """Why a file is no slice of a scan, and what to do; empty where it is one."""
    name = getattr(header.get("SOPClassUID"), "name", "")
    if str(header.get("SOPClassUID")) == _LABEL_MAP:
        name = "Label Map Segmentation Storage"
    what = next((text for word, text in _NO_SCANS.items() if word in name), "")
    if what:
        return f"is {what}, not a scan; {LEAVE_OUT}"
    if not header.get("Rows") and "Image Storage" not in name:
        return f"holds no image ({name}); {LEAVE_OUT}"
    photometric = str(header.get("PhotometricInterpretation", ""))
    if int(header.get("SamplesPerPixel") or 1) != 1 or photometric.startswith(("PALETTE", "RGB", "YBR")):
        return f"is a colour image ({photometric}), not a scan in one channel of grey values; {LEAVE_OUT}"
    if "MOSAIC" in _texts(header.get("ImageType")):
        return "is a mosaic of slices in one image (Siemens); convert the series with dcm2niix first"
    if "LOCALIZER" in _texts(header.get("ImageType")):
        return f"is a localizer (scout), not a scan; {LEAVE_OUT}"
    return ""


def _unreadable(header: Dataset) -> str:
    """Why a slice cannot be read; its series is refused with it, since without it slices would be missing."""
    if not header.get("Rows") or not header.get("Columns"):
        return "has no Rows and Columns, as a file that was cut off; export it again"
    if not str(header.get("PhotometricInterpretation", "")).startswith("MONOCHROME"):
        return (
            f"has PhotometricInterpretation {header.get('PhotometricInterpretation')!r}; only MONOCHROME1 and "
            "MONOCHROME2 are read: export it as grey values"
        )
    stored, high = header.get("BitsStored"), header.get("HighBit")
    if stored and high is not None and high != stored - 1:  # pydicom takes the lowest bits
        return f"has HighBit {high} with {stored} BitsStored; {stored - 1} is read: export it again"
    if header.get("ModalityLUTSequence"):
        return "has a Modality LUT Sequence, which is not read; export it with Rescale Slope and Intercept"
    return _no_decoder(header)


def _texts(value: Any) -> list[str]:
    values = value if hasattr(value, "append") else [value]
    return [str(v).strip().upper() for v in values]


def _no_decoder(header: Dataset) -> str:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_compressed or syntax.is_deflated:
        return ""
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    return "" if available else f"is compressed as {syntax.name}, which no decoder reads; export it uncompressed"


def frames_of(header: Dataset, path: Path) -> list[Frame]:
    """The frames of a file, in its order.

    Raises:
        UserError: it cannot be read, or an attribute that places a frame in the patient is missing or contradictory.
    """
    if problem := _unreadable(header):
        raise UserError(problem)
    count = int(header.get("NumberOfFrames") or 1)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if groups is None:
        if count != 1:
            raise UserError(f"has {count} frames without a position of each, as a film or cine has; it is no volume")
        return [_frame([header], header, path, 0)]
    if len(groups) != count:
        raise UserError(f"states {count} frames, and describes {len(groups)}; export it again")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    return [_frame([group, *shared, header], header, path, index) for index, group in enumerate(groups)]


def _frame(levels: list[Dataset], header: Dataset, path: Path, index: int) -> Frame:
    """``levels`` are searched in order, each also in the items that its functional groups hold."""
    items = [item for level in levels for item in _items(level, depth=0 if level is header else 2)]

    def find(keyword: str, count: int) -> tuple[float, ...] | None:
        values = next((item[keyword].value for item in items if keyword in item), None)
        if values is None:
            return None
        try:
            numbers = tuple(float(v) for v in (values if count > 1 else [values]))
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise UserError(f"has {keyword} {values!r}; {count} number(s) are needed: export it again")
        return numbers

    position, orientation = find("ImagePositionPatient", 3), find("ImageOrientationPatient", 6)
    spacing, slope, intercept = find("PixelSpacing", 2), find("RescaleSlope", 1), find("RescaleIntercept", 1)
    if position is None or orientation is None or spacing is None:
        found = {"ImagePositionPatient": position, "ImageOrientationPatient": orientation, "PixelSpacing": spacing}
        missing = ", ".join(name for name, value in found.items() if value is None)
        raise UserError(f"has no {missing}: its place in the patient is unknown; export it again, as a volume")
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > _COSINES or abs(row @ column) > _COSINES:
        raise UserError(f"has ImageOrientationPatient {list(orientation)}, which are not two directions at right angles"
                        "; export it again")  # fmt: skip
    if min(spacing) <= 0:
        raise UserError(f"has PixelSpacing {list(spacing)} mm; both must be above 0: export it again")
    if slope == (0.0,):
        raise UserError("has Rescale Slope 0, which makes all values equal; export it again")
    variant = {k: "\\".join(_texts(v)) for k in VARIANTS if (v := _first(items, k)) not in (None, "")}
    if len(levels) > 1:
        variant["file"] = str(header.SOPInstanceUID)  # multi-frame files may each hold one volume
    return Frame(
        path=path,
        index=index,
        multiframe=len(levels) > 1,
        sop=(str(header.SOPClassUID), str(header.SOPInstanceUID)),
        position=position,
        orientation=orientation,
        spacing=spacing,
        shape=(int(header.Rows), int(header.Columns)),
        rescale=((slope or (1.0,))[0], (intercept or (0.0,))[0]),
        reference=str(header.get("FrameOfReferenceUID") or ""),
        variant=variant,
        lossy=is_lossy(header),
    )


def is_lossy(header: Dataset) -> bool:
    """Whether the pixels of a file were compressed with loss: as it states, or as its transfer syntax always does."""
    stated = str(header.get("LossyImageCompression", "")).strip() == "01"
    return stated or str(header.file_meta.get("TransferSyntaxUID", "")) in _LOSSY


def _items(level: Dataset, depth: int) -> Iterator[Dataset]:
    yield level
    for element in level if depth else ():
        if element.VR == "SQ":
            for item in element.value:
                yield from _items(item, depth - 1)


def _first(items: list[Dataset], keyword: str) -> Any:
    return next((item[keyword].value for item in items if keyword in item), None)
