"""A raw dataset to a folder of preprocessed cases: one scan in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mre_lowshot.codec import to_json
from mre_lowshot.dataset import Case, RawDataset
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json
from mre_lowshot.losses import IGNORE
from mre_lowshot.preprocessing.cropping import Box, as_slices
from mre_lowshot.preprocessing.pipeline import GridTransform, forward, forward_labels
from mre_lowshot.preprocessing.store import PreparedCase, save_case
from mre_lowshot.specs import Plan
from mre_lowshot.volume import Volume, read_channels, read_labels, write_volume

REFERENCES = "gt_segmentations"  # nnU-Net's name for the copies of the label maps


def read_crops(folder: Path) -> dict[str, Box]:
    """The boxes of ``crops.json``, if it is there: {"case": [[z0, z1], [y0, y1], [x0, x1]]}, voxels of the
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
            low_high = tuple((int(low), int(high)) for low, high in box)
        except (TypeError, ValueError):
            low_high = ()
        if len(low_high) != 3:
            raise UserError(f"{path}: box of case {name} is {box!r}; write [[z0, z1], [y0, y1], [x0, x1]] in voxels")
        boxes[name] = low_high
    return boxes


def prepare_case(name: str, image: Volume, label: Volume | None, plan: Plan, crop: Box | None = None) -> PreparedCase:
    """Preprocess one scan and, where there is one, its label map (the ignore label becomes -1).

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


LOST = 0.01  # of the labelled voxels may be cut off: the patient is found on a coarse grid
LOST_OF_ONE = 0.05  # of one class


def _check_crop(name: str, marked: np.ndarray, transform: GridTransform, labels: Mapping[str, int]) -> None:
    """Refuse a scan whose labels (D, H, W) a crop that nobody gave would cut off: they are never lost unseen."""
    before, after = (
        np.bincount(m[m > 0], minlength=1 + max(labels.values())) for m in (marked, marked[as_slices(transform.box)])
    )
    found = {"labelled": (int(before.sum()), int(after.sum()), LOST)}
    found |= {label: (int(before[k]), int(after[k]), LOST_OF_ONE) for label, k in labels.items() if k}
    for label, (all_of_it, kept, limit) in found.items():
        if all_of_it - kept > limit * all_of_it:
            raise UserError(
                f"case {name}: {all_of_it - kept} of {all_of_it} {label} voxels lie outside the box {transform.box} "
                "(z, y, x) that the image is cropped to; plan with -p NAME --set preprocessing.crop=none"
            )


def prepare_dataset(
    dataset: RawDataset,
    plan: Plan,
    folder: Path,
    progress: Callable[[Sequence[Case]], Iterable[Case]] = iter,
) -> list[str]:
    """Preprocess all labelled cases into ``folder/<plan's name>/`` and copy their label maps to
    ``folder/gt_segmentations/``; what was done is recorded in ``preprocessing.json``. Gives what a person should know:
    structures too small for the plan's grid."""
    cases = folder / plan.plans_name
    record = cases / "preprocessing.json"
    record.unlink(missing_ok=True)  # until all cases are there, the folder does not count as preprocessed
    crops = read_crops(dataset.folder)
    (folder / REFERENCES).mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    for case in progress(dataset.labelled):
        if case.label is None:
            continue
        image, label = read_channels(list(case.images)), read_labels(case.label)
        prepared = prepare_case(case.name, image, label, plan, crops.get(case.name))
        save_case(cases, prepared)
        notes += _vanished(prepared, label.array[as_slices(prepared.transform.box)], plan)
        reference = folder / REFERENCES / f"{case.name}{dataset.file_ending}"  # a file may be called .PNG
        if reference.suffix.lower() == ".mhd":  # a header only: its voxels lie in another file
            write_volume(reference, label.array, label.geometry)
        else:
            shutil.copyfile(case.label, reference)
    shutil.copyfile(dataset.folder / "dataset.json", folder / "dataset.json")
    write_json(record, {"preprocessing": to_json(plan.preprocessing), "cases": [c.name for c in dataset.labelled]})
    return notes


def _vanished(prepared: PreparedCase, marked: np.ndarray, plan: Plan) -> list[str]:
    """The classes of a label map, cut to the crop's box, that have no voxel left on the plan's grid, in words."""
    left = np.unique(prepared.label) if prepared.label is not None else ()
    return [
        f"case {prepared.name}: {name} ({np.count_nonzero(marked == number)} voxels) falls between the voxels of the "
        "plan's grid and cannot be learned from it; a finer one keeps it (-p NAME --set preprocessing.spacing=[z,y,x])"
        for name, number in plan.labels.items()
        if number and number not in left and (marked == number).any()
    ]


def check_prepared(plan: Plan, folder: Path) -> list[str]:
    """The names of the preprocessed cases in ``folder``.

    Raises:
        UserError: nothing is there, or it was preprocessed by another plan than the present one.
    """
    record = folder / plan.plans_name / "preprocessing.json"
    mend = f"run mre_plan_and_preprocess -d {plan.dataset_name} -p {plan.plans_name} --keep_plan"
    if not record.is_file():
        raise UserError(f"{record.parent}: holds no complete set of preprocessed cases; {mend}")
    found = read_json(record, "record of preprocessing")
    if found.get("preprocessing") != to_json(plan.preprocessing):
        raise UserError(f"{record}: the cases were preprocessed otherwise than the plan says now; {mend}")
    return list(found["cases"])
