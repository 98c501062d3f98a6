"""Shared by the comparisons with other programs: each runs as its own process, in its own Python environment."""

from __future__ import annotations

from pathlib import Path

from mre_lowshot.errors import UserError


def environment_python(path: Path, option: str) -> Path:
    """The Python executable given with ``option``, as an absolute path. Links are kept: their targets lie outside the
    environment.

    Raises:
        UserError: it is not a file.
    """
    if not path.is_file():
        raise UserError(f"{option} {path}: is not a file; give the environment's bin/python")
    return path.absolute()
