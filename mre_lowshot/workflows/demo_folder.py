"""The folder of a demo: a list of the files that it has made, so that a new demo deletes these and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json, sha256, write_json

LIST = "demo_files.json"
FORMAT = "mre_lowshot demo"
HIDDEN = (".mre-lock", ".mre-partial")
NAMED = 10  # files named in a message


class DemoFolder:
    """A folder that a demo fills.

    Args:
        root: the folder.
        overwrite: delete the files of an earlier demo in it. Other files stay.

    Raises:
        UserError: it holds something else than a demo, or files of the demo that someone has changed; then nothing is
            deleted.
    """

    def __init__(self, root: Path, *, overwrite: bool) -> None:
        self.root = root
        self._known: dict[str, tuple[tuple[int, int], str]] = {}  # file -> (size, time), SHA-256
        if root.is_dir() and any(not p.name.startswith(HIDDEN) for p in root.iterdir()):
            if not overwrite:
                raise UserError(
                    f"{root}: exists and is not empty; give another -o, or --overwrite to replace a demo in it"
                )
            self._delete_earlier()
        self._others = set(self._files())
        root.mkdir(parents=True, exist_ok=True)
        self.update()

    def update(self) -> None:
        """Write the list, with all files that were made since the beginning."""
        made = {file: self._digest(file) for file in self._files() if file not in self._others}
        write_json(self.root / LIST, {"format": FORMAT, "files": made})

    def _delete_earlier(self) -> None:
        path = self.root / LIST
        content = read_json(path, "list of a demo's files") if path.is_file() else None
        listed = content.get("files") if isinstance(content, dict) and content.get("format") == FORMAT else None
        if not isinstance(listed, dict):
            raise UserError(f"{self.root}: is not a demo folder, so it is not replaced; give another -o")
        present = [file for file in self._files() if file in listed]  # never a path that only the list holds
        changed = [file for file in present if sha256(self.root / file) != listed[file]]
        if changed:
            more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
            raise UserError(
                f"{self.root}: {', '.join(changed[:NAMED])}{more}: changed since the demo made it, so it is not "
                "deleted; move it away, or give another -o"
            )
        for file in present:
            (self.root / file).unlink()
        path.unlink()
        for folder, _, _ in os.walk(self.root, topdown=False):
            if folder != str(self.root) and not os.listdir(folder):
                os.rmdir(folder)

    def _files(self) -> list[str]:
        """All files but the list, relative to the folder; links to folders are not followed."""
        found = []
        for folder, _, names in os.walk(self.root):
            found += [Path(folder, name).relative_to(self.root).as_posix() for name in names]
        return sorted(f for f in found if f != LIST and not Path(f).name.startswith(HIDDEN))

    def _digest(self, file: str) -> str:
        path = self.root / file
        state = path.stat()
        key = (state.st_size, state.st_mtime_ns)
        if file not in self._known or self._known[file][0] != key:
            self._known[file] = key, sha256(path)
        return self._known[file][1]
