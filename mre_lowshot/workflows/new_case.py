"""A scan and its label map that are to become a case of a dataset: names, files, and whether they fit."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mre_lowshot import files
from mre_lowshot.config import Plan
from mre_lowshot.data.dataset import Case, Dataset
from mre_lowshot.data.importing.writing import write_image
from mre_lowshot.data.listing import name_problem, twins
from mre_lowshot.data.readers import COLOUR_ENDINGS, file_ending
from mre_lowshot.data.scan_input import read_scan
from mre_lowshot.data.volume import Volume, read_channels, read_labels, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, sha256
from mre_lowshot.inference.input_checks import differences_from_training, refuse_input
from mre_lowshot.plain import shown
from mre_lowshot.transaction import Changes

SPACING_FACTOR = 3.0  # beyond the planned scans' range, from which on a plan's grid does not fit
KIND = ("position_", "width_", "layout_")  # differences in intensities; two of one channel are another kind of image


@dataclass(frozen=True)
class Candidate:
    """A case to add.

    Attributes:
        case: with the given files.
        images_are_there: they are an unlabelled case of the dataset already, in imagesTr.
        predicted: the label map is from a folder of predictions.
    """

    case: Case
    images_are_there: bool = False
    predicted: bool = False

    @property
    def name(self) -> str:
        """Of the case."""
        return self.case.name

    def description(self, dataset: Dataset) -> dict[str, Any]:
        """The content of dataset.json with this case; unknown keys are kept."""
        content: dict[str, Any] = read_json(dataset.folder / "dataset.json", f"dataset.json of {dataset.name}")
        cases, labelled = len(dataset.cases), len(dataset.labelled)
        after = cases + (not self.images_are_there)
        return {**content, "numTraining": after if dataset.num_training == cases else labelled + 1}


def candidate_of(
    dataset: Dataset, images: tuple[Path, ...], label: Path, *, name: str | None, scratch: Path, predicted: bool = False
) -> Candidate:
    """A case of the given files.

    Args:
        dataset: to add it to.
        images: the scan's files, or its DICOM series.
        label: its label map.
        name: of the case; None: that of the image file.
        scratch: folder for a scan that is converted from DICOM.
        predicted: the label map is from a folder of predictions.

    Raises:
        UserError: a file is missing, the case's name cannot be used, or the label map is of a format that mre_import
            reads.
    """
    for path in (*images, label):
        if not path.exists():
            raise UserError(f"{path}: is missing; give the scan's files and its label map")
    if not file_ending(label) or label.name.lower().endswith(".seg.nrrd"):
        raise UserError(
            f"{label}: is no label map in an image format that holds one number per class; convert it with mre_import "
            "(DICOM SEG, seg.nrrd), or export it as .nii.gz"
        )
    if any(path.is_dir() or not file_ending(path) for path in images):
        name, images = _converted(images, name, scratch)
    first = images[0]
    own = first.name[: -len(file_ending(first)) or None].removesuffix("_0000")
    chosen = own if name is None else name
    _check_name(dataset, chosen)
    there = next((case for case in dataset.cases if case.name == chosen and not case.label), None)
    same = there is not None and [p.resolve() for p in there.images] == [p.resolve() for p in images]
    same = same or (there is not None and _same_files(there.images, images))
    return Candidate(Case(chosen, there.images if same and there else images, label), same, predicted)


def _converted(images: tuple[Path, ...], name: str | None, scratch: Path) -> tuple[str, tuple[Path, ...]]:
    """A scan of DICOM as NIfTI files, one for each channel, and its name."""
    series, volume = read_scan(images if len(images) > 1 else images[0])
    chosen = series if name is None else name
    folder = Path(tempfile.mkdtemp(dir=scratch))
    made = [folder / f"scan_{channel:04d}.nii.gz" for channel in range(len(volume.array))]
    for channel, path in zip(volume.array, made, strict=True):
        write_image(path, channel, volume.geometry)
    return chosen, tuple(made)


def _check_name(dataset: Dataset, name: object) -> None:
    if not isinstance(name, str) or not name or name.startswith(".") or any(c in name for c in "/\\"):
        raise UserError(f"--name {shown(name)}: is no name of a case; use letters, digits, - and _")
    if problem := name_problem(name):
        raise UserError(f"case {shown(name)}: its name {problem}; give another with --name")
    others = [case.name for case in (*dataset.cases, *dataset.test_cases) if case.name != name]
    if alike := [group for group in twins([*others, name]) if name in group]:
        raise UserError(
            f"case {name}: differs from {next(n for n in alike[0] if n != name)} only in upper and lower case or in "
            "Unicode form; give another name with --name"
        )


def _same_files(one: tuple[Path, ...], other: tuple[Path, ...]) -> bool:
    if len(one) != len(other) or not all(path.is_file() for path in (*one, *other)):
        return False
    pairs = list(zip(one, other, strict=True))
    return all(a.stat().st_size == b.stat().st_size for a, b in pairs) and all(sha256(a) == sha256(b) for a, b in pairs)


def refuse_known(one: Candidate, dataset: Dataset, *, same_is_present: bool = False) -> bool:
    """Refuse a case that the dataset has already, under any name; true where it has the very same files and
    ``same_is_present``.

    Raises:
        UserError: names the other case, and the fix.
    """
    if any(case.name == one.name for case in dataset.test_cases):
        named = " and name the folder of the scan (-i)" if one.predicted else ""
        raise UserError(
            f"case {one.name}: is a test case of {dataset.name} (imagesTs), which no training may use; move its files "
            f"from imagesTs and labelsTs to other folders first{named}, or leave it out"
        )
    same_name = next((case for case in dataset.cases if case.name == one.name), None)
    if same_name is not None and same_name.label:
        if same_is_present and one.case.label and _same_content(same_name.label, one.case.label):
            return True
        raise UserError(
            f"case {one.name}: {dataset.name} has a label map of it, {same_name.label}, which is not overwritten; "
            f"correct it there and run mre_plan_and_preprocess -d {dataset.name} --keep_plan, or give another --name"
        )
    if same_name is not None and not one.images_are_there:
        raise UserError(
            f"case {one.name}: {dataset.name} has another scan of this name in imagesTr, without a label map; give "
            "that scan, or another --name"
        )
    for case in () if one.images_are_there else (*dataset.cases, *dataset.test_cases):
        if _same_files(case.images, one.case.images):
            raise UserError(
                f"case {one.name}: its scan is case {case.name} of {dataset.name} already; a scan that is trained on "
                f"and tested on under two names would give wrong scores; add the label map with --name {case.name}, "
                "or leave it out"
            )
    return False


def _same_content(one: Path, other: Path) -> bool:
    if _same_files((one,), (other,)):
        return True
    try:
        mine, new = read_labels(one), read_labels(other)
    except UserError:
        return False
    new = new.on_axes_of(mine.geometry)
    return mine.array.shape == new.array.shape and bool((mine.array == new.array).all())


def misfits(name: str, image: Volume, plan: Plan, problems: list[str]) -> list[str]:
    """Differences from the planned scans, one line each. What a plan cannot cover is added to ``problems``.

    Args:
        name: of the case.
        image: (C, D, H, W).
        plan: of the dataset.
        problems: receives a line for each reason to refuse the scan.
    """
    try:
        refuse_input(image, plan)
    except UserError as problem:
        problems.append(f"case {name}: {problem}")
        return []
    found = differences_from_training(image, plan)
    fix = (
        f"it does not fit plan {plan.plans_name}. If it belongs to the dataset, put its files into imagesTr and "
        f"labelsTr yourself, and plan again: mre_plan_and_preprocess -d {plan.dataset_name} -p {plan.plans_name} "
        "--overwrite"
    )
    for one in found:
        low, high = one.training_range or (one.value, one.value)
        far = one.name.startswith("spacing") and not low / SPACING_FACTOR <= one.value <= high * SPACING_FACTOR
        not_stripped = one.name == "background_share" and plan.preprocessing.crop == "nonzero"
        if far or not_stripped:
            problems.append(f"case {name}: {one}; {fix}")
    for channel, title in enumerate(plan.channel_names):
        kinds = [one for one in found if one.name.endswith(f"_{channel}") and one.name.startswith(KIND)]
        if len(kinds) > 1:
            problems.append(
                f"case {name}: is not an image of the planned scans' kind ({title}): {'; '.join(kinds)}; {fix}"
            )
    return [f"case {name}: {one}" for one in found]


def stage_files(made: Changes, one: Candidate, dataset: Dataset) -> tuple[list[Path], Path]:
    """Copy the files of a case to the temporary folder of the raw dataset, or convert them to its format.

    Returns:
        The image files (those in imagesTr where they are there already) and the label map.

    Raises:
        UserError: a file cannot be read, converted or written.
    """
    ending, case = dataset.file_ending, one.case
    plain = all(known.images[0].name == f"{known.name}{file_ending(known.images[0])}" for known in dataset.cases)

    def target(channel: int) -> Path:
        return made.path("raw", f"imagesTr/{case.name}{'' if plain else f'_{channel:04d}'}{ending}")

    images = list(case.images)
    assert case.label is not None  # of a candidate
    if not one.images_are_there:
        if _copied(case.images, ending):
            images = [target(channel) for channel in range(len(case.images))]
            for source, copy in zip(case.images, images, strict=True):
                files.copy(source, copy)
        else:
            _refuse_colours(case, ending)
            volume = read_channels(images)
            images = [target(channel) for channel in range(len(volume.array))]
            for array, path in zip(volume.array, images, strict=True):
                write_image(path, array, volume.geometry)
    label = made.path("raw", f"labelsTr/{case.name}{ending}")
    if _copied((case.label,), ending):
        files.copy(case.label, label)
    else:
        read = read_labels(case.label)
        write_volume(label, read.array, read.geometry)
    return images, label


def _copied(paths: tuple[Path, ...], ending: str) -> bool:
    """Whether files are copied as they are. With .mhd the voxels are in a file that the header names."""
    return ending != ".mhd" and all(path.is_file() and file_ending(path) == ending for path in paths)


def _refuse_colours(case: Case, ending: str) -> None:
    if ending in COLOUR_ENDINGS and any(file_ending(path) != ending for path in case.images):
        raise UserError(
            f"case {case.name}: {case.images[0]} is not converted to {ending}, the format of the dataset, which holds "
            "fewer values; convert it yourself"
        )
