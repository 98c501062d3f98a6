"""What is kept of the header of each file of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mre_lowshot.data.dicom.files import is_directory, read_header, reading
from mre_lowshot.data.dicom.frames import Frame, frames_of, is_lossy, unsuitable
from mre_lowshot.errors import UserError
from mre_lowshot.files import sha256

if TYPE_CHECKING:
    from pydicom import Dataset

_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_KEPT = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "StudyDate", "Modality", "SeriesDescription",
         "SeriesNumber", "SOPInstanceUID")  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A DICOM file: its frames, or why it has none.

    Attributes:
        path: of the file.
        texts: the attributes of `_KEPT` by keyword; empty where the file has none.
        unfit: why it is no slice of a scan; empty where it is one.
        frames: its slices.
        problem: why it cannot be read although it is a slice; its series is refused with it, without it a slice would
            be missing.
        lossy: its pixels were compressed with loss.
    """

    path: Path
    texts: dict[str, str]
    unfit: str = ""
    frames: tuple[Frame, ...] = ()
    problem: str = ""
    lossy: bool = False

    @property
    def group(self) -> tuple[str, ...]:
        """Equal for the files of one series, apart from those of another kind in it."""
        return (*(self.texts[key] for key in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")), self.unfit)


def read_entry(path: Path) -> Entry | None:
    """What is kept of a file; None of a DICOMDIR, which is no object of a series.

    Raises:
        UserError: its header cannot be read, or lacks what assigns it to a series.
    """
    header = read_header(path)
    if is_directory(header):
        return None
    with reading(path):
        return _entry(path, header)


def _entry(path: Path, header: Dataset) -> Entry:
    for keyword in _NEEDED:
        if not header.get(keyword):
            raise UserError(f"{path}: has no {keyword}, as a file that was cut off; export it again")
    texts = {keyword: " ".join(str(header.get(keyword) or "").split()) for keyword in _KEPT}
    unfit = unsuitable(header)
    if unfit:
        return Entry(path, texts, unfit=unfit)
    lossy = is_lossy(header)
    try:
        return Entry(path, texts, frames=tuple(frames_of(header, path)), lossy=lossy)
    except UserError as problem:
        return Entry(path, texts, problem=f"{path.name} {problem}")
    except Exception as problem:
        return Entry(path, texts, problem=f"{path.name} has a header that cannot be read ({problem}); export it again")


def without_copies(entries: Sequence[Entry]) -> tuple[list[Entry], int]:
    """The entries, each image once, and how many copies there are.

    Raises:
        UserError: two files of one image differ.
    """
    kept: dict[str, Entry] = {}
    for entry in entries:
        first = kept.setdefault(entry.texts["SOPInstanceUID"], entry).path
        if first != entry.path and sha256(first) != sha256(entry.path):
            raise UserError(
                f"has two different files with one SOP Instance UID: {first} and {entry.path}; remove one of them"
            )
    return list(kept.values()), len(entries) - len(kept)
