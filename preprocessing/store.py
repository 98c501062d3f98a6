"""A preprocessed case as one uncompressed .npz file: image, label, the transform to the scan's grid, and what it was
made from."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.config import Plan
from mre_lowshot.errors import UserError
from mre_lowshot.files import atomic_write, verify_zip
from mre_lowshot.preprocessing.pipeline import GridTransform
from mre_lowshot.preprocessing.record import fix_of, settings_hash

KINDS = {"image": np.dtype(np.float32), "label": np.dtype(np.int16), "about": np.dtype(np.uint8)}
_BLOCK = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class PreparedCase:
    """A preprocessed scan.

    Attributes:
        name: of the case.
        image: (C, *size) float32.
        label: (*size) int16, `grid.IGNORE` where not annotated; None where there is no label map.
        transform: from the scan's own grid.
        geometry: of the scan's file, as `Geometry.to_json` returns it.
        warnings: differences between the scan and the training scans, one sentence each (at prediction; not stored).
        settings: hash of the plan's fields that it depends on (`record.settings_hash`); empty where not stored.
        source: hash of the content of the files that it was made from; empty where not stored.
    """

    name: str
    image: np.ndarray
    label: np.ndarray | None
    transform: GridTransform
    geometry: dict[str, Any]
    warnings: tuple[str, ...] = ()
    settings: str = ""
    source: str = ""

    def needed_label(self) -> np.ndarray:
        """The label map of a case that is trained on or scored.

        Raises:
            UserError: there is none.
        """
        if self.label is None:
            raise UserError(
                f"case {self.name}: was preprocessed without a label map, so it cannot be trained on or scored; "
                "run mre_plan_and_preprocess again"
            )
        return self.label


def save_case(folder: Path, case: PreparedCase) -> Path:
    """Write ``<name>.npz`` (no pickle inside)."""
    path = folder / f"{case.name}.npz"
    about = {
        "transform": case.transform.to_json(),
        "geometry": case.geometry,
        "settings": case.settings,
        "source": case.source,
        "labelled": case.label is not None,  # a zip file's directory may lose an entry without a trace
    }
    image = np.ascontiguousarray(case.image, dtype=np.float32)
    arrays = {"image": image, "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)}
    if case.label is not None:
        arrays["label"] = np.ascontiguousarray(case.label, dtype=np.int16)
    with atomic_write(path, check=verify_zip) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
    return path


def load_case(folder: Path, name: str, plan: Plan | None = None) -> PreparedCase:
    """Read a case written by `save_case`, and compare it with ``plan``.

    Raises:
        UserError: the file is missing or damaged, or was made with other settings, channels or labels than the plan's.
    """
    path = folder / f"{name}.npz"
    fix = fix_of(plan) if plan else "run mre_plan_and_preprocess again"
    try:
        arrays = _read(path)
        about = json.loads(arrays["about"].tobytes())
        case = PreparedCase(
            name,
            arrays["image"],
            arrays.get("label"),
            GridTransform.from_json(about["transform"]),
            about["geometry"],
            settings=str(about.get("settings", "")),  # an earlier version stored neither
            source=str(about.get("source", "")),
        )
        if about.get("labelled", case.label is not None) != (case.label is not None):
            raise ValueError("the label map is missing")
        _check(case)
    except FileNotFoundError:
        raise UserError(f"case {name}: {path} is missing; {fix}") from None
    except PermissionError as problem:
        raise UserError(f"case {name}: {path} cannot be read ({problem.strerror}); make it readable") from None
    except MemoryError:
        raise
    except Exception as problem:  # the zip format raises many kinds for damage
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise UserError(f"case {name}: {path} is damaged ({reason}); {fix}") from None
    if plan is not None:
        _check_plan(case, plan, path, fix)
    return case


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a case. Nothing is allocated before the sizes claimed were compared with those of the file; every
    member is read to its end, where its checksum is compared."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name not in KINDS or member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"unexpected member {member.filename!r}")
            if member.file_size != member.compress_size or member.file_size > path.stat().st_size:
                raise ValueError(f"{name}: {member.file_size} bytes claimed")
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                if version != (1, 0):
                    raise ValueError(f"{name}: version {version} of the array format")
                shape, by_column, kind = np.lib.format.read_array_header_1_0(stream)
                if kind != KINDS[name] or (by_column and len(shape) > 1):
                    raise ValueError(f"{name}: type {kind}")
                count = math.prod(shape)
                if min(shape, default=1) < 1 or count * kind.itemsize != member.file_size - stream.tell():
                    raise ValueError(f"{name}: shape {shape} does not fit the file")
                array = np.empty(shape, kind)
                target = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
                while len(target):
                    block = stream.read(min(len(target), _BLOCK))
                    if not block:
                        raise EOFError(f"{name} is cut off")
                    target[: len(block)] = block
                    target = target[len(block) :]
                found[name] = array
    return found


def _check(case: PreparedCase) -> None:
    """Raise a ValueError where the parts of a stored case contradict each other."""
    transform, size = case.transform, case.image.shape[1:]
    if case.image.ndim != 4 or size != transform.size:
        raise ValueError(f"image of size {case.image.shape}, transform to {transform.size}")
    if case.label is not None and case.label.shape != size:
        raise ValueError(f"image of size {size}, label map of {case.label.shape}")
    shape, box = transform.native_shape, transform.box
    if not len(shape) == len(box) == 3 or not all(0 <= a < b <= n for (a, b), n in zip(box, shape, strict=True)):
        raise ValueError(f"box {box} in a scan of {shape} voxels")
    if len(transform.native_spacing) != 3 or not all(0 < s < math.inf for s in transform.native_spacing):
        raise ValueError(f"spacing {transform.native_spacing}")


def _check_plan(case: PreparedCase, plan: Plan, path: Path, fix: str) -> None:
    """Refuse a case that was not made for ``plan``."""
    if case.settings != settings_hash(plan):
        raise UserError(f"case {case.name}: {path} was preprocessed with other settings than the plan's; {fix}")
    if len(case.image) != len(plan.channel_names):
        raise UserError(
            f"case {case.name}: {path} has {len(case.image)} channels, the plan {len(plan.channel_names)} "
            f"({', '.join(plan.channel_names)}); {fix}"
        )
    if case.label is not None:
        low, high, classes = int(case.label.min()), int(case.label.max()), len(plan.labels)
        if low < -1 or high >= classes:
            raise UserError(f"case {case.name}: {path} has labels {low} to {high}, the plan 0 to {classes - 1}; {fix}")
