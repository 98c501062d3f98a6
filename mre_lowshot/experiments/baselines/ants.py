"""ANTs (Avants et al. 2011), the paper's classical baseline: SyN registration, and the labels propagated by it.

antspyx is large, has its own ITK and needs older versions of numpy and scipy than the tested ones, so it runs in a
process of its own, best in an environment of its own:

    python3 -m venv ants-env
    ants-env/bin/pip install antspyx==0.6.3
    MRE_ANTS_PYTHON=ants-env/bin/python mre_experiment ...

Without ``MRE_ANTS_PYTHON`` this environment's antspyx is used (extra ``ants``).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mre_lowshot.atlas.label_fusion import class_shares
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines.ants_process import AntsProcess
from mre_lowshot.experiments.baselines.base import Baseline, BaselineFold, Segmenter
from mre_lowshot.experiments.baselines.requirements import require_package
from mre_lowshot.grid import IGNORE
from mre_lowshot.preprocessing.store import PreparedCase

VARIABLE = "MRE_ANTS_PYTHON"
TIE = 0.01  # by how much the first scan's vote counts more, so that a tie is decided by the order of the scans


def find_ants() -> AntsProcess:
    """The environment with antspyx: that of ``MRE_ANTS_PYTHON``, or this one.

    Raises:
        UserError: the variable names no file, or antspyx is not installed here.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        require_package("ants", "ants")
        return AntsProcess(Path(sys.executable), "Python")
    if not Path(given).is_file():
        raise UserError(f"{VARIABLE} {given}: is not a file; give the environment's bin/python")
    return AntsProcess(Path(given).absolute(), VARIABLE)


def fit(fold: BaselineFold) -> Segmenter:
    """Write the training scans as files for ANTs; nothing is trained. Only the first channel is registered.

    Raises:
        UserError: antspyx is missing.
    """
    ants = replace(find_ants(), ask=fold.ask)
    fold.log(", ".join(f"{name} {value}" for name, value in ants.settings().items()))
    for case in fold.train:
        label = case.needed_label()
        write(fold.folder / f"{case.name}_image.nii.gz", positive(case), case)
        write(fold.folder / f"{case.name}_label.nii.gz", np.where(label == IGNORE, fold.classes, label), case)

    def segment(case: PreparedCase) -> np.ndarray:
        maps = []
        with tempfile.TemporaryDirectory() as temporary:
            fixed = Path(temporary, "scan.nii.gz")
            grid = write(fixed, positive(case), case)
            for train in fold.train:
                files = (fold.folder / f"{train.name}_{part}.nii.gz" for part in ("image", "label"))
                try:
                    warped = ants.warp(fixed, grid, *files, pair=f"{case.name} from {train.name}")
                except UserError as problem:  # the scan counts as failed, and its fold as done
                    raise UserError(f"{problem} (first delete the fold's validation/summary.json)") from None
                if warped.failed:
                    fold.log(f"{case.name}: registration failed from {train.name}: {warped.failed}; its label map "
                             "counts as empty")  # fmt: skip
                maps.append(warped.labels)
        return vote(maps, fold.classes)

    return segment


def positive(case: PreparedCase) -> np.ndarray:
    """The first channel (D, H, W) from 0 up: ANTs begins at the centres of gravity, which negative values move away."""
    channel = case.image[0]
    found: np.ndarray = channel - channel.min()
    return found


def write(path: Path, array: np.ndarray, case: PreparedCase) -> Geometry:
    """Write an array (D, H, W) on the grid of a prepared case; that grid, with its first voxel at the origin."""
    geometry = Geometry(tuple(array.shape), case.transform.spacing)
    write_volume(path, array, geometry)
    return geometry


def vote(maps: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Class probabilities (K, D, H, W), float32, of label maps (D, H, W): the share of the maps with each class.

    The class of the largest probability is that of `ants_process.majority_vote`: in a tie that of the earliest map. A
    value K is a voxel that is not annotated, of which every class has 1/K.
    """
    weights = 1 + TIE * 0.5 ** np.arange(len(maps))
    total = np.zeros((classes, *maps[0].shape), np.float32)
    for weight, labels in zip(weights / weights.sum(), maps, strict=True):
        total += np.float32(weight) * class_shares(np.where(labels == classes, IGNORE, labels), classes)
    return total


ANTS = Baseline(
    name="ants",
    title="ANTs SyN: propagated labels, no network",
    source="Avants et al. 2011 (paper, reference 15, Tables VII and VIII)",
    fit=fit,
    recipe="default",
    axes=(3,),
    check=find_ants,
    random=False,
)
