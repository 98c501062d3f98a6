"""Raw datasets in nnU-Net's layout: dataset.json, and the cases of imagesTr, labelsTr, imagesTs and labelsTs.

This module uses file names only; `data.verification` reads and checks the content of the files.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mre_lowshot.config.json import suggest
from mre_lowshot.data.colours import label_colours
from mre_lowshot.data.dicom.codes import label_codes
from mre_lowshot.data.dicom.series import Series
from mre_lowshot.data.listing import Listing, list_images, name_problem, shown, twins
from mre_lowshot.data.readers import COLOUR_ENDINGS, READABLE_ENDINGS
from mre_lowshot.data.readers import file_ending as ending_of
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json

_CHANNEL = re.compile(r"(.+)_([0-9]{4})$", re.DOTALL)
_OTHER_DIGITS = re.compile(r"(.+)_0*([0-9]{1,3})$", re.DOTALL)  # a channel number of another number of digits
# Endings that other tools append to the names of label maps
_LABEL_SUFFIX = re.compile(r"[._ -](seg|segmentation|label|labels|labelmap|mask|gt|manual)$", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One scan and its label map."""

    name: str
    images: tuple[Path, ...]  # channel files in order, or one colour file with all channels
    label: Path | None = None  # None: not annotated
    series: tuple[Series, ...] = field(default=(), compare=False)  # of each channel, where the images are DICOM


@dataclass(frozen=True)
class Dataset:
    """The content of dataset.json, and the cases found in the folder."""

    folder: Path
    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]  # background (0) and every class, without the ignore label
    ignore_label: int | None
    file_ending: str
    num_training: int
    cases: tuple[Case, ...]  # of imagesTr; those without a file in labelsTr are unlabelled
    test_cases: tuple[Case, ...] = ()  # of imagesTs
    problems: tuple[str, ...] = field(default=(), compare=False)  # files that do not form a case, one line each
    bias_field_corrected: bool | None = None  # whether the scans were corrected before; None: not stated

    @property
    def labelled(self) -> tuple[Case, ...]:
        """The training cases that have a label map."""
        return tuple(case for case in self.cases if case.label)

    @classmethod
    def load(cls, folder: Path) -> Dataset:
        """Read dataset.json and group the files of ``folder`` into cases; no image is opened.

        Raises:
            UserError: dataset.json is missing or breaks a rule, imagesTr is missing, or no case is labelled.
        """
        if not isinstance(folder, (str, Path)):
            raise UserError(f"dataset {folder!r}: must be the path of its folder")
        folder = Path(folder).resolve()
        where = f"{folder.name}/dataset.json"
        data = read_json(folder / "dataset.json", f"dataset.json of {folder.name}")
        if not isinstance(data, dict):
            raise UserError(f"{where}: must be a JSON object with named fields, found {type(data).__name__}")
        channels = _channel_names(data, where)
        labels, ignore = _labels(data, where)
        label_colours(labels, data.get("label_colours"), where)
        label_codes(labels, data.get("label_codes"), where)
        ending = _needed(data, "file_ending", where)
        if ending not in READABLE_ENDINGS:
            raise UserError(
                f"{where}: file_ending {ending!r} is not supported; {suggest(str(ending), READABLE_ENDINGS)}"
            )
        number = _needed(data, "numTraining", where)
        if not _is_count(number):
            raise UserError(f"{where}: numTraining is {number!r}; must be the number of training cases")
        corrected = data.get("bias_field_corrected")
        if corrected is not None and not isinstance(corrected, bool):
            raise UserError(f"{where}: bias_field_corrected is {corrected!r}; must be true or false")
        cases, problems = _paired(folder, "Tr", len(channels), ending)
        tests, more = _test_cases(folder, len(channels), ending)
        both = sorted({case.name for case in cases} & {case.name for case in tests})
        problems += more + [f"case {n}: is in imagesTr and in imagesTs; keep it in one of them" for n in both]
        if not any(case.label for case in cases):
            if problems:  # the causes; a missing label map may be none
                found = "".join(f"\n  {p}" for p in problems)
                raise UserError(f"{folder.name}: no case can be used for training:{found}")
            raise UserError(
                f"{folder.name}: no label map in labelsTr belongs to a case in imagesTr; annotate at least one case "
                f"and save the label map as labelsTr/CASE{ending}"
            )
        return cls(folder, folder.name, channels, labels, ignore, ending, number,
                   tuple(cases), tuple(tests), tuple(problems), corrected)  # fmt: skip


