"""Add an annotated scan to a planned dataset: raw files, splits, and the preprocessed case, all or nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mre_lowshot.config import Plan
from mre_lowshot.config.check import require_path, require_plans_name
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.verification import raise_problems
from mre_lowshot.data.volume import read_channels, read_labels
from mre_lowshot.data.workspace import Workspace
from mre_lowshot.errors import UserError
from mre_lowshot.files import remove_leftovers, write_json
from mre_lowshot.preprocessing.record import read_record, states
from mre_lowshot.preprocessing.references import adding, changing
from mre_lowshot.transaction import Changes, changes
from mre_lowshot.workflows.case_addition import NewCase, plans_with_cases, stage_case
from mre_lowshot.workflows.corrected_maps import corrected_maps
from mre_lowshot.workflows.new_case import Candidate, candidate_of, misfits, refuse_known, stage_files
from mre_lowshot.workflows.next_training import last_weights, next_command
from mre_lowshot.workflows.plan import DEFAULT_NAME, verified_cases
from mre_lowshot.workflows.raw_folder import find_raw
from mre_lowshot.workflows.reporting import Reporter

ADDS = "adds case"
Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class AddResult:
    """Result of `add_case`.

    Attributes:
        dataset: folder of the raw dataset.
        cases: names of the cases that were added.
        present: names of cases of a prediction folder that the dataset has already, with the same label map.
        plans: names of the plans under which they were preprocessed.
        command: the next command: a training on all annotated scans, which begins with the weights of the last training
            where there is one, because that reached a higher Dice (docs/CORRECTING.md).
        command_from_scratch: the same from scratch; empty where there are no last weights.
        notes: differences of the scans from the dataset's, and structures that a plan's grid loses.
    """

    dataset: Path
    cases: tuple[str, ...]
    present: tuple[str, ...] = ()
    plans: tuple[str, ...] = ()
    command: str = ""
    command_from_scratch: str = ""
    notes: tuple[str, ...] = field(default=())


def add_case(
    dataset: str | Path,
    images: Paths | None = None,
    label: str | Path | None = None,
    *,
    name: str | None = None,
    predictions: str | Path | None = None,
    cases: Sequence[str] = (),
    scans: str | Path | None = None,
    plans_name: str = DEFAULT_NAME,
    workspace: str | Path | None = None,
    reporter: Reporter | None = None,
) -> AddResult:
    """Add a scan and its label map to a planned dataset, or the corrected label maps of a folder of predictions.

    The files are verified as in planning, copied into the raw dataset and preprocessed under its plans; splits and
    fingerprint are extended. No file is overwritten but dataset.json, splits, records and fingerprint; either all of
    that happens or nothing.

    Args:
        dataset: id (17), name (BTCV), full name or path.
        images: the scan: a file, its channel files in order, or a folder with one DICOM series (a folder for each
            channel).
        label: its label map.
        name: of the case; None: that of the image file.
        predictions: instead of images and label, an output folder of `predict`: the label maps that were changed since
            they were written are added, with their scans.
        cases: of ``predictions``: these, changed or not.
        scans: folder of the scans, where they are no longer where run.json lists them.
        plans_name: plan of the training that is named as the next command; it must have preprocessed cases.
        workspace: folder with raw/, preprocessed/ and results/; None: see `data.workspace.Workspace`.
        reporter: receives progress and messages.

    Raises:
        UserError: an option is wrong, the dataset is not planned, a file does not fit dataset or plan, the case exists,
            or another run trains or plans. Nothing is added then.
    """
    reporter = reporter or Reporter()
    require_path("the dataset", str(dataset))
    require_plans_name("-p", plans_name)
    space = Workspace.resolve(workspace)
    raw = find_raw(space, str(dataset))
    folder = space.preprocessed / raw.name
    load_plan(folder / f"{plans_name}.json")
    with adding(folder) as finished, tempfile.TemporaryDirectory() as scratch:
        if finished:
            reporter.info(f"note: an earlier run that {finished} was cut off; it is finished now")
        plans, notes = plans_with_cases(folder, plans_name)
        _check_raw(raw, folder, plans[plans_name])
        found = Dataset.load(raw)
        raise_problems(found, found.problems)
        for note in notes:
            reporter.warning(f"  NOTE {note}")
        given = _candidates(
            found, images, label,
            name=name, predictions=predictions, cases=cases, scans=scans, scratch=Path(scratch),
        )  # fmt: skip
        return _add(
            given, found, space, plans, plans_name=plans_name, notes=notes, finished=finished, reporter=reporter
        )


def _add(
    given: Sequence[Candidate],
    dataset: Dataset,
    space: Workspace,
    plans: dict[str, Plan],
    *,
    plans_name: str,
    notes: Sequence[str],
    finished: str,
    reporter: Reporter,
) -> AddResult:
    """Verify all cases, then add one after the other."""
    raw, folder = dataset.folder, space.preprocessed / dataset.name
    verified = _verified(dataset, given, plans, finished=finished, reporter=reporter)
    present = [one.name for one in given if one not in verified]
    for name in present:
        reporter.info(f"note: case {name} is in {dataset.name} already, with the same label map")
    added, texts = [], list(notes)
    for one, (fingerprint, differences) in verified.items():
        texts += differences
        with changing(folder, list(plans)):
            remove_leftovers(raw)
            plans, _ = plans_with_cases(folder, plans_name)  # another run may have planned meanwhile
            current = Dataset.load(raw)
            refuse_known(one, current)
            with changes(folder, raw) as made:
                lost = _stage(made, one, current, plans=plans, fingerprint=fingerprint)
                made.commit(f"{ADDS} {one.name}")
        for note in lost:
            reporter.warning(f"  NOTE {note}")
        texts += lost
        added.append(one.name)
        count = len(current.labelled) + 1
        reporter.info(f"added case {one.name} to {raw}: {count} labelled scans; preprocessed for {', '.join(plans)}")
    command, from_scratch = next_command(space, plans[plans_name]), ""
    if weights := last_weights(space.results, plans[plans_name]):
        from_scratch, command = command, next_command(space, plans[plans_name], before=weights)
    reporter.info(f"next: {command}")
    if from_scratch:
        reporter.info(f"or, from scratch: {from_scratch}")
    return AddResult(raw, tuple(added), tuple(present), tuple(plans), command, from_scratch, tuple(texts))


def _check_raw(raw: Path, folder: Path, plan: Plan) -> None:
    """Refuse a raw dataset that the preprocessed cases were not made from."""
    recorded = read_record(plan, folder).raw_folder(folder)
    if recorded is None or recorded.resolve() != raw.resolve():
        where = recorded or "a folder that is gone"
        raise UserError(
            f"{raw}: the preprocessed cases in {folder} were made from {where}; give that dataset, or run "
            f"mre_plan_and_preprocess -d {raw} -p {plan.plans_name} --keep_plan"
        )


def _candidates(
    dataset: Dataset,
    images: Paths | None,
    label: str | Path | None,
    *,
    name: str | None,
    predictions: str | Path | None,
    cases: Sequence[str],
    scans: str | Path | None,
    scratch: Path,
) -> list[Candidate]:
    """What is to be added, by its files."""
    if predictions is None:
        if images is None or label is None:
            raise UserError("give the scan's files and its label map, or a folder of predictions (--from)")
        if cases or scans is not None:
            raise UserError("names of cases and -i belong to a folder of predictions (--from); leave them out")
        listed = [images] if isinstance(images, str | Path) else list(images)
        for path in (*listed, label):
            require_path("the scan's file or label map", path)
        return [candidate_of(dataset, tuple(Path(path) for path in listed), Path(label), name=name, scratch=scratch)]
    if images is not None or label is not None:
        raise UserError("--from takes scans and label maps from a folder of predictions; leave the files out")
    if name is not None:
        raise UserError("--name names a single case; with --from the cases keep their names")
    require_path("--from", predictions)
    if scans is not None:
        require_path("-i", scans)
    found, problems = corrected_maps(Path(predictions), cases, Path(scans) if scans is not None else None)
    raise_problems(dataset, problems)
    return [
        candidate_of(dataset, one.images, one.label, name=one.name, scratch=scratch, predicted=True) for one in found
    ]


def _verified(
    dataset: Dataset, given: Sequence[Candidate], plans: Mapping[str, Plan], *, finished: str, reporter: Reporter
) -> dict[Candidate, tuple[dict[str, Any], list[str]]]:
    """The fingerprint and the differences of each case that the dataset does not have yet.

    Raises:
        UserError: lists all problems of all cases.
    """
    new = [
        one
        for one in given
        if not refuse_known(one, dataset, same_is_present=one.predicted or finished == f"{ADDS} {one.name}")
    ]
    problems: list[str] = []
    found: dict[Candidate, tuple[dict[str, Any], list[str]]] = {}
    for one in reporter.iterate(new, description="verify", unit="scan"):
        try:
            alone = replace(dataset, cases=(one.case,), test_cases=(), problems=(), num_training=1)
            measured = verified_cases(alone, reporter)
            image = read_channels(list(one.case.images))
            differences = [line for plan in plans.values() for line in misfits(one.name, image, plan, problems)]
            found[one] = measured[one.name], list(dict.fromkeys(differences))
        except UserError as problem:
            text = str(problem).partition(" found:\n  ")[2] or str(problem)
            problems += [line.strip() for line in text.splitlines()]
    raise_problems(dataset, list(dict.fromkeys(problems)))
    for _, differences in found.values():
        for line in differences:
            reporter.warning(f"  NOTE {line}")
    return found


def _stage(
    made: Changes, one: Candidate, dataset: Dataset, *, plans: Mapping[str, Plan], fingerprint: Mapping[str, Any]
) -> list[str]:
    """Write all new contents to temporary folders; returns notes."""
    images, label = stage_files(made, one, dataset)
    write_json(made.path("raw", "dataset.json"), one.description(dataset))
    image = read_channels(images)
    case = NewCase(
        one.name,
        image,
        read_labels(label, like=image.geometry),
        states(images, dataset.folder if one.images_are_there else made.staging["raw"]),
        states([label], made.staging["raw"]),
        fingerprint,
    )
    return stage_case(made, case, plans, dataset.folder)
