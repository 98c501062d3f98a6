"""The volumes of a case as NIfTI files in memory: scan, prediction, reference, and where the two differ."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mre_lowshot.data.dataset import Case
from mre_lowshot.data.dicom.choice import only_series
from mre_lowshot.data.dicom.series import Series, read_files
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.label_table import LabelTable
from mre_lowshot.data.readers import file_ending, voxel_files
from mre_lowshot.data.scan_input import read_case
from mre_lowshot.data.volume import Volume, read_labels
from mre_lowshot.errors import UserError, describe_failure
from mre_lowshot.evaluation.agreement import label_agreement
from mre_lowshot.inference.formats import FORMATS, read_for_display
from mre_lowshot.limits import available_memory
from mre_lowshot.report.figures import window
from mre_lowshot.viewer.cases import ViewerCase, inside
from mre_lowshot.viewer.labels import with_values

MAX_SIDE = 2048  # voxels along an axis that are shown; textures of graphics cards are limited
MAX_VOXELS = 1 << 28  # that are shown; the browser needs several bytes for each
CACHE_BYTES = 1 << 30  # of the volumes that are kept for the next request; at most a quarter of the memory
MAX_LABELS = 1024  # in one label map
_LABEL_INTENT = 1002  # NIFTI_INTENT_LABEL: the viewer draws values by a table of colours
EXTRA, MISSED, OTHER = 1, 2, 3  # values of the volume of differences


@dataclass
class LoadedCase:
    """The volumes of a case, as a browser gets them.

    Attributes:
        files: NIfTI files by name: ``scan-0`` (one for each channel), ``prediction``, ``reference``, ``difference``.
        info: what the page shows of the case.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(map(len, self.files.values()))


class VolumeCache:
    """Loads cases, one at a time, and keeps the last ones.

    Args:
        table: names and colours of the labels.
        folders: that ``prediction`` and ``reference`` may lie in.
        limit: bytes that are kept; one case is kept even if it is larger.
    """

    def __init__(self, table: LabelTable, folders: Mapping[str, Path], limit: float | None = None) -> None:
        self.table, self.folders = table, folders
        self.limit = min(CACHE_BYTES, available_memory() / 4) if limit is None else limit
        self._kept: OrderedDict[str, LoadedCase] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, case: ViewerCase) -> LoadedCase:
        """The volumes of a case. What cannot be read is named in its ``info``."""
        with self._lock:
            found = self._kept.pop(case.name, None)
            if found is None:
                while self._kept and self.kept_bytes > self.limit / 2:  # room before another is read
                    self._kept.popitem(last=False)
                found = load_case(case, self.table, self.folders)
            self._kept[case.name] = found
            while len(self._kept) > 1 and self.kept_bytes > self.limit:
                self._kept.popitem(last=False)
            return found

    @property
    def kept_bytes(self) -> int:
        """Bytes of the volumes that are kept."""
        return sum(kept.size for kept in self._kept.values())


