"""Atomic writing of files, removal of what killed runs left, and indented JSON."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mre_lowshot import processes
from mre_lowshot.errors import UserError
from mre_lowshot.limits import bytes_text
from mre_lowshot.plain import parse_json

_PARTIAL = re.compile(r"\.mre-partial\.([0-9a-f]{8})\.(\d+)\.[0-9a-f]{8}(\..*)?$")
MAX_JSON = 32 << 20  # bytes of a JSON file
_WINDOWS = os.name == "nt"
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds between attempts to replace a file that another program has open
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
        replace(temporary, path)
    except OSError as problem:
        raise UserError(not_written(path, problem)) from None
    finally:
        temporary.unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target``, in place of a file of that name.

    Windows refuses this while another program (a virus scanner, a viewer) has one of the files open; there it is tried
    again for a moment.

    Raises:
        OSError: it cannot be done.
    """
    for pause in (*PAUSES, None):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if pause is None or not _WINDOWS:
                raise
            time.sleep(pause)


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
            reason += f", {bytes_text(shutil.disk_usage(path.parent).free)} free"
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


def copy(source: Path, target: Path) -> None:
    """Copy a file, atomically.

    Raises:
        UserError: ``source`` cannot be read or ``target`` cannot be written.
    """
    try:
        with source.open("rb") as content, atomic_write(target) as temporary, temporary.open("wb") as out:
            shutil.copyfileobj(content, out, 1 << 20)
    except OSError as problem:
        raise UserError(f"{source}: cannot be read ({problem.strerror}); make it readable, or restore it") from None


def remove_folder(path: Path) -> None:
    """Delete a folder so that no half of it is ever taken for whole: it first gets a temporary name, which
    `remove_leftovers` recognises.

    Raises:
        UserError: it cannot be moved or deleted.
    """
    if not path.exists():
        return
    temporary = path.parent / partial_name(path)
    try:
        os.rename(path, temporary)
        shutil.rmtree(temporary)
    except OSError as problem:
        raise UserError(f"{path}: cannot be deleted ({problem.strerror}); delete it and try again") from None


def verify_zip(path: Path) -> None:
    """Read a zip file (.npz, .pth) to its end and compare all checksums.

    Raises:
        OSError: it is not what was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, ValueError) as problem:
        raise OSError(errno.EIO, f"read back, it is damaged: {problem}") from None
    if bad is not None:
        raise OSError(errno.EIO, f"read back, {bad} in it has another checksum")


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
    """Write ``text`` (UTF-8) atomically; what is no UTF-8 is escaped (`printable`). The bytes are the same on every
    system: line ends are not converted."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinities become ``null``."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def read_cases(path: Path, file_format: str, version: int) -> dict[str, Any] | None:
    """The content of a JSON file of one of our formats with entries for cases; None where the file is missing or
    something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("format") != file_format:
        return None
    cases = content.get("cases")
    fits = isinstance(cases, dict) and all(isinstance(entry, dict) for entry in cases.values())
    return content if fits and content.get("format_version") == version else None


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
    """Read a JSON file (UTF-8), strictly (`plain.parse_json`); ``what`` describes it in messages, for example
    "dataset.json of Dataset017_BTCV".

    Raises:
        UserError: the file is missing, cannot be read, is larger than `MAX_JSON`, or is not valid JSON; the message
            gives line and column.
    """
    where = f"{what}: {path}"
    try:
        if not path.exists():
            raise UserError(f"{where} is missing")
        if not path.is_file():  # a folder; or a pipe or device, which might never end
            raise UserError(f"{where} is not a file; give a JSON file")
        with path.open("rb") as file:
            content = file.read(MAX_JSON + 1)
    except (OSError, ValueError) as problem:  # ValueError: a path with a NUL character
        reason = getattr(problem, "strerror", None) or str(problem)
        raise UserError(f"{where} cannot be read ({reason}); check the path and its permissions") from None
    if len(content) > MAX_JSON:
        raise UserError(f"{where} is larger than {MAX_JSON >> 20} MB; no such file is written here, restore it")
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in content[:64]:
        raise UserError(f"{where} is not valid JSON (UTF-16 or binary); save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")  # some editors write a byte-order mark
    except UnicodeDecodeError as problem:
        raise UserError(f"{where} is not valid JSON ({problem}); save it as UTF-8") from None
    return parse_json(text, where)
