"""Names of files and folders: what marks a label map, and what two names have in common."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TypeVar

T = TypeVar("T")

_LABEL = {"seg", "segs", "dseg", "segmentation", "segmentations", "label", "labels", "labelmap", "labelmaps", "mask",
          "masks", "gt", "groundtruth", "manual", "annotation", "annotations", "roi", "rois", "contour", "contours",
          "labelstr", "labelsts", "truth", "delineation"}  # fmt: skip
_IMAGE = {"image", "images", "img", "imgs", "scan", "scans", "volume", "volumes", "imagestr", "imagests", "orig",
          "raw"}  # fmt: skip


@cache
def tokens(name: str) -> tuple[str, ...]:
    """The words of a name in lower case: runs of letters and digits."""
    return tuple(re.findall(r"[^\W_]+", name.casefold()))


@cache
def core(name: str) -> tuple[str, ...]:
    """The words of a name without those that mark an image or a label map, and without a channel number (``_0000``).
    Marks are also found where they are joined to another word, as in ``img0001`` and ``Patient1Seg``."""
    kept = []
    for word in re.findall(r"[^\W_]+", re.sub(r"_0000$", "", name)):
        left = [piece for piece in _pieces(word) if piece not in _LABEL and piece not in _IMAGE]
        if left:
            kept.append("".join(left))
    return tuple(kept)


def _pieces(word: str) -> list[str]:
    """The parts of a word in lower case: split at capitals, and between letters and digits."""
    split = re.sub(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])|(?<=[a-z])(?=[A-Z])", " ", word)
    return split.casefold().split()


def _ends(name: str) -> set[str]:
    """The first and the last part of a name."""
    words = [piece for word in re.findall(r"[^\W_]+", name) for piece in _pieces(word)]
    ends = {words[0], words[-1]} if words else set()
    return ends | set(tokens(name)[:1]) | set(tokens(name)[-1:])


def marks_label(name: str) -> bool:
    """Whether the first or last word of a file's name marks a label map."""
    return bool(_ends(name) & _LABEL)


def marks_image(name: str) -> bool:
    """Whether the first or last word of a name marks an image, or it ends in a channel number."""
    return bool(_ends(name) & _IMAGE) or re.search(r"_\d{4}$", name) is not None


def folder_kind(folders: Sequence[str]) -> str:
    """``label`` or ``scan`` by the innermost folder whose name marks one of them; empty otherwise."""
    for folder in reversed(folders):
        words = set(tokens(folder))
        if words & _LABEL:
            return "label"
        if words & _IMAGE:
            return "scan"
    return ""


def agreement(one: Sequence[str], other: Sequence[str]) -> int:
    """How well the names of two files agree: 2: the same words apart from marks; 1: one has all words of the other;
    0: otherwise."""
    best = 0
    for mine in map(core, one):
        for theirs in map(core, other):
            if mine and mine == theirs:
                return 2
            shorter, longer = sorted((set(mine), set(theirs)), key=len)
            if shorter and shorter <= longer and _is_distinct(shorter):
                best = 1
    return best


def _is_distinct(words: set[str]) -> bool:
    """Whether words can name a patient: one with a digit, or a long one."""
    return any(re.search(r"\d", word) or len(word) > 4 for word in words)


def shared_folders(one: Sequence[str], other: Sequence[str]) -> tuple[str, ...]:
    """Names of folders that both lie in, without those that mark images or label maps."""
    mine = {folder.casefold(): folder for folder in one if core(folder)}
    theirs = {folder.casefold() for folder in other}
    return tuple(folder for key, folder in mine.items() if key in theirs)


def assigned(
    members: Sequence[T], channels: Mapping[str, str], texts: Callable[[T], Sequence[str]]
) -> dict[str, list[T]]:
    """The scans that fit each channel: by its pattern; else those with its name as a word; else with a word that begins
    with it, as T1 in T1w.

    Args:
        members: scans of one patient.
        channels: name to pattern; without a pattern the name counts.
        texts: of a scan: its series description, or the names of its file.
    """
    found = {
        name: [scan for scan in members if _fits(texts(scan), name, pattern, exact=True)]
        for name, pattern in channels.items()
    }
    taken = {id(scan) for scans in found.values() for scan in scans}
    for name, pattern in channels.items():
        if not found[name] and not pattern:
            found[name] = [s for s in members if id(s) not in taken and _fits(texts(s), name, "", exact=False)]
    return found


def _fits(texts: Sequence[str], name: str, pattern: str, *, exact: bool) -> bool:
    if pattern:
        return any(fnmatch.fnmatch(text.casefold(), pattern.casefold()) for text in texts)
    wanted = tokens(name)
    for text in texts:
        words = tokens(text)
        for start in range(len(words) - len(wanted) + 1):
            part = words[start : start + len(wanted)]
            if part == wanted or (not exact and part[:-1] == wanted[:-1] and part[-1].startswith(wanted[-1])):
                return True
    return False
