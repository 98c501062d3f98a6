"""Left-right symmetric heads, as volumes and as a dataset that the commands plan and train on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SETTINGS, command
from references import TINY, tiny_plan
from scipy import ndimage

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import write_volume
from mre_lowshot.files import read_json, write_json
from mre_lowshot.sampling import TrainingCase

LABELS = {"background": 0, "large": 1, "small": 2}
SIDED = {"background": 0, "left_ball": 1, "right_ball": 2}
LIKE = tiny_plan(replace(TINY, atlas_prior=True), registration="affine", mirrored_atlases=True)


def brain(seed: int, sided: bool = False, alike: bool = True) -> TrainingCase:
    """A textured head with a ball in each half, slightly different in position and size; in one half only if not
    ``alike``. One class of balls, or one a side (left is where x is high)."""
    size, rng = (24, 30, 36), np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    head = np.sqrt(z**2 + y**2 + (0.9 * x) ** 2) < 0.85
    label = head.astype(np.int16)
    for side in (-1, 1) if alike else (1,):
        middle = rng.normal((0.1, -0.1, 0.4 * side), 0.03)
        ball = np.sqrt(((np.stack([z, y, x]) - middle.reshape(3, 1, 1, 1)) ** 2).sum(0)) < 0.3 + 0.02 * rng.normal()
        label[ball] = 2
    texture = ndimage.gaussian_filter(rng.normal(size=size), 2) * 0.5
    image = ndimage.gaussian_filter(np.array([0, 1, 2.5])[label] + texture * head, 0.7).astype(np.float32)
    if sided:
        label = np.where(label == 2, np.where(x > 0, 1, 2), 0).astype(np.int16)
    return TrainingCase(image[None], label, (2.0, 2.0, 2.0))


def write_brains(raw: Path, subjects: int) -> Path:
    folder = raw / "Dataset901_Brains"
    for seed in range(subjects):
        case = brain(seed)
        geometry = Geometry(case.label.shape, case.spacing, (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
        write_volume(folder / "imagesTr" / f"brain_{seed}_0000.nii.gz", case.image[0], geometry)
        write_volume(folder / "labelsTr" / f"brain_{seed}.nii.gz", case.label.astype(np.uint8), geometry)
    write_json(folder / "dataset.json", {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": subjects,
                                         "file_ending": ".nii.gz"})  # fmt: skip
    return folder


@pytest.fixture(scope="module", name="brains")
def two_brains(tmp_path_factory) -> Path:
    """A workspace with two brains, planned and preprocessed."""
    root = tmp_path_factory.mktemp("brains")
    write_brains(root / "raw", 2)
    small = (
        *SETTINGS,
        "network.dilations=[[2,2,2]]",
    )
    assert command("plan", "-d", "901", "-p", "Tiny", "--workspace", root, "-device", "cpu", "--set", *small) == 0
    return root


def decisions(fold: Path) -> dict:
    """The fold's decisions in its ``plans.json``."""
    return read_json(fold / "plans.json", "plan")["fold"]
