"""Windows' rules for open files, emulated on Linux: nothing that this process has open can be renamed or deleted, only
files that are open for writing can be flushed to the disk, and links need rights that a user does not have."""

import errno
import os
from pathlib import Path

import pytest


def open_paths():
    """Files that this process has open or mapped into memory."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # the one that lists the folder
            continue
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        found.add(line.split(None, 5)[5] if len(line.split(None, 5)) == 6 else "")
    return found


def refuse(*paths):
    """Raise what Windows raises where one of the files, or a file in one of the folders, is open."""
    present = open_paths()
    for path in paths:
        real = os.path.realpath(path)
        inside = [name for name in present if name == real or name.startswith(real + os.sep)]
        if inside:
            raise PermissionError(errno.EACCES, "the file is in use (emulated)", str(path))


def emulate(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Apply the rules to everything below ``root``."""
    fcntl = pytest.importorskip("fcntl")
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("which files are open is seen on Linux only")

    def below(*paths):
        return [p for p in paths if isinstance(p, str | os.PathLike) and Path(os.path.realpath(p)).is_relative_to(root)]

    def guarded(function):
        def call(*arguments, **more):
            refuse(*below(*arguments[:2]))
            return function(*arguments, **more)

        return call

    for name in ("replace", "rename", "unlink", "remove"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))
    fsync = os.fsync

    def flush(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "the file is open for reading only (emulated)")
        fsync(descriptor)

    def denied(*_, **__):
        raise OSError(errno.EPERM, "a required privilege is not held (emulated)")

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "symlink", denied)
