"""Preprocessed datasets on disk: what is stored, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_preprocessing import IDENTITY, SPACING, config, scan

from mre_lowshot.config import NetworkConfig, PatchConfig, Plan, Recipe
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import read_labels, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.preprocessing.pipeline import forward, forward_labels
from mre_lowshot.preprocessing.prepare import check_prepared, prepare_dataset, read_crops
from mre_lowshot.preprocessing.store import PreparedCase, load_case, save_case


@pytest.fixture
def stored(tmp_path):
    image, transform = forward(scan(), SPACING, config("nonzero"))
    label = forward_labels(np.random.default_rng(0).integers(-1, 3, (14, 30, 26)), transform).astype(np.int16)
    geometry = Geometry((14, 30, 26), SPACING, (1.0, 2.0, 3.0), IDENTITY, "RAS").to_json()
    case = PreparedCase("a.b", image, label, transform, geometry)
    return case, save_case(tmp_path, case)


def test_a_case_without_a_label_map_is_refused_where_one_is_needed(stored):
    case, _ = stored
    assert case.needed_label() is case.label
    with pytest.raises(UserError, match=r"case a\.b: .*without a label map.*mre_plan_and_preprocess again"):
        replace(case, label=None).needed_label()


def test_a_stored_case_is_read_without_a_difference(stored, tmp_path):
    case, path = stored
    assert path == tmp_path / "a.b.npz"
    back = load_case(tmp_path, "a.b")
    assert np.array_equal(back.image, case.image)
    assert np.array_equal(back.label, case.label)
    assert (back.transform, back.geometry, back.label.dtype) == (case.transform, case.geometry, np.int16)
    save_case(tmp_path, replace(case, name="bare", label=None))
    assert load_case(tmp_path, "bare").label is None


@pytest.mark.parametrize("damage", ["empty", "half", "no end", "one bit", "garbage", "array", "missing"])
def test_a_damaged_store_is_refused_by_name(stored, tmp_path, damage):
    _, path = stored
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    damaged = {
        "empty": b"",
        "half": data[: len(data) // 2],
        "no end": data[:-20],
        "one bit": bytes(flipped),
        "garbage": b"garbage" * 99,
    }
    if damage == "missing":
        path.unlink()
    elif damage == "array":
        np.savez(path, image=np.zeros(3))
    else:
        path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"case a\.b: .*a\.b\.npz is .*mre_plan_and_preprocess again"):
        load_case(tmp_path, "a.b")


@pytest.fixture
def dataset(tmp_path):
    """Two labelled cases in two orientations and one without labels; label 3 is the ignore label. The constant
    background of the images holds no label."""
    root = tmp_path / "raw/Dataset001_X"
    for number, code in enumerate(("RAS", "LPI", "LPS")):
        geometry = Geometry((14, 30, 26), SPACING, (0.0, 0.0, 0.0), IDENTITY, code)
        labels = np.zeros(geometry.shape, np.int32)
        labels[2:11, 2:27, 2:23] = np.random.default_rng(number).integers(0, 4, geometry.shape)[2:11, 2:27, 2:23]
        write_volume(root / f"imagesTr/c{number}_0000.nii.gz", scan(seed=number)[0], geometry)
        if number < 2:
            write_volume(root / f"labelsTr/c{number}.nii.gz", labels, geometry)
    about = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "x": 1, "y": 2, "ignore": 3},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(about))
    return Dataset.load(root)


def plan_for(preprocessing, name="P"):
    return Plan(
        dataset_name="Dataset001_X",
        plans_name=name,
        channel_names=("MRI",),
        labels={"background": 0, "x": 1, "y": 2},
        file_ending=".nii.gz",
        preprocessing=preprocessing,
        patch=PatchConfig((4, 8, 8), (4, 8, 8)),
        network=NetworkConfig(1, 3),
        recipe=Recipe(),
        reasons={},
        training_ranges={},
        ignore_label=3,
    )


def test_a_dataset_is_prepared_and_recorded(dataset, tmp_path):
    plan = plan_for(config("nonzero"))
    prepare_dataset(dataset, plan, tmp_path / "out")
    assert check_prepared(plan, tmp_path / "out") == ["c0", "c1"]
    assert sorted(p.name for p in (tmp_path / "out/P").iterdir()) == ["c0.npz", "c1.npz", "preprocessing.json"]
    for number, name in enumerate(("c0", "c1")):
        case = load_case(tmp_path / "out/P", name)
        labels = np.random.default_rng(number).integers(0, 4, (14, 30, 26))[2:11, 2:27, 2:23]
        assert np.array_equal(case.label, np.where(labels == 3, -1, labels))
        assert case.image.shape == (1, 9, 25, 21)
        assert case.geometry["orientation"] == ("RAS", "LPI")[number]
        copy = tmp_path / f"out/gt_segmentations/{name}.nii.gz"
        assert copy.read_bytes() == (dataset.folder / f"labelsTr/{name}.nii.gz").read_bytes()
    assert (tmp_path / "out/dataset.json").read_bytes() == (dataset.folder / "dataset.json").read_bytes()


def test_labels_that_the_crop_would_remove_are_reported(dataset, tmp_path):
    path = dataset.folder / "labelsTr/c1.nii.gz"
    marked = read_labels(path)
    marked.array[0, :2] = 1
    write_volume(path, marked.array, marked.geometry)
    with pytest.raises(UserError, match=r"case c1: 52 of \d+ labelled voxels lie outside the box .*crop=none"):
        prepare_dataset(dataset, plan_for(config("nonzero")), tmp_path / "out")
    with pytest.raises(UserError, match=r"case c[01]: \d+ of \d+ labelled voxels lie outside the box .*crop=none"):
        prepare_dataset(dataset, plan_for(config("centre")), tmp_path / "out")
    assert prepare_dataset(dataset, plan_for(config("none", keep_padding=True)), tmp_path / "whole") == []


def test_a_small_class_that_the_crop_would_remove_is_reported_however_few_voxels_it_has(dataset, tmp_path):
    path = dataset.folder / "labelsTr/c1.nii.gz"
    marked = read_labels(path)
    marked.array[marked.array == 2] = 1
    marked.array[0, 0, :2] = marked.array[7, 12, 12:16] = 2
    write_volume(path, marked.array, marked.geometry)
    with pytest.raises(UserError, match=r"case c1: 2 of 6 y voxels lie outside the box"):
        prepare_dataset(dataset, plan_for(config("nonzero")), tmp_path / "out")


def test_a_class_without_a_voxel_on_the_grid_is_reported(dataset, tmp_path):
    path = dataset.folder / "labelsTr/c1.nii.gz"
    marked = read_labels(path)
    marked.array[:] = 1
    marked.array[7, 12, 12] = 2
    write_volume(path, marked.array, marked.geometry)
    coarse = config("none", keep_padding=True, grid="spacing", spacing=tuple(4 * s for s in marked.geometry.spacing))
    (note,) = prepare_dataset(dataset, plan_for(coarse), tmp_path / "out")
    assert note.startswith("case c1: y (1 voxels) has no voxel on the plan's grid and cannot be learned")


def test_cases_of_another_plan_or_of_an_interrupted_run_are_refused(dataset, tmp_path, monkeypatch):
    plan, out = plan_for(config("nonzero")), tmp_path / "out"
    with pytest.raises(UserError, match=r"no complete set .*mre_plan_and_preprocess -d Dataset001_X -p P --keep_plan"):
        check_prepared(plan, out)
    prepare_dataset(dataset, plan, out)
    other = replace(plan, preprocessing=config("nonzero", crop_margin_mm=1.0))
    with pytest.raises(UserError, match="preprocessed with other settings than the plan's"):
        check_prepared(other, out)

    def stopped(cases):
        yield cases[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(dataset, plan, out, stopped)
    with pytest.raises(UserError, match="no complete set"):
        check_prepared(plan, out)


def test_a_scan_with_a_wrong_box_is_named(dataset, tmp_path):
    (dataset.folder / "crops.json").write_text('{"c0": [[0, 14], [0, 30], [0, 26]]}')
    with pytest.raises(UserError, match=r"case c1: .*no box for this case"):
        prepare_dataset(dataset, plan_for(config("given")), tmp_path / "out")
    (dataset.folder / "crops.json").write_text('{"c0": [[1, 14], [0, 30], [2, 26]], "c1": [[0, 4], [0, 9], [0, 7]]}')
    prepare_dataset(dataset, plan_for(config("given")), tmp_path / "out")
    assert load_case(tmp_path / "out/P", "c1").image.shape == (1, 4, 9, 7)


@pytest.mark.parametrize("text", ['{"c0": [[0, 14], [0, 30]]}', '{"c0": 3}', '{"c0": [[0, 1, 2]]}', "[[0, 1]]"])
def test_a_crops_file_of_another_form_is_refused(text, tmp_path):
    assert read_crops(tmp_path) == {}
    (tmp_path / "crops.json").write_text(text)
    with pytest.raises(UserError, match=r"crops\.json: box of case .*write \[\[z0, z1\]"):
        read_crops(tmp_path)
