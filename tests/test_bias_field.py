"""The bias field of MRI: in which scans it is corrected, and that it is."""

from dataclasses import replace

import numpy as np
import pytest
from test_planners import BRAIN, BTCV, CT, MRBRAINS, ULTRASOUND, case, planned
from test_preprocessing import ball

from mre_lowshot.config import ChannelNormalization, PreprocessingConfig
from mre_lowshot.errors import UserError
from mre_lowshot.planners import rules
from mre_lowshot.preprocessing.bias_field import correct_bias_field
from mre_lowshot.preprocessing.cropping import body_box, body_mask
from mre_lowshot.preprocessing.pipeline import forward

SHAPE, SPACING = (20, 70, 80), (6.0, 3.0, 3.0)
CONFIG = PreprocessingConfig("none", (ChannelNormalization(foreground_only=True),), "native", bias_field=True)


def phantom(strength, seed=0, air=0.0):
    """A body of fat around two organs, (image, body, organs), in scanner units; with ``strength`` 1 the bias field
    doubles from one side to the other."""
    rng = np.random.default_rng(seed)
    body = ball(SHAPE, (10, 35, 40), (40, 30, 34))
    left, right = ball(SHAPE, (10, 36, 24), (8, 14, 9)), ball(SHAPE, (10, 36, 58), (8, 14, 9))
    image = np.where(body, 300.0, air)
    image[left | right] = 180.0
    y, x = np.linspace(-1, 1, SHAPE[1])[:, None], np.linspace(-1, 1, SHAPE[2])
    bias_field = 2.0 ** (strength * (x - 0.3 * y**2) / 2)
    return np.abs(image * bias_field + rng.normal(0, 4, SHAPE)).astype(np.float32), body, (left, right)


def test_organs_on_both_sides_are_equally_bright_after_correction():
    image, body, (left, right) = phantom(1.0)
    before = image[left].mean() / image[right].mean()
    corrected = correct_bias_field(image, body, SPACING)
    assert before < 0.75
    assert corrected[left].mean() / corrected[right].mean() == pytest.approx(1, abs=0.06)
    # and organs still differ from their surroundings
    fat = body & ~left & ~right
    assert 0.5 < corrected[left | right].mean() / corrected[fat].mean() < 0.7
    assert corrected.dtype == np.float32


@pytest.mark.slow
def test_the_correction_is_deterministic_and_finite_outside_the_patient():
    image, body, _ = phantom(1.0)
    image[:, :8] = 0  # no signal at all
    one, again = (correct_bias_field(image, body, SPACING) for _ in range(2))
    assert np.array_equal(one, again)
    assert np.isfinite(one).all()
    inside = (image / np.maximum(one, 1e-6))[body & (one > 0)]  # the field, which outside keeps to its range inside
    outside = (image / np.maximum(one, 1e-6))[~body & (image > 0)]
    assert outside.min() > 0.9 * inside.min()
    assert outside.max() < 1.1 * inside.max()


def test_an_image_without_bias_field_hardly_changes_and_one_without_signal_not_at_all():
    image, body, _ = phantom(0.0)
    corrected = correct_bias_field(image, body, SPACING)
    ratio = (corrected / np.maximum(image, 1))[body]
    assert ratio.std() / ratio.mean() < 0.05
    dark = np.minimum(image - 500, 0)
    assert np.array_equal(correct_bias_field(dark, body, SPACING), dark)


def test_few_voxels_and_few_slices_are_corrected_without_error():
    for shape in ((8, 9, 10), (3, 60, 60), (1, 40, 40)):
        image = np.random.default_rng(0).uniform(50, 100, shape).astype(np.float32)
        assert np.isfinite(correct_bias_field(image, np.ones(shape, bool), (1.0, 1.0, 1.0))).all()
        even = np.full(shape, 7.0, np.float32)
        assert np.array_equal(correct_bias_field(even, np.ones(shape, bool), (1.0, 1.0, 1.0)), even)


def test_the_mask_of_the_patient_lies_in_its_box():
    image, body, _ = phantom(0.5, air=0)
    found = body_mask(image[None], SPACING)
    assert 2 * (found & body).sum() / (found.sum() + body.sum()) > 0.95
    for where, (low, high) in zip(np.nonzero(found), body_box(image[None], SPACING), strict=True):
        assert low <= where.min() < where.max() < high
    assert body_mask(np.zeros((1, 5, 6, 7), np.float32), SPACING).all()


def test_a_patients_intensities_depend_neither_on_the_bias_field_nor_on_the_air_around():
    """Organs have the same values in a wide and a narrow field of view, whatever the coil and the scale."""
    image, _, (left, right) = phantom(1.0)
    plain, _, _ = phantom(0.0, seed=1)
    wide = np.pad(plain, ((0, 0), (30, 30), (40, 40)))
    organ = np.pad(left, ((0, 0), (30, 30), (40, 40)))
    whole = replace(CONFIG, keep_padding=True)
    corrected = forward(1.7 * image[None], SPACING, CONFIG)[0][0]
    values = [corrected[left].mean(), corrected[right].mean(), forward(wide[None], SPACING, whole)[0][0][organ].mean()]
    assert np.ptp(values) < 0.35  # of the patient's standard deviation
    z_score = replace(whole, bias_field=False, normalization=(ChannelNormalization(),))
    scans = ((image, left), (image, right), (wide, organ))
    raw = [forward(scan[None], SPACING, z_score)[0][0][where].mean() for scan, where in scans]
    assert np.ptp(raw) > 2 * np.ptp(values)


