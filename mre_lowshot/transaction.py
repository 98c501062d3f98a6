"""Changes of several files, in two folders, that appear together even if the process is killed.

New contents are written to a temporary folder inside each folder that changes. A journal then lists them, and the
temporary folder that holds it gets the name `JOURNAL_FOLDER`: from then on the changes count. Each file is moved to its
place; a run that finds a journal goes on with what is left to move (`finish`). A process that is killed before leaves
temporary folders only, which `files.remove_leftovers` removes.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mre_lowshot.errors import UserError
from mre_lowshot.files import not_written, partial_name, read_json, replace, sha256, write_json

JOURNAL_FOLDER, JOURNAL = ".mre-changes", "journal.json"
FORMAT = "mre_lowshot changes"
_HOME = "preprocessed"  # the folder that holds the journal
_FILE = re.compile(r"(?!\.)[^/\\]+(/(?!\.)[^/\\]+)?")  # at most one folder deep, not hidden
_RAW = ("imagesTr", "labelsTr", "dataset.json")  # what changes in a raw dataset


class Changes:
    """Changes that are being prepared.

    Attributes:
        folders: the folders that change: ``preprocessed``, which holds the journal, and ``raw``.
        staging: the temporary folder in each of them.
        committed: whether the changes count; a run that was interrupted then is gone on with.
    """

    def __init__(self, preprocessed: Path, raw: Path) -> None:
        self.folders = {_HOME: preprocessed, "raw": raw}
        self.staging = {key: folder / partial_name(folder) for key, folder in self.folders.items()}
        self.committed = False

    def path(self, key: str, file: str) -> Path:
        """Where the new content of ``file`` (relative to the folder ``key``) is to be written; its folder exists."""
        path = self.staging[key] / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(not_written(self.folders[key] / file, problem)) from None
        return path

    def commit(self, what: str) -> None:
        """Make the changes. ``what`` describes them, as in ``adds case X``.

        Raises:
            UserError: a raw file would be overwritten; or a file cannot be moved, and the next run goes on.
        """
        home = self.folders[_HOME]
        listed = []
        for key, folder in self.folders.items():
            for path in sorted(p for p in self.staging[key].rglob("*") if p.is_file()):
                file = path.relative_to(self.staging[key]).as_posix()
                target = folder / file
                before = sha256(target) if target.is_file() else None
                if os.path.lexists(target) and key == "raw" and file != "dataset.json":
                    raise UserError(f"{target}: exists and is not overwritten; move it away, or choose another name")
                listed.append({"folder": key, "file": file, "sha256": sha256(path), "before": before})
        raw = self.folders["raw"].resolve()
        content = {
            "format": FORMAT,
            "what": what,
            "raw": str(raw),
            "raw_relative": os.path.relpath(raw, home.resolve()),
            "raw_staging": self.staging["raw"].name,
            "files": listed,
        }
        for path in (p for staging in self.staging.values() for p in staging.rglob("*") if p.is_file()):
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
        write_json(self.path(_HOME, JOURNAL), content)
        try:
            os.rename(self.staging[_HOME], home / JOURNAL_FOLDER)
        except OSError as problem:
            raise UserError(not_written(home, problem)) from None
        self.committed = True
        _apply(home, content)


@contextmanager
def changes(preprocessed: Path, raw: Path) -> Iterator[Changes]:
    """Changes to prepare in the block; what was not committed is removed at its end."""
    made = Changes(preprocessed, raw)
    try:
        yield made
    except UserError as problem:  # of a temporary file: name the one that it becomes
        text = str(problem)
        for key, folder in made.folders.items():
            text = text.replace(str(made.staging[key]), str(folder))
        raise UserError(text) from None
    finally:
        if not made.committed:
            for staging in made.staging.values():
                shutil.rmtree(staging, ignore_errors=True)


def finish(preprocessed: Path) -> str:
    """Go on with changes that a killed run has committed; returns what they do, empty where there are none.

    Raises:
        UserError: a file was changed meanwhile, or the journal is not one.
    """
    home = preprocessed / JOURNAL_FOLDER
    if not home.is_dir():
        return ""
    if not (home / JOURNAL).is_file():  # it was being removed
        _remove(home)
        return ""
    content = read_json(home / JOURNAL, "journal of changes")
    if not _is_valid(content, preprocessed.name):
        raise UserError(f"{home / JOURNAL}: is no journal of changes of {preprocessed.name}; delete {home}")
    _apply(preprocessed, content)
    return str(content["what"])


def _is_valid(content: Any, name: str) -> bool:
    """Whether a journal lists files of the dataset ``name`` only: the folder may have been received from others."""
    if (
        not isinstance(content, Mapping)
        or content.get("format") != FORMAT
        or not isinstance(content.get("files"), list)
    ):
        return False
    texts = [content.get(key) for key in ("what", "raw", "raw_relative", "raw_staging")]
    if not all(isinstance(text, str) for text in texts) or Path(str(content["raw"])).name != name:
        return False
    if not re.fullmatch(r"\.mre-partial\.[\w.]+", str(content["raw_staging"])):
        return False
    for item in content["files"]:
        if not isinstance(item, Mapping) or item.get("folder") not in (_HOME, "raw"):
            return False
        file, before = item.get("file"), item.get("before")
        if not isinstance(file, str) or not _FILE.fullmatch(file) or not isinstance(item.get("sha256"), str):
            return False
        if not (before is None or isinstance(before, str)):
            return False
        if item["folder"] == "raw" and file.split("/")[0] not in _RAW:
            return False
    return True


def _apply(home: Path, content: Mapping[str, Any]) -> None:
    """Move the files that are left to move, and remove the temporary folders."""
    raw = next((r for r in (home / content["raw_relative"], Path(content["raw"])) if r.is_dir()), Path(content["raw"]))
    if raw.resolve().name != home.resolve().name:
        raise UserError(f"{home / JOURNAL_FOLDER}: names the folder {raw}, which is not that of {home.name}; delete it")
    folders = {_HOME: home, "raw": raw}
    staging = {_HOME: home / JOURNAL_FOLDER, "raw": raw / content["raw_staging"]}
    for item in content["files"]:
        source, target = staging[item["folder"]] / item["file"], folders[item["folder"]] / item["file"]
        try:
            if not source.is_file():
                if not target.is_file():
                    raise UserError(
                        f"{target}: is missing, and so is its new content: a run that {content['what']} was cut off, "
                        f"and its files were deleted; delete {home / JOURNAL_FOLDER} and run mre_plan_and_preprocess "
                        "--keep_plan"
                    )
                continue
            present = sha256(target) if target.is_file() else None
            if present not in (item["before"], item["sha256"]):
                raise UserError(
                    f"{target}: was changed after a run that {content['what']} had been cut off; move it away and run "
                    f"the command again, or delete {home / JOURNAL_FOLDER} to keep it"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            replace(source, target)
        except OSError as problem:
            raise UserError(f"{not_written(target, problem)}; then run the command again, which goes on") from None
    shutil.rmtree(staging["raw"], ignore_errors=True)
    _remove(staging[_HOME])


def _remove(folder: Path) -> None:
    """Delete a folder of changes that are done, after giving it a name that `remove_leftovers` recognises."""
    temporary = folder.parent / partial_name(folder)
    with suppress(OSError):
        os.rename(folder, temporary)
        shutil.rmtree(temporary, ignore_errors=True)