def read_description(folder: Path) -> dict[str, Any]:
    """What the dataset.json in ``folder`` says about files and labels: ``channel_names``, ``labels``, ``ignore_label``
    and ``file_ending``.

    Raises:
        UserError: it is missing or breaks a rule.
    """
    where = f"{folder.name}/dataset.json"
    data = read_json(folder / "dataset.json", f"dataset.json of {folder.name}")
    if not isinstance(data, dict):
        raise UserError(f"{where}: must be a JSON object with named fields, found {type(data).__name__}")
    labels, ignore = _labels(data, where)
    ending = _needed(data, "file_ending", where)
    return {
        "channel_names": _channel_names(data, where),
        "labels": labels,
        "ignore_label": ignore,
        "file_ending": ending,
    }


def _test_cases(folder: Path, channels: int, ending: str) -> tuple[list[Case], list[str]]:
    """The cases of imagesTs, often an empty folder in nnU-Net datasets, and problems."""
    images, labels = folder / "imagesTs", folder / "labelsTs"
    if images.is_dir() and any(p.name[0] != "." for p in images.iterdir()):
        return _paired(folder, "Ts", channels, ending)
    if images.is_symlink() and not images.is_dir():
        return [], ["imagesTs: is a broken symbolic link; restore the folder or remove the link"]
    if not labels.is_dir():
        return [], _no_folder(labels)
    found = list_images(labels, ending)
    problems = list(found.problems)
    if count := len(found.files):
        problems.append(f"labelsTs: holds {count} label map(s), but imagesTs no image; add the images, or move them")
    return [], problems


def _no_folder(labels: Path) -> list[str]:
    """A problem where the folder of label maps is something else."""
    if not os.path.lexists(labels):
        return []
    return [f"{labels.name}: is a file or a broken symbolic link; make it a folder with label maps"]


def find_cases(
    folder: Path, channels: int, file_ending: str | None, *, ignore: Sequence[Path] = ()
) -> tuple[list[Case], list[str]]:
    """Group ``name_0000.ext, name_0001.ext, ...`` into cases, sorted by name.

    With one channel, files ``name.ext`` are cases if no file name ends in ``_0000``. With several channels, a case may
    be one colour file ``name_0000.png``, whose channels `data.verification` counts.

    Args:
        folder: folder with the images.
        channels: number of channels of the dataset.
        file_ending: ending of the images; None accepts every readable ending.
        ignore: files and folders in ``folder`` that are no input (an output folder).

    Returns:
        The cases without problems, and the problems, one line each: also everything that looks like an image and is
        not read.

    Raises:
        UserError: the folder is missing.
    """
    return _cases(list_images(folder, file_ending, ignore=ignore), channels, file_ending)