def load_case(case: ViewerCase, table: LabelTable, folders: Mapping[str, Path]) -> LoadedCase:
    """Read the volumes of a case.

    Args:
        case: to read.
        table: names and colours of the labels.
        folders: that its ``prediction`` and ``reference`` may lie in.

    Returns:
        Its volumes; ``info["problems"]`` names what cannot be read.
    """
    problems = dict(case.problems or {})
    notes: list[str] = []
    scan, read = _scan(case, problems, notes)
    maps: dict[str, np.ndarray] = {}
    grid = scan.geometry if scan is not None else None
    for kind, path in (("prediction", case.label), ("reference", case.reference)):
        if path is None:
            continue
        try:
            volume = _labels(path, read, grid, folders[kind], table)
        except Exception as problem:  # whatever one file fails with, the others are shown
            problems[kind] = describe_failure(problem)
            continue
        grid, maps[kind] = grid or volume.geometry, volume.array
    made = LoadedCase(info={"problems": problems, "notes": notes})
    if grid is None:
        return made
    every = _every(grid.shape)
    if every > 1:
        notes.append(f"every {every}. voxel along each axis is shown: the scan is too large for graphics cards")
    shown = _downsampled(grid, every)
    if scan is not None:
        for number, channel in enumerate(scan.array):
            made.files[f"scan-{number}"] = nifti_bytes(_compact(_sampled(channel, every)), shown)
        made.info["windows"] = [window(channel) for channel in scan.array]
        notes += scan.notes
    made.info |= {"plane": _plane(grid), "has_directions": grid.dimensions == 3, "scanless": scan is None}
    present = {kind: _counts(array) for kind, array in maps.items()}
    listed = with_values(table, {value for counts in present.values() for value in counts})
    if set(maps) == {"prediction", "reference"}:
        known = set(table.names) or set(listed.names)
        maps["difference"] = differences(maps["prediction"], maps["reference"], known)
    focus = {kind: _focus(array, grid) for kind, array in maps.items() if array.any()}
    made.info["focus"] = focus
    for kind, array in maps.items():
        small = _sampled(array, every)
        kept = small.astype(np.uint8 if array.max() < 256 else np.uint16)
        made.files[kind] = nifti_bytes(kept, shown, is_labels=True)
    made.info["labels"] = _label_rows(listed, present, maps, math.prod(grid.spacing) / 1000)
    return made


def nifti_bytes(array: np.ndarray, geometry: Geometry, *, is_labels: bool = False) -> bytes:
    """A NIfTI-1 file, not compressed, of an LPS array (D, H, W) on its grid."""
    header = nib.Nifti1Header()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape[::-1])
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header["xyzt_units"] = 2  # mm
    header["intent_code"] = _LABEL_INTENT if is_labels else 0
    header["magic"], header["vox_offset"] = b"n+1", 352
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return bytes(header.as_byteswapped("<").binaryblock) + b"\0\0\0\0" + data.tobytes()


def differences(prediction: np.ndarray, reference: np.ndarray, known: set[int]) -> np.ndarray:
    """Where two label maps (D, H, W) differ: `EXTRA` predicted where the reference has background, `MISSED` the other
    way round, `OTHER` with another label. Voxels whose reference label is not in ``known`` are left out."""
    made = np.where(prediction != reference, OTHER, 0).astype(np.uint8)
    made[(reference == 0) & (prediction != 0)] = EXTRA
    made[(prediction == 0) & (reference != 0)] = MISSED
    made[~np.isin(reference, [0, *known])] = 0
    return made


def _scan(case: ViewerCase, problems: dict[str, str], notes: list[str]) -> tuple[Volume | None, Case]:
    read = Case(case.name, case.scan)
    if not case.scan:
        return None, read
    try:
        if not file_ending(case.scan[0]):  # run.json names any file: only images and DICOM are opened
            read = dataclasses.replace(read, series=_series(case))
        scan = read_case(read)
    except Exception as problem:
        problems["scan"] = describe_failure(problem)
        return None, Case(case.name, ())
    files = (*case.scan, *(path for header in case.scan for path in voxel_files(header)))
    pairs = list(zip(files, case.states, strict=False))
    fewer = len(files) < len(case.states)  # a header names no file of voxels any more
    if fewer or (len(files) == len(case.states) and not all(state.matches(path) for path, state in pairs)):
        notes.append("the scan has changed since it was predicted")
    return scan, read


def _series(case: ViewerCase) -> tuple[Series, ...]:
    """The DICOM series of the channels of a scan."""
    if case.series:
        found = {one.key: one for one in read_files(tuple(dict.fromkeys(case.scan))).series}
        missing = [key for key in case.series if key not in found]
        if not missing:
            return tuple(found[key] for key in case.series)
        if len(case.series) > 1:
            raise UserError(f"{case.scan[0]}: series {missing[0]} is not among the files of the scan; restore it")
    return (only_series(case.scan),)


