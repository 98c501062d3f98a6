"""run.json in a fold's folder: with what software, device, seed and options each run trained or scored it, and when."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mre_lowshot import devices
from mre_lowshot.errors import UserError, describe_failure
from mre_lowshot.files import read_json, write_json
from mre_lowshot.inference.checkpoint import versions
from mre_lowshot.signed import set_aside

NAME = "run.json"
FORMAT, VERSION = "mre_lowshot training", 1


@contextmanager
def recorded(folder: Path, device: torch.device, entry: Mapping[str, Any], *, writes: bool) -> Iterator[dict[str, Any]]:
    """Add a run to run.json when the block begins, and how it ended afterwards.

    Neither the machine nor its folders are named.

    Args:
        folder: of the fold.
        device: that is trained on.
        entry: what else holds for the run: options, seed.
        writes: false in all processes of a training but the first.

    Yields:
        The run's entry, which the block may add to.
    """
    run: dict[str, Any] = {
        "started": _now(),
        "ended": None,
        "status": "running",
        "versions": versions(),
        "device": str(device),
        "device_name": devices.name_of(device),
        **entry,
    }
    earlier = _earlier(folder / NAME, writes=writes)

    def write(status: str, reason: str | None = None) -> None:
        run.update(status=status, ended=_now() if status != "running" else None)
        if reason:
            run["reason"] = reason.replace(str(folder), folder.name)
        if writes:
            write_json(folder / NAME, {"format": FORMAT, "format_version": VERSION, "runs": [*earlier, run]})

    write("running")
    try:
        yield run
    except BaseException as problem:
        interrupted = isinstance(problem, KeyboardInterrupt)
        write("interrupted" if interrupted else "failed", None if interrupted else describe_failure(problem))
        raise
    write("complete")


def _earlier(path: Path, *, writes: bool) -> list[Any]:
    """The runs that are recorded already. Another file of that name is set aside."""
    if not path.exists():
        return []
    try:
        content = read_json(path, "record of the training")
        if isinstance(content, dict) and content.get("format") == FORMAT and isinstance(content.get("runs"), list):
            return [_ended(run) for run in content["runs"]]
    except UserError:
        pass
    if writes:
        set_aside([path])
    return []


def _ended(run: Any) -> Any:
    """A run that did not record its end was killed: the fold is locked, so that no other one runs."""
    return {**run, "status": "killed"} if isinstance(run, dict) and run.get("status") == "running" else run


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
