"""2D images through the commands: PNG, TIFF, RGB and one-slice NIfTI, of several sizes."""

import json
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SETTINGS, command

from mre_lowshot.data.volume import read_labels

SIZES = ((40, 52), (52, 44), (61, 47), (48, 48))  # two to train on, one to validate on, and one to predict


def scene(number, channels=1):
    """A grey (H, W) or colour (H, W, C) image with a bright disc, and the disc."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[: SIZES[number][0], : SIZES[number][1]]
    disc = (rows - 20 - number) ** 2 + (columns - 22) ** 2 < 90
    noise = rng.normal(60, 10, (*disc.shape, channels)) + 120 * disc[..., None] / np.arange(1, channels + 1)
    image = np.clip(noise, 0, 255).astype(np.uint8)
    return (image if channels > 1 else image[..., 0]), disc


def dataset(root, ending, channels):
    raw = root / "raw/Dataset031_Images"
    for number in range(4):
        image, disc = scene(number, channels)
        part, name = ("Ts", "new") if number == 3 else ("Tr", f"case{number}")
        disc = disc.astype(np.uint8)
        if ending == ".nii.gz" and number != 3:  # volumes of one slice; the one to predict is a 2D image
            image, disc = image[None], disc[None]
        for folder, array, stem in (("images", image, f"{name}_0000"), ("labels", disc, name)):
            path = raw / f"{folder}{part}" / f"{stem}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            made = sitk.GetImageFromArray(array, isVector=folder == "images" and channels > 1)
            sitk.WriteImage(made, str(path))
    names = dict(enumerate(("R", "G", "B") if channels > 1 else ("US",)))
    described = {"channel_names": names, "labels": {"background": 0, "lesion": 1}, "numTraining": 3}
    (raw / "dataset.json").write_text(json.dumps({**described, "file_ending": ending}))
    return raw


def plan(root, *more):
    settings = [s for s in SETTINGS if "tiling" not in s and "registration" not in s]
    return command("plan", "-d", "31", "-p", "Tiny", "--workspace", root, "-device", "cpu", "--set", *settings, *more)


@pytest.mark.usefixtures("no_settings", "one_thread_only")
@pytest.mark.parametrize(("ending", "channels"), [(".png", 1), (".png", 3), (".tif", 1), (".tiff", 3), (".nii.gz", 1)])
def test_2d_images_from_plan_to_scores(tmp_path, capsys, ending, channels):
    raw = dataset(tmp_path, ending, channels)
    assert plan(tmp_path) == 0
    prepared = tmp_path / "preprocessed/Dataset031_Images"
    plans = json.loads((prepared / "Tiny.json").read_text())
    assert plans["network"]["in_channels"] == channels
    assert len(plans["patch"]["size"]) == len(plans["network"]["strides"][0]) == 2
    assert plans["recipe"]["atlas"]["registration"] == "none"
    assert plans["recipe"]["augmentation"]["mirror_axes"] == [1]
    # two images of different sizes, validated on the third
    assert command("train", "31", "67pct", "fold0", "-p", "Tiny", "--workspace", tmp_path, "-device", "cpu") == 0
    unit = "mm" if ending == ".nii.gz" else "px"
    assert f"HD95 {unit}" in capsys.readouterr().out
    results = tmp_path / "results/Dataset031_Images/MRETrainer__Tiny__67pct/fold_0"
    fold = json.loads((results / "plans.json").read_text())["fold"]
    assert (len(fold["train"]), fold["majority"]) == (2, [0])
    (tested,) = fold["test"]
    validated = read_labels(results / "validation" / f"{tested}{ending}")
    assert validated.array.shape == read_labels(raw / "labelsTr" / f"{tested}{ending}").array.shape
    out = tmp_path / "out"
    assert command("predict", "-i", raw / "imagesTs", "-o", out, "--workspace", tmp_path, "-device", "cpu") == 0
    assert command("evaluate", raw / "labelsTs", out, "--profile", "bus") == 0
    out_text = capsys.readouterr().out
    assert "ARE" in out_text
    assert f"HD95 {unit}" in out_text
    assert command("export_model", "-o", tmp_path / "model.zip", "-m", results.parent) == 0
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert f"HD95 ({unit})" in archive.read("MODEL_CARD.md").decode()
    written, wanted = (sitk.ReadImage(str(folder / f"new{ending}")) for folder in (out, raw / "labelsTs"))
    assert written.GetDimension() == wanted.GetDimension() == 2
    assert written.GetSize() == wanted.GetSize()
    one = raw / f"imagesTs/new_0000{ending}"  # a single file gives the same result
    assert command("predict", "-i", one, "-o", tmp_path / "one", "--workspace", tmp_path, "-device", "cpu") == 0
    same = read_labels(tmp_path / f"one/new{ending}").array
    np.testing.assert_array_equal(same, read_labels(out / f"new{ending}").array)
    assert same.shape == (1, *SIZES[3])


@pytest.mark.usefixtures("no_settings")
def test_a_grey_image_among_colour_ones_and_a_colour_label_map_are_refused(tmp_path, capsys):
    raw = dataset(tmp_path, ".png", 3)
    grey, _ = scene(1)
    sitk.WriteImage(sitk.GetImageFromArray(grey), str(raw / "imagesTr/case1_0000.png"))
    assert plan(tmp_path) == 2
    assert "case case1: 1 file(s) contain 1 channel(s), dataset.json names 3 (R, G, B)" in capsys.readouterr().err
    image, _ = scene(1, 3)
    sitk.WriteImage(sitk.GetImageFromArray(image, isVector=True), str(raw / "labelsTr/case1.png"))
    assert plan(tmp_path) == 2
    assert "a label map must be scalar" in capsys.readouterr().err
