"""Checkpoints: everything to continue a training, and everything to predict without the dataset.

They hold tensors and plain values only, so that they load with ``weights_only=True``: nothing is unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch

from mre_lowshot import __version__
from mre_lowshot.atlas.atlas import Atlases
from mre_lowshot.config import FORMAT_VERSION, Plan
from mre_lowshot.config.json import from_json, to_json
from mre_lowshot.config.plan import wrong_version
from mre_lowshot.errors import UserError
from mre_lowshot.files import atomic_write, json_line, verify_zip
from mre_lowshot.inference.archive import not_a_checkpoint, read_claims
from mre_lowshot.inference.checkpoint_check import check_claims, check_values
from mre_lowshot.plain import require_plain

LATEST, FINAL = "checkpoint_latest.pth", "checkpoint_final.pth"


def versions() -> dict[str, str]:
    """Versions of the software that determines the results."""
    others = {}
    for name in ("scipy", "scikit-image", "SimpleITK", "batchgenerators"):
        with suppress(metadata.PackageNotFoundError):  # everything but files works without SimpleITK
            others[name] = metadata.version(name)
    return {
        "mre_lowshot": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        **others,
    }


def save(
    path: Path,
    plan: Plan,
    *,
    weights: dict[str, torch.Tensor],
    training: dict[str, Any],
    atlases: Atlases = (),
    dataset: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint.

    Args:
        path: of the file.
        plan: the fold's; it holds the network's configuration and the labels' names.
        weights: to predict with.
        training: state to continue the training from.
        atlases: the fold's, without mirrored ones.
        dataset: content of dataset.json.

    Raises:
        UserError: it cannot be written, or what was written differs; an earlier file stays.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "plan": to_json(plan),
        "dataset": dataset,
        "weights": weights,
        "training": training,
        "versions": versions(),
        "atlases": [atlas.to_tensors() for atlas in atlases],
    }
    write_content(path, content)


def weights_digest(plan: Plan, weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a fold's weights, and of the values of its plan that are tuned after training. It identifies what was
    scored; names of cases, which a shared model does without, do not count."""
    fold = plan.fold
    found = hashlib.sha256(json_line([fold.atlas_weight, fold.crf_weight] if fold else []).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_content(path: Path, content: dict[str, Any]) -> None:
    """Write the content of a checkpoint, in the form that `load` returns with the keys ``plan`` (JSON) and
    ``format_version``. The bytes depend on the content only.

    Raises:
        UserError: it cannot be written, or what was written differs; an earlier file stays.
    """
    with atomic_write(path, check=verify_zip) as temporary:
        try:
            with temporary.open("wb") as file:  # given a path, torch stores its name
                torch.save(content, file)
        except RuntimeError as problem:  # how torch reports a file that cannot be written
            raise _as_os_error(temporary, problem) from None


def _as_os_error(path: Path, problem: RuntimeError) -> OSError:
    """The reason why ``path`` could not be written, found by writing some more."""
    try:
        with path.open("ab") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as found:
        return found
    return OSError(errno.EIO, str(problem).splitlines()[0] if str(problem) else "torch.save failed")


def load(path: Path, device: torch.device, source: BinaryIO | None = None) -> tuple[Plan, dict[str, Any]]:
    """Read a checkpoint: the fold's plan, and the content (keys ``weights``, ``training``, ``versions``,
    ``atlases``, ``dataset``).

    Args:
        path: of the file; names it in messages.
        device: that the tensors are put on.
        source: the checkpoint's bytes, where it is a part of another file.

    What the file claims is compared with the plan's network and with the bytes there before tensors are allocated.

    Raises:
        UserError: missing, damaged (one changed bit is noticed), of another format, holding more than tensors and plain
            values, tensors that do not fit the plan, or weights that are not finite.
    """
    claims = read_claims(path, source)
    found = claims.get("format_version")
    if found != FORMAT_VERSION:
        raise UserError(f"{path}: {wrong_version(found)}")
    missing = sorted({"plan", "weights", "training", "atlases"} - claims.keys())
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}: not of mre_lowshot, or damaged; train the fold again")
    require_plain(claims["plan"], f"{path}: plan")
    plan = from_json(Plan, claims["plan"], f"{path}: plan")
    check_claims(claims, plan, path)
    try:
        if source is not None:
            source.seek(0)
        content = torch.load(source or path, map_location=device, weights_only=True)
    except Exception as problem:  # torch raises many kinds for a damaged or foreign file
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise not_a_checkpoint(path, reason) from None
    check_values(content, plan, path)
    return plan, content
