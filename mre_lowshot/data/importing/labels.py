"""The labels of a dataset from those of its label maps: by name where files have names, by value otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mre_lowshot.config.check import require_text
from mre_lowshot.data.dicom import seg_reader
from mre_lowshot.data.dicom.codes import Code
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.importing.label_names import read_names
from mre_lowshot.data.importing.pairing import Pair, refers_to
from mre_lowshot.data.importing.slicer import placed, read_slicer, stacked
from mre_lowshot.data.importing.sources import LabelMap
from mre_lowshot.data.volume import read_labels
from mre_lowshot.errors import UserError

MOST_VALUES = 500  # of a label map without names
_TABLE = 1 << 20
_UNKNOWN = "85756007"  # the code of any tissue, which a SEG has where nothing better is known


@dataclass(frozen=True)
class LabelOptions:
    """What the user states: names of values (of files without names), other names for names, and overlap."""

    by_value: dict[int, str] = field(default_factory=dict)
    by_name: dict[str, str] = field(default_factory=dict)
    overlap: str = ""


@dataclass
class Labels:
    """The labels of the dataset.

    Attributes:
        values: name to value, with ``background`` and perhaps ``ignore``.
        maps: for each pair, value (or number of the segment) in the file to the value in the dataset.
        voxels: for each pair, name to number of voxels.
        codes: name to the coded term that all DICOM SEG agree on.
        notes, problems: one sentence each.
    """

    values: dict[str, int] = field(default_factory=dict)
    maps: list[dict[int, int]] = field(default_factory=list)
    voxels: list[dict[str, int]] = field(default_factory=list)
    codes: dict[str, Code] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def plain(name: str) -> str:
    """A name without case, blanks, hyphens and underscores: names that agree in it are one label."""
    return re.sub(r"[\W_]+", "", name.casefold()) or name


def parse_label_names(texts: Sequence[str], overlap: str = "") -> LabelOptions:
    """``--label_names``: ``1=liver`` for values of files without names, ``Leber=liver`` for other names, or a file with
    ITK-SNAP's label descriptions.

    Raises:
        UserError: a text is none of these, or a value or name gets two names.
    """
    by_value: dict[int, str] = {}
    by_name: dict[str, str] = {}
    for text in texts:
        key, equals, name = (part.strip() for part in text.partition("="))
        if not equals:
            if not Path(text).is_file() or not (names := read_names(Path(text))):
                raise UserError(
                    f"--label_names {text!r}: write VALUE=NAME or NAME=NAME, as in 1=liver, or a file with ITK-SNAP's "
                    "label descriptions"
                )
            pairs: Iterable[tuple[str, str]] = ((str(value), name) for value, name in names.items())
        else:
            require_text("--label_names", name, limit=100)
            pairs = [(key, name)]
        for one, other in pairs:
            is_value = one.isdigit() and len(one) < 10
            kept = by_value.setdefault(int(one), other) if is_value else by_name.setdefault(plain(one), other)
            if kept != other:
                raise UserError(f"--label_names: {one} gets the names {kept!r} and {other!r}; keep one")
    if 0 in by_value and plain(by_value[0]) != "background":
        raise UserError(f"--label_names 0={by_value[0]}: 0 is the background; leave it out")
    if overlap not in ("", seg_reader.LATER_WINS):
        raise UserError(f"--overlap {overlap!r}: must be {seg_reader.LATER_WINS}, or left out")
    return LabelOptions(by_value, by_name, overlap)


def survey(pairs: Iterable[Pair], options: LabelOptions) -> Labels:
    """Read every label map of the pairs, and number the labels that have voxels: 1, 2, ... in the order of the values
    of ``--label_names``, then as they occur in the files."""
    made, order = Labels(), _Order(options)
    ids: list[dict[int, int]] = []
    kept: list[Pair] = []
    for pair in pairs:
        kept.append(pair)
        try:
            own = {key: order.number(name) for key, name in _named(pair.label, options).items()}
            array = read_on(pair, own, overlap=options.overlap)
        except UserError as problem:
            made.problems.append(str(problem))
            ids.append({})
            made.voxels.append({})
            continue
        counts = np.bincount(array.ravel(), minlength=len(order.names))
        if not counts[1:].any():
            made.problems.append(f"{pair.label.path}: has no labelled voxel; annotate it, or use --leave_out")
        ids.append(own)
        made.voxels.append({order.names[i]: int(counts[i]) for i in range(1, len(counts)) if counts[i]})
    seen = {plain(name) for voxels in made.voxels for name in voxels}
    empty = [name for name in order.names[1:] if plain(name) not in seen]
    if empty and not made.problems:
        made.notes.append(f"labels without any voxel are left out: {', '.join(empty)}")
    classes = [name for name in order.sorted() if plain(name) in seen and plain(name) != "ignore"]
    made.values = {"background": 0, **{name: value for value, name in enumerate(classes, start=1)}}
    if "ignore" in seen:
        made.values["ignore"] = len(made.values)
    value_of = {plain(name): value for name, value in made.values.items()}
    for own in ids:
        made.maps.append({key: value_of.get(plain(order.names[i]), 0) for key, i in own.items()})
    if not classes and not made.problems and kept:
        made.problems.append("no label map has a voxel of any label; annotate at least one scan")
    made.notes += order.notes
    made.codes = _codes(kept, options, made.values)
    return made


class _Order:
    """The names in the order in which they occur, each once; number 0 is the background."""

    def __init__(self, options: LabelOptions) -> None:
        self.names, self.notes = ["background"], []  # type: list[str], list[str]
        self.numbers = {"background": 0}
        self.first = [plain(name) for _, name in sorted(options.by_value.items())]

    def number(self, name: str) -> int:
        key = plain(name)
        if key not in self.numbers:
            self.numbers[key] = len(self.names)
            self.names.append("ignore" if key == "ignore" else name)
        known = self.names[self.numbers[key]]
        note = f"{name!r} and {known!r} are taken for one label"
        if known != name and key not in ("ignore", "background") and note not in self.notes:
            self.notes.append(note)
        return self.numbers[key]

    def sorted(self) -> list[str]:
        """The names above the background, those that ``--label_names`` gives values first."""
        place = {key: index for index, key in enumerate(dict.fromkeys(self.first))}
        return sorted(self.names[1:], key=lambda name: place.get(plain(name), len(place)))


def _named(label: LabelMap, options: LabelOptions) -> dict[int, str]:
    """Value (or number of the segment) to the name of its label, for all that occur."""
    names = {key: options.by_name.get(plain(name), name) for key, name in label.names.items()}
    for name in names.values():
        require_text(f"{label.path}: the name of a label", name, limit=100)
    if label.seg or label.segments or label.parts:
        return names
    array = read_labels(label.path).array
    low, high = int(array.min()), int(array.max())
    if low < 0:
        raise UserError(f"{label.path}: has the label value {low}; relabel it with numbers from 0")
    values = np.flatnonzero(np.bincount(array.ravel())) if high < _TABLE else np.unique(array)
    present = [int(value) for value in values if value]
    if len(present) > MOST_VALUES:
        raise UserError(f"{label.path}: has {len(present)} label values; is it an image? Leave it out, or give it in "
                        "a folder with --images")  # fmt: skip
    unnamed = [value for value in present if value not in names and value not in options.by_value]
    if unnamed:
        example = " ".join(f"{value}=NAME" for value in unnamed[:4]) + (" ..." if unnamed[4:] else "")
        raise UserError(f"{label.path}: nothing names its value(s) {', '.join(map(str, unnamed[:8]))}"
                        f"{', ...' if unnamed[8:] else ''}; give --label_names {example}")  # fmt: skip
    return {value: names[value] if value in names else options.by_value[value] for value in present}


def read_on(pair: Pair, values: Mapping[int, int], *, overlap: str = "", grid: Geometry | None = None) -> np.ndarray:
    """The label map of a pair (D, H, W) int32 on the scan's grid.

    Args:
        pair: from `pairing.propose`.
        values: value (or number of the segment) in the file to the value that is wanted.
        overlap: ``later_wins`` or empty: see `dicom.seg_reader.read_on`.
        grid: of the scan as it was read; None: from its header.

    Raises:
        UserError: it cannot be read, does not lie on the grid, or segments overlap.
    """
    label, grid = pair.label, grid or pair.unit.geometry
    if label.seg:
        return seg_reader.read_on(label.seg, grid, values, overlap=overlap, is_source=refers_to(label, pair.unit))
    if label.segments:
        try:
            return placed(read_slicer(label.path, label.segments, values, overlap=overlap), grid)
        except UserError as problem:
            text = str(problem)
            raise UserError(text if text.startswith(str(label.path)) else f"{label.path}: {text}") from None
    if label.parts:
        masks = ((number, _mask(part, grid)) for number, part in enumerate(label.parts, start=1))
        return stacked(label.path, masks, values, names=label.names, overlap=overlap)
    volume = read_labels(label.path, like=grid)
    if different := grid.differences(volume.geometry):
        raise UserError(f"{label.path}: is not on the grid of its scan: {'; '.join(different)}; resample it")
    return _renumbered(volume.array, values)


def _mask(label: LabelMap, grid: Geometry) -> np.ndarray:
    array = read_labels(label.path, like=grid).array
    high = int(array.max())
    if array.min() < 0 or not np.isin(array, [0, high]).all():
        raise UserError(
            f"{label.path}: has several values; a mask has 0 and one other: leave --masks out, or merge them"
        )
    made: np.ndarray = array > 0
    return made


def _renumbered(array: np.ndarray, values: Mapping[int, int]) -> np.ndarray:
    if int(array.max()) < _TABLE:
        table = np.zeros(int(array.max()) + 1, np.int32)
        for value, wanted in values.items():
            if value < len(table):
                table[value] = wanted
        renumbered: np.ndarray = table[array]
        return renumbered
    found = np.zeros(array.shape, np.int32)
    for value, wanted in values.items():
        found[array == value] = wanted
    return found


def _codes(pairs: Sequence[Pair], options: LabelOptions, values: Mapping[str, int]) -> dict[str, Code]:
    """The coded terms of DICOM SEG, of names that all files give one code."""
    found: dict[str, set[Code]] = {}
    for pair in pairs:
        for number, code in (pair.label.seg.codes if pair.label.seg else {}).items():
            if code[0] == _UNKNOWN:
                continue
            name = pair.label.names[number]
            found.setdefault(plain(options.by_name.get(plain(name), name)), set()).add(code)
    return {
        name: next(iter(codes))
        for name, value in values.items()
        if value and name != "ignore" and len(codes := found.get(plain(name), set())) == 1
        and all(len(text) <= limit for text, limit in zip(next(iter(codes)), (64, 16, 64), strict=True))
    }  # fmt: skip
