"""Warnings about a scan that differs from the training scans."""

import json
from dataclasses import replace

import numpy as np
import pytest
from references import tiny_plan

from mre_lowshot.config import ChannelNormalization, PatchConfig
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.synthetic import make_subject
from mre_lowshot.data.verification import copied_channels
from mre_lowshot.data.volume import Volume
from mre_lowshot.errors import UserError
from mre_lowshot.inference.input_checks import differences_from_training, refuse_input
from mre_lowshot.planners.fingerprint import case_fingerprint, dataset_fingerprint, training_ranges

RANGES = {
    "spacing": [[2.0, 1.0, 1.0], [3.0, 1.0, 1.0]],
    "extent_mm": [[40.0, 20.0, 20.0], [60.0, 30.0, 30.0]],
    "channels": [{"median": [-50.0, 20.0], "percentile_99_5": [200.0, 400.0]}],
}

FAR_SPACING = "spacing along z is 7 mm, training scans 2 to 3 mm"
FAR_MEDIAN = "median intensity is 900 HU, training scans -50 to 20 HU; is the scan in HU?"


def scan(spacing=(2.0, 1.0, 1.0), shape=(20, 24, 24), inside=6, background=0.0):
    array = np.full((1, *shape), background, np.float32)
    array[:, inside:-inside, inside:-inside, inside:-inside] = 10 + np.arange(8 * 12 * 12).reshape(8, 12, 12) % 7
    return Volume(array, Geometry(shape, spacing, (0.0,) * 3, (1.0, 0, 0, 0, 1, 0, 0, 0, 1)))


def plan(scheme="zscore", crop="none"):
    made = replace(tiny_plan(), training_ranges=RANGES)
    channel = ChannelNormalization(scheme)
    return replace(made, preprocessing=replace(made.preprocessing, crop=crop, normalization=(channel,)))


@pytest.mark.parametrize(
    ("image", "its_plan", "words"),
    [
        (scan(), plan(), []),
        (scan((7.0, 1.0, 1.0)), plan(), [FAR_SPACING, "extent along z is 140 mm"]),
        (scan(background=900.0), plan("clip"), [FAR_MEDIAN]),
        (scan(background=900.0), plan(), []),  # an MRI's intensities have no scale
        (scan(), plan(crop="nonzero"), []),
        (scan(background=np.nan), plan(crop="nonzero"), None),
    ],
)
def test_values_far_outside_the_training_ranges_give_warnings(image, its_plan, words):
    if words is None:  # the training scans are stripped, this one has noise around the head
        image.array[np.isnan(image.array)] = np.random.default_rng(0).normal(size=int(np.isnan(image.array).sum()))
        words = ["of it is constant background, the training scans are skull-stripped; skull-strip this scan too"]
    warnings = differences_from_training(image, its_plan)
    assert len(warnings) == len(words)
    assert all(word in line for word, line in zip(words, warnings, strict=True))


