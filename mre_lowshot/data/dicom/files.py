"""The DICOM files of a folder, and their headers."""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mre_lowshot.data.dicom.frames import VARIANTS
from mre_lowshot.data.listing import no_folder
from mre_lowshot.errors import UserError, install_extra
from mre_lowshot.limits import require_memory
from mre_lowshot.quiet import Shared, without_warnings

if TYPE_CHECKING:
    from pydicom import Dataset

_DIRECTORY = "1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR
_TAGS = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "StudyDate", "Modality", "SeriesDescription", "SeriesNumber", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "ImageOrientationPatient",
    "ImagePositionPatient", "PixelSpacing", "GantryDetectorTilt", "RescaleSlope", "RescaleIntercept", "RescaleType",
    "ModalityLUTSequence", "LossyImageCompression", "SharedFunctionalGroupsSequence", "EncapsulatedDocument",
    "PerFrameFunctionalGroupsSequence", *VARIANTS,
)  # fmt: skip


def require_packages() -> None:
    """Refuse anything with DICOM where the packages of the extra are missing.

    Raises:
        UserError: one of them is missing.
    """
    for name in ("pydicom", "highdicom"):
        if find_spec(name) is None:
            raise UserError(f"DICOM needs the package {name}, which is missing: {install_extra('dicom')}")


@contextmanager
def _silent_loggers() -> Iterator[None]:
    import logging

    loggers = [logging.getLogger("pydicom"), logging.getLogger("highdicom")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


_LOGGERS = Shared(_silent_loggers)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of pydicom and highdicom: what matters in them is checked here and named with the file."""
    with without_warnings(), _LOGGERS.held():
        yield


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Refuse a file that pydicom fails on, whatever it raises. It converts a value when the value is asked for, so that
    every access to a header with ``everything`` belongs inside.

    Raises:
        UserError: as raised inside, with the path before it; or says that the header cannot be read.
    """
    try:
        with quiet():
            yield
    except UserError as problem:
        text = str(problem)
        raise type(problem)(text if text.startswith(str(path)) else f"{path}: {text}") from None
    except MemoryError:
        raise
    except Exception as problem:  # pydicom raises many kinds for damaged files and values that violate the standard
        raise UserError(f"{path}: its DICOM header cannot be read ({problem}); export the file again") from None


def find_files(folder: Path, ignore: Sequence[Path] = ()) -> tuple[list[Path], int]:
    """The DICOM files of a folder and its subfolders, whatever their names, and how many other files there are. A file
    that several links lead to counts once. ``folder`` may also be one file. Folders in ``ignore`` are left out.

    Raises:
        UserError: the folder is missing, or it or a file cannot be read.
    """
    found, others = divide_files(folder, ignore)
    return found, len(others)


def divide_files(folder: Path, ignore: Sequence[Path] = ()) -> tuple[list[Path], list[Path]]:
    """As `find_files`, with the other files themselves.

    Raises:
        UserError: as `find_files`.
    """
    if not folder.exists():
        raise UserError(no_folder(folder))
    found: list[Path] = []
    others: list[Path] = []
    for path in walk(folder, ignore) if folder.is_dir() else [folder]:
        (found if is_dicom(path) else others).append(path)
    return found, others


def holds_dicom(folder: Path, ignore: Sequence[Path] = ()) -> bool:
    """Whether a folder or one of its subfolders holds a DICOM file; the search ends at the first.

    Raises:
        UserError: as `find_files`.
    """
    return any(is_dicom(path) for path in walk(folder, ignore))


def walk(folder: Path, ignore: Sequence[Path] = ()) -> Iterator[Path]:
    """The regular files of a folder and its subfolders, each once, without the folders in ``ignore``.

    Raises:
        UserError: a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()

    def refuse(problem: OSError) -> None:
        raise UserError(f"{problem.filename}: cannot be read ({problem.strerror}); change its permissions or move it")

    def first(path: str) -> os.stat_result | None:
        try:
            status = os.stat(path)
        except OSError:
            return None  # a link to nowhere
        known = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        return None if known else status

    for path in (*ignore, folder):  # what has been seen is not entered
        first(str(path))
    for base, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in sorted(folders) if first(os.path.join(base, name))]
        for name in sorted(names):
            status = first(os.path.join(base, name))
            if status is not None and stat.S_ISREG(status.st_mode):  # a pipe would block
                yield Path(base, name)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as problem:
        raise UserError(f"{path}: cannot be read ({problem.strerror}); change its permissions or move it") from None
    if start[128:] == b"DICM":
        return True
    # Files of old systems begin with their first element, of group 0002 or 0008.
    return (
        start[:2] in (b"\x02\0", b"\x08\0") and start[3:4] == b"\0" and (start[4:6].isupper() or start[6:8] == b"\0\0")
    )


def is_directory(header: Dataset) -> bool:
    """Whether the file is a DICOMDIR, a list of other files."""
    return str(header.file_meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY


def read_header(path: Path, everything: bool = False) -> Dataset:
    """The header of a DICOM file without its pixels: what `find_series` needs, or ``everything``, whose values are
    converted when they are asked for: see `reading`.

    Raises:
        UserError: it cannot be read.
    """
    import pydicom

    with reading(path):
        _check_deflated(path)
        header = pydicom.dcmread(
            path, stop_before_pixels=True, force=True, specific_tags=None if everything else list(_TAGS)
        )
        if not everything:
            for _ in (*header.file_meta, *header):  # converts every value
                pass
    return header


class _RestWanted(Exception):
    """pydicom asks for the rest of a file."""


class _Start(io.BufferedReader):
    """A file that is read in pieces of stated size only."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise _RestWanted
        return super().read(size)


def _check_deflated(path: Path) -> None:
    """Refuse a deflated file that does not fit into memory when it is inflated, as pydicom does, at once.

    Where the deflated part begins is left to pydicom itself: a search of our own for it, by the length that the file
    states, for example, could be led to another part of the file.
    """
    from pydicom.filereader import read_partial

    with _Start(io.FileIO(path)) as file:
        try:
            read_partial(file, stop_when=lambda tag, vr, length: True, force=True)
        except _RestWanted:  # it takes the rest of a file only to inflate it
            pass
        else:
            return
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        block = file.read(1 << 16)
        while block and not inflater.eof:
            size += len(inflater.decompress(block, 1 << 24))
            require_memory(4 * size, f"{path}: a deflated file of over {size / 1e6:.0f} MB", "export it uncompressed")
            block = inflater.unconsumed_tail or file.read(1 << 16)
        if not inflater.eof:
            raise UserError("its deflated part is cut off; export it again")
