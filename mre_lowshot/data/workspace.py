"""Location of the raw, preprocessed and results folders: command-line flag, then environment, then ./mre_data."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mre_lowshot.config.check import require_path
from mre_lowshot.errors import UserError

_ROOTS = {"raw": ("MRE_RAW", "nnUNet_raw"), "preprocessed": ("MRE_PREPROCESSED", "nnUNet_preprocessed"),
          "results": ("MRE_RESULTS", "nnUNet_results")}  # fmt: skip
_FULL_NAME = re.compile(r"Dataset([0-9]{1,9})_(.+)\Z", re.DOTALL)
_ID = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Workspace:
    """The three root folders of nnU-Net's layout, resolved once and passed as an argument (never a global).

    ``root`` is the folder given with ``--workspace``, if it was, for the text of a next command.
    """

    raw: Path
    preprocessed: Path
    results: Path
    root: str | None = None

    @classmethod
    def resolve(cls, root: str | Path | None = None) -> Workspace:
        """Find the root folders.

        In order of precedence: ``root`` (the ``--workspace`` flag); the variables MRE_RAW, MRE_PREPROCESSED and
        MRE_RESULTS; those of nnU-Net; MRE_WORKSPACE; ./mre_data.
        """
        if root is not None:
            require_path("--workspace", root)
        roots = {}
        for kind, variables in _ROOTS.items():
            given = None if root else next((os.environ[v] for v in variables if os.environ.get(v)), None)
            base = Path(root or os.environ.get("MRE_WORKSPACE") or "mre_data")
            roots[kind] = _absolute_home(Path(given)) if given else _absolute_home(base) / kind
            if roots[kind].exists() and not roots[kind].is_dir():
                raise UserError(f"{roots[kind]}: is a file; the folder {kind} of the workspace is expected there")
            if not given and base.is_file():
                raise UserError(f"--workspace {base}: is a file; give a folder")
        return cls(**roots, root=None if root is None else str(root))

    def find(self, name: str, kind: str) -> Path:
        """The folder of a dataset in the root folder ``kind`` (raw, preprocessed or results).

        ``name`` is an id, a name or a full name (``17``, ``BTCV``, ``Dataset017_BTCV``), or a path.

        Raises:
            UserError: no folder or several folders match; the message lists the existing folders.
        """
        require_path("the dataset's name", name)
        if kind == "raw" and Path(name, "dataset.json").is_file():
            found = Path(name).resolve()
            if not found.name:
                raise UserError(f"dataset {name!r}: the root folder has no name; move the dataset into a folder")
            return found
        is_path = any(separator in name for separator in (os.sep, os.altsep) if separator)  # Windows has two
        if kind == "raw" and is_path and Path(name).is_dir():
            content = ", ".join(sorted(p.name for p in Path(name).iterdir())) or "nothing"
            raise UserError(
                f"{name}: has no dataset.json (found: {content}); write one (docs/FILES.md), or use mre_import"
            )
        root: Path = getattr(self, kind)
        wanted = Path(name).name if is_path else name
        folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        fitting = [p for p in folders if names_dataset(p.name, wanted)]
        if len(fitting) == 1:
            return fitting[0]
        existing = ", ".join(p.name for p in folders if not p.name.startswith(".")) or "nothing"
        if fitting:
            both = ", ".join(p.name for p in fitting)
            raise UserError(f"dataset {name!r} matches several folders in {root}: {both}; give the full name")
        fix = "give a path, --workspace, or set MRE_RAW" if kind == "raw" else "run mre_plan_and_preprocess first"
        raise UserError(f"dataset {name!r} is not in {root} (found: {existing}); {fix}")


def _absolute_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no such user; write the path out") from None


def names_dataset(folder: str, wanted: str) -> bool:
    """Whether ``wanted`` (17, BTCV or Dataset017_BTCV) names the dataset of ``folder``."""
    if folder == wanted:
        return True
    match = _FULL_NAME.match(folder)
    if not match:
        return False
    number, short = match.groups()
    return short == wanted or (_ID.fullmatch(wanted) is not None and int(number) == int(wanted))
