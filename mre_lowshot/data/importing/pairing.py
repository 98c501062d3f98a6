"""Which label map belongs to which scan: by references, grid and names, each pair with its reason."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mre_lowshot.data.dicom import seg_reader
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.importing.channels import Unit
from mre_lowshot.data.importing.slicer import offset_on
from mre_lowshot.data.importing.sources import LabelMap, Scan
from mre_lowshot.data.importing.words import agreement, core, shared_folders
from mre_lowshot.data.pairs import grid_fix
from mre_lowshot.errors import UserError

STATE = "state the pair with --pairs, or leave the label map out with --leave_out"


@dataclass(frozen=True)
class Pair:
    """A scan with its label map, and why they belong together."""

    unit: Unit
    label: LabelMap
    reason: str


@dataclass
class Pairing:
    """The pairs, and what has no partner.

    Attributes:
        pairs: in the order of the scans.
        unlabelled: scans without a label map.
        problems: label maps that no scan, or several, fit; one sentence each.
    """

    pairs: list[Pair] = field(default_factory=list)
    unlabelled: list[Unit] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def propose(
    units: Sequence[Unit],
    labels: Sequence[LabelMap],
    given: Sequence[tuple[Unit, LabelMap]] = (),
    *,
    masks: bool = False,
) -> Pairing:
    """Pair label maps with scans.

    A DICOM SEG belongs to the series that it refers to. Any other label map belongs to the scan on its grid whose name
    (or folder) agrees best; where names agree best with a scan on another grid, it is refused. Of several that fit
    equally, none is chosen.

    Args:
        units: the scans.
        labels: the label maps.
        given: pairs that the user states.
        masks: a scan may have several label maps, each with the mask of one label that its file names.
    """
    made = Pairing()
    chosen: dict[int, list[Pair]] = {}
    stated_units, stated_labels = {id(unit) for unit, _ in given}, {id(label) for _, label in given}
    free = [unit for unit in units if id(unit) not in stated_units]
    rest = [label for label in labels if id(label) not in stated_labels]
    for unit, label in given:
        if different := misfit(label, unit):
            made.problems.append(_other_grid(label, unit, different))
        else:
            chosen.setdefault(id(unit), []).append(Pair(unit, label, "as --pairs states"))
    for label in rest:
        found = _partner(label, free, [] if masks else rest)
        if isinstance(found, Pair):
            chosen.setdefault(id(found.unit), []).append(found)
        else:
            made.problems.append(_surplus(label, given) or found)
    for unit in units:
        pairs = chosen.get(id(unit), [])
        if masks and pairs and not any(pair.label.seg or pair.label.segments for pair in pairs):
            try:
                made.pairs.append(_of_masks(unit, pairs))
            except UserError as problem:
                made.problems.append(str(problem))
        elif len(pairs) == 1:
            made.pairs.append(pairs[0])
        elif pairs:
            names = " and ".join(pair.label.name for pair in pairs[:3])
            made.problems.append(
                f"{unit.name}: {len(pairs)} label maps fit it equally ({names}), and a scan takes one (masks of one "
                f"label each: --masks); {STATE}"
            )
        else:
            made.unlabelled.append(unit)
    return made


def _of_masks(unit: Unit, pairs: Sequence[Pair]) -> Pair:
    """The pair of a scan with files of one mask each, named by the words that the scan's name does not have."""
    known = {word for scan in unit.scans for stem in scan.stems for word in core(stem)}
    names: dict[int, str] = {}
    for number, pair in enumerate(pairs, start=1):
        words = [word for word in re.findall(r"[^\W_]+", pair.label.stems[0]) if set(core(word)) - known]
        if not words:
            raise UserError(f"{pair.label.path}: its name does not contain the name of a label; rename it")
        names[number] = "_".join(words)
    first = pairs[0].label
    made = dataclasses.replace(
        first, name=f"{first.name} and {len(pairs) - 1} more" if pairs[1:] else first.name, kind="masks", names=names,
        names_from="its files", parts=tuple(pair.label for pair in pairs),
    )  # fmt: skip
    return Pair(unit, made, f"{len(pairs)} mask(s) {', '.join(names.values())}; {pairs[0].reason}")


def misfit(label: LabelMap, unit: Unit) -> str:
    """Why a label map does not lie on a scan's grid; empty where it does. One with segments may be cropped."""
    grid = unit.geometry
    if label.seg:
        return seg_reader.differences(label.seg, grid, is_source=refers_to(label, unit))
    assert label.geometry is not None  # of every file but a DICOM SEG
    different = grid.differences(label.geometry)
    if not different or (label.segments and _is_part(grid, label.geometry)):
        return ""
    return "; ".join(different)


def _is_part(grid: Geometry, part: Geometry) -> bool:
    offset = offset_on(grid, part.turned(grid.turn_from(part)))
    shape = part.turned(grid.turn_from(part)).shape
    return offset is not None and all(
        start < whole and start + size > 0 for start, size, whole in zip(offset, shape, grid.shape, strict=True)
    )


def _partner(label: LabelMap, units: Sequence[Unit], labels: Sequence[LabelMap]) -> Pair | str:
    """The pair of a label map, or the problem."""
    if label.seg and (referred := _referred(label, units)):
        fitting = [unit for unit in referred if not misfit(label, unit)]
        if not fitting:
            return _other_grid(label, referred[0], misfit(label, referred[0]))
        if len(fitting) > 1:
            return _ambiguous(label, fitting, "they are volumes of the series that it refers to")
        return Pair(fitting[0], label, "refers to the series")
    eligible = [unit for unit in units if not _excluded(label, unit)]
    if not eligible:
        other = "the series that it refers to is not there, or cannot be read (see what is left out)"
        why = other if label.seg and label.seg.series else "there is no scan that it can belong to"
        return f"{label.name}: {why}; add the scan, or leave the label map out with --leave_out"
    ranks = {id(unit): _rank(label, unit) for unit in eligible}
    best = max(ranks.values())
    top = [unit for unit in eligible if ranks[id(unit)] == best]
    fitting = [unit for unit in top if not misfit(label, unit)]
    if len(fitting) == 1 and (best > (0, 0) or not any(_same_grid(label, o) for o in labels if o is not label)):
        return Pair(fitting[0], label, _reason(label, fitting[0], best))
    if fitting:
        why = "their names agree equally" if best > (0, 0) else "it is on their grid, and no name agrees"
        if len(fitting) == 1:
            return (
                f"{label.name}: is on the grid of {fitting[0].name}, as other label maps are, and no name agrees; "
                f"{STATE}"
            )
        return _ambiguous(label, fitting, why)
    nearest = top[0]
    different = misfit(label, nearest)
    if best > (0, 0) or len(eligible) == 1:
        return _other_grid(label, nearest, different)
    return f"{label.name}: is on the grid of no scan (of {nearest.name}, for example: {different}); {STATE}"


def _surplus(label: LabelMap, given: Sequence[tuple[Unit, LabelMap]]) -> str:
    """The problem of a label map that fits a scan to which the user gave another one; empty where there is none."""
    for unit, stated in given:
        if not _excluded(label, unit) and not misfit(label, unit):
            return (
                f"{label.name}: is on the grid of {unit.name}, for which --pairs states {stated.name}; leave it out "
                "with --leave_out"
            )
    return ""


def _referred(label: LabelMap, units: Sequence[Unit]) -> list[Unit]:
    """The scans of the series that a DICOM SEG refers to; those with its images where a series holds several."""
    referred = [unit for unit in units if refers_to(label, unit)]
    by_image = [u for u in referred if label.seg and any(_instances(scan) & label.seg.instances for scan in u.scans)]
    return by_image or referred


def refers_to(label: LabelMap, unit: Unit) -> bool:
    """Whether a DICOM SEG refers to a series of the scan, or to an image of it."""
    seg = label.seg
    return seg is not None and any(
        scan.series is not None and (scan.series.uid in seg.series or bool(_instances(scan) & seg.instances))
        for scan in unit.scans
    )


def _instances(scan: Scan) -> set[str]:
    return {frame.sop[1] for frame in scan.series.frames} if scan.series else set()


def _excluded(label: LabelMap, unit: Unit) -> bool:
    """Whether DICOM headers show that they do not belong together: different patients, or another series."""
    others = label.seg.series if label.seg else frozenset()  # none of them is this scan, or it would have been taken
    return any(
        (label.patient and scan.patient and label.patient != scan.patient) or (others and scan.series)
        for scan in unit.scans
    )


def _rank(label: LabelMap, unit: Unit) -> tuple[int, int]:
    """Agreement of names; then of folders and of DICOM's examination."""
    names = max(agreement(label.stems, scan.stems) for scan in unit.scans)
    near = max(
        2 * len(shared_folders(label.folders, scan.folders))
        + bool(label.study and label.study == scan.study)
        + any(agreement([folder], scan.stems) > 0 for folder in label.folders)
        for scan in unit.scans
    )
    return names, near


def _reason(label: LabelMap, unit: Unit, rank: tuple[int, int]) -> str:
    parts = ["same grid" if label.seg or not label.segments or not _cropped(label, unit) else "same voxels, cropped"]
    if rank[0]:
        parts.append("same name" if rank[0] == 2 else "similar name")
    if rank[1] and (shared := shared_folders(label.folders, unit.scans[0].folders)):
        parts.append(f"folder {shared[-1]}")
    elif rank[1]:
        parts.append("same patient")
    if rank == (0, 0):
        parts.append("no other scan and label map have it")
    return "; ".join(parts)


def _cropped(label: LabelMap, unit: Unit) -> bool:
    return label.geometry is not None and bool(unit.geometry.differences(label.geometry))


def _same_grid(one: LabelMap, other: LabelMap) -> bool:
    """Whether two label maps lie on one grid; False of a DICOM SEG."""
    return one.geometry is not None and other.geometry is not None and not one.geometry.differences(other.geometry)


def _ambiguous(label: LabelMap, units: Sequence[Unit], why: str) -> str:
    names = ", ".join(unit.name for unit in units[:4]) + (", ..." if units[4:] else "")
    return f"{label.name}: {len(units)} scans fit equally ({names}): {why}; {STATE}"


def _other_grid(label: LabelMap, unit: Unit, different: str) -> str:
    start = f"{label.name}: is not on the grid of its scan {unit.name}: {different}"
    if label.geometry is None or unit.scans[0].series is not None or label.segments:
        return f"{start}; export it on the scan's grid again, or resample it (nearest neighbour)"
    return f"{start}; {grid_fix(unit.geometry, label.geometry, unit.scans[0].path, label.path)}"
