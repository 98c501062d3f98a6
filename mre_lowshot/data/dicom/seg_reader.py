"""Label maps that are stored as DICOM SEG, placed on the grid of their scan by the position of each frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mre_lowshot.data.dicom.codes import Code
from mre_lowshot.data.dicom.files import quiet, read_header, reading, require_packages
from mre_lowshot.data.dicom.frames import Frame, frames_of
from mre_lowshot.data.dicom.pixels import stored_frames
from mre_lowshot.data.geometry import CORNER_TOLERANCE, Geometry
from mre_lowshot.errors import UserError
from mre_lowshot.limits import require_memory

if TYPE_CHECKING:
    from pydicom import Dataset

CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # Segmentation, Label Map Segmentation
_STEP = 0.01  # voxels by which a pixel may be larger or smaller, or turned
_START = 0.15  # voxels that a frame may lie beside the grid: positions of series are often rounded to 0.1 mm
LATER_WINS = "later_wins"


@dataclass(frozen=True)
class Seg:
    """A DICOM SEG without its voxels.

    Attributes:
        path: of the file.
        kind: ``BINARY`` or ``LABELMAP``.
        segments: number to name, in ascending order.
        codes: number to (value, scheme, meaning) of the segment's type, where the file has one.
        frames: in the order of the file.
        numbers: the segment of each frame; 0 in a ``LABELMAP``, whose voxels hold the numbers.
        series: UIDs of the series that it refers to.
        instances: UIDs of the images that it refers to.
        patient_id, study_uid: from the header; empty where it has none.
        step: distance between slices in mm as the file states it; 0 where it does not.
    """

    path: Path
    kind: str
    segments: dict[int, str]
    codes: dict[int, Code]
    frames: tuple[Frame, ...]
    numbers: tuple[int, ...]
    series: frozenset[str]
    instances: frozenset[str]
    patient_id: str
    study_uid: str
    step: float


def read_seg(path: Path) -> Seg:
    """The segments and frames of a DICOM SEG, from its header.

    Raises:
        UserError: it is none, holds fractions, or lacks what describes its segments or places its frames.
    """
    require_packages()
    with reading(path):
        return _described(path, read_header(path, everything=True))


def _described(path: Path, header: Dataset) -> Seg:
    if str(header.get("SOPClassUID")) not in CLASSES:
        raise UserError("is not a DICOM SEG; give a label map")
    kind = str(header.get("SegmentationType") or "")
    if kind not in ("BINARY", "LABELMAP"):
        raise UserError(f"is a DICOM SEG of type {kind or 'unknown'}; only BINARY and LABELMAP state a label a voxel: "
                        "export it as one of them")  # fmt: skip
    items = [item for item in header.get("SegmentSequence") or [] if int(item.SegmentNumber) > 0]
    items.sort(key=lambda item: int(item.SegmentNumber))
    segments = {int(item.SegmentNumber): " ".join(str(item.get("SegmentLabel") or "").split()) for item in items}
    if len(segments) < len(items) or not segments:
        raise UserError("describes no segments, or two of one number; export it again")
    header.PhotometricInterpretation = "MONOCHROME2"  # a label map may have a palette, which is for display only
    frames = tuple(frames_of(header, path))
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    numbers = (0,) * len(frames) if kind == "LABELMAP" else tuple(_number([group, *shared]) for group in groups)
    if len(numbers) != len(frames):
        raise UserError("does not describe its frames; export it again")
    if unknown := sorted(set(numbers) - {0, *segments}):
        raise UserError(f"has frames of segment {unknown[0]}, which it does not describe; export it again")
    series = {str(item.SeriesInstanceUID) for item in header.get("ReferencedSeriesSequence") or []}
    codes = {int(item.SegmentNumber): code for item in items if (code := _code(item))}
    return Seg(path, kind, segments, codes, frames, numbers, frozenset(series), frozenset(_instances(header)),
               str(header.get("PatientID") or "").strip(), str(header.get("StudyInstanceUID") or ""),
               _step([*groups[:1], *shared]))  # fmt: skip


def _number(levels: list[Dataset]) -> int:
    for level in levels:
        for item in level.get("SegmentIdentificationSequence") or []:
            return int(item.ReferencedSegmentNumber)
    raise UserError("does not state the segment of each frame; export it again")


def _step(levels: list[Dataset]) -> float:
    for level in levels:
        for item in level.get("PixelMeasuresSequence") or []:
            return float(item.get("SpacingBetweenSlices") or 0.0)
    return 0.0


def _code(item: Dataset) -> Code | None:
    for code in item.get("SegmentedPropertyTypeCodeSequence") or []:
        found = tuple(str(code.get(key) or "") for key in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"))
        if all(found):
            return found[0], found[1], found[2]
    return None


def _instances(header: Dataset) -> set[str]:
    found = {str(item.ReferencedSOPInstanceUID) for item in header.get("SourceImageSequence") or []}
    for series in header.get("ReferencedSeriesSequence") or []:
        found |= {str(item.ReferencedSOPInstanceUID) for item in series.get("ReferencedInstanceSequence") or []}
    for group in header.get("PerFrameFunctionalGroupsSequence") or []:
        for derivation in group.get("DerivationImageSequence") or []:
            found |= {str(item.ReferencedSOPInstanceUID) for item in derivation.get("SourceImageSequence") or []}
    return found


def differences(seg: Seg, grid: Geometry, *, is_source: bool = False) -> str:
    """Why the frames do not lie on the voxels of a grid; empty where they do.

    Args:
        seg: from `read_seg`.
        grid: of the scan.
        is_source: the file refers to the scan. Otherwise frames that lie on no two neighbouring slices are taken for
            those of a scan with thicker slices.
    """
    try:
        _places(seg, grid, is_source=is_source)
    except UserError as problem:
        return str(problem)
    return ""


def read_on(
    seg: Seg, grid: Geometry, groups: Mapping[int, int], *, overlap: str = "", is_source: bool = False
) -> np.ndarray:
    """The label map (D, H, W) int32 on a grid. Slices without a frame are background.

    Args:
        seg: from `read_seg`.
        grid: of the scan.
        groups: segment number to the value that is wanted; segments of one value may overlap.
        overlap: ``later_wins``: where segments overlap, that of the higher number counts; empty: they are refused.
        is_source: as in `differences`.

    Raises:
        UserError: the frames do not lie on the grid, segments overlap, or the pixels cannot be decoded.
    """
    places = _places(seg, grid, is_source=is_source)
    require_memory(8.0 * np.prod(grid.shape), f"{seg.path}: a label map of {grid.shape} voxels", "crop the scan")
    found = np.zeros(grid.shape, np.int32)
    clashes: dict[tuple[int, int], int] = {}
    segment_at = np.zeros(grid.shape, np.uint16) if seg.kind == "BINARY" else None
    frames = _Frames(seg)
    for number in sorted(set(seg.numbers)):
        indices = [index for index in range(len(seg.frames)) if seg.numbers[index] == number]
        for index, values in zip(indices, frames.read(indices), strict=True):
            rows, columns = np.nonzero(values)
            if not len(rows):
                continue
            start, across, down = places[index]
            x, y, z = start[:, None] + across[:, None] * columns + down[:, None] * rows
            _require_inside(seg, grid, (x, y, z))
            if segment_at is None:
                found[z, y, x] = _looked_up(seg, values[rows, columns], groups)
                continue
            wanted = groups[number]
            before = found[z, y, x]
            for other in np.unique(segment_at[z, y, x][(before != 0) & (before != wanted)]).tolist():
                held = (before != 0) & (before != wanted) & (segment_at[z, y, x] == other)
                clashes[other, number] = clashes.get((other, number), 0) + int(held.sum())
            found[z, y, x], segment_at[z, y, x] = wanted, number
    if clashes and overlap != LATER_WINS:
        raise UserError(f"{seg.path}: {overlap_text(clashes, seg.segments)}")
    return found


class _Frames:
    """The frames of a file. Uncompressed ones of one bit a pixel are unpacked here: they begin in the middle of a byte,
    where pydicom does not read single frames."""

    def __init__(self, seg: Seg) -> None:
        self.path, self.shape, self.count = seg.path, seg.frames[0].shape, len(seg.frames)
        with reading(seg.path):
            header = read_header(seg.path, everything=True)
            syntax = header.file_meta.get("TransferSyntaxUID")
            encapsulated = syntax is not None and syntax.is_encapsulated
            if syntax == "1.2.840.10008.1.2.2" and not encapsulated:  # its words of two bytes may hold bits both ways
                raise UserError("is stored as Explicit VR Big Endian; export it as Little Endian")
            self.bits = None if encapsulated or int(header.get("BitsAllocated") or 0) != 1 else self._packed()

    def _packed(self) -> np.ndarray:
        import pydicom

        require_memory(3.0 * self.path.stat().st_size, f"{self.path}: a DICOM SEG", "export fewer segments")
        try:
            with quiet():
                content = bytes(pydicom.dcmread(self.path, force=True).get("PixelData") or b"")
        except Exception as problem:  # pydicom raises many kinds for damaged files
            raise UserError(f"{self.path}: its pixels cannot be read ({problem}); export it again") from None
        wanted = (self.count * self.shape[0] * self.shape[1] + 7) // 8
        if len(content) < wanted:
            raise UserError(
                f"{self.path}: its pixels cannot be read ({len(content)} bytes of {wanted} are there); export it again"
            )
        return np.frombuffer(content, np.uint8)

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """The values (rows, columns) of frames, whose numbers ascend."""
        if self.bits is None:
            yield from stored_frames(self.path, indices, self.shape)
            return
        size = self.shape[0] * self.shape[1]
        for index in indices:
            first = index * size
            part = self.bits[first // 8 : (first + size + 7) // 8]
            bits = np.unpackbits(part, bitorder="little")[first % 8 : first % 8 + size]
            yield bits.reshape(self.shape)


def overlap_text(clashes: Mapping[tuple[int, int], int], names: Mapping[int, str]) -> str:
    """The message for segments that overlap: pairs of their numbers, with the number of voxels."""
    (one, other), count = max(clashes.items(), key=lambda item: item[1])
    more = f", and {len(clashes) - 1} more pair(s)" if len(clashes) > 1 else ""
    return (
        f"segments {one} ({names[one]}) and {other} ({names[other]}) overlap in {count} voxel(s){more}, and a label "
        f"map has one value a voxel; correct them, or import with --overlap {LATER_WINS}"
    )


def _looked_up(seg: Seg, values: np.ndarray, groups: Mapping[int, int]) -> np.ndarray:
    if unknown := sorted(set(np.unique(values).tolist()) - set(seg.segments)):
        raise UserError(f"{seg.path}: holds the value {unknown[0]}, which none of its segments has; export it again")
    table = np.zeros(max(seg.segments) + 1, np.int32)
    for number in seg.segments:
        table[number] = groups[number]
    wanted: np.ndarray = table[values]
    return wanted


def _require_inside(seg: Seg, grid: Geometry, places: tuple[np.ndarray, ...]) -> None:
    for name, values, size in zip("xyz", places, grid.shape[::-1], strict=True):
        if values.min() < 0 or values.max() >= size:
            raise UserError(f"{seg.path}: has labels outside the scan (along {name}); crop it to the scan")


def _places(seg: Seg, grid: Geometry, *, is_source: bool) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each frame the voxel (x, y, z) of its first pixel, and the steps to the next column and row."""
    affine = grid.affine()
    back = np.linalg.inv(affine[:3, :3])
    found = []
    for number, frame in enumerate(seg.frames, start=1):
        row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
        exact = back @ np.stack(
            [np.array(frame.position) - affine[:3, 3], row * frame.spacing[1], column * frame.spacing[0]], axis=1
        )
        whole = np.rint(exact).astype(int)
        off = exact - whole
        rows, columns = frame.shape
        if max(rows, columns) > 4 * max(grid.shape):
            raise UserError(f"frame {number} has {rows} x {columns} pixels, the scan {grid.shape} voxels (z, y, x)")
        if np.abs(whole[:, 1:]).sum(axis=0).tolist() != [1, 1] or np.abs(off[:, 1:]).max() > _STEP:
            raise UserError(
                f"frame {number} has pixels of {frame.spacing[0]:g} x {frame.spacing[1]:g} mm or a direction that are "
                f"not those of the scan ({_mm(grid)} mm)"
            )
        ends = [off[:, 0] + off[:, 1] * c + off[:, 2] * r for c in (0, columns - 1) for r in (0, rows - 1)]
        if np.abs(off[:, 0]).max() > _START or np.abs(ends).max() > CORNER_TOLERANCE:
            raise UserError(
                f"frame {number} lies {np.abs(ends).max():.2g} voxels beside the voxels of the scan (of {_mm(grid)} mm)"
            )
        found.append((whole[:, 0], whole[:, 1], whole[:, 2]))
    _check_step(seg, grid, found, is_source=is_source)
    return found


def _check_step(
    seg: Seg, grid: Geometry, places: list[tuple[np.ndarray, np.ndarray, np.ndarray]], *, is_source: bool
) -> None:
    """Refuse frames at the distances of another series: on a finer grid, slices between them would be background."""
    axis = int(np.flatnonzero(places[0][1] + places[0][2] == 0)[0])
    step = grid.spacing[2 - axis]
    if seg.step and abs(seg.step - step) > 0.01 * step:
        raise UserError(f"its slices are {seg.step:g} mm apart, those of the scan {step:g} mm")
    gaps = np.diff(np.unique([start[axis] for start, _, _ in places]))
    if not seg.step and not is_source and len(gaps) and gaps.min() > 1:
        raise UserError(f"its slices are at least {gaps.min() * step:g} mm apart, those of the scan {step:g} mm")


def _mm(grid: Geometry) -> str:
    return " x ".join(f"{value:g}" for value in grid.spacing)
