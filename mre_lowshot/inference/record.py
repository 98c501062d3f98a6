"""run.json: what a prediction run read, used and wrote.

It lies beside the label maps and is written before the files of a case get their names, so that it lists every file
that a run has written, even if the run is killed. Later runs add to it. A file is this product's own if its size and
SHA-256 are listed in a run.json (or run_partN.json) of its folder; every other file is the user's.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mre_lowshot.data.listing import PICTURE_FOLDERS
from mre_lowshot.data.readers import voxel_files
from mre_lowshot.errors import UserError
from mre_lowshot.files import json_line, read_cases, sha256, write_text
from mre_lowshot.inference.checkpoint import versions
from mre_lowshot.inference.models import Model

FORMAT, VERSION = "mre_lowshot prediction", 1
DECISIVE = ("step_size", "centre_tiles", "mirroring", "precision")  # options on which the label maps depend


@dataclass(frozen=True)
class FileState:
    """A file as it was written or read.

    Attributes:
        file: path relative to the folder of run.json (outputs), or as it was given (inputs).
        size: bytes.
        sha256: of its content.
    """

    file: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, name: str) -> FileState:
        """The present state of ``path``, called ``name``."""
        return cls(name, path.stat().st_size, sha256(path))

    @classmethod
    def listed(cls, entry: Mapping[str, Any], key: str) -> list[FileState]:
        """Those under ``key`` of a case's entry; what has another form is left out."""
        found = entry.get(key)
        return [
            cls(item["file"], item["size"], item["sha256"])
            for item in (found if isinstance(found, list) else ())
            if isinstance(item, dict)
            and isinstance(item.get("file"), str)
            and isinstance(item.get("size"), int)
            and isinstance(item.get("sha256"), str)
        ]

    def matches(self, path: Path) -> bool:
        """Whether ``path`` is a file with this content."""
        try:
            return path.is_file() and path.stat().st_size == self.size and sha256(path) == self.sha256
        except OSError:
            return False

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {"file": self.file, "size": self.size, "sha256": self.sha256}


OUTPUTS = ("outputs", "earlier_outputs")
CORRECTED = "its label map was changed after the prediction; the quality score is that of the predicted one"


def was_changed(entry: Mapping[str, Any], path: Path) -> bool:
    """Whether the label map ``path``, or its file of voxels (.mhd), is not the one that a run wrote, by the ``entry``
    of its case in run.json; False where the entry does not list the files."""
    return differs([s for key in OUTPUTS for s in FileState.listed(entry, key)], path)


def differs(listed: Sequence[FileState], path: Path) -> bool:
    """Whether ``path`` or its file of voxels is among the ``listed`` files by name, but not by content."""
    for file in (path, *voxel_files(path)):
        states = [state for state in listed if state.file == file.name]
        if states and not any(state.matches(file) for state in states):
            return True
    return False


