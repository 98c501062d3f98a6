"""Loose files (DICOM series, image files, label maps) as a raw dataset."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mre_lowshot.config.check import require_path, require_text
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.importing.channels import parse_channels
from mre_lowshot.data.importing.labels import parse_label_names
from mre_lowshot.data.importing.proposal import (
    CASE_NAMES,
    PARTS,
    Options,
    Proposal,
    make_proposal,
    require_case_names,
)
from mre_lowshot.data.importing.sources import LabelMap, Scan, find_sources
from mre_lowshot.data.importing.writing import write_cases
from mre_lowshot.data.listing import no_folder
from mre_lowshot.data.pixel_size import states_pixel_size
from mre_lowshot.data.readers import COLOUR_ENDINGS, READABLE_ENDINGS, file_ending
from mre_lowshot.data.workspace import Workspace, names_dataset
from mre_lowshot.errors import UserError
from mre_lowshot.files import partial_name, remove_leftovers
from mre_lowshot.locks import locked
from mre_lowshot.plain import shown
from mre_lowshot.workflows.reporting import Reporter

_NAME = re.compile(r"Dataset(\d{1,6})_([A-Za-z0-9][A-Za-z0-9_-]{0,60})")
ENDINGS = tuple(ending for ending in READABLE_ENDINGS if ending not in (*COLOUR_ENDINGS, ".mhd"))
Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class ImportResult:
    """Result of `import_dataset`.

    Attributes:
        folder: the raw dataset; of a dry run, where it would be.
        proposal: cases, labels, and what is left out.
        written: False of a dry run.
    """

    folder: Path
    proposal: Proposal
    written: bool


def import_dataset(
    inputs: Paths = (),
    *,
    name: str | int,
    images: Paths = (),
    labels: Paths = (),
    modality: str = "",
    label_names: Sequence[str] | Mapping[int | str, str] = (),
    channels: Sequence[str] | Mapping[str, str] = (),
    pairs: str | Path | None = None,
    leave_out: Sequence[str] = (),
    test: str = "",
    case_names: str = CASE_NAMES,
    overlap: str = "",
    masks: bool = False,
    file_ending: str = ".nii.gz",
    dry_run: bool = False,
    workspace: str | Path | None = None,
    reporter: Reporter | None = None,
) -> ImportResult:
    """Turn DICOM series, image files and label maps into a raw dataset, without moving any voxel.

    Args:
        inputs: folders with scans and label maps, whatever the names of the files.
        name: ``17``, or ``Dataset017_BTCV``.
        images, labels: folders with scans only, and with label maps only.
        modality: name of the channel where the files do not show it: CT, MRI, US, ...
        label_names: ``1=liver`` for values of label maps without names, ``Leber=liver`` for other names, or a file with
            ITK-SNAP's label descriptions; or a mapping.
        channels: of scans with several channels: names in order, or ``NAME=PATTERN`` of series descriptions or file
            names.
        pairs: CSV or JSON file with the columns scan, label and case, for pairs that are not found.
        leave_out: patterns of file names that are not looked at.
        test: ``imagesTs`` or ``imagesTr``: where scans without a label map go; empty: they are left out.
        case_names: pattern of the case names: {name}, {number}, {patient}, {file}, {folder}, {series}.
        overlap: ``later_wins``: where segments overlap, the later one counts; empty: they are refused.
        masks: a scan's label maps hold one mask each, of the label that the file names.
        file_ending: of the files that are written.
        dry_run: report what would be written, and write nothing.
        workspace: folder with raw/, preprocessed/ and results/; None: see `data.workspace.Workspace`.
        reporter: receives progress and messages.

    Raises:
        UserError: an option is wrong, the dataset exists, or label maps cannot be paired; all problems at once, after
            the proposal was reported.
    """
    reporter = reporter or Reporter()
    folders = {key: _paths(key, value) for key, value in (("-i", inputs), ("--images", images), ("--labels", labels))}
    if not folders["-i"] and not folders["--images"]:
        raise UserError("no folder with scans is given; give -i, or --images and --labels")
    space = Workspace.resolve(workspace)
    options = _options(
        str(name),
        modality,
        _texts("--label_names", label_names),
        _texts("--channels", channels),
        pairs,
        test,
        case_names,
        overlap,
        file_ending,
    )
    options = dataclasses.replace(options, masks=masks)
    number = _check_new(space, options.name)
    found = find_sources(
        folders["-i"],
        images=folders["--images"],
        labels=folders["--labels"],
        leave_out=_texts("--leave_out", leave_out),
    )
    proposal = make_proposal(found, options)
    for line in describe(proposal):
        reporter.info(line)
    _raise(proposal)
    folder = space.raw / options.name
    if dry_run:
        reporter.info(f"dry run: nothing was written; without --dry_run the dataset goes to {folder}")
        return ImportResult(folder, proposal, written=False)
    _write(space, folder, proposal, number=number, reporter=reporter)
    reporter.info(f"dataset in {folder}")
    where = f" --workspace {shlex.quote(str(workspace))}" if workspace is not None else ""
    reporter.info(f"next: mre_plan_and_preprocess -d {number}{where}")
    return ImportResult(folder, proposal, written=True)


def _paths(option: str, given: Paths) -> tuple[Path, ...]:
    if not isinstance(given, str | os.PathLike | Sequence):
        raise UserError(f"{option} {shown(given)}: must be a folder, or a list of folders")
    values = [given] if isinstance(given, str | os.PathLike) else list(given)
    for value in values:
        require_path(option, value)
        if not Path(value).exists():
            raise UserError(f"{option} {no_folder(Path(value))}")
    return tuple(Path(value) for value in values)


def _texts(option: str, given: Sequence[str] | Mapping[int | str, str] | Mapping[str, str]) -> list[str]:
    if isinstance(given, Mapping):
        return [f"{key}={value}" if value else str(key) for key, value in given.items()]
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Sequence):
        raise UserError(f"{option} {shown(given)}: must be a list of texts")
    return [str(text) for text in given]


def _options(
    name: str,
    modality: str,
    label_names: Sequence[str],
    channels: Sequence[str],
    pairs: str | Path | None,
    test: str,
    case_names: str,
    overlap: str,
    file_ending: str,
) -> Options:
    if re.fullmatch(r"\d{1,6}", name):
        name = f"Dataset{int(name):03d}_Imported"
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--name {name!r}: write a number, or DatasetNNN_Name with letters, digits, - and _, as in Dataset017_BTCV"
        )
    if modality:
        require_text("--modality", modality, limit=40)
    if test not in ("", *PARTS):
        raise UserError(f"--test {test!r}: must be one of {', '.join(PARTS)}")
    for option, text in (("--format", file_ending), ("--case_names", case_names)):
        require_text(option, text)
    ending = file_ending if file_ending.startswith(".") else f".{file_ending}"
    if ending not in ENDINGS:
        raise UserError(f"--format {file_ending!r}: must be one of {', '.join(ENDINGS)}")
    require_case_names(case_names)
    if pairs is not None:
        require_path("--pairs", pairs)
    named = parse_channels(channels)
    if named and modality:
        raise UserError("--modality and --channels both name channels; give one of them")
    return Options(
        name, modality, named, parse_label_names(label_names, overlap), None if pairs is None else Path(pairs),
        test, case_names, ending,
    )  # fmt: skip


def _check_new(space: Workspace, name: str) -> int:
    """Refuse a name or number that a dataset has already; returns the number."""
    number = name.removeprefix("Dataset").partition("_")[0]  # the form of the name was checked before
    for root in (space.raw, space.preprocessed, space.results):
        for path in sorted(root.iterdir()) if root.is_dir() else ():
            other = path.name != name and names_dataset(path.name, number)
            if (path.name == name and root == space.raw) or (path.is_dir() and other):
                raise UserError(
                    f"--name {name}: {path} exists"
                    f"{f', and -d {int(number)} would name both' if other else ''}; give another number, or move it "
                    "away"
                )
    return int(number)


def _raise(proposal: Proposal) -> None:
    found = list(dict.fromkeys(proposal.problems))
    if len(found) == 1:
        raise UserError(found[0])
    if found:
        raise UserError(f"{len(found)} problems found; nothing was written:\n  " + "\n  ".join(found))


def _write(space: Workspace, folder: Path, proposal: Proposal, *, number: int, reporter: Reporter) -> None:
    with locked(space.raw, f"import_{number}", f"imports {folder.name}"):
        _check_new(space, folder.name)
        remove_leftovers(space.raw)
        temporary = space.raw / partial_name(folder)
        try:
            temporary.mkdir()
            entries = reporter.iterate(proposal.entries, description="import", unit="case")
            for note in write_cases(temporary, proposal, entries):
                reporter.warning(f"warning: {note}")
            problems = Dataset.load(temporary).problems
            if problems:
                raise UserError(f"{folder.name}: {problems[0]}")
            os.rename(temporary, folder)
        except OSError as problem:
            raise UserError(
                f"{folder}: cannot be written ({problem.strerror}); give another --workspace, or make space"
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def describe(proposal: Proposal) -> list[str]:
    """The proposal as lines of text."""
    lines = [f"scans ({len(proposal.found.scans)}):", *_table(map(_scan_row, proposal.found.scans))]
    lines += [f"label maps ({len(proposal.found.labels)}):", *_table(map(_label_row, proposal.found.labels))]
    lines.append(f"cases ({len(proposal.entries)}):")
    rows = []
    for entry in proposal.entries:
        scans = " + ".join(scan.name for scan in entry.unit.scans)
        pair = f"{entry.pair.label.name} ({entry.pair.reason})" if entry.pair else f"unlabelled, to {entry.part}"
        rows.append((entry.case, scans, pair))
    lines += _table(rows)
    lines += _renumbering(proposal)
    if proposal.left_out:
        lines += [f"left out ({len(proposal.left_out)}):", *_table(proposal.left_out)]
    lines += [f"note: {note}" for note in proposal.notes]
    lines += ["dataset.json:", json.dumps(proposal.dataset_json(), indent=2, ensure_ascii=False)]
    return lines


def _renumbering(proposal: Proposal) -> list[str]:
    """The changes of values, of each label map whose values change."""
    names = {value: name for name, value in proposal.labels.values.items()}
    rows = []
    for entry in proposal.entries:
        if not entry.pair:
            continue
        label = entry.pair.label
        pairs = [(label.stored(key), value) for key, value in sorted(entry.values.items())]
        if any(stored != (value, 0) for stored, value in pairs):
            texts = (f"{k}{f' of layer {layer}' if layer else ''} -> {v} {names[v]}" for (k, layer), v in pairs)
            rows.append((entry.case, ", ".join(texts)))
    return ["values that change:", *_table(rows)] if rows else []


def _scan_row(scan: Scan) -> tuple[str, ...]:
    grid = scan.geometry.file_grid()
    image = scan.series is None and file_ending(scan.path) in COLOUR_ENDINGS  # PNG, TIFF: two axes
    axes = slice(0, 2 if image else 3)
    size = " x ".join(str(n) for n in grid.shape[::-1][axes])
    spacing = " x ".join(f"{s:.4g}" for s in grid.spacing[::-1][axes])
    extent = f"{size} {'pixels' if image else 'voxels'}"
    if not states_pixel_size(scan.path if image else None, grid):
        return scan.name, scan.modality or "?", f"{extent}, without a pixel size"
    return scan.name, scan.modality or "?", f"{extent} of {spacing} mm"


def _label_row(label: LabelMap) -> tuple[str, ...]:
    names = ", ".join(f"{value} {name}" for value, name in list(label.names.items())[:12])
    more = f", and {len(label.names) - 12} more" if len(label.names) > 12 else ""
    source = f" (from {label.names_from})" if label.names_from else ""
    return label.name, label.kind, f"{names}{more}{source}" if names else "no names of labels"


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows with columns of equal width, indented."""
    cells = [tuple(row) for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))] if cells else []
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
