"""A proposal as files: images and label maps, dataset.json, and import.json with the origin of each case."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot import __version__
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.importing.labels import read_on
from mre_lowshot.data.importing.proposal import Entry, Proposal
from mre_lowshot.data.importing.sources import Scan
from mre_lowshot.data.pairs import pair_problems
from mre_lowshot.data.readers import write_array
from mre_lowshot.data.volume import Volume, storable, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.files import sha256, write_json

RECORD = "import.json"


def write_cases(folder: Path, proposal: Proposal, entries: Iterable[Entry]) -> list[str]:
    """Write the cases, dataset.json and import.json to ``folder``; returns the notes that reading the voxels added.

    Args:
        folder: exists, and is empty.
        proposal: without problems.
        entries: those of the proposal; perhaps with progress.

    Raises:
        UserError: a scan or label map cannot be read, or a file cannot be written.
    """
    notes: list[str] = []
    cases: dict[str, Any] = {}
    ending = proposal.options.file_ending
    for entry in entries:
        volumes = [scan.read() for scan in entry.unit.scans]
        grid = volumes[0].geometry
        for number, (scan, volume) in enumerate(zip(entry.unit.scans, volumes, strict=True)):
            path = folder / entry.part / f"{entry.case}_{number:04d}{ending}"
            path.parent.mkdir(exist_ok=True)
            turned = volume.on_axes_of(grid)
            write_image(path, turned.array[0], volume.geometry if number == 0 else turned.geometry)
            found = [f"{scan.name}: {note}" for note in volume.notes]
            notes += [note for note in found if note not in proposal.notes]
        if entry.pair:
            _write_label(folder / f"labelsTr/{entry.case}{ending}", entry, proposal, volumes[0])
        cases[entry.case] = _origin(entry, proposal)
    write_json(folder / "dataset.json", proposal.dataset_json())
    write_json(
        folder / RECORD,
        {
            "mre_lowshot": __version__,
            "overlap": proposal.options.labels.overlap or "refused",
            "cases": cases,
            "left_out": [{"name": name, "reason": reason} for name, reason in proposal.left_out],
            "notes": [*proposal.notes, *notes],
        },
    )
    return notes


def write_image(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write an image in the smallest type that holds its values exactly."""
    low, high = float(array.min()), float(array.max())
    if low >= -32768 and high <= 32767 and path.name.endswith((".nii", ".nii.gz")):
        whole = array.astype(np.int16)
        if np.array_equal(whole, array):
            write_array(path, whole, geometry)
            return
    write_array(path, array.astype(np.float32, copy=False), geometry)


def _write_label(path: Path, entry: Entry, proposal: Proposal, image: Volume) -> None:
    assert entry.pair is not None  # of a labelled case
    label = entry.pair.label
    array = read_on(entry.pair, entry.values, overlap=proposal.options.labels.overlap, grid=image.geometry)
    made = Volume(storable(array), image.geometry, label.path)
    found = pair_problems(image, made, image_path=entry.unit.scans[0].path, label_path=label.path)
    if found:
        raise UserError(f"{label.path}: {found[0]}")
    path.parent.mkdir(exist_ok=True)
    write_volume(path, made.array, image.geometry)


def _origin(entry: Entry, proposal: Proposal) -> dict[str, Any]:
    made: dict[str, Any] = {
        "folder": entry.part,
        "images": [
            {"channel": channel, **_files(scan)}
            for channel, scan in zip(proposal.channel_names, entry.unit.scans, strict=True)
        ],
    }
    if entry.pair:
        label = entry.pair.label
        names = {value: name for name, value in proposal.labels.values.items()}
        made["label_map"] = {"name": label.name, "kind": label.kind, "sha256": sha256(label.path)}
        if label.parts:
            made["label_map"] = [{"name": part.name, "sha256": sha256(part.path)} for part in label.parts]
        made["pair"] = entry.pair.reason
        made["labels"] = [
            {
                "value": label.stored(key)[0],
                "layer": label.stored(key)[1],
                "name": label.names.get(key, ""),
                "to": value,
                "label": names[value],
            }
            for key, value in sorted(entry.values.items())
        ]
        made["voxels"] = dict(entry.voxels)
    return made


def _files(scan: Scan) -> dict[str, Any]:
    """The name of a scan with a checksum; of a series, that of the checksums of its files in the order of slices."""
    if scan.series is None:
        return {"name": scan.name, "sha256": sha256(scan.path)}
    sums = "".join(sha256(path) for path in scan.files)
    digest = hashlib.sha256(sums.encode()).hexdigest()
    return {"name": scan.name, "series": scan.series.key, "files": len(scan.files), "sha256": digest}
