"""Real scans, where they lie beside the checkout: planning, crop boxes, and export to their own grids."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import command

from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.volume import geometry_of, read_channels, read_labels, write_volume
from mre_lowshot.planners.fingerprint import case_fingerprint, dataset_fingerprint
from mre_lowshot.planners.hardware import Device
from mre_lowshot.planners.planner import facts_of, make_plan
from mre_lowshot.preprocessing.cropping import body_box
from mre_lowshot.preprocessing.pipeline import inverse_labels
from mre_lowshot.preprocessing.prepare import check_prepared, prepare_case
from mre_lowshot.preprocessing.store import load_case

DATA = Path(__file__).resolve().parents[2] / "shared/data"


def dataset(name):
    if not (DATA / name / "dataset.json").is_file():
        pytest.skip(f"{name} is not in {DATA}")
    return Dataset.load(DATA / name)


def one_hot(labels, classes):
    return np.stack([labels == k for k in range(classes)]).astype(np.float32)


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def test_the_hippocampus_is_planned_and_preprocessed(tmp_path, capsys):
    raw = dataset("Dataset004_Hippocampus")
    assert command("plan", "-d", raw.folder, "--workspace", tmp_path, "-device", "cpu") == 0
    folder = tmp_path / "preprocessed/Dataset004_Hippocampus"
    plan = load_plan(folder / "MREPlans.json")
    assert plan.labels == {"background": 0, "anterior": 1, "posterior": 2}
    assert plan.preprocessing.normalization[0].scheme == "zscore"
    assert plan.patch.size[1] >= 16
    assert sorted(check_prepared(plan, folder)) == sorted(case.name for case in raw.labelled)
    assert f"{len(raw.labelled)} cases preprocessed" in capsys.readouterr().out
    fingerprint = json.loads((folder / "dataset_fingerprint.json").read_text())
    assert set(fingerprint["cases"]) == {case.name for case in raw.cases}
    for case in raw.labelled[::9]:
        prepared, truth = load_case(folder / "MREPlans", case.name), read_labels(case.label)
        assert abs(float(prepared.image.mean())) < 0.5
        back = inverse_labels(one_hot(prepared.label, 3), prepared.transform)
        assert all(dice(back == k, truth.array == k) > 0.98 for k in (1, 2))


# the most difficult scans: a patient off the centre, one reaching the edge, thick slices
@pytest.mark.parametrize("name", ["btcv_0006", "btcv_0010", "btcv_0023"])
def test_the_body_box_of_a_ct_holds_every_labelled_voxel(name):
    case = next(c for c in dataset("Dataset017_BTCV").labelled if c.name == name)
    image, labels = read_channels(list(case.images)), read_labels(case.label).array
    box = body_box(image.array, image.geometry.spacing)
    assert np.count_nonzero(labels[tuple(slice(*side) for side in box)]) == np.count_nonzero(labels)
    assert np.prod([high - low for low, high in box]) < 0.9 * labels.size


@pytest.mark.parametrize(("recipe", "least"), [("default", 0.91), ("paper", 0.9)])
@pytest.mark.slow
def test_ct_labels_survive_preprocessing_and_export(recipe, least, tmp_path):
    raw = dataset("Dataset017_BTCV")
    case = raw.labelled[0]
    image, labels = read_channels(list(case.images)), read_labels(case.label)
    measured = case_fingerprint(image.array, image.geometry.spacing, image.geometry.orientation)
    fingerprint = dataset_fingerprint(raw.name, {case.name: measured})
    plan = make_plan(facts_of(raw), fingerprint, device=Device("cpu", 16.0), recipe=recipe)
    prepared = prepare_case(case.name, image, labels, plan=plan)
    assert prepared.image.shape[1:] == prepared.label.shape
    if recipe == "paper":
        assert prepared.label.shape == (72, 324, 396)
    assert prepared.image.min() >= -1e-6
    assert prepared.image.max() <= 1 + 1e-6
    back = inverse_labels(one_hot(prepared.label, len(raw.labels)), prepared.transform)
    large = [k for k in range(1, len(raw.labels)) if np.count_nonzero(labels.array == k) > 3000]
    assert len(large) >= 5
    assert min(dice(back == k, labels.array == k) for k in large) > least
    write_volume(tmp_path / "back.nii.gz", back, image.geometry)
    assert not geometry_of(tmp_path / "back.nii.gz").differences(geometry_of(case.label))
