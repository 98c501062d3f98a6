"""Label maps that validation has written, so that one that a person has corrected since is not lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from mre_lowshot.errors import UserError
from mre_lowshot.files import not_written, partial_name, read_json, sha256, write_json
from mre_lowshot.signed import set_aside

FILE = "label_maps.json"


class WrittenMaps:
    """The label maps of a folder, with the SHA-256 of each in `FILE`.

    A map that is not listed there, or has changed since, belongs to the user: it is renamed to NAME.old, not replaced.

    Args:
        folder: of the label maps; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[str, list[str]] = {}
        try:
            content = read_json(folder / FILE, "list of label maps")
            self._listed = {str(name): [str(d) for d in digests] for name, digests in content.items()}
        except (UserError, AttributeError, TypeError):  # missing or damaged: every map may be the user's
            pass

    def is_own(self, path: Path) -> bool:
        """Whether ``path`` holds what a validation has written."""
        try:
            return path.is_file() and sha256(path) in self._listed.get(path.name, ())
        except OSError:
            return False

    def save(self, path: Path, save: Callable[[Path], None]) -> list[Path]:
        """Write ``path`` with ``save``; returns the new names of files of the user that were there.

        Raises:
            UserError: it cannot be written; what is there stays.
        """
        staging, aside = self.folder / partial_name(self.folder), []
        try:
            staging.mkdir(parents=True)
            save(staging / path.name)
            made = sorted(staging.iterdir())  # two files of a .mhd image
            for new in made:
                present = self.folder / new.name
                digest = sha256(new)
                if os.path.lexists(present) and not self.is_own(present) and sha256(present) != digest:
                    aside += set_aside([present])
                self._listed[new.name] = [digest, *self._listed.get(new.name, ())[:1]]  # listed before it is there
            write_json(self.folder / FILE, self._listed)
            for new in made:
                os.replace(new, self.folder / new.name)
        except UserError as problem:
            raise UserError(str(problem).replace(str(staging), str(self.folder))) from None
        except OSError as problem:
            raise UserError(not_written(path, problem)) from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return aside