def _cases(listing: Listing, channels: int, ending: str | None) -> tuple[list[Case], list[str]]:
    folder = listing.folder
    groups, problems = _groups(listing, channels, ending)
    bad = {name for name in groups if name_problem(name)}
    problems += [f"case {shown(name)}: its name {name_problem(name)}; rename its files" for name in sorted(bad)]
    for group in twins(list(groups)):
        bad.update(group)
        problems.append(
            f"cases {' and '.join(group)} in {folder.name} differ only in upper and lower case or in Unicode form, so "
            "one would overwrite the other on many disks; rename one"
        )
    cases = []
    for name, files in groups.items():
        wanted = range(channels)
        one_colour_file = list(files) == [0] and ending_of(files[0]) in COLOUR_ENDINGS
        missing = [] if one_colour_file else [i for i in wanted if i not in files]
        extra = [shown(path.name) for i, path in sorted(files.items()) if i not in wanted]
        if missing:
            own = ending_of(next(iter(files.values())))
            names = ", ".join(f"{shown(name)}_{i:04d}{own}" for i in missing)
            problems.append(
                f"case {shown(name)}: {names} missing in {folder.name} (the dataset has {channels} channels); "
                "add it or remove the case"
            )
        if extra:
            problems.append(
                f"case {shown(name)}: {', '.join(extra)} in {folder.name} exceeds the {channels} channel(s) of the "
                "dataset; remove the file, or add the channel to channel_names"
            )
        if not missing and not extra and name not in bad:
            cases.append(Case(name, tuple(files[i] for i in sorted(files))))
    return cases, problems


def _groups(listing: Listing, channels: int, ending: str | None) -> tuple[dict[str, dict[int, Path]], list[str]]:
    """Case name -> channel number -> file, and problems."""
    folder, files, problems = listing.folder, listing.files, []
    if not files:
        missing = f"{folder}: contains no image ending in {ending or ', '.join(READABLE_ENDINGS)}"
        other = "mre_import converts DICOM and other formats" if ending else "or give another folder"
        problems.append(f"{missing}; add images, {other}")
    problems += listing.problems
    plain = channels == 1 and not any(stem.endswith("_0000") for stem in files)
    groups: dict[str, dict[int, Path]] = {}
    for stem, paths in files.items():
        match = _CHANNEL.match(stem)
        if len(paths) > 1:
            names = ", ".join(shown(p.name) for p in paths)
            problems.append(f"case {shown(stem)}: more than one file ({names}) in {folder.name}; keep one")
        elif plain:
            groups[stem] = {0: paths[0]}
        elif match:
            groups.setdefault(match[1], {})[int(match[2])] = paths[0]
        else:
            problems.append(
                f"case {shown(stem)}: {shown(paths[0].name)} in {folder.name} has no channel number; "
                f"{_numbering(stem, paths[0], files)}"
            )
    return dict(sorted(groups.items())), problems


def _numbering(stem: str, path: Path, files: Mapping[str, object]) -> str:
    """How a file without a channel number (four digits) can get one without replacing another."""
    other = _OTHER_DIGITS.match(stem)
    wanted = f"{other[1]}_{int(other[2]):04d}" if other and f"{other[1]}_0000" not in files else f"{stem}_0000"
    if wanted in files:
        own = ending_of(path)
        return (
            f"{shown(wanted)}{own} exists too, so renaming would replace it: move away the one that is not the scan, "
            "or give it another case name"
        )
    return f"rename it {shown(wanted)}{ending_of(path)}"


def _paired(folder: Path, part: str, channels: int, ending: str) -> tuple[list[Case], list[str]]:
    """The cases of images{part} with their label maps in labels{part}, if any, and problems."""
    images, labels = folder / f"images{part}", folder / f"labels{part}"
    listing = list_images(images, ending)
    cases, problems = _cases(listing, channels, ending)
    if not labels.is_dir():
        return cases, problems + _no_folder(labels)
    found = list_images(labels, ending)
    problems += found.problems
    known = set(_groups(listing, channels, ending)[0])
    for stem, paths in found.files.items():
        if len(paths) > 1:
            names = ", ".join(shown(p.name) for p in paths)
            problems.append(f"case {shown(stem)}: more than one label map ({names}) in {labels.name}; keep one")
    maps = {stem: paths[0] for stem, paths in found.files.items() if len(paths) == 1}
    for stem in sorted(set(maps) - known):
        problems.append(
            f"case {shown(stem)}: {labels.name}/{shown(maps[stem].name)} has no image in {images.name}; "
            f"{_label_fix(stem, ending, known, maps)}"
        )
    return [Case(case.name, case.images, maps.get(case.name)) for case in cases], problems


