"""Atomic writing of files, removal of what killed runs left, and indented JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mre_lowshot import processes
from mre_lowshot.errors import UserError
from mre_lowshot.limits import gigabytes

_PARTIAL = re.compile(r"\.mre-partial\.([0-9a-f]{8})\.(\d+)\.[0-9a-f]{8}(\..*)?$")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, with the same ending.

    The temporary file replaces ``path`` once it is on the disk and ``check`` accepts it; it is deleted on error. Its
    name does not depend on that of ``path``, so a name as long as the file system allows can be written.

    Args:
        path: of the file.
        check: reads the temporary file again, and raises an OSError or UserError if it is not what was written. For
            writers that do not report a full disk.

    Raises:
        UserError: it cannot be written (disk full, permission); names the file, and the space that is left.
    """
    temporary = path.parent / partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        os.replace(temporary, path)
    except OSError as problem:
        raise UserError(not_written(path, problem)) from None
    finally:
        temporary.unlink(missing_ok=True)


def partial_name(path: Path) -> str:
    """A new name for a temporary file or folder that becomes ``path``; `remove_leftovers` recognises it."""
    ending = "".join(path.suffixes[-2:]) if path.name.lower().endswith(".gz") else path.suffix
    ending = ending if len(ending) < 16 else ""
    return f".mre-partial.{processes.host_tag()}.{os.getpid()}.{uuid.uuid4().hex[:8]}{ending}"


def not_written(path: Path, problem: OSError) -> str:
    """The message for a file that could not be written."""
    reason = problem.strerror or str(problem) or type(problem).__name__
    fix = "give a folder that can be written to"
    if problem.errno in _FULL:
        with suppress(OSError):
            reason += f", {gigabytes(shutil.disk_usage(path.parent).free)} free"
        fix = "make space or give a folder on another disk; an earlier file of this name is unchanged"
    elif problem.errno == errno.ENAMETOOLONG:
        fix = "shorten the name of the case or the folder"
    return f"{path}: cannot be written ({reason}); {fix}"


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files and folders in ``folder`` whose process was killed; returns how many. Those of running
    processes and of other machines stay."""
    count = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _PARTIAL.match(path.name)
        if not match or match[1] != processes.host_tag():
            continue
        try:
            if processes.is_running(int(match[2]), not_after=path.lstat().st_mtime):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError:
            continue  # another run removes it as well, or it may not be removed
        count += 1
    return count


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    found = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := file.read(1 << 20):
        found.update(block)
    return found.hexdigest()


def printable(name: str) -> str:
    """A file name as text that can be written: bytes that are no UTF-8 (lone surrogates in Python) are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) atomically; what is no UTF-8 is escaped (`printable`)."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinities become ``null``."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def json_line(value: Any) -> str:
    """``value`` as JSON on one line; NaN and infinities become ``null``."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; ``what`` describes it in messages, for example "dataset.json of Dataset017_BTCV".

    Raises:
        UserError: the file is missing or is not valid JSON; the message gives line and column.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what}: {path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise UserError(f"{what}: {path} is not valid JSON ({problem}); correct or restore it") from None