def test_a_constant_channel_a_wrong_number_of_channels_and_a_ct_are_refused():
    image = phantom(0.5)[0]
    with pytest.raises(UserError, match=r"channel 0 is constant \(7\)"):
        forward(np.full((1, *SHAPE), 7, np.float32), SPACING, CONFIG)
    with pytest.raises(UserError, match="has 2 channels, the plan 1"):
        forward(np.stack([image, image]), SPACING, CONFIG)
    with pytest.raises(UserError, match="bias_field is for MRI"):
        replace(CONFIG, normalization=(ChannelNormalization("clip"),))


def test_z_scored_scans_are_not_corrected():
    scans = [case((180, 220, 180), (1, 1, 1)) for _ in range(2)]
    scans[1]["channels"][0].update(percentile_00_5=-1.1, percentile_99_5=3.0)
    plan = planned(scans)
    assert not plan.preprocessing.bias_field
    assert "the lowest intensities are -37% of the maximum" in plan.reasons["bias_field"]


def test_the_bias_field_is_corrected_in_mri_of_a_body_or_a_head_only():
    body = np.array([[200, 260, 380], [240, 300, 400]])
    for channels, stripped, extents, lowest, words in (
        (("T1", "t2 "), False, body, 0, "corrected (N4)"),
        (("MRI",), False, [[30, 150, 150]], 3, "corrected (N4)"),  # a thin slab of a body
        (("MRI",), False, body, -0.03, "corrected (N4)"),  # interpolated
        (("CT",), False, body, -2, "not all channels are MRI with bias field (CT)"),
        (("MRI", "PET"), False, body, 0, "not all channels are MRI with bias field (MRI, PET)"),
        (("US",), False, body, 0, "not all channels are MRI with bias field (US)"),
        (("ADC",), False, body, 0, "not all channels are MRI with bias field (ADC)"),  # a quantitative map
        (("MRI",), True, body, 0, "the background is constant, so the scans were preprocessed before"),
        (("MRI",), False, [[35, 50, 36]], 0, "images of 50 x 36 x 35 mm are too small"),
        (("MRI",), False, [[400, 90, 80]], 0, "images of 400 x 90 x 80 mm are too small"),
        (
            ("MRI",),
            False,
            body,
            -0.25,
            "the lowest intensities are -25% of the maximum, so the scans were normalised before",
        ),
    ):
        wanted, reason = rules.bias_field_rule(channels, stripped, np.array(extents, float), lowest)
        assert words in reason
        assert wanted == (words == "corrected (N4)")


def test_scans_that_were_corrected_before_are_not_corrected_again():
    names = ["background", *BTCV]
    for channels, labels, stated, words in (
        (("T1",), names, None, ""),
        (("T1", "T2_N4"), names, None, "the name of channel T2_N4 states it"),
        (("T1",), list(MRBRAINS), None, "MRBrainS18, whose scans were corrected with N4 (paper, IV-A)"),
        (("T1",), names, True, "dataset.json has bias_field_corrected: true"),
        (("T2_N4",), list(MRBRAINS), False, ""),
    ):
        reason = rules.corrected_rule(channels, labels, stated)
        assert (words in reason) if words else reason == ""
    plan = planned(BRAIN, ("T1", "T1IR", "FLAIR"), labels=MRBRAINS)
    assert not plan.preprocessing.bias_field
    assert plan.reasons["bias_field"].startswith("not corrected again: labels are those of MRBrainS18")
    assert not any(channel.foreground_only for channel in plan.preprocessing.normalization)


def test_the_user_decides_on_the_correction():
    asked = planned(BRAIN, ("T1", "T1IR", "FLAIR"), labels=MRBRAINS, n4="on")
    assert asked.preprocessing.bias_field
    assert asked.preprocessing == planned(BRAIN, ("T1", "T1IR", "FLAIR")).preprocessing
    assert asked.reasons["bias_field"] == "corrected (N4): --n4 on"
    off = planned(BRAIN, n4="off")
    assert (off.preprocessing.bias_field, off.reasons["bias_field"]) == (False, "not corrected: --n4 off")
    paper, raw = (planned(BRAIN, recipe="paper", n4=n4).preprocessing for n4 in ("auto", "on"))
    assert raw == replace(paper, bias_field=True)  # z-scores as in the paper
    assert "bias_field" not in planned(BRAIN, recipe="paper").reasons
    for scans, channel, words in ((CT, "CT", "found channel CT"), (ULTRASOUND, "US", "found 2D images")):
        with pytest.raises(UserError, match=f"--n4 on: N4 corrects MRI volumes, {words}"):
            planned(scans, (channel,), n4="on")
