"""What a viewer shows of a folder of predictions: its cases, the worst first, with their files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mre_lowshot.data.readers import READABLE_ENDINGS, file_ending, without_voxel_files
from mre_lowshot.errors import UserError
from mre_lowshot.files import printable
from mre_lowshot.inference.formats import ENDINGS
from mre_lowshot.inference.quality import read_rows
from mre_lowshot.inference.record import CORRECTED, FileState, read_record, was_changed
from mre_lowshot.report.model_content import validation_scans

_ORDER = (*READABLE_ENDINGS, *ENDINGS)  # of two label maps of a case the one earlier in this list is shown
_CHANNEL = re.compile(r"(.+)_(\d{4})$")


@dataclass(frozen=True)
class ViewerCase:
    """A case of a folder of predictions.

    Attributes:
        name: of the case.
        scan: its channel files, or the files of a DICOM series; empty where they are not known.
        series: keys of the DICOM series of the channels, in their order, where it is DICOM of several channels.
        states: size and SHA-256 of the files of the scan when it was predicted, where known: in the order of ``scan``,
            then the files of voxels beside these.
        label: the label map; None where there is none.
        reference: the reference label map; None where there is none.
        score: the quality score; None where there is none.
        basis: of the score.
        warnings: of the prediction; or why it failed.
        failed: whether the prediction failed.
        problems: why a file is not shown, by ``scan``, ``prediction``, ``reference``.
    """

    name: str
    scan: tuple[Path, ...] = ()
    series: tuple[str, ...] = ()
    states: tuple[FileState, ...] = ()
    label: Path | None = None
    reference: Path | None = None
    score: float | None = None
    basis: str = ""
    warnings: tuple[str, ...] = ()
    failed: bool = False
    problems: Mapping[str, str] | None = None


def find_cases(
    folder: str | Path, reference: str | Path | None = None, scans: str | Path | None = None
) -> list[ViewerCase]:
    """The cases of a folder of label maps: those that failed, then those with a quality score, the lowest first, then
    the others by name.

    Args:
        folder: that mre_predict wrote into, or any other folder of label maps.
        reference: folder of reference label maps.
        scans: folder of the scans, where run.json does not list them or they have been moved.

    Raises:
        UserError: a folder is missing, or holds no label maps.
    """
    folder, reference, scans = Path(folder), _path(reference), _path(scans)
    _require_folder("folder", folder)
    maps = label_maps(folder)
    entries = dict(_entries(folder))
    if not maps and not entries:
        raise UserError(
            f"{folder}: holds neither label maps nor a run.json of mre_predict; give the folder that mre_predict -o "
            "names"
        )
    references = _of_folder("--reference", reference)
    known = _known_scans(folder, scans, recorded=bool(entries))
    rows = _rows(folder)
    found = [
        _case(name, maps.get(name), references.get(name), entries.get(name), rows.get(printable(name), {}), known)
        for name in sorted({*maps, *entries})
    ]
    if reference is not None and not any(case.reference for case in found):
        raise UserError(
            f"--reference {reference}: none of its {len(references)} label maps has the name of a case in {folder} "
            f"(for example {found[0].name}); give the matching folder"
        )
    return sorted(found, key=lambda case: (not case.failed, case.score is None, case.score or 0.0, case.name))


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def label_maps(folder: Path) -> dict[str, Path]:
    """The label maps directly in ``folder`` by case name; of several of a case the one that is read most directly."""
    found: dict[str, tuple[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        ending = max((end for end in _ORDER if path.name.lower().endswith(end)), key=len, default="")
        if not ending or (path.is_dir() and not path.is_symlink()):
            continue
        name, rank = path.name[: -len(ending)], _ORDER.index(ending)
        if name and (name not in found or rank < found[name][0]):
            found[name] = rank, path
    return {name: path for name, (_, path) in found.items()}


def inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` lies in ``folder`` after symbolic links are followed."""
    return path.resolve().is_relative_to(folder.resolve())


def _require_folder(name: str, folder: Path) -> Path:
    if not folder.is_dir():
        missing = "is no folder" if folder.exists() else "does not exist"
        raise UserError(
            f"{name} {folder}: {missing}; give a folder, for the label maps the one that mre_predict -o names"
        )
    return folder


def _of_folder(name: str, folder: Path | None) -> dict[str, Path]:
    if folder is None:
        return {}
    found = label_maps(_require_folder(name, folder))
    if not found:
        raise UserError(f"{name} {folder}: holds no label maps; give the folder with the reference label maps")
    return found