class RunRecord:
    """The record of this run, with the entries of earlier runs into the folder.

    Args:
        folder: of the label maps.
        file: ``run.json``, or that of a part.
        run: what holds for the whole run: ``model``, ``options``, ``device``, ``versions``.
        replace: begin anew where the file is not a record; otherwise it is refused.

    Raises:
        UserError: a file of this name is not a record.
    """

    def __init__(self, folder: Path, file: str, run: Mapping[str, Any], *, replace: bool = False) -> None:
        self.path = folder / file
        others = (path for path in sorted(folder.glob("run*.json")) if path.name != file)
        self._others = [content for path in others if (content := read_record(path)) is not None]
        content = read_record(self.path)
        if content is None and self.path.exists() and not replace:
            raise UserError(
                f"{self.path}: was not written by mre_predict, or is damaged; move it away, or replace it with "
                "--overwrite"
            )
        self._content = content or {"runs": {}, "cases": {}}
        self.id = uuid.uuid4().hex[:8]
        self.run = {"started": _now(), "ended": None, "status": "running", **run}
        self._lines = {name: json_line(entry) for name, entry in self._content["cases"].items()}

    def __contains__(self, name: str) -> bool:
        return name in self._content["cases"]

    def states_of(self, name: str) -> list[FileState]:
        """Every state of the files of a case that is listed: present and earlier ones."""
        return [
            state
            for content in (self._content, *self._others)
            if (entry := content["cases"].get(name))
            for key in ("outputs", "earlier_outputs")
            for state in FileState.listed(entry, key)
        ]

    def is_own(self, path: Path, name: str) -> bool:
        """Whether ``path`` holds what a run has written as a file of the case ``name``."""
        file = path.relative_to(self.path.parent).as_posix()
        return any(state.file == file and state.matches(path) for state in self.states_of(name))

    def is_own_file(self, path: Path) -> bool:
        """Whether ``path`` holds what a run has written as a file of the whole folder."""
        listed = (s for content in (self._content, *self._others) for s in FileState.listed(content, "files"))
        return any(state.file == path.name and state.matches(path) for state in listed)

    def note_file(self, state: FileState) -> None:
        """List a file of the whole folder; what it was before stays listed as long as it is there. Call `write` before
        the file gets its name."""
        before = FileState.listed(self._content, "files")
        kept = [s for s in before if s.file != state.file or (s != state and s.matches(self.path.parent / s.file))]
        self._content["files"] = [item.to_json() for item in (*kept, state)]

    def entry_of(self, path: Path, name: str) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """The entry of the case ``name`` that wrote the present content of ``path``, and its run; None where there is
        none."""
        for content in (self._content, *self._others):
            entry = content["cases"].get(name, {})
            if self.lists(entry, path):
                run = content["runs"].get(entry.get("run"), {})
                return entry, run if isinstance(run, dict) else {}
        return None

    def lists(self, entry: Mapping[str, Any], path: Path) -> bool:
        """Whether ``path`` holds what the ``entry`` of its case says, and not what an earlier run has written."""
        file = path.relative_to(self.path.parent).as_posix()
        return any(state.file == file and state.matches(path) for state in FileState.listed(entry, "outputs"))

    def note_picture(self, name: str, state: FileState, label_digest: str) -> None:
        """List a picture of a label map that no run has written as it is now, drawn from the content ``label_digest``.
        Call it before the picture gets its name."""
        entry = dict(self._content["cases"].get(name) or {"run": self.id, "status": "kept"})
        for key in ("outputs", "earlier_outputs"):
            entry[key] = [s.to_json() for s in FileState.listed(entry, key)]
        replaced = [s for s in entry["outputs"] if s["file"] == state.file]
        entry["earlier_outputs"] += replaced  # until the picture gets its name
        entry["outputs"] = [s for s in entry["outputs"] if s["file"] != state.file] + [state.to_json()]
        drawn = entry.get("drawn_from")
        entry["drawn_from"] = {**(drawn if isinstance(drawn, dict) else {}), state.file: label_digest}
        self._content["cases"][name], self._lines[name] = entry, json_line(entry)
        self.write()

    def drawn_from(self, path: Path, name: str) -> str | None:
        """The content of the label map that the picture ``path`` was drawn from, where `note_picture` has listed it."""
        file = path.relative_to(self.path.parent).as_posix()
        for content in (self._content, *self._others):
            drawn = content["cases"].get(name, {}).get("drawn_from")
            if isinstance(drawn, dict) and isinstance(found := drawn.get(file), str):
                return found
        return None

    def same_result(self, run: Mapping[str, Any]) -> bool:
        """Whether an earlier run used the model and options of this one, as far as the label maps depend on them."""
        return _decisive(run) == _decisive(self.run)

    def add(self, name: str, entry: Mapping[str, Any], outputs: Sequence[FileState]) -> None:
        """Write the entry of a case. Call it before its ``outputs`` get their names.

        Raises:
            UserError: it cannot be written; the entry is kept for the next time.
        """
        kept = {(state.file, state.sha256): state for state in self._still_there(name)}
        new = {(state.file, state.sha256) for state in outputs}
        earlier = [state.to_json() for key, state in kept.items() if key not in new]
        full = {
            **self._content["cases"].get(name, {}),  # fields that someone has added are kept
            "warnings": [],
            "reason": None,
            **entry,
            "run": self.id,
            "outputs": [state.to_json() for state in outputs],
            "earlier_outputs": earlier,
        }
        full.pop("drawn_from", None)
        self._content["cases"][name], self._lines[name] = full, json_line(full)
        self.write()

    def _still_there(self, name: str) -> list[FileState]:
        return [s for s in self.states_of(name) if _is_plain(s.file) and s.matches(self.path.parent / s.file)]

    def finish(self, status: str) -> None:
        """The run ends: ``complete``, ``failed`` or ``interrupted``."""
        self.run |= {"ended": _now(), "status": status}
        self.write()

    def write(self) -> None:
        """Write the file. Each case is a line of it, encoded once, so that many cases cost little."""
        cases = self._content["cases"]
        named = {entry.get("run") for entry in cases.values()}
        runs = {key: run for key, run in self._content["runs"].items() if key in named}
        head = {
            "format": FORMAT,
            "format_version": VERSION,
            **{k: v for k, v in self._content.items() if k not in ("format", "format_version", "runs", "cases")},
            "runs": {**runs, self.id: self.run},
        }
        lines = ",\n".join(f"    {json.dumps(name)}: {line}" for name, line in self._lines.items())
        text = json.dumps(json.loads(json_line(head)), indent=2)[:-2]
        write_text(self.path, f'{text},\n  "cases": {{\n{lines}\n  }}\n}}\n')


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The contents of all records of a folder: ``cases`` and ``runs``, each an object by name."""
    return [content for path in sorted(folder.glob("run*.json")) if (content := read_record(path)) is not None]


def entries(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The entries of each case in the run.json (and run_partN.json) of a folder of predictions; empty without one."""
    found: dict[str, list[dict[str, Any]]] = {}
    for content in read_records(folder):
        for name, entry in content["cases"].items():
            found.setdefault(name, []).append(entry)
    return found


