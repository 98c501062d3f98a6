"""Preprocessing a raw dataset to a folder of cases: one scan in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mre_lowshot.config import Plan
from mre_lowshot.data.dataset import Case, Dataset
from mre_lowshot.data.listing import name_problem
from mre_lowshot.data.volume import Volume, read_channels, read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json
from mre_lowshot.grid import IGNORE, Box, as_slices
from mre_lowshot.preprocessing.pipeline import GridTransform, forward, forward_labels
from mre_lowshot.preprocessing.record import (
    RECORD,
    CaseSource,
    Record,
    check_sources,
    crops_hash,
    fix_of,
    read_record,
    settings_hash,
    settings_of,
    source_of,
)
from mre_lowshot.preprocessing.references import shared_files
from mre_lowshot.preprocessing.store import PreparedCase, save_case


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
            low_high = tuple((low, high) for low, high in box)
        except (TypeError, ValueError):
            low_high = ()
        if len(low_high) != 3 or not all(type(side) is int for pair in low_high for side in pair):
            raise UserError(f"{path}: box of case {name} is {box!r}; write [[z0, z1], [y0, y1], [x0, x1]] in voxels")
        boxes[name] = low_high
    return boxes


def prepare_case(
    name: str,
    image: Volume,
    label: Volume | None,
    *,
    plan: Plan,
    crop: Box | None = None,
    inspect: Callable[[np.ndarray], None] | None = None,
) -> PreparedCase:
    """Preprocess one scan and, where there is one, its label map (the ignore label becomes `grid.IGNORE`). ``inspect``
    receives the scan with its faults corrected (`pipeline.forward`).

    Raises:
        UserError: the scan does not fit the plan; the message begins with the case's name.
    """
    try:
        array, transform = forward(image.array, image.geometry.spacing, plan.preprocessing, crop, inspect=inspect)
    except UserError as problem:
        raise type(problem)(f"case {name}: {problem}") from None
    target = None
    if label is not None:
        marked = label.array
        if plan.ignore_label is not None:
            marked = np.where(marked == plan.ignore_label, IGNORE, marked)
        if plan.preprocessing.crop != "given":
            _check_crop(name, marked, transform, plan.labels)
        elif (marked > 0).any() and not (marked[as_slices(transform.box)] > 0).any():
            raise UserError(
                f"case {name}: the box {[list(side) for side in transform.box]} (z, y, x) of crops.json contains no "
                f"labelled voxel, {int((marked > 0).sum())} lie outside; correct the box"
            )
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
                "(z, y, x) that the image is cropped to; plan with -p NAME --set preprocessing.crop=none "
                "preprocessing.keep_padding=true"
            )


def prepare_dataset(
    dataset: Dataset,
    plan: Plan,
    folder: Path,
    progress: Callable[[Sequence[Case]], Iterable[Case]] = iter,
) -> list[str]:
    """Preprocess all labelled cases into ``folder/<plan's name>/`` and copy their label maps to
    ``folder/gt_segmentations/``, and record settings and source files in ``preprocessing.json``.

    Returns:
        Notes for the user: structures too small for the plan's grid, and label maps that were set aside.

    Raises:
        UserError: a scan does not fit the plan, a file changed meanwhile, or a label map that another run trains with
            would change.
    """
    cases = folder / plan.plans_name
    record = cases / RECORD
    crops = read_crops(dataset.folder)
    used_crops = crops_hash(dataset.folder) if plan.preprocessing.crop == "given" else None
    notes: list[str] = []
    sources: dict[str, CaseSource] = {}
    with shared_files(dataset, folder, notes.append) as references:
        earlier = _recorded(record)
        record.unlink(missing_ok=True)  # until all cases are written, the folder does not count as preprocessed
        for case in progress(dataset.labelled):
            if case.label is None:
                continue
            crop = crops.get(case.name) if plan.preprocessing.crop == "given" else None
            source = source_of(case, references[case.name], raw=dataset.folder, folder=folder, crop=crop)
            image = read_channels(list(case.images))
            label = read_labels(case.label, like=image.geometry)
            prepared = prepare_case(case.name, image, label, plan=plan, crop=crops.get(case.name))
            prepared = replace(prepared, settings=settings_hash(plan), source=source.content)
            save_case(cases, prepared)
            notes += lost_on_grid(prepared, label.array[as_slices(prepared.transform.box)], plan)
            sources[case.name] = source
        _check_unchanged(dataset, sources, folder)
        for name in earlier - sources.keys():  # of cases that the dataset no longer has
            (cases / f"{name}.npz").unlink(missing_ok=True)
        Record(
            settings=settings_of(plan),
            raw=str(dataset.folder),
            raw_relative=os.path.relpath(dataset.folder, folder.resolve()),
            cases=sources,
            crops=used_crops,
        ).write(record)
    return notes


def _recorded(record: Path) -> set[str]:
    """The names of the cases that an earlier run has recorded; none where the record is missing or damaged."""
    try:
        found = read_json(record, "record of preprocessing").get("cases", {})
        return {name for name in found if name_problem(name) is None and "/" not in name}
    except (UserError, AttributeError, TypeError):
        return set()


def _check_unchanged(dataset: Dataset, sources: Mapping[str, CaseSource], folder: Path) -> None:
    """Refuse a dataset that was changed while it was read."""
    for name, source in sources.items():
        pairs = [(f, dataset.folder) for f in (*source.images, *source.label)] + [(f, folder) for f in source.reference]
        for file, where in pairs:
            if not file.is_same(where):
                raise UserError(
                    f"case {name}: {where / file.file} was changed during preprocessing; run mre_plan_and_preprocess "
                    "again"
                )


def lost_on_grid(prepared: PreparedCase, marked: np.ndarray, plan: Plan) -> list[str]:
    """A note for each class of a label map (cropped) that has no voxel on the plan's grid."""
    present = np.unique(prepared.label) if prepared.label is not None else ()
    return [
        f"case {prepared.name}: {name} ({np.count_nonzero(marked == number)} voxels) has no voxel on "
        "the plan's grid and cannot be learned; a finer grid keeps it (-p NAME --set preprocessing.spacing=[z,y,x])"
        for name, number in plan.labels.items()
        if number and number not in present and (marked == number).any()
    ]


def check_prepared(plan: Plan, folder: Path, log: Callable[[str], None] = lambda _: None) -> list[str]:
    """The names of the preprocessed cases in ``folder`` (preprocessed/DatasetXXX_Name), after comparing them with the
    plan and with the files that they were made from; ``log`` receives notes.

    Raises:
        UserError: there is no complete set, it was preprocessed with other settings, or a label map or scan has changed
            since.
    """
    record = read_record(plan, folder)
    for name in record.cases:
        if not (folder / plan.plans_name / f"{name}.npz").is_file():
            raise UserError(f"case {name}: {folder / plan.plans_name / f'{name}.npz'} is missing; {fix_of(plan)}")
    check_sources(record, plan, folder, log=log)
    return list(record.cases)
