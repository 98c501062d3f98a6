"""What a DICOM SEG states of the images that it was made of: their compression with loss, and their date."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mre_lowshot.data.dicom.files import read_header
from mre_lowshot.data.dicom.series import Series

if TYPE_CHECKING:
    from pydicom import Dataset

_DATES = ("Content", "Acquisition", "Series", "Study")
_NO_DATE = ("19000101", "000000")


def state_loss(made: Dataset, series: Series) -> None:
    """State in ``made`` whether an image of the series was compressed with loss, how and how much.

    A result of such images counts as compressed with loss itself (DICOM PS3.3 C.7.6.1.1.5). Where images differ, the
    values are those of the image that was compressed most, so that no loss is stated smaller than it is; ratio and
    method are taken from one image, since the standard pairs them. What no image states is left out: a guess would be
    read as a fact.
    """
    lossy = dict.fromkeys(frame.path for frame in series.frames if frame.lossy)
    made.LossyImageCompression = "01" if lossy else "00"
    found = [_loss(read_header(path, everything=True)) for path in lossy]
    ratios, methods = max(found, key=lambda loss: (bool(loss[0]), bool(loss[1]), math.prod(loss[0])), default=((), ()))
    if ratios:
        made.LossyImageCompressionRatio = [f"{ratio:.10g}" for ratio in ratios]
    if methods:
        made.LossyImageCompressionMethod = list(methods)


def _loss(header: Dataset) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Ratios and methods of the successive compressions of an image; empty where they are not stated as it should."""
    try:
        ratios = tuple(float(value) for value in _values(header, "LossyImageCompressionRatio"))
        methods = tuple(str(value) for value in _values(header, "LossyImageCompressionMethod"))
    except (ValueError, TypeError, ArithmeticError):
        return (), ()
    return (ratios if all(1 <= ratio < 1e6 for ratio in ratios) else ()), (methods if all(methods) else ())


def _values(header: Dataset, keyword: str) -> list[Any]:
    value = header.get(keyword)
    return [] if value in (None, "") else list(value) if hasattr(value, "append") else [value]


def date_of(header: Dataset) -> tuple[str, str]:
    """Date and time for the content of a DICOM SEG, which must have both: those of its source, the most specific that
    the header has, so that the same result is the same file. Without any date, as after removal of the patient's data,
    the first day of 1900, which is no day of a scan."""
    from pydicom.valuerep import DA, TM

    for name in _DATES:
        try:
            date = DA(str(header.get(f"{name}Date") or ""))
        except (ValueError, TypeError):
            continue
        if not date:
            continue
        try:
            time = TM(str(header.get(f"{name}Time") or "000000"))
        except (ValueError, TypeError):
            time = TM("000000")
        return str(date), str(time or "000000")
    return _NO_DATE
