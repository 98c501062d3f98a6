"""A preprocessed case as one uncompressed .npz file: image, label, and the transform to the scan's grid."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mre_lowshot.errors import UserError
from mre_lowshot.files import atomic_write
from mre_lowshot.preprocessing.pipeline import GridTransform


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
    """

    name: str
    image: np.ndarray
    label: np.ndarray | None
    transform: GridTransform
    geometry: dict[str, Any]
    warnings: tuple[str, ...] = ()

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
    about = {"transform": case.transform.to_json(), "geometry": case.geometry}
    arrays = {"image": case.image, "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)}
    if case.label is not None:
        arrays["label"] = case.label.astype(np.int16)
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
    return path


def load_case(folder: Path, name: str) -> PreparedCase:
    """Read a case written by `save_case`.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            label = arrays.get("label")
            return PreparedCase(
                name, arrays["image"], label, GridTransform.from_json(about["transform"]), about["geometry"]
            )
    except FileNotFoundError:
        raise UserError(f"case {name}: {path} is missing; run mre_plan_and_preprocess again") from None
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as problem:
        raise UserError(f"case {name}: {path} is damaged ({problem}); run mre_plan_and_preprocess again") from None
