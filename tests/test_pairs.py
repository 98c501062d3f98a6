"""Pairs of image and label map that do not fit, and scans whose label map could not be written."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.verification import verify

SHAPE = (6, 9, 8)


def image(seed=0, shape=SHAPE):
    made = sitk.GetImageFromArray(np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32))
    made.SetSpacing([0.8, 0.9, 2.5][: len(shape)])
    if len(shape) == 3:
        made.SetOrigin([-30.0, 20.0, 7.0])
    return made


def label(like):
    array = np.zeros(like.GetSize()[::-1], np.uint8)
    array[..., 2:5, 3:6] = 1
    made = sitk.GetImageFromArray(array)
    made.CopyInformation(like)
    return made


@pytest.fixture
def raw(tmp_path):
    def make(pairs, ending=".nii.gz"):
        folder = tmp_path / "Dataset001_X"
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for name, (scan, marked) in pairs.items():
            sitk.WriteImage(scan, str(folder / f"imagesTr/{name}_0000{ending}"))
            sitk.WriteImage(marked, str(folder / f"labelsTr/{name}{ending}"))
        about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "x": 1}, "numTraining": len(pairs)}
        (folder / "dataset.json").write_text(json.dumps({**about, "file_ending": ending}))
        return folder

    return make


def without_header(marked):
    return sitk.GetImageFromArray(sitk.GetArrayFromImage(marked))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    "direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0, 0, 0, 1), (0, 0, 1, 1, 0, 0, 0, -1, 0)]
)
def test_a_label_map_that_lost_its_header_gets_the_images_header_and_is_not_resampled(
    ending, direction, raw, monkeypatch
):
    scan = image()
    scan.SetDirection([float(v) for v in direction])
    folder = raw({"a": (scan, without_header(label(scan)))}, ending)
    [problem] = verify(Dataset.load(folder))
    assert "the label map has lost its header (spacing 1, no position), so do not resample it" in problem
    command = problem.split('python -c "')[1].split('"')[0]
    monkeypatch.chdir(folder)
    exec(command, {})  # the advice works as it is printed
    assert verify(Dataset.load(folder)) == []
    assert np.array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"labelsTr/a{ending}"))), sitk.GetArrayFromImage(label(scan))
    )


def test_a_label_map_with_another_header_gets_both_fixes_and_one_of_another_size_is_resampled(raw):
    scan = image()
    moved, other = label(scan), label(image(shape=(6, 9, 7)))
    moved.SetOrigin([30.0, 20.0, 7.0])
    folder = raw({"a": (scan, moved), "b": (scan, other)})
    first, second = verify(Dataset.load(folder))
    assert "resample the label map onto the image (nearest neighbour)" in first
    assert "or, if it was drawn on this image's voxels, copy the image's header" in first
    assert second.endswith("resample the label map onto the image (nearest neighbour), or export the pair again")


def test_an_image_in_the_place_of_the_label_map_is_reported_in_one_line(raw):
    scan = image()
    whole = sitk.Cast(scan, sitk.sitkInt16)
    twice = sitk.GetImageFromArray((sitk.GetArrayFromImage(scan) > 100).astype(np.uint8))
    twice.CopyInformation(scan)
    folder = raw({"a": (whole, whole), "b": (twice, twice)})
    problems = verify(Dataset.load(folder))
    assert len(problems) == 3
    assert "values from" in problems[0]
    assert "is it an image? Save the annotation in its place" in problems[0]
    assert all("is identical with the image" in problem for problem in problems[1:])


def test_slices_among_volumes_are_reported(raw):
    scan, flat = image(), image(shape=(1, 9, 8))
    folder = raw({"a": (scan, label(scan)), "b": (flat, label(flat))})
    [problem] = verify(Dataset.load(folder))
    assert problem.startswith("Dataset001_X: single slices (b) beside volumes (a); a model takes one or the other")


def test_a_tiff_volume_is_refused_before_training(raw):
    stack = sitk.Cast(image(), sitk.sitkUInt8)
    stack.SetOrigin([0.0, 0.0, 0.0])
    folder = raw({"a": (stack, label(stack))}, ".tif")
    problems = verify(Dataset.load(folder))
    assert any("a volume of 6 slices; label maps of volumes cannot be written to .tif: convert" in p for p in problems)


def test_a_label_map_in_another_unicode_form_is_named_with_the_fix(trained, tmp_path):
    raw = tmp_path / "Dataset900_Synthetic"
    shutil.copytree(trained.raw, raw)
    (raw / "imagesTr/phantom_002_0000.nii.gz").rename(raw / "imagesTr/ph\u00e9_0000.nii.gz")
    (raw / "labelsTr/phantom_002.nii.gz").rename(raw / "labelsTr/phe\u0301.nii.gz")
    [problem] = Dataset.load(raw).problems
    assert problem.endswith(
        "has another Unicode form ('ph\\xe9', the label map's 'phe\\u0301'); give both the same name"
    )


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_broken_link_to_label_maps_of_test_scans_is_named_without_test_scans(trained, tmp_path, kind):
    raw = tmp_path / "Dataset900_Synthetic"
    shutil.copytree(trained.raw, raw)
    if kind == "file":
        (raw / "labelsTs").mkdir()
    (raw / ("labelsTs/a.nii.gz" if kind == "file" else "labelsTs")).symlink_to(tmp_path / "gone")
    [problem] = Dataset.load(raw).problems
    assert "symbolic link" in problem


@pytest.mark.parametrize("lost", ["image", "label map"])
def test_a_header_without_a_position_is_the_reason_given(trained, tmp_path, lost):
    """The file with both codes 0 gets the header of the other; nothing is resampled."""
    raw = tmp_path / "Dataset900_Synthetic"
    shutil.copytree(trained.raw, raw)
    names = ["imagesTr/phantom_002_0000.nii.gz", "labelsTr/phantom_002.nii.gz"]
    target, source = names if lost == "image" else names[::-1]
    image = nib.load(raw / target)
    image.header["qform_code"] = image.header["sform_code"] = 0
    nib.Nifti1Image(np.asarray(image.dataobj), None, image.header).to_filename(raw / target)
    [problem] = verify(Dataset.load(raw))
    assert f"({lost}: orientation unknown: qform_code and sform_code are 0" in problem
    assert f"the {lost} has lost its position, so resample neither; copy the header of the other into it" in problem
    assert f"map(s.ReadImage, ('{source}', '{target}'))" in problem
    assert "nearest" not in problem
