"""The same voxels give the same result at every voxel size: registration, bias field, comparing grids, evaluation."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from conftest import command
from references import tiny_plan

from mre_lowshot.atlas.alignment import align
from mre_lowshot.atlas.atlas import Atlas
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.synthetic import make_subject
from mre_lowshot.preprocessing.bias_field import correct_bias_field

SCALES = (0.05, 0.01, 0.002, 100.0)


@pytest.mark.parametrize("kind", ["affine", "deformable"])
def test_registration_is_the_same_at_every_voxel_size(kind):
    spacing = (12.0, 12.0, 13.1)
    (scan, _), (atlas, label) = (make_subject(seed, (14, 24, 28), spacing) for seed in (0, 1))
    found = []
    for scale in (1.0, *(SCALES[::3] if kind == "affine" else SCALES[1:2])):
        own = tuple(scale * s for s in spacing)
        atlases = (Atlas(atlas[None], label.astype(np.int16), own),)
        found.append(align(atlases, scan[None], own, plan=tiny_plan(registration=kind)))
    for other in found[1:]:
        assert np.abs(other - found[0]).max() * 14 < 0.01  # voxels
    assert np.abs(found[0]).max() > 0.9


@pytest.mark.slow
def test_a_bias_field_is_the_same_at_every_voxel_size():
    z, _, x = np.mgrid[:12, :40, :40]
    channel = (200 + np.random.default_rng(0).normal(0, 9, z.shape)) * np.exp(0.3 * np.sin(x / 20))
    inside = np.ones(channel.shape, bool)
    wanted = correct_bias_field(channel.astype(np.float32), inside, (2.0, 1.0, 1.0))
    for scale in SCALES:
        found = correct_bias_field(channel.astype(np.float32), inside, (2.0 * scale, scale, scale))
        assert np.allclose(found, wanted, rtol=1e-5)


def turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("scale", [1.0, *SCALES])
def test_grids_are_compared_in_voxels(scale):
    one = Geometry((30, 512, 512), (3 * scale, scale, scale), (-50 * scale, 20 * scale, 7 * scale))
    same = {
        "digits of a float32": replace(one, origin=tuple(float(np.float32(v)) for v in one.origin)),
        "rounded spacing": replace(one, spacing=(3.0003 * scale, 1.0002 * scale, 1.0002 * scale)),
        "rounded origin": replace(one, origin=(-50.01 * scale, 20 * scale, 7 * scale)),
        "rounded direction": replace(one, direction=turned(0.01)),
    }
    other = {
        "spacing": replace(one, spacing=(3 * scale, 1.45 * scale, scale)),
        "spacing, slightly": replace(one, spacing=(3 * scale, 1.002 * scale, scale)),
        "origin": replace(one, origin=(-49.9 * scale, 20 * scale, 7 * scale)),
        "direction": replace(one, direction=turned(0.1)),
        "mirrored": replace(one, direction=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)),
    }
    assert {name: one.differences(grid) for name, grid in same.items()} == {name: [] for name in same}
    assert {name: bool(one.differences(grid)) for name, grid in other.items()} == dict.fromkeys(other, True)


def test_a_far_origin_is_not_known_better_than_float32():
    one = Geometry((30, 100, 100), (0.05, 0.05, 0.05), (-500.0, 300.0, 1200.0))
    assert one.differences(replace(one, origin=(-500.00003, 300.00002, 1200.0001))) == []
    assert one.differences(replace(one, origin=(-500.02, 300.0, 1200.0))) != []


@pytest.mark.usefixtures("no_settings")
def test_evaluation_refuses_another_voxel_size_however_small(tmp_path, capsys):
    for folder, size in (("reference", 0.002), ("prediction", 0.0029)):
        (tmp_path / folder).mkdir()
        array = np.ones((6, 6, 6), np.uint8)
        nib.save(nib.Nifti1Image(array, np.diag([size, size, size, 1])), tmp_path / folder / "a.nii.gz")
    assert command("evaluate", tmp_path / "reference", tmp_path / "prediction") != 0
    assert "spacing (0.002, 0.002, 0.002) against (0.0029, 0.0029, 0.0029)" in "".join(capsys.readouterr())
