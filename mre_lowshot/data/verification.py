"""Verification of a raw dataset: reads every case once and reports all problems at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mre_lowshot.data.dataset import Case, Dataset
from mre_lowshot.data.lost_headers import channel_fix
from mre_lowshot.data.pairs import pair_problems
from mre_lowshot.data.readers import COLOUR_ENDINGS
from mre_lowshot.data.volume import Volume, merged_notes, read_image, read_labels
from mre_lowshot.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

MOST_VALUES = 20  # unknown labels that are named one by one
REPLACE = "replace them, for example with the value of the background"
OnCase = Callable[[Case, Volume, "Volume | None"], None]


def verify(
    dataset: Dataset,
    on_case: OnCase | None = None,
    progress: Callable[[Sequence[Case]], Iterable[Case]] = iter,
    test_cases: bool = True,
) -> list[str]:
    """Read all cases, one at a time, and list all problems.

    Args:
        dataset: from `Dataset.load`; its ``problems`` come first in the list.
        on_case: called with (case, image (C, D, H, W), label map (D, H, W) or None) for each training case without a
            problem, so that the fingerprint does not read the files again. Never called with a test case.
        progress: wraps the sequence of cases, e.g. ``functools.partial(tqdm, desc="verify", disable=None)``.
        test_cases: also read imagesTs and labelsTs, where a label map may be empty.

    Returns:
        The problems, one line each; empty if none was found.
    """
    problems = list(dataset.problems)
    expected = {len(dataset.labelled), len(dataset.cases)}
    if dataset.num_training not in expected and not dataset.problems:
        problems.append(
            f"{dataset.name}/dataset.json: numTraining is {dataset.num_training}, but imagesTr holds "
            f"{len(dataset.cases)} cases, {len(dataset.labelled)} of them labelled; set it to {len(dataset.cases)}"
        )
    training = set(dataset.cases)
    slices: list[str] = []
    volumes: list[str] = []
    for case in progress([*dataset.cases, *(dataset.test_cases if test_cases else ())]):
        found: list[str] = []
        is_training = case in training
        image = _image(case, dataset, found)
        label = _label(case.label, dataset, found, may_be_empty=not is_training) if case.label else None
        if image and label and case.label:
            wrong = pair_problems(image, label, image_path=case.images[0], label_path=case.label)
            found += wrong
            label = label if wrong else label.on_axes_of(image.geometry)
        if image:
            found += [problem] if (problem := storage_problem(image, dataset.file_ending)) else []
            (volumes if image.geometry.shape[0] > 1 else slices).append(case.name)
        problems += [f"case {case.name}: {text}" for text in found]
        if on_case and is_training and image and not found:
            on_case(case, image, label)
    if volumes and slices:
        problems.append(
            f"{dataset.name}: single slices ({_named(slices)}) beside volumes ({_named(volumes)}); a model takes one "
            "or the other: remove the slices or give their volumes"
        )
    return problems


def storage_problem(image: Volume, ending: str) -> str | None:
    """Why a label map of this image cannot be written with a file ending; None where it can."""
    slices = image.geometry.shape[0]
    if slices == 1 or ending not in COLOUR_ENDINGS:
        return None
    return (
        f"a volume of {slices} slices; label maps of volumes cannot be written to {ending}: convert images and label "
        "maps to .nii.gz, with the voxel spacing"
    )


def _named(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - 3} more" if cases[3:] else ""
    return f"{', '.join(cases[:3])}{more}"


def raise_problems(dataset: Dataset, problems: Sequence[str]) -> None:
    """Raise one UserError that lists all ``problems``, unless the list is empty."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError(f"{dataset.name}: {count} found:\n  " + "\n  ".join(problems))