def _label_fix(stem: str, ending: str, known: Collection[str], maps: Mapping[str, Path]) -> str:
    """What to do with a label map that has no image: the name it should have, where that can be guessed."""
    if other_form := [
        name for name in known if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", stem)
    ]:
        return (
            f"the image's name looks the same, but has another Unicode form ({other_form[0]!a}, the label map's "
            f"{stem!a}); give both the same name"
        )
    wanted = stem[:-5] if stem.endswith("_0000") else _LABEL_SUFFIX.sub("", stem)
    if wanted == stem:
        close = [name for name in known if name.casefold() == stem.casefold()]
        close = close or difflib.get_close_matches(stem, sorted(set(known) - set(maps)), n=1, cutoff=0.9)
        if not close:
            return "add the image or remove the label map"
        wanted = close[0]
        return f"is it the label map of {shown(wanted)}? Then rename it {shown(wanted)}{ending}"
    if wanted in maps:
        return f"{shown(wanted)}{ending} exists too: remove or move away the one that is not the label map"
    return f"rename it {shown(wanted)}{ending}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _needed(data: dict[str, Any], key: str, where: str) -> Any:
    if key in data:
        return data[key]
    close = difflib.get_close_matches(key, data, n=1)
    fix = f"found {close[0]!r}: rename it {key!r}" if close else f"add it (found: {', '.join(sorted(data))})"
    raise UserError(f"{where}: key {key!r} is missing; {fix}")


def _channel_names(data: dict[str, Any], where: str) -> tuple[str, ...]:
    key = "modality" if "modality" in data and "channel_names" not in data else "channel_names"
    names = _needed(data, key, where)
    if not isinstance(names, dict) or not names or sorted(names) != sorted(str(i) for i in range(len(names))):
        raise UserError(f'{where}: {key} is {names!r}; must number the channels from 0, as in {{"0": "CT"}}')
    return tuple(str(names[str(i)]) for i in range(len(names)))


def validate_labels(labels: Any, where: str) -> dict[str, int]:
    """Check that the "labels" of a dataset.json map names to non-negative integers, and return them.

    Raises:
        UserError: not such a mapping, or a region-based label; the message starts with ``where``.
    """
    if not isinstance(labels, dict) or not labels:
        raise UserError(f'{where}: labels is {labels!r}; must map names to integers: {{"background": 0, "liver": 1}}')
    for name, value in labels.items():
        if isinstance(value, list):
            raise UserError(
                f"{where}: label {name!r} is the region {value}; region-based labels are not supported, give each "
                "label its own integer"
            )
        if not _is_count(value):
            fix = "swap name and value" if str(name).isdigit() else "set it to an integer"
            raise UserError(f'{where}: label {name!r} is {value!r}; {fix}, as in "liver": 1 (integers from 0)')
    return labels


def _labels(data: dict[str, Any], where: str) -> tuple[dict[str, int], int | None]:
    labels = validate_labels(_needed(data, "labels", where), where)
    if labels.get("background") != 0:
        close = difflib.get_close_matches("background", [str(name).lower() for name in labels], n=1, cutoff=0.8)
        fix = f"rename {next(name for name in labels if name.lower() == close[0])!r}" if close else "add it"
        if "background" in labels:
            fix = "set it to 0"
        raise UserError(f'{where}: labels {labels} lack "background": 0; {fix}')
    classes = dict(sorted(((n, v) for n, v in labels.items() if n != "ignore"), key=lambda item: item[1]))
    if list(classes.values()) != list(range(len(classes))) or len(classes) < 2:
        raise UserError(
            f"{where}: labels {list(classes.values())} must be the consecutive numbers 0, 1, 2, ... with at least one "
            "class besides background; renumber them here and in the label maps"
        )
    ignore = labels.get("ignore")
    if ignore is not None and ignore < len(classes):
        raise UserError(f"{where}: ignore label {ignore} is also the value of a class; use {len(classes)} or more")
    return classes, ignore
