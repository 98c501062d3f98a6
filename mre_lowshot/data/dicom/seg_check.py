"""Whether a DICOM SEG is whole, and of which series it is: from its header and its length."""

from __future__ import annotations

from pathlib import Path

from mre_lowshot.data.dicom.files import read_header, reading, require_packages
from mre_lowshot.errors import UserError

_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # segmentation, label map segmentation


def check_seg(path: Path) -> None:
    """Refuse a file that is no DICOM SEG, or was cut off.

    Raises:
        UserError: says so.
    """
    require_packages()
    with reading(path):
        if str(read_header(path, everything=True).get("SOPClassUID")) not in _CLASSES:
            raise UserError("is no DICOM SEG; move it away")
        if not _has_all_pixels(path):
            raise UserError("was cut off; predict the scan again")


def _has_all_pixels(path: Path) -> bool:
    """Whether the file is as long as the length of its pixel data says."""
    import pydicom

    with path.open("rb") as file:
        pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=[])
        start = file.read(12)  # tag, VR, reserved, length
        length = int.from_bytes(start[8:], "little")
        if start[:4] != b"\xe0\x7f\x10\x00" or length == 0xFFFFFFFF:  # of unknown length: compressed by others
            return start[:4] == b"\xe0\x7f\x10\x00"
        return path.stat().st_size >= file.tell() + length


def referred_series(path: Path) -> set[str]:
    """The Series Instance UIDs that a DICOM SEG refers to.

    Raises:
        UserError: its header cannot be read.
    """
    with reading(path):
        header = read_header(path, everything=True)
        return {str(item.get("SeriesInstanceUID")) for item in header.get("ReferencedSeriesSequence") or ()}
