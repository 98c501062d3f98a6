"""Raw datasets: loading, and the verification that reports all problems at once."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from mre_lowshot.data.dataset import Dataset, find_cases
from mre_lowshot.data.verification import raise_problems, verify
from mre_lowshot.errors import UserError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SHAPE = (4, 6, 5)


def write(path: Path, array, spacing=(1.0, 1.0, 2.0), colour=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.asarray(array), isVector=colour)
    if image.GetDimension() == 3:
        image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def image_array(seed=0):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def label_array(*values):
    array = np.zeros(SHAPE, np.uint8)
    array.flat[: len(values)] = values
    return array


@pytest.fixture
def raw(tmp_path):
    """Dataset005_Toy: cases a, b, c with labels 1 and 2; c is unlabelled."""
    folder = tmp_path / "Dataset005_Toy"
    for name in "abc":
        write(folder / f"imagesTr/{name}_0000.nii.gz", image_array())
    for name in "ab":
        write(folder / f"labelsTr/{name}.nii.gz", label_array(1, 2, 2))
    describe(folder)
    return folder


def describe(folder: Path, without=(), **changes):
    data = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in data.items() if k not in without}))


def problems_of(folder: Path) -> list[str]:
    return verify(Dataset.load(folder))


def test_a_dataset_is_loaded_and_verified_in_one_pass(raw):
    describe(raw, licence="CC0", labels={"background": 0, "spleen": 2, "liver": 1, "ignore": 14})
    dataset = Dataset.load(raw)
    assert (dataset.name, dataset.channel_names, dataset.ignore_label) == ("Dataset005_Toy", ("CT",), 14)
    assert list(dataset.labels.items()) == [("background", 0), ("liver", 1), ("spleen", 2)]
    assert [(c.name, len(c.images), bool(c.label)) for c in dataset.cases] == [
        ("a", 1, True),
        ("b", 1, True),
        ("c", 1, False),
    ]
    assert [c.name for c in dataset.labelled] == ["a", "b"]
    seen = []
    write(raw / "labelsTr/b.nii.gz", label_array(1, 14))
    assert verify(dataset, lambda *args: seen.append(args)) == []
    assert [(case.name, image.array.shape, label is None) for case, image, label in seen] == [
        ("a", (1, *SHAPE), False),
        ("b", (1, *SHAPE), False),
        ("c", (1, *SHAPE), True),
    ]
    raise_problems(dataset, [])


def test_the_old_key_modality_is_read_as_channel_names(raw):
    describe(raw, without=["channel_names"], modality={"0": "MRI"})
    assert Dataset.load(raw).channel_names == ("MRI",)


@pytest.mark.parametrize(
    ("changes", "without", "message"),
    [
        ({"file_endings": ".png"}, ["file_ending"], "key 'file_ending' is missing; found 'file_endings': rename it"),
        ({"chanel_names": {}}, ["channel_names"], "key 'channel_names' is missing; found 'chanel_names'"),
        ({}, ["numTraining"], r"key 'numTraining' is missing; add it \(found: channel_names, file_ending, labels\)"),
        ({"file_ending": "nii.gz"}, [], "file_ending 'nii.gz' is not supported; did you mean '.nii.gz'"),
        ({"numTraining": "3"}, [], "numTraining is '3'; must be the number"),
        ({"bias_field_corrected": "yes"}, [], "bias_field_corrected is 'yes'; must be true or false"),
        ({"channel_names": {"1": "CT"}}, [], "channel_names is {'1': 'CT'}; must number the channels from 0"),
        ({"channel_names": ["CT"]}, [], "must number the channels from 0"),
        ({"labels": {"0": "background"}}, [], "label '0' is 'background'; swap name and value"),
        ({"labels": {"background": 0, "a": [1, 2]}}, [], r"label 'a' is the region \[1, 2\]; region-based labels"),
        ({"labels": {"background": 0, "a": 1.5}}, [], "label 'a' is 1.5; set it to an integer"),
        ({"labels": {"Background": 0, "a": 1}}, [], "lack \"background\": 0; rename 'Background'"),
        ({"labels": {"a": 1}}, [], 'lack "background": 0; add it'),
        ({"labels": {"background": 1, "a": 0}}, [], 'lack "background": 0; set it to 0'),
        ({"labels": {"background": 0, "a": 1, "b": 3}}, [], r"labels \[0, 1, 3\] must be the consecutive numbers"),
        ({"labels": {"background": 0}}, [], "at least one class besides background"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, [], "ignore label 1 is also the value of a class; use 2"),
    ],
)
def test_a_wrong_dataset_json_is_refused(raw, changes, without, message):
    describe(raw, without, **changes)
    with pytest.raises(UserError, match=rf"Dataset005_Toy/dataset.json: .*{message}"):
        Dataset.load(raw)


def test_missing_label_maps_files_and_folders_are_refused(raw):
    whole = (raw / "dataset.json").read_text()
    (raw / "dataset.json").write_text(json.dumps({**json.loads(whole), "channel_names": {"0": "T1", "1": "T2"}}))
    with pytest.raises(UserError, match=r"(?s)^\w+: no case can be used for training:\n  case \w+: \w+_0001\.nii\.gz"):
        Dataset.load(raw)
    (raw / "dataset.json").write_text(whole)
    for path in (raw / "labelsTr").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"no label map in labelsTr belongs to a case .*labelsTr/CASE\.nii\.gz"):
        Dataset.load(raw)
    (raw / "dataset.json").write_text("[]")
    with pytest.raises(UserError, match="must be a JSON object"):
        Dataset.load(raw)
    with pytest.raises(UserError, match="the folder is missing"):
        find_cases(raw / "imagesTs", 1, None)


def test_all_problems_of_all_cases_are_reported_at_once(raw):
    bad = image_array()
    bad[0, 0, :3] = [np.nan, np.inf, -np.inf]
    write(raw / "imagesTr/a_0000.nii.gz", bad)
    write(raw / "labelsTr/a.nii.gz", label_array(1, 3, 3, 7))
    write(raw / "labelsTr/b.nii.gz", label_array(), spacing=(1, 1, 3))
    write(raw / "imagesTr/c_0000.nii.gz", np.full(SHAPE, 5, np.int16))
    write(raw / "imagesTr/d_0000.nii.gz", image_array())
    write(raw / "labelsTr/d.nii.gz", np.zeros((4, 6, 4), np.uint8) + 1)
    write(raw / "labelsTr/e.nii.gz", label_array(1))
    (raw / "imagesTr/f_0000.nii.gz").write_bytes(b"nothing")
    write(raw / "imagesTr/g_0000.nii.gz", image_array())
    write(raw / "labelsTr/g.nii.gz", image_array())
    seen = []
    dataset = Dataset.load(raw)
    problems = verify(dataset, lambda case, image, label: seen.append(case.name))
    expected = [
        "case e: labelsTr/e.nii.gz has no image in imagesTr; add the image or remove the label map",
        "case a: imagesTr/a_0000.nii.gz has 3 voxel(s) that are NaN or infinite; replace them",
        "case a: label 3 (2 voxels) is not in dataset.json labels [0, 1, 2]; add it there or relabel",
        "case a: label 7 (1 voxels) is not in dataset.json labels [0, 1, 2]; add it there or relabel",
        "case b: the label map b.nii.gz has no voxel of any class of dataset.json; annotate it, or remove",
        "case b: image and label map are not on one grid: spacing (2.0, 1.0, 1.0) against (3.0, 1.0, 1.0); resample",
        "case c: channel 0 (CT) is constant (5 everywhere); export it again",
        "case d: image and label map are not on one grid: size (4, 6, 5) against (4, 6, 4)",
        "case f: imagesTr/f_0000.nii.gz: cannot be read as an image",
        "case g: labelsTr/g.nii.gz: 120 label voxels are not whole numbers",
    ]
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)
    assert seen == []  # no case with a problem reaches the fingerprint
    with pytest.raises(UserError, match=r"Dataset005_Toy: 10 problems found:\n  case e: "):
        raise_problems(dataset, problems)


def test_nan_is_reported_in_a_format_that_keeps_it(raw):
    folder = raw.parent / "Dataset007_Nrrd"
    write(folder / "imagesTr/a_0000.nrrd", np.where(image_array() > 1, np.nan, image_array()))
    write(folder / "labelsTr/a.nrrd", label_array(1, 2))
    describe(folder, file_ending=".nrrd", numTraining=1)
    count = int((image_array() > 1).sum())
    [problem] = problems_of(folder)
    assert problem.startswith(
        f"case a: imagesTr/a_0000.nrrd has {count} voxel(s) that are NaN or infinite; replace them"
    )


def test_a_wrong_number_of_training_cases_is_reported(raw):
    describe(raw, numTraining=20)
    [problem] = problems_of(raw)
    assert "numTraining is 20, but imagesTr holds 3 cases, 2 of them labelled; set it to 3" in problem
    describe(raw, numTraining=2)  # the number of labelled cases is allowed too
    assert problems_of(raw) == []


def test_missing_and_surplus_channels_are_reported(raw):
    describe(raw, channel_names={"0": "FLAIR", "1": "T1"})
    write(raw / "imagesTr/a_0001.nii.gz", image_array())
    write(raw / "imagesTr/b_0001.nii.gz", image_array(), spacing=(1, 1, 4))
    write(raw / "imagesTr/b_0002.nii.gz", image_array())
    write(raw / "imagesTr/d_0000.nii.gz", image_array())
    write(raw / "imagesTr/d_0001.nii.gz", image_array(), spacing=(1, 1, 4))
    problems = problems_of(raw)
    assert problems[0].startswith("case b: b_0002.nii.gz in imagesTr exceeds the 2 channel(s) of the dataset; remove")
    assert problems[1].startswith("case c: c_0001.nii.gz missing in imagesTr (the dataset has 2 channels); add it")
    assert problems[2].startswith("case d: d_0001.nii.gz is not on the grid of d_0000.nii.gz: spacing (2.0, 1.0, 1.0)")
    assert len(problems) == 3


def test_wrong_endings_and_names_are_reported(raw):
    write(raw / "imagesTr/d.nii.gz", image_array())
    write(raw / "imagesTr/x_0000.nii", image_array())
    write(raw / "labelsTr/c.nrrd", label_array(1))
    write(raw / "labelsTr/d_0000.nii.gz", label_array(1))
    (raw / "imagesTr/.hidden_0000.nii.gz").write_bytes(b"")
    text = "\n".join(problems_of(raw))
    assert "imagesTr: 1 image(s) (x_0000.nii) do not end in .nii.gz; convert or move them" in text
    assert "case d: d.nii.gz in imagesTr has no channel number; rename it d_0000.nii.gz" in text
    assert "labelsTr: 1 image(s) (c.nrrd) do not end in .nii.gz" in text
    assert "case d_0000: labelsTr/d_0000.nii.gz has no image in imagesTr; rename it d.nii.gz" in text
    assert "hidden" not in text


def test_an_empty_folder_of_test_images_counts_as_none(raw):
    (raw / "imagesTs").mkdir()
    assert verify(Dataset.load(raw)) == []


def test_test_cases_are_verified_but_never_given_to_the_fingerprint(raw):
    write(raw / "imagesTs/t_0000.nii.gz", image_array())
    write(raw / "labelsTs/t.nii.gz", label_array())  # a test scan without the structure is allowed
    write(raw / "imagesTs/u_0000.nii.gz", image_array())
    write(raw / "labelsTs/u.nii.gz", label_array(9))
    dataset, seen = Dataset.load(raw), []
    [problem] = verify(dataset, lambda case, *_: seen.append(case.name))
    assert [c.name for c in dataset.test_cases] == ["t", "u"]
    assert problem.startswith("case u: label 9 (1 voxels)")
    assert seen == ["a", "b", "c"]
    assert verify(dataset, test_cases=False) == []
    write(raw / "imagesTs/a_0000.nii.gz", image_array())
    seen.clear()
    problems = verify(Dataset.load(raw), lambda case, *_: seen.append(case.images[0].parent.name))
    assert "case a: is in imagesTr and in imagesTs; keep it in one of them" in problems
    assert seen == ["imagesTr"] * 3


def test_colour_images_count_as_channels(tmp_path):
    folder = tmp_path / "Dataset006_Skin"
    pixels = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    write(folder / "imagesTr/a_0000.png", pixels, colour=True)
    write(folder / "labelsTr/a.png", np.eye(8, 9, dtype=np.uint8))
    rgb, labels = {"0": "R", "1": "G", "2": "B"}, {"background": 0, "lesion": 1}
    describe(folder, channel_names=rgb, file_ending=".png", numTraining=1, labels=labels)
    shapes = []
    assert verify(Dataset.load(folder), lambda case, image, label: shapes.append(image.array.shape)) == []
    assert shapes == [(3, 1, 8, 9)]
    write(folder / "imagesTr/a_0000.png", pixels[..., 0])
    [problem] = problems_of(folder)
    assert problem.startswith(
        "case a: 1 file(s) contain 1 channel(s), dataset.json names 3 (R, G, B); save each channel as a file"
    )


def test_cases_for_prediction_are_found_with_and_without_channel_numbers(tmp_path):
    for name in ("btcv_0001.nii.gz", "btcv_0002.nii", "notes.txt"):  # these numbers are not channels
        (tmp_path / name).write_bytes(b"")
    cases, problems = find_cases(tmp_path, 1, None)
    assert [case.name for case in cases] == ["btcv_0001", "btcv_0002"]
    assert problems == []
    assert [case.name for case in find_cases(tmp_path, 1, ".nii")[0]] == ["btcv_0002"]
    (tmp_path / "btcv_0002.mha").write_bytes(b"")
    cases, [problem] = find_cases(tmp_path, 1, None)
    assert [case.name for case in cases] == ["btcv_0001"]
    assert problem.startswith("case btcv_0002: more than one file (btcv_0002.mha, btcv_0002.nii)")
    [problem] = find_cases(tmp_path, 1, ".png")[1][:1]
    assert problem.endswith("contains no image ending in .png; add images, mre_import converts DICOM and other formats")
    (tmp_path / "x_0000.nii").write_bytes(b"")
    assert any("case btcv: btcv_0000.nii missing" in p for p in find_cases(tmp_path, 1, ".nii")[1])


def test_images_of_formats_that_are_not_read_are_named_and_other_files_ignored(raw, tmp_path):
    for name in ("a.dcm", "b.MGZ", "c.jpg", "d.hdr", "notes.txt", "table.csv", ".hidden.dcm"):
        (raw / "imagesTr" / name).write_bytes(b"")
    problems = verify(Dataset.load(raw))
    assert [problem.split(": ")[1].split(" (")[0] for problem in problems] == [
        "a.dcm is not read",
        "b.MGZ is not read",
        "c.jpg is not read",
        "1 more such files are not read; convert or move them",
    ]
    assert "dcm2niix" in problems[0]
    scans = tmp_path / "scans"
    write(scans / "one_0000.nii.gz", image_array())
    (scans / "two.mgz").write_bytes(b"")
    cases, [problem] = find_cases(scans, 1, None)
    assert ([case.name for case in cases], problem.split(" (")[0]) == (["one"], f"{scans}: two.mgz is not read")


def test_a_black_and_white_mask_of_255_is_named_as_such(tmp_path):
    folder = tmp_path / "Dataset009_Drawn"
    drawn = np.zeros((1, 8, 9), np.uint8)
    drawn[0, 2:5, 2:5] = 255
    write(folder / "imagesTr/a_0000.png", np.arange(72, dtype=np.uint8).reshape(1, 8, 9))
    write(folder / "labelsTr/a.png", drawn)
    describe(folder, file_ending=".png", numTraining=1, channel_names={"0": "US"})
    [problem] = problems_of(folder)
    assert problem.startswith(
        "case a: label 255 (9 voxels) is not in dataset.json labels [0, 1, 2]; the file is a black-and-white"
    )


def test_a_single_slice_that_is_not_axial_is_refused(raw):
    write(raw / "imagesTr/a_0000.nii.gz", image_array()[..., :1])
    write(raw / "labelsTr/a.nii.gz", label_array(1, 2)[..., :1])
    [problem] = problems_of(raw)
    assert "size (4, 6, 1) (z, y, x): a single slice that is not axial; save it as a 2D image" in problem


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared datasets are not at {DATA}")
def test_a_real_dataset_has_no_problem():
    dataset = Dataset.load(DATA / "Dataset004_Hippocampus")
    seen = []
    assert verify(dataset, lambda case, image, label: seen.append(case.name)) == []
    assert seen == [case.name for case in dataset.cases]
    assert len(seen) == 27


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("c_seg.nii.gz", "rename it c.nii.gz"),
        ("c.seg.nii.gz", "rename it c.nii.gz"),
        ("c-label.nii.gz", "rename it c.nii.gz"),
        ("a_seg.nii.gz", "a.nii.gz exists too: remove or move away the one that is not the label map"),
        ("C.nii.gz", "is it the label map of c? Then rename it c.nii.gz"),
        ("other.nii.gz", "add the image or remove the label map"),
    ],
)
def test_a_label_map_without_an_image_gets_the_name_that_it_should_have(raw, name, fix):
    write(raw / "labelsTr" / name, label_array(1))
    [problem] = problems_of(raw)
    assert problem.endswith(f"has no image in imagesTr; {fix}")


def test_broken_links_among_labels_and_folders_are_named(raw):
    (raw / "labelsTr/c.nii.gz").symlink_to("gone.nii.gz")
    (raw / "imagesTs").symlink_to("gone")
    problems = problems_of(raw)
    assert problems[0].startswith("labelsTr/c.nii.gz: is a symbolic link to gone.nii.gz, which cannot be read")
    assert problems[1] == "imagesTs: is a broken symbolic link; restore the folder or remove the link"
    (raw / "imagesTs").unlink()
    (raw / "labelsTr/c.nii.gz").unlink()
    write(raw / "labelsTs/t.nii.gz", label_array(1))
    assert "labelsTs: holds 1 label map(s), but imagesTs no image" in problems_of(raw)[0]
