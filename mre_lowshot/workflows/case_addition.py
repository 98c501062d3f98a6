"""One case more in preprocessed/DatasetXXX_Name: under each of its plans, in the splits and in the fingerprint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mre_lowshot import files
from mre_lowshot.config import Plan
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.readers import file_ending
from mre_lowshot.data.split_extension import extended, load_splits, split_files
from mre_lowshot.data.volume import Volume, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, write_json
from mre_lowshot.grid import as_slices
from mre_lowshot.planners.fingerprint import FILES, dataset_fingerprint
from mre_lowshot.preprocessing.prepare import check_prepared, lost_on_grid, prepare_case, read_crops
from mre_lowshot.preprocessing.record import (
    RECORD,
    REFERENCES,
    CaseSource,
    Record,
    SourceFile,
    read_record,
    settings_hash,
    states,
)
from mre_lowshot.preprocessing.store import save_case
from mre_lowshot.transaction import Changes


@dataclass(frozen=True)
class NewCase:
    """A case to add.

    Attributes:
        name: of the case.
        image: (C, D, H, W).
        label: (D, H, W), on its grid.
        sources: its image files as they are in the raw dataset.
        label_sources: likewise, of its label map.
        fingerprint: of the image.
    """

    name: str
    image: Volume
    label: Volume
    sources: tuple[SourceFile, ...]
    label_sources: tuple[SourceFile, ...]
    fingerprint: Mapping[str, Any]


def plans_with_cases(folder: Path, wanted: str) -> tuple[dict[str, Plan], list[str]]:
    """The plans whose cases are complete and unchanged, ``wanted`` first, by name; and notes on others.

    Raises:
        UserError: the plan ``wanted`` has no such cases.
    """
    first = load_plan(folder / f"{wanted}.json")
    check_prepared(first, folder)
    found, notes = {wanted: first}, []
    for record in sorted(folder.glob(f"*/{RECORD}")):
        name = record.parent.name
        if name in found:
            continue
        try:
            plan = load_plan(folder / f"{name}.json")
            check_prepared(plan, folder)
        except UserError as problem:
            notes.append(f"plan {name} is left as it is: {problem}")
            continue
        found[name] = plan
    return found, notes


def stage_case(made: Changes, case: NewCase, plans: Mapping[str, Plan], raw: Path) -> list[str]:
    """Write what changes in preprocessed/DatasetXXX_Name to the temporary folder of ``made``: the preprocessed case and
    the record of each plan, the copies of label map and dataset.json, splits and fingerprint.

    Args:
        made: with the raw files staged.
        case: to add.
        plans: by name, from `plans_with_cases`.
        raw: folder of the raw dataset.

    Returns:
        Notes on structures that the plans' grids lose.

    Raises:
        UserError: the scan does not fit a plan.
    """
    folder = made.folders["preprocessed"]
    reference = _stage_reference(made, case)
    crops, notes, names = read_crops(raw), [], set[str]()
    for name, plan in plans.items():
        record = read_record(plan, folder)
        crop = crops.get(case.name) if plan.preprocessing.crop == "given" else None
        source = CaseSource(case.sources, case.label_sources, reference, crop)
        if name == next(iter(plans)):
            names = set(record.cases)
        if case.name in record.cases:
            raise UserError(f"case {case.name}: is one of the preprocessed cases already; give another --name")
        prepared = prepare_case(case.name, case.image, case.label, plan=plan, crop=crops.get(case.name))
        save_case(
            made.path("preprocessed", f"{name}/{RECORD}").parent,
            replace(prepared, settings=settings_hash(plan), source=source.content),
        )
        notes += lost_on_grid(prepared, case.label.array[as_slices(prepared.transform.box)], plan)
        _with_case(record, case.name, source).write(made.path("preprocessed", f"{name}/{RECORD}"))
    _stage_shared(made, case, sorted(names))
    return list(dict.fromkeys(notes))


def _with_case(record: Record, name: str, source: CaseSource) -> Record:
    return replace(record, cases=dict(sorted({**record.cases, name: source}.items())))


def _stage_reference(made: Changes, case: NewCase) -> tuple[SourceFile, ...]:
    """Stage the copy of the label map in `REFERENCES`."""
    label = made.staging["raw"] / case.label_sources[0].file
    path = made.path("preprocessed", f"{REFERENCES}/{case.name}{file_ending(label)}")
    if path.suffix.lower() == ".mhd":  # a header only: the voxels are in another file
        write_volume(path, case.label.array, case.label.geometry)
    else:
        files.copy(label, path)
    return states([path], made.staging["preprocessed"])


def _stage_shared(made: Changes, case: NewCase, names: Sequence[str]) -> None:
    """Stage dataset.json, splits and fingerprint; ``names`` are the cases before."""
    folder = made.folders["preprocessed"]
    files.copy(made.staging["raw"] / "dataset.json", made.path("preprocessed", "dataset.json"))
    for level, path in split_files(folder).items():
        splits = load_splits(path, level, names)
        after = extended(level, splits, names, case.name)
        if after != splits:
            write_json(made.path("preprocessed", path.name), after)
    for file in FILES:
        path = folder / file
        content = read_json(path, "fingerprint") if path.is_file() else {}
        if isinstance(content, dict) and isinstance(content.get("cases"), dict):
            cases = {**content["cases"], case.name: dict(case.fingerprint)}
            measured = dataset_fingerprint(str(content.get("dataset_name", folder.name)), dict(sorted(cases.items())))
            write_json(made.path("preprocessed", file), measured)
            break
