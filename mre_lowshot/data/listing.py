"""The image files of a folder. Whatever looks like an image and is not read is named, so that no input is lost."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mre_lowshot.config.check import RESERVED_LETTERS, is_device_name
from mre_lowshot.data.readers import READABLE_ENDINGS
from mre_lowshot.data.readers import file_ending as ending_of
from mre_lowshot.errors import UserError

# Image formats and archives that are not supported and are reported. Files with any other ending are skipped.
FOREIGN_ENDINGS = (".dcm", ".dicom", ".ima", ".mgz", ".mgh", ".img", ".hdr", ".nhdr", ".mnc", ".par", ".gipl", ".vtk",
                   ".jpg", ".jpeg", ".jp2", ".bmp", ".gif", ".npy", ".npz", ".mat", ".h5", ".bz2", ".gz", ".zip", ".xz",
                   ".zst", ".7z", ".rar", ".tar", ".minc", ".analyze", ".svs", ".czi", ".webp")  # fmt: skip
CONVERT = "convert it first (DICOM to NIfTI by dcm2niix, for example)"
# A readable ending inside a name, as in a.nii.gz.part, "a.nii.gz " or a.nii.gz~; not in front of a side file's ending
_INSIDE = re.compile(r"\.(nii|nrrd|mha|mhd|png|tiff?)(?![a-z0-9])", re.IGNORECASE)
SIDE_FILES = (".json", ".txt", ".csv", ".tsv", ".xml", ".html", ".md", ".md5", ".sha1", ".sha256", ".bval", ".bvec",
              ".log", ".yaml", ".yml")  # fmt: skip
PICTURE_FOLDERS = ("overlays", "previews")  # with a CASE.png each, beside the label maps of a prediction
MOST_NAMED = 3  # files of one kind that are named one by one
WINDOWS = os.name == "nt"  # which reserves names and letters
MAX_FILE_NAME = 255  # bytes that file systems allow
MAX_NAME_BYTES = 248  # of a case: with .nii.gz the whole name; longer endings are refused where they are written


@dataclass
class Listing:
    """The image files of one folder.

    Attributes:
        folder: the folder.
        files: readable files with the wanted ending by name without ending, sorted.
        others: readable files with another ending.
        problems: entries that look like images and cannot be read, one line each.
    """

    folder: Path
    files: dict[str, list[Path]] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def shown(name: str) -> str:
    """A file's name as it can be printed: control characters and bytes that are no UTF-8 are escaped, and a blank at
    either end is made visible by quotes."""
    printable = all(c.isprintable() and not 0xD800 <= ord(c) < 0xE000 for c in name)
    return (name if name == name.strip() else repr(name)) if printable else ascii(name)


def name_problem(name: str) -> str | None:
    """Why a case of this name cannot be written or found again everywhere; None where it can."""
    if any(not c.isprintable() or 0xD800 <= ord(c) < 0xE000 for c in name):
        return "contains a control character or bytes that are not UTF-8"
    if name != name.strip():
        return "begins or ends with a blank"
    if name.endswith("."):
        return "ends with a dot"
    if WINDOWS and any(c in name for c in RESERVED_LETTERS):
        return "contains a character that file systems reserve"
    if WINDOWS and is_device_name(name):
        return "is that of a device on Windows, where no file can have it"
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        return f"has {len(os.fsencode(name))} bytes, at most {MAX_NAME_BYTES} are allowed"
    return None


def list_images(folder: Path, ending: str | None, *, ignore: Sequence[Path] = ()) -> Listing:
    """The images of ``folder`` with the given ending (None: any). Hidden files and the paths ``ignore`` are skipped.

    Raises:
        UserError: the folder is missing, or cannot be read.
    """
    if not folder.is_dir():
        raise UserError(no_folder(folder))
    try:
        paths = sorted(folder.iterdir())
    except OSError as problem:
        raise UserError(f"{folder}: the folder cannot be read ({problem.strerror}); correct its permissions") from None
    found, foreign = Listing(folder), []
    skipped = {path.resolve() for path in ignore}
    for path in paths:
        own = ending_of(path)
        if path.name.startswith(".") or (skipped and path.resolve() in skipped):
            continue
        if unreadable := _entry_problem(path, own):
            found.problems.append(f"{folder.name}/{shown(path.name)}: {unreadable}")
        elif path.is_dir():
            continue
        elif not own:
            foreign += [shown(path.name)] if _is_foreign(path) else []
        elif ending is None or own == ending:
            found.files.setdefault(path.name[: -len(own)], []).append(path)
        else:
            found.others.append(path)
    found.problems += _foreign_problems(folder, foreign)
    if found.others:
        names = ", ".join(shown(p.name) for p in found.others[:MOST_NAMED])
        names += ", ..." if len(found.others) > MOST_NAMED else ""
        fix = "convert or move them, or set file_ending"
        found.problems.append(f"{folder}: {len(found.others)} image(s) ({names}) do not end in {ending}; {fix}")
    return found


def twins(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Names that are one file name where upper and lower case, or Unicode forms, are not distinguished."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _entry_problem(path: Path, ending: str) -> str | None:
    """Why an entry that looks like an image is not a file that can be read; None where it is, or is no image."""
    try:
        mode = path.stat().st_mode
    except OSError as problem:
        if path.is_symlink():
            return f"is a symbolic link to {shown(os.readlink(path))}, which cannot be read ({problem.strerror}); " \
                   "restore the file or remove the link"  # fmt: skip
        return f"cannot be read ({problem.strerror}); restore or remove it"
    if stat.S_ISDIR(mode):
        if ending:
            return "is a folder, not an image; move the image out of it, or rename the folder"
        count = _images_below(path)
        return (
            f"is a folder with {count} image file(s), which are not read; move them up, or elsewhere" if count else None
        )
    if not stat.S_ISREG(mode):
        return "is no regular file (a pipe, socket or device); replace it by a file" if ending else None
    if not ending:
        if _INSIDE.search(path.name) and path.suffix.lower() not in (*SIDE_FILES, *FOREIGN_ENDINGS):
            return "has an image ending inside its name; rename it so that it ends in one, or remove it"
        return None
    return None if os.access(path, os.R_OK) else "permission denied; make it readable (chmod +r)"


def _images_below(folder: Path) -> int:
    """The number of image files in a subfolder, at any depth; the search ends at a thousand."""
    count = 0
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [Path(where, name) for name in names if not name.startswith(".")]
        count += sum(bool(ending_of(path)) or path.suffix.lower() in FOREIGN_ENDINGS for path in files)
        if count > 1000:
            break
    return count


def _is_foreign(path: Path) -> bool:
    """Whether a file is an image or archive of another format: by its ending, or DICOM by its content."""
    suffix = path.suffix.lower()
    if suffix in FOREIGN_ENDINGS:
        return True
    if suffix and not suffix[1:].isdigit():
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _foreign_problems(folder: Path, names: list[str]) -> list[str]:
    supported = f"supported: {', '.join(READABLE_ENDINGS)}"
    found = [f"{folder}: {name} is not read ({supported}); {CONVERT}" for name in names[:MOST_NAMED]]
    if names[MOST_NAMED:]:
        found.append(f"{folder}: {len(names) - MOST_NAMED} more such files are not read; convert or move them")
    return found


def no_folder(path: Path) -> str:
    """Why ``path`` is no folder."""
    if os.path.islink(path) and not path.exists():
        return f"{path}: is a broken symbolic link; make it a folder, or remove it"
    if path.exists():
        return f"{path}: is a file; a folder is needed"
    return f"{path}: the folder is missing"
