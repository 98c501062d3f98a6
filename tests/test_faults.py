"""Constant slices and regions of extreme intensity hardly change the network's input; clean scans keep every bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from references import tiny_plan
from test_not_tissue import SPACING, ct, cut_out, head, planned, stripped

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import Volume, read_image
from mre_lowshot.inference import input_checks
from mre_lowshot.inference.models import Model
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.preprocessing import pipeline
from mre_lowshot.preprocessing.faults import correct_faults, faulty_planes
from mre_lowshot.preprocessing.pipeline import forward

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
IMAGES = {"cut_out": (cut_out, "MRI"), "stripped": (stripped, "MRI"), "head": (head, "T1")}
WHERE = {
    "a slice": np.s_[0, 14],
    "three slices": np.s_[0, 14:17],
    "a sagittal plane": np.s_[0, :, :, 20],
    "a block": np.s_[0, 12:18, 14:20, 14:22],
}


@pytest.mark.parametrize("factor", [1.01, 1e4])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", IMAGES)
def test_faults_of_a_scan_hardly_change_the_input_elsewhere(name, where, factor):
    make, channel = IMAGES[name]
    image = make()
    if where == "a block" and factor < 100:
        factor = 200.0  # of a constant block in one region, only an intensity that no tissue has shows the fault
    faulty = image.copy()
    faulty[WHERE[where]] = factor * image.max()
    config = planned([image, make(1)], channel).preprocessing
    expected, transform = forward(image, SPACING, config)
    found, of_faulty = forward(faulty, SPACING, config)
    assert of_faulty.box == transform.box
    changed = np.zeros(image.shape[1:], bool)
    changed[WHERE[where][1:]] = True
    box = tuple(slice(low, high) for low, high in transform.box)
    kept = ~changed[box] & (image[0] != 0)[box]  # the background of a stripped scan is far from the mean
    assert np.abs(found - expected)[0][kept].mean() < 0.12
    assert found[0][kept].std() == pytest.approx(expected[0][kept].std(), rel=0.12)
    assert np.abs(found).max() < 2 * np.abs(expected).max()


@pytest.mark.parametrize("value", [0.0, 5e5])
def test_constant_slices_are_interpolated(value):
    image = cut_out()
    faulty = image.copy()
    faulty[0, 10] = value
    faulty[0, 20:22] = value
    corrected = correct_faults(faulty)
    assert np.allclose(corrected[0, 10], (image[0, 9] + image[0, 11]) / 2)
    assert np.allclose(corrected[0, 21], image[0, 19] / 3 + 2 * image[0, 22] / 3, rtol=1e-4)
    others = [n for n in range(30) if n not in (10, 20, 21)]
    assert np.array_equal(corrected[0, others], image[0, others])
    assert (faulty[0, 10] == value).all()  # the caller's array is not changed


def test_clean_scans_padding_background_and_ct_are_not_changed():
    for make in (cut_out, stripped, head):
        image = make()
        assert correct_faults(image) is image
        assert correct_faults(padded := np.pad(image, ((0, 0), (3, 3), (4, 0), (0, 5)))) is padded
    two = stripped().copy()
    two[0, 15] = 0  # background between two parts is no fault
    assert correct_faults(two) is two
    scan = ct()
    scan[0, 10] = 3000
    assert correct_faults(scan, [True]) is scan
    flat = cut_out()[:, :1]
    flat[0, 0, 5] = 9000
    assert faulty_planes(flat[0]) == []
    half = cut_out()
    half[0, 5:25] = 7  # no scan with a fault
    assert faulty_planes(half[0]) == []


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared datasets are not at {DATA}")
def test_ordinary_scans_keep_every_bit():
    for name, most in (("Dataset004_Hippocampus", 9), ("Dataset020_MouseBrain", 1), ("Dataset021_BraTS2013", 2)):
        for path in sorted((DATA / name / "imagesTr").iterdir())[:most]:
            image = read_image(path).array
            assert correct_faults(image) is image


@pytest.mark.parametrize("factor", [6.0, -6.0, 20.0])
def test_a_slice_of_another_scale_is_interpolated(factor):
    for make in (cut_out, head):
        image = make()
        faulty = image.copy()
        faulty[0, [12, 19]] *= factor
        assert faulty_planes(faulty[0])[0] == (0, [12, 19])
        assert np.allclose(correct_faults(faulty)[0, 12], (image[0, 11] + image[0, 13]) / 2)
    first = cut_out()
    first[0, 0] *= 20
    assert np.array_equal(correct_faults(first)[0, 0], first[0, 1])


def test_prediction_corrects_a_scan_once(monkeypatch):
    image, calls = np.random.default_rng(0).normal(100, 10, (1, 12, 16, 16)).astype(np.float32), []
    for module in (pipeline, input_checks):
        monkeypatch.setattr(module, "correct_faults", lambda *given: calls.append(given) or correct_faults(*given))
    plan = tiny_plan()
    ranges = {"outliers": [0, 0], "shape": [[12, 16, 16]] * 2, "channels": []}
    plan = replace(plan, training_ranges=ranges)
    predictor = Predictor(Model(Path(), (0,), (plan,), (torch.nn.Identity(),), ((),)), device=torch.device("cpu"))
    image[0, 5, 3, 3] = image[0, 5, 9, 9] = image[0, 7, 9, 9] = 1e6
    volume = Volume(image, Geometry((12, 16, 16), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1), "LPS"))
    prepared = predictor.preprocess(volume, name="scan")
    assert len(calls) == 1
    assert any("3 voxels have extreme intensities" in warning for warning in prepared.warnings)
    assert prepared.warnings == input_checks.differences_from_training(volume, plan)
    assert len(calls) == 2
