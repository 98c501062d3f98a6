"""A process of its own in which SimpleITK decodes files, because ITK's decoders can abort the process they run in.

It is started with the first file, serves all later ones, and is started again after a crash. A request is one line of
JSON; the answer is one line of JSON, followed by the voxels.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mre_lowshot.data.readers.content import AGAIN
from mre_lowshot.errors import UserError

_ROOT = Path(__file__).resolve().parents[3]
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """What SimpleITK found in a file; ``data`` holds the voxels where they were asked for."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    components: int
    dtype: str
    data: bytes | bytearray


class _Worker:
    """The running process, and the process that started it: a forked copy starts its own."""

    process: subprocess.Popen[bytes] | None = None
    owner = 0


def request(path: Path, action: str) -> Answer:
    """Decode a file.

    Args:
        path: of the file.
        action: ``header`` or ``read``.

    Raises:
        UserError: it cannot be decoded, or the decoder crashed.
    """
    with _LOCK:
        try:
            os.fsencode(path).decode("utf-8")
        except UnicodeDecodeError:  # SimpleITK takes names in UTF-8 only
            with tempfile.TemporaryDirectory(prefix="mre-") as folder:
                link = Path(folder, f"image{path.suffix}")
                try:
                    link.symlink_to(path.absolute())
                except OSError:  # Windows allows links to administrators only
                    shutil.copyfile(path, link)
                return _request(path, link, action)
        return _request(path, path.absolute(), action)


def _request(path: Path, opened: Path, action: str) -> Answer:
    process = _running()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps({"path": str(opened), "action": action}).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {}
        data = bytearray(int(answer.get("bytes", 0)))
        if answer and process.stdout.readinto(data) != len(data):  # type: ignore[attr-defined]
            answer = {}
    except BaseException as problem:
        _stop()
        if not isinstance(problem, (OSError, ValueError, MemoryError)):
            raise
        answer = {}
    if not answer:
        _stop()
        raise UserError(
            f"{path}: cannot be read as an image (the decoder crashed; the file is damaged, or too large for the "
            f"memory); {AGAIN}"
        )
    if "error" in answer:
        raise UserError(
            f"{path}: cannot be read as an image ({answer['error']}); export it again as .png, .tif or .nii.gz"
        )
    return Answer(tuple(answer["size"]), tuple(answer["spacing"]), answer["components"], answer["dtype"], data)


def _running() -> subprocess.Popen[bytes]:
    if _Worker.process is None or _Worker.owner != os.getpid() or _Worker.process.poll() is not None:
        command = [sys.executable, "-m", "mre_lowshot.data.readers.worker"]
        _Worker.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_ROOT,
            start_new_session=True,  # Ctrl-C is handled by the process that asks
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
        _Worker.owner = os.getpid()
    return _Worker.process


@atexit.register
def _stop() -> None:
    process, _Worker.process = _Worker.process, None
    if process is None or _Worker.owner != os.getpid():
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue
