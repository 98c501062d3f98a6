"""Locks of folders: two runs never write the same state.

A lock is a small JSON file beside what it guards, with the host, the process and the time. It has a name of its own for
each process, so that removing one never removes another's. A lock whose process no longer runs is removed by the next
run.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import re
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mre_lowshot import files, processes
from mre_lowshot.errors import UserError

PREFIX = ".mre-lock"
ATTEMPTS, PAUSE = 4, 0.2  # two runs that begin in the same instant both step back, and try again


@contextmanager
def locked(folder: Path, key: str, doing: str, *, shared: bool = False, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock of ``folder`` while the block runs.

    Args:
        folder: made if it is missing, and removed again where the block leaves it empty. It must not be deleted in
            the block.
        key: what is locked in it, for example ``fold_0``; letters, digits, ``_`` and ``-``.
        doing: what the owner does, for the message of a run that is refused: ``trains fold 0``.
        shared: several holders may read together; excludes a holder that is not ``shared``.
        wait: seconds to wait for another holder, where all hold it for moments only.

    Raises:
        UserError: another run holds it; names the host, the process and the time.
    """
    if not re.fullmatch(r"[\w-]+", key):
        raise ValueError(f"lock key {key!r}")
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # from the inside out
    try:
        own = _acquire(folder, key, doing, shared=shared, wait=wait)
    except UserError:
        _remove_empty(made)
        raise
    except OSError as problem:
        if shared and problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            own = None  # a folder that cannot be written to does not change either
        else:
            raise UserError(files.not_written(folder, problem)) from None
    try:
        yield
    finally:
        if own is not None:
            own.unlink(missing_ok=True)
            _remove_empty(made)


def holders(folder: Path, prefix: str) -> list[str]:
    """The keys of ``folder`` that begin with ``prefix`` and are locked by other processes."""
    found = []
    for path, entry in _entries(folder):
        if entry["pid"] != os.getpid() or entry["host"] != processes.host():
            found.append(path.name.removeprefix(f"{PREFIX}.").split(".")[0])
    return [key for key in found if key.startswith(prefix)]


def remove_stale(folder: Path) -> None:
    """Remove the locks of ``folder`` whose owners no longer run, whatever their keys."""
    _entries(folder)


def remove_lost(folder: Path, key: str, *, host: str, pid: int) -> None:
    """Remove the locks of ``key`` in ``folder`` that process ``pid`` of ``host`` held, which is known to be lost."""
    for path, entry in _entries(folder, key):
        if (entry["host"], entry["pid"]) == (host, pid):
            path.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, given from the inside out, until one is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _acquire(folder: Path, key: str, doing: str, *, shared: bool, wait: float) -> Path:
    begun = time.monotonic()
    for attempt in itertools.count():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            own = _write_entry(folder, key, doing, shared=shared)
        except FileNotFoundError:  # another run has just removed the empty folder
            if attempt == ATTEMPTS:
                raise
            continue
        try:
            others = [found for found in _entries(folder, key) if found[0] != own]
        except BaseException:
            own.unlink(missing_ok=True)
            raise
        rivals = [(path, entry) for path, entry in others if not (shared and entry.get("shared"))]
        if not rivals:
            return own
        own.unlink(missing_ok=True)
        established = time.time() - min(e["time"] for _, e in rivals) > ATTEMPTS * PAUSE * 2
        if (attempt + 1 >= ATTEMPTS or established) and time.monotonic() - begun >= wait:
            raise UserError(_refusal(folder, *rivals[0]))
        time.sleep(PAUSE * random.random())
    raise AssertionError


def _write_entry(folder: Path, key: str, doing: str, *, shared: bool) -> Path:
    path = folder / f"{PREFIX}.{key}.{processes.host_tag()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.json"
    entry = {
        "host": processes.host(),
        "boot": processes.boot(),
        "pid": os.getpid(),
        "started": processes.started(),
        "time": time.time(),
        "doing": doing,
        "command": Path(sys.argv[0]).name,
        "shared": shared,
    }
    partial = folder / files.partial_name(path)  # a killed run's is removed by `files.remove_leftovers`
    try:
        partial.write_text(json.dumps(entry), encoding="utf-8", newline="")
        files.replace(partial, path)  # an entry appears whole
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return path


def _entries(folder: Path, key: str | None = None) -> list[tuple[Path, dict[str, Any]]]:
    """The locks of ``key`` (None: all) whose owners run, or may run on another machine. Those of all keys whose owners
    are gone are removed."""
    found = []
    for path in sorted(folder.glob(f"{PREFIX}.*.json")):
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            here = entry["host"] == processes.host()
            running = processes.is_running(int(entry["pid"]), float(entry["started"]))
            gone = here and not (running and entry.get("boot", processes.boot()) == processes.boot())
            time.localtime(entry["time"])  # shown to the run that is refused
        except (FileNotFoundError, IsADirectoryError):
            continue  # released meanwhile; or no lock at all
        except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError) as problem:
            if isinstance(problem, PermissionError):
                raise
            gone = True  # entries appear whole, so this is none
        if gone:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        elif key is None or path.name.startswith(f"{PREFIX}.{key}."):
            found.append((path, entry))
    return found


def _refusal(folder: Path, path: Path, entry: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["time"]))
    owner = f"process {entry['pid']} on {entry['host']}, since {since}"
    fix = "wait until it has ended"
    if entry["host"] != processes.host():
        fix += f", or delete {path} if it no longer runs there"
    return f"{folder}: in use by another run, which {entry['doing']} ({owner}); {fix}"
