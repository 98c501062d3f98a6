"""Label maps in a folder of predictions that a person has corrected, with the scans that they belong to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mre_lowshot.data.readers import READABLE_ENDINGS, file_ending, voxel_files
from mre_lowshot.errors import UserError
from mre_lowshot.inference.record import OUTPUTS, FileState, differs, entries
from mre_lowshot.plain import shown


@dataclass(frozen=True)
class Found:
    """A label map in a folder of predictions.

    Attributes:
        name: of the case.
        images: the scan's files.
        label: the label map.
    """

    name: str
    images: tuple[Path, ...]
    label: Path


def corrected_maps(folder: Path, names: Sequence[str] = (), scans: Path | None = None) -> tuple[list[Found], list[str]]:
    """The label maps that were changed since mre_predict has written them, or those of the cases ``names``.

    Args:
        folder: written by mre_predict, with run.json.
        names: of cases whose label maps are taken whether they were changed or not.
        scans: folder with the scans, where they are no longer where run.json lists them.

    Returns:
        What was found, and a line for each case that cannot be taken.

    Raises:
        UserError: the folder has no run.json, nothing was corrected, or a name is not one of its cases.
    """
    if not folder.is_dir():
        raise UserError(f"--from {folder}: is not a folder; give the -o of mre_predict")
    listed = entries(folder)
    if not listed:
        raise UserError(
            f"--from {folder}: has no run.json of mre_predict; give image and label map of each case instead"
        )
    if unknown := [name for name in names if name not in listed]:
        known = ", ".join(sorted(listed)[:5]) + (", ..." if len(listed) > 5 else "")
        raise UserError(f"--from {folder}: case {shown(unknown[0])} is not in its run.json (found: {known})")
    found, problems = [], []
    for name in names or sorted(listed):
        states = [state for entry in listed[name] for key in OUTPUTS for state in FileState.listed(entry, key)]
        maps = _label_maps(folder, name)
        changed = [path for path in maps if path.name not in {s.file for s in states} or differs(states, path)]
        if not changed and not names:
            continue
        taken = changed or maps
        if len(taken) != 1:
            there = ", ".join(path.name for path in taken) or "no label map"
            fix = "keep one of them" if taken else "predict it again, or give image and label map"
            problems.append(f"case {name}: {there} in {folder}; {fix}")
            continue
        try:
            found.append(Found(name, _images(listed[name], scans), taken[0]))
        except UserError as problem:
            problems.append(f"case {name}: {problem}")
    if not found and not problems:
        raise UserError(
            f"--from {folder}: no label map was changed since mre_predict has written it; correct one, or name the "
            "cases to take as they are"
        )
    return found, problems


def _label_maps(folder: Path, name: str) -> list[Path]:
    """The label maps of a case, in any format."""
    endings = (*READABLE_ENDINGS, ".seg.nrrd", ".dcm")
    return [path for ending in dict.fromkeys(endings) if (path := folder / f"{name}{ending}").is_file()]


def _images(listed: Collection[dict[str, object]], scans: Path | None) -> tuple[Path, ...]:
    """The files of the scan, unchanged since it was predicted.

    Raises:
        UserError: they are missing, or have changed.
    """
    for entry in listed:
        listed_files = FileState.listed(entry, "inputs")
        states = [s for s in listed_files if file_ending(Path(s.file)) or entry.get("series")]
        if not states:
            continue
        names = [replace(state, file=Path(state.file).name) for state in listed_files]
        paths = [scans / Path(s.file).name if scans is not None else Path(s.file) for s in states]
        for path, state in zip(paths, states, strict=True):
            if not path.is_file():
                raise UserError(f"its scan {path} is missing; name the folder of the scans (-i), or give the files")
            if not state.matches(path) or any(differs(names, voxels) for voxels in voxel_files(path)):
                raise UserError(
                    f"its scan {path} was changed since it was predicted; give image and label map yourself"
                )
        return tuple(paths)
    raise UserError("run.json does not list its scan; give image and label map")