def _entries(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of all records of a folder by case, each with the folder that its run was given as ``input``."""
    for path in sorted(folder.glob("run*.json")):
        content = read_record(path) or {"cases": {}}
        for name, entry in content["cases"].items():
            run = content["runs"].get(entry.get("run"), {})
            given = run.get("input") if isinstance(run, dict) else None
            yield name, {**entry, "input": given if isinstance(given, str) else ""}


def _rows(folder: Path) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("quality*.csv")):
        try:
            rows |= read_rows(path)
        except UserError:  # another table of the user
            continue
    return rows


@dataclass(frozen=True)
class _Scans:
    """Where scans are looked for before run.json.

    Attributes:
        found: files by case.
        only: whether run.json is not asked.
        reason: what is said of a case whose scan is not known.
    """

    found: Mapping[str, tuple[Path, ...]]
    only: bool
    reason: str


def _known_scans(folder: Path, scans: Path | None, *, recorded: bool) -> _Scans:
    if scans is not None:
        found = _scans_in(_require_folder("--scans", scans))
        return _Scans(found, True, "the folder of --scans has no file of this case")
    record = folder / "run.json"
    damaged = record.is_file() and read_record(record) is None
    reason = "run.json is damaged, so the scan is not known" if damaged else "run.json does not name the scan"
    return _Scans({} if recorded else validation_scans(folder), False, f"{reason}; name its folder with --scans")


def _scans_in(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The scans of a folder by case: ``name_0000.ext``, ``name_0001.ext``, ..., or ``name.ext``."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        ending = file_ending(path)
        if path.name.startswith(".") or not ending:
            continue
        stem = path.name[: -len(ending)]
        match = _CHANNEL.match(stem)
        found.setdefault(match[1] if match else stem, []).append(path)
    return {name: tuple(paths) for name, paths in found.items()}


def _case(
    name: str,
    label: Path | None,
    reference: Path | None,
    entry: Mapping[str, Any] | None,
    row: Mapping[str, str],
    known: _Scans,
) -> ViewerCase:
    entry = entry or {}
    scan, states, problem = _scan_of(name, entry, known)
    failed = entry.get("status") == "failed"
    problems = {"scan": problem} if problem else {}
    if label is None and not failed:
        problems["prediction"] = "its label map is not in the folder any more"
    given = entry.get("warnings")
    warnings = [text for text in (given if isinstance(given, list) else ()) if isinstance(text, str)]
    if not warnings and row.get("warnings"):
        warnings = row["warnings"].split("; ")
    if label is not None and was_changed(entry, label):
        warnings.append(CORRECTED)
    reason, series = entry.get("reason"), entry.get("series")
    score = float(row["score"]) if row else None
    return ViewerCase(
        name,
        scan,
        tuple(key for key in series if isinstance(key, str)) if isinstance(series, list) else (),
        states,
        label,
        reference,
        score,
        row.get("basis", ""),
        tuple(([reason] if failed and isinstance(reason, str) else []) + warnings),
        failed,
        problems,
    )


def _scan_of(name: str, entry: Mapping[str, Any], known: _Scans) -> tuple[tuple[Path, ...], tuple[FileState, ...], str]:
    """The files of a case's scan, their recorded states, and why they are not there."""
    if name in known.found or known.only:
        files = known.found.get(name, ())
        return files, (), "" if files else known.reason
    inputs = entry.get("inputs")
    given = [item["file"] for item in (inputs if isinstance(inputs, list) else ()) if _is_named(item)]
    if not given:
        return (), (), known.reason
    found = [_resolved(file, str(entry.get("input") or "")) for file in given]
    if None in found:
        missing = given[found.index(None)]
        return (), (), f"the scan {missing} is not there any more; name its folder with --scans"
    paths = dict(zip((path for path in found if path), given, strict=True))
    scan = tuple(without_voxel_files(list(paths)))
    beside = [path for path in paths if path not in scan]
    states = {state.file: state for state in FileState.listed(entry, "inputs")}
    return scan, tuple(states[paths[p]] for p in (*scan, *beside) if paths[p] in states), ""


def _is_named(item: object) -> bool:
    return (
        isinstance(item, dict) and isinstance(item.get("file"), str) and "\0" not in item["file"] and item["file"] != ""
    )


def _resolved(file: str, given: str) -> Path | None:
    """The file of a scan that run.json lists as it was given on the command line, perhaps from another folder."""
    path = Path(file)
    candidates: Sequence[Path] = [path]
    if not path.is_absolute() and given:
        base, parts = Path(given), path.parts
        candidates = [base, *(base.joinpath(*parts[-n:]) for n in range(1, len(parts) + 1)), path]
    return next((found for found in candidates if found.name == path.name and _is_file(found)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False
