"""Whether a DICOM SEG is whole, and of which series it is: from its header and its length."""

from __future__ import annotations

from pathlib import Path

from mre_lowshot.data.dicom.files import read_header, require_packages
from mre_lowshot.errors import UserError

_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # segmentation, label map segmentation


def check_seg(path: Path) -> None:
    """Refuse a file that is no DICOM SEG, or was cut off.

    Raises:
        UserError: says so.
    """
    require_packages()
    header = read_header(path, everything=True)
    if str(header.get("SOPClassUID")) not in _CLASSES:
        raise UserError(f"{path}: is no DICOM SEG; move it away")
    bits = int(header.get("NumberOfFrames") or 0) * int(header.Rows) * int(header.Columns) * int(header.BitsAllocated)
    compressed = header.file_meta.TransferSyntaxUID.is_encapsulated
    if not compressed and path.stat().st_size < (bits + 7) // 8:
        raise UserError(f"{path}: was cut off; predict the scan again")


def referred_series(path: Path) -> set[str]:
    """The Series Instance UIDs that a DICOM SEG refers to.

    Raises:
        UserError: its header cannot be read.
    """
    header = read_header(path, everything=True)
    return {str(item.get("SeriesInstanceUID")) for item in header.get("ReferencedSeriesSequence") or ()}
