"""Reports (a JSON file and text files beside it) that are replaced only while they have not been changed by others.

The JSON file holds a digest of its own content and of the text files. A file without a valid one is the user's, or
another program's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mre_lowshot import __version__
from mre_lowshot.files import json_line, printable, replace, sha256, write_json, write_text

KEY = "written_by"


def write_signed(path: Path, value: Mapping[str, Any], texts: Mapping[str, str]) -> tuple[Path, ...]:
    """Write ``value`` to ``path`` (JSON), with the key `KEY` added, and ``texts`` (file name to content) beside it;
    returns all paths.

    Raises:
        UserError: a file cannot be written.
    """
    listed = _listed(path)
    digests = {}
    for name, text in texts.items():
        new = hashlib.sha256(printable(text).encode()).hexdigest()
        present = path.parent / name
        old = sha256(present) if present.is_file() else ""
        digests[name] = [
            new,
            *([old] if old != new and old in listed.get(name, ()) else []),
        ]  # until it is replaced below
    signature: dict[str, Any] = {"software": f"mre_lowshot {__version__}", "files": digests}
    content = {**value, KEY: signature}
    signature["digest"] = _digest(content)
    write_json(path, content)
    for name, text in texts.items():
        write_text(path.parent / name, text)
    return (path, *(path.parent / name for name in texts))


def changed_files(path: Path, names: Iterable[str]) -> list[Path]:
    """Those of ``path`` and the files ``names`` beside it that exist and are not as `write_signed` wrote them."""
    listed, found = _listed(path), []
    if os.path.lexists(path) and not listed:
        found.append(path)
    for name in names:
        present = path.parent / name
        if os.path.lexists(present) and not (present.is_file() and sha256(present) in listed.get(name, ())):
            found.append(present)
    return found


def set_aside(paths: Iterable[Path]) -> list[Path]:
    """Rename files to NAME.old (NAME.old2 ...); returns the new names."""
    found = []
    for path in paths:
        number = 1
        while os.path.lexists(aside := path.with_name(f"{path.name}.old{number if number > 1 else ''}")):
            number += 1
        replace(path, aside)
        found.append(aside)
    return found


def _listed(path: Path) -> dict[str, list[str]]:
    """The digests of the text files that a valid JSON file lists; empty where it is missing, changed or another."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        signature = dict(content[KEY])
        given = signature.pop("digest")
        listed = {str(name): [str(d) for d in digests] for name, digests in dict(signature["files"]).items()}
        return listed if given == _digest({**content, KEY: signature}) else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_line(content).encode()).hexdigest()
