"""Raw datasets with one fault each: ``BAD_DATASETS`` maps a name to (the change, pattern of the message).

Each change is made to a sound dataset of three labelled scans (tests.conftest.trained); planning must refuse it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

Change = Callable[[Path], None]
BAD_DATASETS: dict[str, tuple[Change, str]] = {}
ONE = "phantom_001"


def bad(pattern: str):
    """Register a change as a bad dataset."""

    def register(change: Change) -> Change:
        BAD_DATASETS[change.__name__] = (change, pattern)
        return change

    return register


def description(raw: Path, text: str) -> None:
    (raw / "dataset.json").write_text(text, encoding="utf-8", errors="surrogatepass")


def described(raw: Path, **changes: object) -> None:
    """dataset.json with other fields; None removes one."""
    data = json.loads((raw / "dataset.json").read_text())
    data |= changes
    description(raw, json.dumps({k: v for k, v in data.items() if v is not None}))


def scan(raw: Path) -> Path:
    return raw / f"imagesTr/{ONE}_0000.nii.gz"


def label(raw: Path) -> Path:
    return raw / f"labelsTr/{ONE}.nii.gz"


def rewritten(path: Path, change: Callable[[np.ndarray], np.ndarray], affine=None) -> None:
    """The file with other voxels (and, where given, another affine)."""
    image = nib.load(path)
    array = change(np.asarray(image.dataobj).copy())
    header = None if affine is not None or array.dtype != image.get_data_dtype() else image.header
    nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine, header), path)


@bad("has no dataset.json")
def no_dataset_json(raw):
    (raw / "dataset.json").unlink()


@bad("not valid JSON")
def dataset_json_cut_off(raw):
    description(raw, (raw / "dataset.json").read_text()[:-20])


@bad("JSON object")
def dataset_json_is_a_list(raw):
    description(raw, "[]")


@bad("nest|deep|JSON")
def dataset_json_nested_a_hundred_thousand_times(raw):
    description(raw, "[" * 100_000 + "]" * 100_000)


@bad("digits|number|numTraining|JSON")
def a_number_of_5000_digits(raw):
    text = (raw / "dataset.json").read_text()
    description(raw, text.replace('"numTraining": 3', '"numTraining": ' + "9" * 5000))


@bad("NaN|JSON")
def dataset_json_with_nan(raw):
    text = (raw / "dataset.json").read_text()
    description(raw, text.replace('"numTraining": 3', '"numTraining": NaN'))


@bad("twice|duplicate|repeated")
def a_key_that_occurs_twice(raw):
    text = (raw / "dataset.json").read_text()
    description(raw, text.replace('"numTraining": 3', '"numTraining": 3, "numTraining": 4'))


@bad("surrogate|character|UTF-8|name")
def a_lone_surrogate_in_a_label(raw):
    described(raw, labels={"background": 0, "li\ud800ver": 1})


@bad("labels.*missing")
def labels_missing(raw):
    described(raw, labels=None)


@bad("consecutive")
def labels_with_a_gap(raw):
    described(raw, labels={"background": 0, "liver": 1, "spleen": 7})


@bad("region")
def a_region_based_label(raw):
    described(raw, labels={"background": 0, "liver": [1, 2]})


@bad("background")
def no_background(raw):
    described(raw, labels={"liver": 1})


@bad("swap name and value")
def names_and_values_swapped(raw):
    described(raw, labels={"0": "background", "1": "liver"})


@bad("number the channels")
def channels_numbered_from_one(raw):
    described(raw, channel_names={"1": "CT"})


@bad("file_ending")
def an_unknown_file_ending(raw):
    described(raw, file_ending=".dcm")


@bad("numTraining")
def num_training_is_text(raw):
    described(raw, numTraining="three")


@bad("numTraining is 300")
def num_training_is_wrong(raw):
    described(raw, numTraining=300)


@bad("imagesTr.*missing")
def no_images(raw):
    shutil.rmtree(raw / "imagesTr")


@bad("no label map in labelsTr belongs to a case")
def no_labels(raw):
    shutil.rmtree(raw / "labelsTr")


@bad("link|missing")
def a_broken_link_among_the_scans(raw):
    scan(raw).unlink()
    scan(raw).symlink_to("/nowhere/scan.nii.gz")


@bad("link|missing")
def a_broken_link_among_the_labels(raw):
    label(raw).unlink()
    label(raw).symlink_to("/nowhere/label.nii.gz")


@bad("folder|directory|not a file|regular")
def a_folder_among_the_scans(raw):
    (raw / "imagesTr/phantom_009_0000.nii.gz").mkdir()


@bad("has no image")
def a_label_without_a_scan(raw):
    shutil.copyfile(label(raw), raw / "labelsTr/other.nii.gz")


@bad("phantom_001_0001|exceeds")
def a_channel_too_many(raw):
    shutil.copyfile(scan(raw), raw / f"imagesTr/{ONE}_0001.nii.gz")


@bad("phantom_001|overwrite|channel number|two files|same case")
def a_scan_with_and_without_its_channel_number(raw):
    shutil.copyfile(scan(raw), raw / f"imagesTr/{ONE}.nii.gz")


@bad("more than one|do not end in")
def a_case_in_two_formats(raw):
    sitk.WriteImage(sitk.ReadImage(str(scan(raw))), str(raw / f"imagesTr/{ONE}_0000.mha"))


@bad("seg")
def a_label_named_seg_nrrd(raw):
    sitk.WriteImage(sitk.ReadImage(str(label(raw))), str(raw / f"labelsTr/{ONE}.seg.nrrd"))
    label(raw).unlink()


@bad(r"label 9 \(1 voxels\) is not in dataset.json")
def an_unknown_label_value(raw):
    def change(array):
        array[0, 0, 0] = 9
        return array

    rewritten(label(raw), change)


@bad("label 70000|is not in dataset.json|65535")
def a_label_beyond_16_bits(raw):
    def change(array):
        array = array.astype(np.int32)
        array[0, 0, 0] = 70000
        return array

    rewritten(label(raw), change)


@bad("not whole numbers")
def an_interpolated_label_map(raw):
    rewritten(label(raw), lambda array: array.astype(np.float32) * 0.5)


@bad("black-and-white mask|label 255")
def a_black_and_white_mask(raw):
    for path in (raw / "labelsTr").iterdir():
        rewritten(path, lambda array: ((array > 0) * 255).astype(np.uint8))


@bad("no voxel of any class")
def an_empty_label_map(raw):
    rewritten(label(raw), lambda array: array * 0)


@bad("not on one grid.*size")
def a_label_map_of_another_size(raw):
    rewritten(label(raw), lambda array: array[:-1])


@bad("header|copy")
def a_label_map_that_lost_its_header(raw):
    rewritten(label(raw), lambda array: array, affine=np.eye(4))


@bad("not on one grid")
def a_label_map_that_is_mirrored(raw):
    image = nib.load(label(raw))
    rewritten(label(raw), lambda array: array, affine=image.affine @ np.diag([-1, 1, 1, 1]))


@bad("truncated|damaged|checksum|CRC")
def a_label_map_cut_off(raw):
    label(raw).write_bytes(label(raw).read_bytes()[:-40])


@bad("constant")
def a_constant_scan(raw):
    rewritten(scan(raw), lambda array: array * 0 + 1)


@bad("not in HU")
def ct_with_1024_added(raw):
    for path in (raw / "imagesTr").iterdir():
        rewritten(path, lambda array: array + 1024)


@bad("not in HU")
def ct_with_1024_subtracted(raw):
    for path in (raw / "imagesTr").iterdir():
        rewritten(path, lambda array: array - 1024)


@bad("not in HU")
def ct_times_ten(raw):
    for path in (raw / "imagesTr").iterdir():
        rewritten(path, lambda array: array * 10)


@bad("not in HU")
def ct_in_8_bits(raw):
    def change(array):
        return (np.clip((array + 160) / 400, 0, 1) * 233 + 22).astype(np.uint8)

    for path in (raw / "imagesTr").iterdir():
        rewritten(path, change)


@bad("2D|slice|3D")
def one_slice_among_volumes(raw):
    for path in (scan(raw), label(raw)):
        rewritten(path, lambda array: array[:, :, 10:11])


@bad("crops.json|given|box")
def crops_of_another_form(raw):
    (raw / "crops.json").write_text('{"phantom_001": [[0, 1], "all"]}')


@bad("phantom_001.*imagesTs|in imagesTr and in imagesTs")
def a_test_scan_that_is_trained_on(raw):
    (raw / "imagesTs").mkdir()
    shutil.copyfile(scan(raw), raw / f"imagesTs/{ONE}_0000.nii.gz")


@bad("dcm|not read")
def dicom_among_the_scans(raw):
    (raw / "imagesTr/phantom_009_0000.dcm").write_bytes(b"\0" * 200)
