"""What the comparisons share: a peer runs as a program of its own, with the python of an environment of its own."""

from __future__ import annotations

from pathlib import Path

from mre_lowshot.errors import UserError


def peer_python(path: Path, option: str) -> Path:
    """The python named with ``option``, absolute; links are kept, for they lead out of the environment.

    Raises:
        UserError: it is no file.
    """
    if not path.is_file():
        raise UserError(f"{option} {path}: is no file; name the environment's bin/python")
    return path.absolute()


def last_words(text: str) -> str:
    """The last line of a program's output that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
