"""From the frames of a series to stacks: the slices of one volume, in order, on one regular grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mre_lowshot.data.dicom.frames import VARIANTS, Frame
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.errors import UserError

SCOUTS = 3  # so many images of another orientation or size, beside a volume in the same series, are scouts
_ORIENTATION, _SPACING = 1e-3, 1e-3  # tolerance of direction cosines, and relative one of the pixel spacing
_SIDEWAYS = 0.25  # pixels that a slice may lie beside its place in the grid
_SHEAR = 1e-3  # shift of a slice against the one before, of their distance


@dataclass(frozen=True)
class Stack:
    """The slices of one volume in the order of their position, or why they are none.

    Attributes:
        frames: along the direction of row x column.
        geometry: the LPS grid, whose file axes are (column, row, slice); None where there is a problem.
        problem: empty where the stack can be read.
        variant: what distinguishes it from other volumes of its series at the same positions.
        notes: what was left out.
    """

    frames: tuple[Frame, ...]
    geometry: Geometry | None = None
    problem: str = ""
    variant: str = ""
    notes: tuple[str, ...] = ()


def make_stacks(frames: Sequence[Frame]) -> list[Stack]:
    """Divide the frames of a series into stacks of one orientation, size and spacing, each position once."""
    groups = _parallel(frames)
    volumes = [group for group in groups if len(group) > SCOUTS]
    others = [group for group in groups if len(group) <= SCOUTS]
    if len(groups) == 1:
        return _by_position(groups[0])
    if len(volumes) == 1:  # a scan with its scouts
        count = sum(map(len, others))
        note = f"{count} image(s) of another orientation or size in the same series are left out"
        return _by_position(volumes[0], notes=(note,))
    found = "; ".join(_described(group) for group in groups[:6]) + ("; ..." if len(groups) > 6 else "")
    problem = f"has images of different orientation or size ({found}), as a localizer has"
    return [
        Stack(tuple(group), problem=f"{problem}; give the files of one stack in a folder of their own")
        for group in ([list(frames)] if not volumes else groups)
    ]


def _parallel(frames: Sequence[Frame]) -> list[list[Frame]]:
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            first = group[0]
            if (
                first.shape == frame.shape
                and first.reference == frame.reference
                and np.allclose(first.orientation, frame.orientation, rtol=0, atol=_ORIENTATION)
                and np.allclose(first.spacing, frame.spacing, rtol=_SPACING, atol=0)
            ):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def _described(group: Sequence[Frame]) -> str:
    frame = group[0]
    axis = int(np.argmax(np.abs(_normal(frame))))
    rows, columns = frame.shape
    return f"{len(group)} {('sagittal', 'coronal', 'axial')[axis]} of {columns} x {rows}"


def _axes(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along a row and along a column."""
    row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    return row / np.linalg.norm(row), column / np.linalg.norm(column)


def _normal(frame: Frame) -> np.ndarray:
    normal: np.ndarray = np.cross(*_axes(frame))
    return normal / float(np.linalg.norm(normal))


def _distances(frames: Iterable[Frame], normal: np.ndarray) -> np.ndarray:
    return np.array([np.array(frame.position) @ normal for frame in frames])


def _by_position(frames: Sequence[Frame], notes: tuple[str, ...] = ()) -> list[Stack]:
    normal = _normal(frames[0])
    places = np.round(_distances(frames, normal), 3)
    repeats = int(np.unique(places, return_counts=True)[1].max())
    if repeats == 1:
        return [_regular(frames, normal, notes=notes)]
    place = {id(frame): value for frame, value in zip(frames, places.tolist(), strict=True)}
    keys, groups = _divided(frames, place, repeats)
    if not groups:
        first = next(v for v, n in zip(*np.unique(places, return_counts=True), strict=True) if n > 1)
        twins = [frame.path.name for frame in frames if place[id(frame)] == first][:2]
        problem = f"has {repeats} images at one position ({twins[0]} and {twins[1]}, for example), and no attribute "
        return [Stack(tuple(frames), problem=problem + "that divides them into volumes; remove the images not wanted")]
    full = max(map(len, groups.values()))
    stacks = []
    for number, (values, group) in enumerate(groups.items(), start=1):
        text = ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True) if key != "file")
        variant = f"volume {number} of {len(groups)}" + (f": {text}" if text else "")
        if len(group) < full:
            problem = f"has {len(group)} slices of {full} ({variant}); export the missing ones too"
            stacks.append(Stack(tuple(group), problem=problem, variant=variant))
        else:
            stacks.append(_regular(group, normal, notes=notes, variant=variant))
    return stacks