def _labels(path: Path, case: Case, grid: Geometry | None, folder: Path, table: LabelTable) -> Volume:
    if not inside(path, folder):
        raise UserError(f"{path}: is a symbolic link that leads out of {folder}; copy the file instead")
    direct = file_ending(path) and not path.name.lower().endswith(".seg.nrrd")
    if direct or not case.images:
        volume = read_labels(path, like=grid)
    else:
        made = next(made for made in FORMATS.values() if path.name.endswith(made.ending) and made.ending.count(".") > 1)
        volume = read_for_display(made, path, case, {name: value for value, name in table.names.items()})
        volume = volume if grid is None else volume.on_axes_of(grid)
    if grid is not None and (different := grid.differences(volume.geometry)):
        raise UserError(f"{path}: is not on the grid of the scan: {'; '.join(different)}")
    low, high = int(volume.array.min()), int(volume.array.max())
    if low < 0 or high > 65535 or len(np.flatnonzero(np.bincount(volume.array.ravel()))) > MAX_LABELS:
        raise UserError(
            f"{path}: holds values from {low} to {high}, or more than {MAX_LABELS} different ones; a label map has "
            "values from 0 to 65535: give the folder of the label maps, not of the scans"
        )
    return volume


def _compact(array: np.ndarray) -> np.ndarray:
    """As int16 where this changes no value, else float32."""
    low, high = array.min(initial=0), array.max(initial=0)
    if low >= -32768 and high <= 32767:
        whole = array.astype(np.int16)
        if np.array_equal(whole, array):
            return whole
    return array.astype(np.float32)


def _every(shape: tuple[int, ...]) -> int:
    """1 where all voxels are shown, 2 where every second along each axis is."""
    every = max(math.ceil(max(shape) / MAX_SIDE), 1)
    while math.prod(math.ceil(n / every) for n in shape) > MAX_VOXELS:
        every += 1
    return every


def _sampled(array: np.ndarray, every: int) -> np.ndarray:
    return array[::every, ::every, ::every]


def _downsampled(grid: Geometry, every: int) -> Geometry:
    return dataclasses.replace(
        grid,
        shape=tuple(math.ceil(n / every) for n in grid.shape),
        spacing=tuple(float(s * every) for s in grid.spacing),
    )


def _plane(grid: Geometry) -> str:
    """The plane that a scan of one slice shows; empty for a volume."""
    planes = zip(("axial", "coronal", "sagittal"), grid.shape, strict=True)
    return next((plane for plane, voxels in planes if voxels == 1), "")


def _focus(array: np.ndarray, grid: Geometry) -> list[float]:
    """The position, mm in RAS, of the three planes that cut most labelled voxels."""
    labelled = array != 0
    index = [int(np.argmax(np.count_nonzero(labelled, axis=axes))) for axes in ((0, 1), (0, 2), (1, 2))]
    position = grid.affine() @ [*index, 1.0]
    return [float(v) for v in np.diag([-1.0, -1.0, 1.0]) @ position[:3]]


def _counts(array: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(array, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts, strict=True) if v}


def _label_rows(
    table: LabelTable, present: Mapping[str, Mapping[int, int]], maps: Mapping[str, np.ndarray], voxel_ml: float
) -> list[dict[str, Any]]:
    """Value, name, colour, volumes and Dice of each label."""
    dice: dict[int, float] = {}
    if "difference" in maps:
        classes = max(table.names, default=0) + 1
        dice = label_agreement(maps["prediction"], maps["reference"], classes)
    return [
        {
            "value": value,
            "name": name,
            "colour": table.colours[value],
            "dice": None if math.isnan(dice.get(value, math.nan)) else round(dice[value], 4),
            **{f"{kind}_ml": counts.get(value, 0) * voxel_ml for kind, counts in present.items()},
        }
        for value, name in table.names.items()
    ]