def anatomy(seed=0, shape=(20, 30, 26)):
    """An MRI-like volume: bright above, dark below, with structures and noise."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.linspace(0, 1, n).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, n in enumerate(shape))
    return (400 + 300 * (1 - y) ** 2 + 200 * np.sin(5 * x) * z + rng.normal(0, 20, shape)).astype(np.float32)[None]


def volume(array, spacing=(1.0, 1.0, 1.0)):
    return Volume(np.ascontiguousarray(array, np.float32), Geometry(tuple(array.shape[1:]), spacing))


@pytest.fixture(scope="module")
def mri_plan():
    cases = {f"c{n}": case_fingerprint(anatomy(n), (1.0, 1.0, 1.0), "LPS") for n in range(2)}
    ranges = training_ranges(dataset_fingerprint("D", cases))
    return replace(plan(), training_ranges=json.loads(json.dumps(ranges)))


VARIANTS = {
    "another seed": (lambda a: a, []),
    "three times as bright": (lambda a: 3 * a, []),
    "padded": (lambda a: np.pad(a, ((0, 0), (5, 5), (5, 5), (5, 5))), ["padding_share"]),
    "hot voxels": (lambda a: hot(a), ["outliers"]),
    "x 100": (lambda a: 100 * a, ["width_0"]),
    "inverted": (lambda a: a.max() - a, ["layout_0"]),
    "half of it": (lambda a: a[:, :, :12], ["extent_y"]),
    "a few slices": (lambda a: a[:, ::5], ["extent_z", "number_of_voxels_z"]),
    "object in a constant background": (lambda a: np.where(INSIDE, a, 0), ["background_share"]),
}
INSIDE = sum(((np.arange(n) - n / 2 + 0.5) / (n / 2)).reshape([-1 if a == i else 1 for a in range(3)]) ** 2
             for i, n in enumerate((20, 30, 26))) <= 1  # fmt: skip


def hot(array):
    array = array.copy()
    array[0, 3, 4, 5] = array[0, 9, 9, 9] = array[0, 12, 20, 7] = 1e6
    return array


@pytest.mark.parametrize("name", VARIANTS)
def test_a_scan_that_differs_from_the_training_scans_is_named_with_value_and_range(name, mri_plan):
    change, expected = VARIANTS[name]
    found = differences_from_training(volume(change(anatomy(7))), mri_plan)
    assert set(expected) <= {difference.name for difference in found}
    assert bool(found) == bool(expected)
    for difference in found:
        record = difference.to_json()
        low, high = record["training_range"]
        assert not low <= record["value"] <= high
        assert record["warning"] == difference


def test_a_plan_without_the_newer_ranges_is_compared_in_what_it_has(mri_plan):
    assert differences_from_training(volume(anatomy(7)), replace(mri_plan, training_ranges={})) == ()


def test_a_ct_that_is_not_in_hu_and_a_slice_for_a_3d_model_are_refused():
    ct = replace(plan("clip"), channel_names=("CT",))
    image = make_subject(0, (20, 36, 44), (8.0, 8.0, 8.0))[0][None]
    assert refuse_input(volume(image), ct) == []
    for wrong in (image - 1024, image + 1024, 10 * image, image / 10):
        with pytest.raises(UserError, match=r"channel 'CT' is not in HU: .*(undo|add|subtract)"):
            refuse_input(volume(wrong), ct)
        assert refuse_input(volume(wrong), plan()) == []
    with pytest.raises(UserError, match="a single slice of 1 x 36 x 44 voxels, the model was trained on volumes"):
        refuse_input(volume(image[:, :1]), plan())
    network = replace(plan().network, strides=((2, 2), (2, 2)), dilations=((6, 6), (12, 12), (18, 18)))
    flat = replace(plan(), network=network, patch=PatchConfig((12, 12), (8, 8)))
    with pytest.raises(UserError, match="a volume of 20 x 36 x 44 voxels, the model was trained on 2D images"):
        refuse_input(volume(image), flat)


@pytest.mark.parametrize("scheme", ["clip", "zscore"])
def test_a_constant_scan_is_refused_as_such(scheme):
    with pytest.raises(UserError, match=r"is constant \(7 everywhere\); export the scan again"):
        refuse_input(Volume.from_array(np.full((9, 9, 9), 7.0), (1, 1, 1)), plan(scheme))


def test_a_refusal_at_prediction_offers_no_fix_of_planning():
    array = np.random.default_rng(0).random((9, 9, 9))
    with pytest.raises(UserError, match=r"a range that no CT has; undo its scaling$"):
        refuse_input(Volume.from_array(array, (1, 1, 1)), replace(plan("clip"), channel_names=("CT",)))


def test_a_channel_that_is_a_copy_of_another_is_named():
    """T2 given as a copy of T1 would be segmented without a word; a grey picture stored in colour is no copy."""
    one = scan().array
    both = np.concatenate([one, one + 1, one])
    assert copied_channels(("T1", "T2", "FLAIR"), both) == [
        "channels 'T1' and 'FLAIR' hold the same voxels; is one file a copy of the other?"
    ]
    assert copied_channels(("R", "G", "B"), np.concatenate([one] * 3)) == []
    made = plan()
    channels = made.preprocessing.normalization * 2
    made = replace(
        made,
        channel_names=("T1", "T2"),
        network=replace(made.network, in_channels=2),
        preprocessing=replace(made.preprocessing, normalization=channels),
    )
    image = replace(scan(), array=np.concatenate([one, one]))
    (found,) = (d for d in differences_from_training(image, made) if d.name == "copied_channel")
    assert "'T1' and 'T2'" in found
    other = replace(scan(), array=np.concatenate([one, one + 1]))
    assert not [d for d in differences_from_training(other, made) if d.name == "copied_channel"]