def read_record(path: Path) -> dict[str, Any] | None:
    """The content of a record; None where the file is missing or something else."""
    content = read_cases(path, FORMAT, VERSION)
    if content is None or not isinstance(content.get("runs"), dict):
        return None
    return content if all(isinstance(entry.get("run", ""), str) for entry in content["cases"].values()) else None


def _decisive(run: Mapping[str, Any]) -> tuple[Any, ...]:
    model, options = run.get("model"), run.get("options")
    checkpoints = model.get("checkpoints") if isinstance(model, dict) else None
    found = [c.get("sha256") for c in checkpoints if isinstance(c, dict)] if isinstance(checkpoints, list) else None
    return found, *((options.get(name) if isinstance(options, dict) else None) for name in DECISIVE)


def _is_plain(file: str) -> bool:
    """Whether a listed file lies in the folder or one of pictures in it: a record from elsewhere may list anything."""
    parts = file.split("/")
    inside = len(parts) == 1 or (len(parts) == 2 and parts[0] in PICTURE_FOLDERS)
    return "\\" not in file and ".." not in parts and inside


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def describe_run(model: Model, device: object, options: Mapping[str, Any]) -> dict[str, Any]:
    """What holds for a whole run: software, model with the SHA-256 of each checkpoint, options, device."""
    hashes = model.hashes or tuple(map(sha256, model.checkpoints))
    listed = zip(model.checkpoints, hashes, strict=True)
    checkpoints = [{"file": str(path), "sha256": digest} for path, digest in listed]
    return {
        "versions": versions(),
        "model": {"folder": str(model.folder), "folds": list(model.folds), "checkpoints": checkpoints},
        "options": dict(options),
        "device": str(device),
    }
