"""The output folder of a prediction: which files belong to the user, which cases are done, and how files appear.

A file that no run has written, or that has changed since, is never replaced without ``overwrite``. The files of a case
are written to a temporary folder beside their final place, listed in run.json, and then renamed.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mre_lowshot.data.dataset import Case
from mre_lowshot.data.listing import MAX_FILE_NAME, PICTURE_FOLDERS
from mre_lowshot.data.readers import VOXEL_ENDINGS, file_ending
from mre_lowshot.errors import UserError
from mre_lowshot.files import not_written, partial_name, replace
from mre_lowshot.inference.export import check_probabilities
from mre_lowshot.inference.formats import BESIDE_ENDINGS, ENDINGS, Format, formats_of
from mre_lowshot.inference.record import FileState, RunRecord
from mre_lowshot.limits import bytes_text
from mre_lowshot.plotting import check_png
from mre_lowshot.workflows.input_files import data_files, same_inputs

OVERLAYS, PREVIEWS = PICTURE_FOLDERS
DAMAGED = ".damaged"  # is added to the name of a file that is set aside
LISTED = 10  # files named in a message


@dataclass(frozen=True)
class Request:
    """What a run shall write for each case: ``labels`` are those that a label map may hold (name to value), ``formats``
    those of the label maps (empty: that of the scan)."""

    overlays: bool
    probabilities: bool
    labels: Mapping[str, int]
    formats: tuple[str, ...] = ()
    previews: bool = False
    statistics: bool = False

    @property
    def pictures(self) -> tuple[str, ...]:
        """The folders of the pictures that are asked for."""
        return tuple(f for f, wanted in ((OVERLAYS, self.overlays), (PREVIEWS, self.previews)) if wanted)


class OutputFolder:
    """The folder that a run predicts into.

    Args:
        root: the folder; it exists.
        record: of this run.
        request: what is asked for.
        overwrite: replace files that belong to the user.
    """

    def __init__(self, root: Path, record: RunRecord, request: Request, *, overwrite: bool = False) -> None:
        self.root, self.record, self.request, self.overwrite = root, record, request, overwrite
        self.damaged: set[Path] = set()  # unreadable files; they are set aside before they are replaced
        self._unfit: dict[Path, str] = {}  # why a label map that is not listed does not count as done
        self._images: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(root.iterdir()):
            for ending in {file_ending(path), *(e for e in ENDINGS if path.name.endswith(e))} - {""}:
                self._images[path.name[: -len(ending)]].append(path)
        self._staging = root / partial_name(root)

    def label_maps(self, case: Case) -> dict[Path, Format]:
        """The label maps of a case in each format that is asked for; the first is the one to correct."""
        return {self.root / f"{case.name}{made.ending}": made for made in formats_of(case, self.request.formats)}

    def label_map(self, case: Case) -> Path:
        """The first label map of a case."""
        return next(iter(self.label_maps(case)))

    def targets(self, case: Case) -> list[Path]:
        """The files that are asked for, the label maps first."""
        maps = self.label_maps(case)
        found = [*maps, *(self.root / f"{case.name}{ending}" for made in maps.values() for ending in made.beside)]
        if self.request.probabilities:
            found.append(self.root / f"{case.name}.npz")
        return found + [self.root / folder / f"{case.name}.png" for folder in self.request.pictures]

    # Before the work.

    def is_predicted(self, case: Case) -> bool:
        """Whether the label map of a case is as a run has written it."""
        path = self.label_map(case)
        return self.record.entry_of(path, case.name) is not None and self._data_is_own(path, case)

    def why_again(self, case: Case, crop: object = None) -> str | None:
        """None where all that is asked for is there, whole, and from this model and these options; else the reason for
        predicting the case (again); empty where it was not predicted yet.

        A label map that a person has corrected, or that no run.json lists, counts if it can be read, lies on the scan's
        grid and holds no other labels than the model's; its pictures may be missing.
        """
        path = self.label_map(case)
        if not path.is_file():
            return ""
        found = self.record.entry_of(path, case.name)
        pictures: set[Path] = set()  # that `corrected_pictures` draws without a prediction
        if found is None or not self._data_is_own(path, case):
            pictures = {self.root / folder / f"{case.name}.png" for folder in self.request.pictures}
            if self.record.is_own(path, case.name) and self._data_is_own(path, case):
                return "the last attempt failed"
            if problem := self._unusable(path, case, self.label_maps(case)[path]):
                self._unfit[path] = problem
                return f"its label map {problem}"
        else:
            entry, run = found
            if entry.get("status") != "done":
                return "the last attempt failed"
            if not all(self.record.lists(entry, data) for data in data_files(path)):
                return "its voxels are of an earlier run"  # the later one was stopped between two files
            if not self.record.same_result(run):
                return "it was predicted with another model or other options"
            if not same_inputs(entry, case) or entry.get("crop") != crop:
                return "the scan has changed since it was predicted"
        for extra in self.targets(case)[1:]:
            if extra in pictures and not os.path.lexists(extra):
                continue
            if not extra.is_file():
                return f"{self._name(extra)} is missing"
            if self.record.is_own(extra, case.name):
                if found is not None and not self.record.lists(found[0], extra):
                    return f"{self._name(extra)} is of an earlier run"
            elif problem := self._problem(extra, case):
                return f"{self._name(extra)} {problem}"
        return None

    def _data_is_own(self, path: Path, case: Case) -> bool:
        """Whether the voxels beside a .mhd file are those that a run has written."""
        return all(self.record.is_own(data, case.name) for data in data_files(path))

    def _unusable(self, path: Path, case: Case, made: Format) -> str:
        """Why a label map that is not listed does not count as done; empty where it does."""
        return self._damage(path, made.check) or made.misfit(path, case, self.request.labels)

    def _problem(self, path: Path, case: Case) -> str:
        """As `_unusable`, for any file besides the first label map."""
        made = self.label_maps(case).get(path)
        return self._unusable(path, case, made) if made else self._damage(path, _check_of(path))

    def _damage(self, path: Path, check: Callable[[Path], None]) -> str:
        try:
            if path.stat().st_size:
                check(path)
                return ""
        except Exception:  # a damaged file raises anything
            pass
        self.damaged.add(path)
        return "is damaged" if path.stat().st_size else "is empty"

    def require_names(self, cases: Sequence[Case]) -> None:
        """Refuse cases whose files would have names that are longer than file systems allow.

        Raises:
            UserError: names the first one.
        """
        for case in cases:
            for path in self.targets(case):
                if (size := len(os.fsencode(path.name))) > MAX_FILE_NAME:
                    ending = path.name.removeprefix(case.name)
                    raise UserError(
                        f"case {case.name}: its file name with {ending} has {size} bytes, file systems allow "
                        f"{MAX_FILE_NAME}; rename the scan, or choose another --output_format"
                    )

    def require_room(self, cases: Sequence[Case]) -> None:
        """Refuse before the work what would replace a user's file, or leave two label maps of one case.

        Raises:
            UserError: lists the files.
        """
        self._require_distinct(cases)
        foreign, folders, twins = [], [], []
        for case in cases:
            for path in (*self.targets(case), *(data for made in self.label_maps(case) for data in data_files(made))):
                if path.is_dir() and not path.is_symlink():
                    folders.append(self._name(path))
                elif os.path.lexists(path) and not self._replaceable(path, case.name):
                    why = f" ({self._unfit[path]})" if path in self._unfit else ""
                    foreign.append(self._name(path) + why)
            twins += [p.name for p in self._twins(case) if not self.record.is_own(p, case.name)]
        pictures = ((name, self.root / name) for name in self.request.pictures)
        folders += [name for name, folder in pictures if os.path.lexists(folder) and not folder.is_dir()]
        if folders:
            raise UserError(f"-o {self.root}: {_some(folders)}: a file and a folder of one name; move it away")
        if twins:
            raise UserError(
                f"-o {self.root}: {_some(twins)}: would be a second label map of a case that is predicted now, in "
                "another format, and mre_predict has not written it (or it has changed since); move it away"
            )
        if foreign:
            raise UserError(
                f"-o {self.root}: {_some(foreign)}: mre_predict has not written this, or it has changed since, so it "
                "is not replaced; give another -o, keep what is there with --continue_prediction, or replace it with "
                "--overwrite"
            )

    def _require_distinct(self, cases: Sequence[Case]) -> None:
        names: dict[str, str] = {}
        files: dict[Path, str] = {}
        for case in cases:
            key = unicodedata.normalize("NFC", case.name).casefold()
            other = names.setdefault(key, case.name)
            if other != case.name and self.ignores_case():
                raise UserError(
                    f"cases {other} and {case.name}: their label maps would be one file in {self.root}, where upper "
                    "and lower case are not distinguished; rename one of the scans"
                )
            for path in self.targets(case):  # x.seg as .nrrd, and x as .seg.nrrd
                if files.setdefault(path, case.name) != case.name:
                    raise UserError(
                        f"cases {files[path]} and {case.name}: both would write {self._name(path)}; rename one of the "
                        "scans, or choose another --output_format"
                    )

    def ignores_case(self) -> bool:
        """Whether the file system takes names for equal that differ in upper and lower case only."""
        probe = self.root / partial_name(Path("probe"))
        try:
            probe.touch()
            return probe.with_name(probe.name.upper()).exists()
        except OSError as problem:
            raise UserError(not_written(self.root, problem)) from None
        finally:
            probe.unlink(missing_ok=True)

    def require_writable(self) -> None:
        """Write and delete a small file in each folder that is written into.

        Raises:
            UserError: one of them cannot be written to.
        """
        for folder in (self.root, *(self.root / name for name in self.request.pictures)):
            if os.path.lexists(folder) and not folder.is_dir():
                raise UserError(f"-o {self.root}: {folder.name}: a file and a folder of one name; move it away")
            probe = folder / partial_name(Path("probe"))
            try:
                folder.mkdir(parents=True, exist_ok=True)
                probe.write_bytes(b"probe")
                probe.unlink()
            except OSError as problem:
                with suppress(OSError):
                    probe.unlink(missing_ok=True)
                raise UserError(not_written(folder, problem)) from None

    def space_warning(self, cases: Sequence[Case], classes: int) -> str:
        """A warning where the disk is clearly too small for the files of the cases; empty otherwise. Compressed label
        maps take about a hundredth of their scans."""
        needed = 0.0
        for case in cases:
            with suppress(OSError):
                size = sum(path.stat().st_size for path in case.images)
                packed = self.label_map(case).suffix in (".gz", ".nrrd", ".mha", ".mhd", ".png")
                needed += size * (0.01 if packed else 0.25) + size * classes * 0.3 * self.request.probabilities
        free = shutil.disk_usage(self.root).free
        if free >= needed:
            return ""
        return (
            f"{self.root}: about {bytes_text(needed)} will be needed, {bytes_text(free)} are free; make space, or "
            "give a folder on another disk"
        )

    # The files of a case.

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """An empty temporary folder, on the disk of the output folder; it is deleted afterwards."""
        try:
            try:
                self._staging.mkdir()
            except OSError as problem:
                raise UserError(not_written(self.root, problem)) from None
            yield self._staging
        except UserError as problem:
            raise UserError(str(problem).replace(str(self._staging), str(self.root))) from None
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)

    def publish(self, case: Case, entry: Mapping[str, object], *, staging: Path, outputs: Sequence[FileState]) -> None:
        """List the files of a case in run.json, then give them their names, and delete those of an earlier run that
        they make obsolete. ``outputs`` are the files in ``staging``.

        Raises:
            UserError: a user's file has appeared in their place, or they cannot be written.
        """
        for state in outputs:
            final = self.root / state.file
            if os.path.lexists(final) and not self._replaceable(final, case.name):
                raise UserError(
                    f"{final}: was written or changed by another program during this run; it is not replaced"
                )
        before = self.record.states_of(case.name)
        kept = self._still_valid(outputs, before, case, crop=entry.get("crop"))
        self.record.add(case.name, entry, [*outputs, *kept])
        try:
            for state in outputs:
                final = self.root / state.file
                final.parent.mkdir(exist_ok=True)
                self._set_aside(final)
                replace(staging / state.file, final)
        except OSError as problem:
            raise UserError(not_written(final, problem)) from None
        self._remove_obsolete(case, {state.file for state in (*outputs, *kept)}, before)

    def _replaceable(self, path: Path, name: str) -> bool:
        return self.overwrite or path in self.damaged or self.record.is_own(path, name)

    def _set_aside(self, path: Path) -> None:
        """Keep a damaged file under another name: it may hold what a person has drawn."""
        if path not in self.damaged or self.overwrite or not path.is_file() or not path.stat().st_size:
            return
        number = 1
        while (aside := path.with_name(f"{path.name}{DAMAGED}{number if number > 1 else ''}")).exists():
            number += 1
        try:
            replace(path, aside)
        except OSError:  # the longer name is too long
            replace(path, path.with_name(f"{uuid.uuid4().hex[:8]}{path.suffix}{DAMAGED}"))

    def _still_valid(
        self, outputs: Sequence[FileState], before: Sequence[FileState], case: Case, *, crop: object
    ) -> list[FileState]:
        """Files of an earlier run that are not asked for now: pictures and probabilities that belong to the same label
        map, and label maps in other formats of the same scan, model and options."""
        label, new = self._name(self.label_map(case)), {state.file for state in outputs}
        extras: set[str] = set()
        if any(state.file == label and state in before for state in outputs):
            extras |= _extra_names(case)
        others = (*self._twins(case), *self._beside(case))
        extras |= {self._name(path) for path in others if self._is_same_result(path, case, crop)}
        return [s for s in dict.fromkeys(before) if s.file in extras - new and s.matches(self.root / s.file)]

    def _is_same_result(self, path: Path, case: Case, crop: object) -> bool:
        entry, run = self.record.entry_of(path, case.name) or ({}, {})
        return self.record.same_result(run) and same_inputs(entry, case) and entry.get("crop") == crop

    def _beside(self, case: Case) -> list[Path]:
        """The files beside label maps of the case, of formats that are not asked for."""
        wanted = set(self.targets(case))
        paths = (self.root / f"{case.name}{ending}" for ending in BESIDE_ENDINGS)
        return [path for path in paths if path not in wanted and path.is_file()]

    def _remove_obsolete(self, case: Case, present: set[str], before: Sequence[FileState]) -> None:
        names = _extra_names(case) | {path.name for path in self._twins(case)}
        names |= {path.name for path in (*self._beside(case), *self.targets(case))}  # one may have failed now
        names |= {f"{case.name}{ending}" for ending in VOXEL_ENDINGS}
        for state in before:
            path = self.root / state.file
            if state.file in names - present and state.matches(path):
                with suppress(OSError):
                    path.unlink()

    def _twins(self, case: Case) -> list[Path]:
        """Label maps of the case in formats that are not asked for."""
        wanted = set(self.targets(case))
        return [path for path in self._images.get(case.name, ()) if path not in wanted and path.is_file()]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _extra_names(case: Case) -> set[str]:
    return {f"{case.name}.npz", *(f"{folder}/{case.name}.png" for folder in PICTURE_FOLDERS)}


def _check_of(path: Path) -> Callable[[Path], None]:
    return {".npz": check_probabilities, ".png": check_png}.get(path.suffix, _anything)


def _anything(path: Path) -> None:
    """A text beside a label map: whatever is in it."""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