def _divided(
    frames: Sequence[Frame], place: dict[int, float], repeats: int
) -> tuple[tuple[str, ...], dict[tuple[str, ...], list[Frame]]]:
    """The frames by the fewest attributes that divide them into ``repeats`` volumes, each position once in each."""
    differing = [key for key in (*VARIANTS, "file") if len({frame.variant.get(key, "") for frame in frames}) > 1]
    for count in (1, 2, 3):
        for keys in combinations(differing, count):
            groups: dict[tuple[str, ...], list[Frame]] = {}
            for frame in frames:
                groups.setdefault(tuple(frame.variant.get(key, "") for key in keys), []).append(frame)
            alone = all(len({place[id(frame)] for frame in group}) == len(group) for group in groups.values())
            if alone and len(groups) == repeats:
                return keys, dict(sorted(groups.items(), key=lambda item: [_number(v) for v in item[0]]))
    return (), {}


def _number(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return 0.0, text


def _regular(frames: Sequence[Frame], normal: np.ndarray, *, notes: tuple[str, ...] = (), variant: str = "") -> Stack:
    """The stack of frames at different positions, with its grid."""
    distances = _distances(frames, normal)
    order = np.argsort(distances, kind="stable")
    ordered = tuple(frames[i] for i in order)
    try:
        geometry = _grid(ordered, distances[order], normal)
    except UserError as problem:
        return Stack(ordered, problem=str(problem).removeprefix("series: "), variant=variant)
    return Stack(ordered, geometry, variant=variant, notes=notes)


def _grid(frames: Sequence[Frame], distances: np.ndarray, normal: np.ndarray) -> Geometry:
    if len(frames) < 2:
        raise UserError("is a single slice, without the distance to a next one; give the whole series")
    gaps = np.diff(distances)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    positions = np.array([frame.position for frame in frames])
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    spacing = float(step @ normal)
    # Positions are often rounded to 0.1 mm: the fitted line, unlike one through the ends, is at most 0.05 mm away then.
    beside = np.abs(distances - np.polyval(np.polyfit(np.arange(len(frames)), distances, 1), np.arange(len(frames))))
    if beside.max() > min(max(0.02 * usual, 0.06), 0.1 * usual):
        _refuse_gaps(gaps, usual, distances)
    sideways = step - spacing * normal
    pixel = min(frames[0].spacing)
    shift = float(np.linalg.norm(sideways))
    if shift > _SHEAR * spacing and shift * (len(frames) - 1) > _SIDEWAYS * pixel:
        angle = np.degrees(np.arctan2(shift, spacing))
        raise UserError(
            f"has slices shifted sideways, each by {shift:.3g} mm ({angle:.3g} degrees), as with a gantry tilt; "
            "convert it to a grid at right angles first (dcm2niix, for example, corrects the tilt)"
        )
    off = positions - positions[0] - np.arange(len(frames))[:, None] * step
    off = np.linalg.norm(off - (off @ normal)[:, None] * normal, axis=1)
    if off.max() > _SIDEWAYS * pixel:
        raise UserError(
            f"has slices that do not lie above each other ({frames[int(off.argmax())].path.name} is {off.max():.3g} mm "
            "beside the others); convert it to a regular grid first"
        )
    row, column = _axes(frames[0])
    rows, columns = frames[0].spacing
    across = np.stack([row * columns, column * rows, step], axis=1)
    height, width = frames[0].shape
    return Geometry.of_file(across, positions[0], (width, height, len(frames)), name="series")


def _refuse_gaps(gaps: np.ndarray, usual: float, distances: np.ndarray) -> None:
    widest = int(gaps.argmax())
    where = f"between the slices at {distances[widest]:.4g} and {distances[widest + 1]:.4g} mm"
    missing = np.rint(gaps / usual) - 1
    if np.abs(gaps / usual - 1 - missing).max() < 0.1 and missing.max() > 0:
        raise UserError(
            f"lacks {int(missing.sum())} slice(s): a gap of {gaps[widest]:.4g} mm {where}, {usual:.4g} mm elsewhere; "
            "export the whole series"
        )
    raise UserError(
        f"has slices at unequal distances, {gaps.min():.4g} to {gaps.max():.4g} mm (the largest {where}); resample it "
        "to equal distances first, or give a series with equal ones"
    )
