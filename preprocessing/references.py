"""What all plans of a dataset share in preprocessed/DatasetXXX_Name: copies of the label maps and of dataset.json; and
the locks of planning and training there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mre_lowshot import files
from mre_lowshot.data.dataset import Case, Dataset
from mre_lowshot.data.readers import file_ending
from mre_lowshot.data.volume import read_labels, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, remove_leftovers
from mre_lowshot.locks import locked
from mre_lowshot.preprocessing.record import RECORD, REFERENCES, parts_of
from mre_lowshot.signed import set_aside
from mre_lowshot.transaction import JOURNAL_FOLDER, finish

SHARED = "references"  # key of the lock of what plans share
ADDING = "adding"  # key of the lock of adding a case
WAIT = 30.0  # seconds for another run to copy label maps
WAIT_ADDING = 600.0  # seconds for another run to add a case, which it preprocesses


@contextmanager
def adding(folder: Path) -> Iterator[str]:
    """Be the only run that adds cases to preprocessed/DatasetXXX_Name, after those that do; finish what a killed one
    has begun, and yield what that was (empty for nothing).

    Raises:
        UserError: another run adds cases for long.
    """
    with locked(folder, ADDING, "adds a case", wait=WAIT_ADDING):
        yield finish(folder)


@contextmanager
def changing(folder: Path, plans: Sequence[str]) -> Iterator[None]:
    """Hold the cases of ``plans``, and what they share, for writing, and remove what killed runs left.

    Raises:
        UserError: another run plans or trains.
    """
    doing = "adds a case"
    with ExitStack() as held:
        for name in plans:
            held.enter_context(locked(folder, f"plan_{name}", doing, wait=2.0))
        held.enter_context(locked(folder, SHARED, doing, wait=2.0))
        clean(folder)
        yield


def finish_changes(folder: Path) -> None:
    """Finish the addition of a case that was cut off, or wait for one that is being written."""
    if (folder / JOURNAL_FOLDER).is_dir():
        with locked(folder, ADDING, "finishes adding a case", wait=WAIT):
            finish(folder)


@contextmanager
def planning(folder: Path, plans_name: str) -> Iterator[None]:
    """Hold a plan's lock in preprocessed/DatasetXXX_Name while it is planned and preprocessed, and remove what killed
    runs left.

    Raises:
        UserError: another run plans it, or trains with it.
    """
    finish_changes(folder)
    with locked(folder, f"plan_{plans_name}", f"plans and preprocesses {plans_name}"):
        clean(folder)
        yield


def clean(folder: Path) -> None:
    """Remove what killed runs left in preprocessed/DatasetXXX_Name, of all plans."""
    for place in (folder, *folder.glob("*/")):
        remove_leftovers(place)


@contextmanager
def reading(folder: Path, plans_name: str) -> Iterator[None]:
    """Hold a plan's cases and the shared label maps for reading: while training and scoring.

    Raises:
        UserError: another run preprocesses them.
    """
    finish_changes(folder)
    with ExitStack() as held:
        doing = f"trains with {plans_name}"
        held.enter_context(locked(folder, f"plan_{plans_name}", doing, shared=True))
        held.enter_context(locked(folder, SHARED, doing, shared=True, wait=WAIT))
        yield


@contextmanager
def shared_files(
    dataset: Dataset, folder: Path, log: Callable[[str], None] = lambda _: None
) -> Iterator[dict[str, Path]]:
    """Copy dataset.json and the label maps of all labelled cases, delete copies with another ending of the same cases,
    and hold them for reading in the block; yields the copies by case. A copy that someone has changed is kept as
    NAME.old, which ``log`` receives.

    Raises:
        UserError: a copy must be replaced while another run trains with the old one.
    """
    doing = f"copies the label maps of {dataset.name}"
    if not _is_current(dataset, folder):
        with locked(folder, SHARED, doing, wait=2.0):
            for path in _set_aside_changed(dataset, folder):
                name = f"{path.parent.name}/{path.name}"
                log(f"{name}: a label map that was changed there is kept; correct it in labelsTr")
            _update(dataset, folder)
    with locked(folder, SHARED, "preprocesses the dataset", shared=True, wait=WAIT):
        yield {case.name: _copy_of(case, dataset, folder) for case in dataset.labelled}


def _copy_of(case: Case, dataset: Dataset, folder: Path) -> Path:
    return folder / REFERENCES / f"{case.name}{dataset.file_ending}"  # a file's own ending may be .PNG


def _is_current(dataset: Dataset, folder: Path) -> bool:
    """Whether all copies are what they would become."""
    if _twins(dataset, folder):
        return False
    pairs = [(dataset.folder / "dataset.json", folder / "dataset.json")]
    for case in dataset.labelled:
        if case.label is None or dataset.file_ending == ".mhd":  # written, not copied: compressed anew
            return False
        pairs.append((case.label, _copy_of(case, dataset, folder)))
    return all(_same(source, target) for source, target in pairs)


def _same(source: Path, target: Path) -> bool:
    if not target.is_file() or source.stat().st_size != target.stat().st_size:
        return False
    return files.sha256(source) == files.sha256(target)


def _set_aside_changed(dataset: Dataset, folder: Path) -> list[Path]:
    """Rename copies that will be replaced and that no plan's record lists: a person has changed them. Returns the new
    names."""
    listed = set()
    for record in folder.glob(f"*/{RECORD}"):
        try:
            cases = read_json(record, "record of preprocessing")["cases"]
            listed |= {file["sha256"] for case in cases.values() for file in case["reference"]}
        except (UserError, KeyError, TypeError, AttributeError):
            return []  # a damaged record: it cannot be found out
    if not listed:
        return []
    copies = [(case.label, _copy_of(case, dataset, folder)) for case in dataset.labelled if case.label]
    replaced = [copy for label, copy in copies if copy.is_file() and copy.suffix != ".mhd" and not _same(label, copy)]
    return set_aside(path for path in replaced if files.sha256(path) not in listed)


def _update(dataset: Dataset, folder: Path) -> None:
    (folder / REFERENCES).mkdir(parents=True, exist_ok=True)
    for case in dataset.labelled:
        reference = _copy_of(case, dataset, folder)
        if case.label is None:
            continue
        if reference.suffix.lower() == ".mhd":  # a header only: the voxels are in another file
            label = read_labels(case.label)
            if not _holds(reference, case.label):
                write_volume(reference, label.array, label.geometry)
        elif not _same(case.label, reference):
            files.copy(case.label, reference)
    if not _same(dataset.folder / "dataset.json", folder / "dataset.json"):
        files.copy(dataset.folder / "dataset.json", folder / "dataset.json")
    for twin in _twins(dataset, folder):
        for part in parts_of(twin):
            part.unlink(missing_ok=True)


def _holds(reference: Path, label: Path) -> bool:
    """Whether an existing copy holds the same labels on the same grid."""
    if not reference.is_file():
        return False
    try:
        copied, wanted = read_labels(reference), read_labels(label)
    except Exception:  # a damaged copy is written again
        return False
    same_grid = not copied.geometry.differences(wanted.geometry)
    return same_grid and copied.array.shape == wanted.array.shape and bool((copied.array == wanted.array).all())


def _twins(dataset: Dataset, folder: Path) -> list[Path]:
    """Copies of the dataset's label maps under another ending: from before its files were converted."""
    names = {case.name for case in dataset.labelled}
    current = {_copy_of(case, dataset, folder) for case in dataset.labelled}
    found = sorted((folder / REFERENCES).iterdir()) if (folder / REFERENCES).is_dir() else []
    return [
        path
        for path in found
        if (ending := file_ending(path)) and path.name[: -len(ending)] in names and path not in current
    ]
