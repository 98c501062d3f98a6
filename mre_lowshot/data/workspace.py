"""Location of the raw, preprocessed and results folders: command-line flag, then environment, then ./mre_data."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mre_lowshot.errors import UserError

_ROOTS = {"raw": ("MRE_RAW", "nnUNet_raw"), "preprocessed": ("MRE_PREPROCESSED", "nnUNet_preprocessed"),
          "results": ("MRE_RESULTS", "nnUNet_results")}  # fmt: skip
_FULL_NAME = re.compile(r"Dataset(\d+)_(.+)$")


@dataclass(frozen=True)
class Workspace:
    """The three root folders of nnU-Net's layout, resolved once and passed as an argument (never a global)."""

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def resolve(cls, root: str | Path | None = None) -> Workspace:
        """Find the root folders.

        In order of precedence: ``root`` (the ``--workspace`` flag); the variables MRE_RAW, MRE_PREPROCESSED and
        MRE_RESULTS; those of nnU-Net; MRE_WORKSPACE; ./mre_data.
        """
        roots = {}
        for kind, variables in _ROOTS.items():
            given = None if root else next((os.environ[v] for v in variables if os.environ.get(v)), None)
            base = Path(root or os.environ.get("MRE_WORKSPACE") or "mre_data")
            roots[kind] = Path(given).expanduser() if given else base.expanduser() / kind
        return cls(**roots)

    def find(self, name: str, kind: str) -> Path:
        """The folder of a dataset in the root folder ``kind`` (raw, preprocessed or results).

        ``name`` is an id, a name or a full name (``17``, ``BTCV``, ``Dataset017_BTCV``), or a path.

        Raises:
            UserError: no folder or several folders match; the message lists the existing folders.
        """
        if kind == "raw" and Path(name, "dataset.json").is_file():
            return Path(name).resolve()
        if kind == "raw" and os.sep in name and Path(name).is_dir():
            content = ", ".join(sorted(p.name for p in Path(name).iterdir())) or "nothing"
            raise UserError(f"{name}: has no dataset.json (found: {content}); write one, see the README")
        root: Path = getattr(self, kind)
        wanted = Path(name).name if os.sep in name else name
        folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        found = [p for p in folders if _fits(p.name, wanted)]
        if len(found) == 1:
            return found[0]
        existing = ", ".join(p.name for p in folders if not p.name.startswith(".")) or "nothing"
        if found:
            both = ", ".join(p.name for p in found)
            raise UserError(f"dataset {name!r} matches several folders in {root}: {both}; give the full name")
        fix = "give a path, --workspace, or set MRE_RAW" if kind == "raw" else "run mre_plan_and_preprocess first"
        raise UserError(f"dataset {name!r} is not in {root} (found: {existing}); {fix}")


def _fits(folder: str, wanted: str) -> bool:
    if folder == wanted:
        return True
    match = _FULL_NAME.match(folder)
    if not match:
        return False
    number, short = match.groups()
    return short == wanted or (wanted.isdigit() and int(number) == int(wanted))
