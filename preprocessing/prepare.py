"""Preprocessing a raw dataset to a folder of cases: one scan in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mre_lowshot.config import Plan
from mre_lowshot.config.json import to_json
from mre_lowshot.data.dataset import Case, Dataset
from mre_lowshot.data.volume import Volume, read_channels, read_labels, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json
from mre_lowshot.grid import IGNORE, Box, as_slices
from mre_lowshot.preprocessing.pipeline import GridTransform, forward, forward_labels
from mre_lowshot.preprocessing.store import PreparedCase, save_case

REFERENCES = "gt_segmentations"  # nnU-Net's name for the copies of the label maps


def read_crops(folder: Path) -> dict[str, Box]:
    """The boxes of ``crops.json``, if there is one: {"case": [[z0, z1], [y0, y1], [x0, x1]]}, voxels of the
    LPS-oriented scan, upper end exclusive.

    Raises:
        UserError: the file has another form.
    """
    path = folder / "crops.json"
    if not path.is_file():
        return {}
    data = read_json(path, "crop boxes")
    boxes: dict[str, Box] = {}
    for name, box in data.items() if isinstance(data, dict) else [("crops.json", data)]:
        low_high: Box
        try:
            low_high = tuple((_whole(low), _whole(high)) for low, high in box)
        except (TypeError, ValueError):
            low_high = ()
        if len(low_high) != 3:
            raise UserError(f"{path}: box of case {name} is {box!r}; write [[z0, z1], [y0, y1], [x0, x1]] in voxels")
        boxes[name] = low_high
    return boxes


def _whole(value: object) -> int:
    """A voxel number; a fraction or truth value is refused, not rounded."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("no whole number")
    return value


def prepare_case(
    name: str, image: Volume, label: Volume | None, *, plan: Plan, crop: Box | None = None
) -> PreparedCase:
    """Preprocess one scan and, where there is one, its label map (the ignore label becomes `grid.IGNORE`).

    Raises:
        UserError: the scan does not fit the plan; the message begins with the case's name.
    """
    try:
        array, transform = forward(image.array, image.geometry.spacing, plan.preprocessing, crop)
    except UserError as problem:
        raise UserError(f"case {name}: {problem}") from None
    target = None
    if label is not None:
        marked = label.array
        if plan.ignore_label is not None:
            marked = np.where(marked == plan.ignore_label, IGNORE, marked)
        if plan.preprocessing.crop != "given":
            _check_crop(name, marked, transform, plan.labels)
        target = forward_labels(marked, transform).astype(np.int16)
    return PreparedCase(name, array, target, transform, image.geometry.to_json())


# Share of the labelled voxels, and of one class, that a crop may remove: the body box is found on a coarse grid.
MAX_LOST, MAX_LOST_OF_CLASS = 0.01, 0.05


def _check_crop(name: str, marked: np.ndarray, transform: GridTransform, labels: Mapping[str, int]) -> None:
    """Refuse a scan whose labels (D, H, W) an automatic crop would cut off."""
    before, after = (
        np.bincount(m[m > 0], minlength=1 + max(labels.values())) for m in (marked, marked[as_slices(transform.box)])
    )
    found = {"labelled": (int(before.sum()), int(after.sum()), MAX_LOST)}
    found |= {label: (int(before[k]), int(after[k]), MAX_LOST_OF_CLASS) for label, k in labels.items() if k}
    for label, (count, kept, limit) in found.items():
        if count - kept > limit * count:
            raise UserError(
                f"case {name}: {count - kept} of {count} {label} voxels lie outside the box {transform.box} "
                "(z, y, x) that the image is cropped to; plan with -p NAME --set preprocessing.crop=none"
            )


def prepare_dataset(
    dataset: Dataset,
    plan: Plan,
    folder: Path,
    progress: Callable[[Sequence[Case]], Iterable[Case]] = iter,
) -> list[str]:
    """Preprocess all labelled cases into ``folder/<plan's name>/`` and copy their label maps to
    ``folder/gt_segmentations/``, and record the settings in ``preprocessing.json``.

    Returns:
        Notes for the user: structures too small for the plan's grid.
    """
    cases = folder / plan.plans_name
    record = cases / "preprocessing.json"
    record.unlink(missing_ok=True)  # until all cases are written, the folder does not count as preprocessed
    crops = read_crops(dataset.folder)
    (folder / REFERENCES).mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    for case in progress(dataset.labelled):
        if case.label is None:
            continue
        image, label = read_channels(list(case.images)), read_labels(case.label)
        prepared = prepare_case(case.name, image, label, plan=plan, crop=crops.get(case.name))
        save_case(cases, prepared)
        notes += _lost_on_grid(prepared, label.array[as_slices(prepared.transform.box)], plan)
        reference = folder / REFERENCES / f"{case.name}{dataset.file_ending}"  # a file's own ending may be .PNG
        if reference.suffix.lower() == ".mhd":  # a header only: the voxels are in another file
            write_volume(reference, label.array, label.geometry)
        else:
            shutil.copyfile(case.label, reference)
    shutil.copyfile(dataset.folder / "dataset.json", folder / "dataset.json")
    write_json(record, {"preprocessing": to_json(plan.preprocessing), "cases": [c.name for c in dataset.labelled]})
    return notes


def _lost_on_grid(prepared: PreparedCase, marked: np.ndarray, plan: Plan) -> list[str]:
    """A note for each class of a label map (cropped) that has no voxel on the plan's grid."""
    present = np.unique(prepared.label) if prepared.label is not None else ()
    return [
        f"case {prepared.name}: {name} ({np.count_nonzero(marked == number)} voxels) has no voxel on "
        "the plan's grid and cannot be learned; a finer grid keeps it (-p NAME --set preprocessing.spacing=[z,y,x])"
        for name, number in plan.labels.items()
        if number and number not in present and (marked == number).any()
    ]


def check_prepared(plan: Plan, folder: Path) -> list[str]:
    """The names of the preprocessed cases in ``folder``.

    Raises:
        UserError: there is no complete set, or it was preprocessed with other settings.
    """
    record = folder / plan.plans_name / "preprocessing.json"
    fix = f"run mre_plan_and_preprocess -d {plan.dataset_name} -p {plan.plans_name} --keep_plan"
    if not record.is_file():
        raise UserError(f"{record.parent}: holds no complete set of preprocessed cases; {fix}")
    found = read_json(record, "record of preprocessing")
    if found.get("preprocessing") != to_json(plan.preprocessing):
        raise UserError(f"{record}: the cases were preprocessed with other settings than the plan's; {fix}")
    return list(found["cases"])