def _image(case: Case, dataset: Dataset, found: list[str]) -> Volume | None:
    """The stacked channels (C, D, H, W) of a case; None if they cannot be stacked. Appends problems to ``found``."""
    volumes = [volume for path in case.images if (volume := _read(read_image, path, found))]
    if len(volumes) < len(case.images):
        return None
    first, count = volumes[0], sum(len(volume.array) for volume in volumes)
    for number, (path, volume) in enumerate(zip(case.images[1:], volumes[1:], strict=True), start=1):
        volumes[number] = volume.on_axes_of(first.geometry)
        if different := first.geometry.differences(volume.geometry):
            files = (case.images[0], path)
            fix = channel_fix(first.geometry, volume.geometry, (first.notes, volume.notes), files)
            found.append(f"{path.name} is not on the grid of {case.images[0].name}: {'; '.join(different)}; {fix}")
    names = dataset.channel_names
    titles = [f"channel {i} ({name})" for i, name in enumerate(names)]
    if count != len(names):
        found.append(
            f"{len(case.images)} file(s) contain {count} channel(s), dataset.json names {len(names)} "
            f"({', '.join(names)}); "
            f"save each channel as a file ({case.name}_0000, _0001, ...), or correct channel_names"
        )
        titles = [f"channel {i}" for i in range(count)]
    for title, channel in zip(titles, (channel for volume in volumes for channel in volume.array), strict=True):
        found += _intensities(title, channel)
    if any(volume.array.shape[1:] != first.array.shape[1:] for volume in volumes):
        return None
    size = first.geometry.shape
    if size[0] > 1 and 1 in size[1:]:
        found.append(
            f"size {size} (z, y, x): a single slice that is not axial; save it as a 2D image (.png, .tif), "
            "or provide the full volume"
        )
    if not volumes[1:]:
        return first
    return Volume(np.concatenate([v.array for v in volumes]), first.geometry, first.path, merged_notes(volumes))


_COLOURS = {"r", "g", "b", "red", "green", "blue"}  # a grey picture stored in colour


def copied_channels(names: Sequence[str], image: np.ndarray) -> list[str]:
    """A sentence for each channel of an image (C, D, H, W) that holds the voxels of an earlier one: one of the two
    files is a copy of the other, under a wrong name. Colour channels may be equal."""
    found = []
    for number, name in enumerate(names):
        twin = next((n for n in range(number) if np.array_equal(image[n], image[number])), None)
        if twin is not None and name.strip().lower() not in _COLOURS:
            found.append(
                f"channels {names[twin]!r} and {name!r} hold the same voxels; is one file a copy of the other?"
            )
    return found


def _intensities(name: str, channel: np.ndarray) -> list[str]:
    """Problems with the intensities of one channel (D, H, W)."""
    low, high = float(channel.min()), float(channel.max())
    if not np.isfinite([low, high]).all():
        bad = int((~np.isfinite(channel)).sum())
        return [f"{name} has {bad} voxel(s) that are NaN or infinite; {REPLACE}"]
    if low == high:
        return [f"{name} is constant ({low:g} everywhere); export it again, or remove the case"]
    return []


def _label(path: Path, dataset: Dataset, found: list[str], may_be_empty: bool) -> Volume | None:
    """The label map; None if it cannot be read. Appends problems to ``found``."""
    label = _read(read_labels, path, found)
    if label is None:
        return None
    values, counts = _counted(label.array)
    known = list(dataset.labels.values())
    allowed = {*known, dataset.ignore_label}
    if len(unknown := [value for value in values if value not in allowed]) > MOST_VALUES:
        found.append(
            f"the label map {path.name} has {len(unknown)} values from {unknown[0]} to {unknown[-1]} that are not in "
            f"dataset.json labels {known}; is it an image? Save the annotation in its place"
        )
        return label
    for value, count in zip(values, counts, strict=True):
        if value not in allowed:
            fix = "add it there or relabel"
            if values == [0, 255]:
                fix = "the file is a black-and-white mask: save it with values 0 and 1"
            found.append(
                f"label {value} ({count} voxels) is not in dataset.json labels {known}"
                f"{f' (ignore {dataset.ignore_label})' if dataset.ignore_label is not None else ''}; {fix}"
            )
    if not may_be_empty and all(value in (0, dataset.ignore_label) for value in values):
        found.append(
            f"the label map {path.name} has no voxel of any class of dataset.json; annotate it, or remove the "
            "file to make the case unlabelled"
        )
    return label


def _counted(array: np.ndarray) -> tuple[list[int], list[int]]:
    """Values and their voxel counts. Uses ``bincount``, because sorting all voxels of a CT takes seconds."""
    low, high = int(array.min()), int(array.max())
    if high - low > 1_000_000:
        values, counts = np.unique(array, return_counts=True)
        return values.tolist(), counts.tolist()
    counts = np.bincount((array - low).ravel())
    present = np.flatnonzero(counts)
    return (present + low).tolist(), counts[present].tolist()


def _read(reader: Callable[[Path], Volume], path: Path, found: list[str]) -> Volume | None:
    """Read a file; append the error to ``found`` and return None if it cannot be read."""
    where = f"{path.parent.name}/{path.name}"
    try:
        volume = reader(path)
    except UserError as problem:
        found.append(str(problem).replace(str(path), where, 1))
        return None
    return volume
