"""Names of labels from files beside a label map, or from its header."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mre_lowshot.data.readers import file_ending
from mre_lowshot.errors import UserError

Lists = dict[Path, dict[Path, dict[int, str]]]
"""Of folders, the lists of names in them."""
_LARGEST = 1 << 20  # bytes of a list of names
_SNAP = re.compile(r'^\s*(\d{1,9})\s+\d+\s+\d+\s+\d+\s+[\d.]+\s+\d+\s+\d+\s+"([^"]*)"\s*$')
_INDEX = re.compile(r"[0-9]{1,9}")
_LONGEST = 1000  # characters of a name


def read_names(path: Path) -> dict[int, str]:
    """The names of a list: ITK-SNAP's label descriptions, or a table with the columns index and name (BIDS ``_dseg``).
    Empty where the file is neither.

    Raises:
        UserError: it cannot be read, or gives a value two names.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST)
    except OSError as problem:
        raise UserError(f"{path}: cannot be read ({problem.strerror}); make it readable") from None
    lines = content.decode("utf-8-sig", "replace").splitlines()
    found: dict[int, str] = {}
    for value, name in [*_snap(lines), *_table(lines)]:
        if found.setdefault(value, name) != name:
            raise UserError(f"{path}: gives value {value} the names {found[value]!r} and {name!r}; keep one")
    return {value: name for value, name in found.items() if value > 0 and name}


def _snap(lines: list[str]) -> list[tuple[int, str]]:
    return [(int(match[1]), match[2].strip()) for line in lines if (match := _SNAP.match(line))]


def _table(lines: list[str]) -> list[tuple[int, str]]:
    if not lines or "\t" not in lines[0]:
        return []
    try:
        rows = csv.DictReader(lines, delimiter="\t")
        if not {"index", "name"} <= set(rows.fieldnames or ()):
            return []
        return [
            (int(row["index"]), (row["name"] or "").strip()) for row in rows if _INDEX.fullmatch(row["index"] or "")
        ]
    except csv.Error:  # a field that is longer than csv reads: no list of names
        return []


def names_beside(path: Path, root: Path, known: Lists) -> tuple[dict[int, str], str]:
    """The names that a list beside a label map gives, and the list's file name; of the same stem before any other, in
    its folder before those above, up to ``root``.

    Args:
        path: of the label map.
        root: the folder that was given.
        known: the lists of folders that were read before; gets those of further folders.

    Raises:
        UserError: the nearest folder has several lists that differ.
    """
    stem = path.name[: -len(file_ending(path)) or None]
    folder = path.parent
    while True:
        if folder not in known:
            known[folder] = _lists(folder)
        lists = known[folder]
        own = [other for other in lists if other.stem.startswith(stem)]
        chosen = own or list(lists)
        if chosen and any(lists[other] != lists[chosen[0]] for other in chosen):
            both = ", ".join(other.name for other in chosen[:3])
            raise UserError(f"{path}: {both} in {folder.name} give different names of labels; leave one of them out")
        if chosen:
            return lists[chosen[0]], chosen[0].name
        if folder == root or root not in folder.parents:
            return {}, ""
        folder = folder.parent


def _lists(folder: Path) -> dict[Path, dict[int, str]]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".txt", ".label", ".tsv") and path.is_file() and (names := read_names(path)):
            found[path] = names
    return found


def names_inside(path: Path) -> dict[int, str]:
    """The names in the label table (an extension) of a NIfTI file; empty where there is none."""
    if not file_ending(path).startswith(".nii"):
        return {}
    from mre_lowshot.data.readers.nifti import read_extensions

    text = read_extensions(path, _LARGEST).decode("utf-8", "replace")
    found: dict[int, str] = {}
    for attributes, name in _elements(text):
        key = re.search(r'\bKey="(\d{1,9})"', attributes)
        if key and int(key[1]) > 0 and len(name) <= _LONGEST:
            found[int(key[1])] = html.unescape(_without_cdata(name)).strip()
    return {value: name for value, name in found.items() if name}


def _elements(text: str) -> Iterator[tuple[str, str]]:
    """Attributes and content of each element Label. A regular expression would search the rest of the text again for
    each tag that is not closed."""
    start = 0
    while (start := text.find("<Label", start)) >= 0:
        start += len("<Label")
        if text[start : start + 1].isalnum() or text[start : start + 1] == "_":  # an element of a longer name
            continue
        opened = text.find(">", start)
        closed = text.find("</Label>", opened + 1) if opened >= 0 else -1
        if closed < 0:
            return
        yield text[start:opened], text[opened + 1 : closed]
        start = closed


def _without_cdata(text: str) -> str:
    """The text with what its CDATA sections hold in their places."""
    first, *parts = text.split("<![CDATA[")
    return first + "".join("".join(part.split("]]>", 1)) for part in parts)


def is_label_image(path: Path) -> bool:
    """Whether a NIfTI file's intent code is that of a label map (1002)."""
    if not file_ending(path).startswith(".nii"):
        return False
    import nibabel as nib

    try:
        return int(nib.load(path).header["intent_code"]) == 1002  # type: ignore[index]
    except Exception:  # a file that cannot be read is named by the reader
        return False


def looks_like_labels(array: np.ndarray) -> bool:
    """Whether voxels (D, H, W) look like those of a label map: at most 8 whole numbers, or up to 1024 that are equal to
    their neighbours' nearly everywhere."""
    if array.ndim != 3:
        return False
    seen = np.zeros(1 << 16, bool)
    equal = labelled = 0
    for plane in array:  # one at a time: a CT needs gigabytes otherwise
        if not 0 <= plane.min() <= plane.max() <= 65535:
            return False
        whole = plane.astype(np.int32)
        if not np.array_equal(whole, plane):
            return False
        seen[whole] = True
        one, other = whole[:, 1:], whole[:, :-1]
        either = (one != 0) | (other != 0)
        equal, labelled = equal + int((one == other)[either].sum()), labelled + int(either.sum())
    count = int(seen.sum())
    return count <= 8 or (count <= 1024 and equal > 0.6 * labelled)
