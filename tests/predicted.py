"""Folders that scans were predicted into: how tests make, read and change them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from conftest import Space, one_thread

FIRST, SECOND = "phantom_001", "phantom_002"


def predict_into(folder: Path, trained: Space, *options: object, cases: Sequence[str] = (FIRST, SECOND)) -> Path:
    """``folder`` with the scans of ``cases`` in in/, predicted into out/."""
    (folder / "in").mkdir()
    for name in cases:
        shutil.copyfile(trained.raw / f"imagesTr/{name}_0000.nii.gz", folder / f"in/{name}_0000.nii.gz")
    with one_thread():
        assert trained.predict(folder / "in", folder / "out", *options) == 0
    return folder


def record(out: Path) -> dict:
    """The content of run.json."""
    return json.loads((out / "run.json").read_text())


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, by its path in the folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def correct(path: Path) -> bytes:
    """Change a label map as a person would; returns its bytes."""
    image = nibabel.load(path)
    array = np.asarray(image.dataobj).copy()
    array[:3, :3, :3] = 1
    nibabel.save(nibabel.Nifti1Image(array, image.affine, image.header), path)
    return path.read_bytes()
