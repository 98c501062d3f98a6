"""Padding that one channel of several has does not enter its z-scores, over whichever voxels they are taken."""

from dataclasses import replace

import numpy as np
import pytest

from mre_lowshot.config import ChannelNormalization, PreprocessingConfig
from mre_lowshot.preprocessing.padding import own_contents
from mre_lowshot.preprocessing.pipeline import forward

SPACING = (4.0, 3.0, 3.0)
MISSING = 14


def two_channels(value, stripped=False):
    """Two channels of a body, the second once with all slices and once without the first ones; and the body."""
    rng = np.random.default_rng(0)
    _, y, x = np.indices((40, 64, 64)) - 32
    body = y**2 + x**2 < 26**2
    channel = np.where(body, 300 + rng.normal(0, 40, body.shape), 0)
    if stripped:
        body[:3] = body[-3:] = channel[:3] = channel[-3:] = 0
    else:
        channel = np.hypot(channel + rng.normal(0, 10, body.shape), rng.normal(0, 10, body.shape))
    padded = channel.copy()
    padded[:MISSING] = value
    return (np.stack([channel, second]).astype(np.float32) for second in (channel, padded)), body


@pytest.mark.parametrize("value", [0.0, -7.0, 1000.0])
@pytest.mark.parametrize("bias_field", [False, True])
def test_z_scores_inside_the_patient_leave_out_the_padding_of_a_channel(value, bias_field):
    (whole, padded), body = two_channels(value)
    config = PreprocessingConfig(
        "none", (ChannelNormalization(foreground_only=True),) * 2, grid="native", bias_field=bias_field
    )
    full, _ = forward(whole, SPACING, config)
    cut, _ = forward(padded, SPACING, config)
    body[:MISSING] = False
    assert cut[1][body].mean() == pytest.approx(full[1][body].mean(), abs=0.05)
    assert cut[1][body].std() == pytest.approx(full[1][body].std(), rel=0.05)
    assert (cut[1][:MISSING] == 0).all()
    # the first channel may differ where padding in the second decides which voxels are the patient's
    assert cut[0][body].mean() == pytest.approx(full[0][body].mean(), abs=0.1)
    if not bias_field:
        kept = forward(padded, SPACING, replace(config, keep_padding=True))[0]
        assert (kept[1][:MISSING] != 0).all()


def test_missing_slices_of_a_stripped_scan_are_left_out_and_its_background_stays():
    (whole, padded), body = two_channels(0.0, stripped=True)
    config = PreprocessingConfig(
        "nonzero", (ChannelNormalization(foreground_only=True),) * 2, grid="native", crop_margin_mm=12
    )
    full, transform = forward(whole, SPACING, config)
    cut, _ = forward(padded, SPACING, config)
    low, _ = transform.box[0]
    inside = body[tuple(slice(a, b) for a, b in transform.box)].copy()
    inside[: MISSING - low] = False
    assert full[1][inside].mean() == pytest.approx(0, abs=0.05)
    assert cut[1][inside].mean() == pytest.approx(full[1][inside].mean(), abs=0.05)
    assert cut[1][inside].std() == pytest.approx(full[1][inside].std(), rel=0.05)
    assert (cut[1][: MISSING - low] == 0).all()
    assert np.allclose(cut[0], full[0], atol=1e-5)
    edge = whole.copy()
    first = np.flatnonzero(edge[1].any(axis=(1, 2)))[0]
    edge[1, first, 30:] = 0
    edge[1, :, np.flatnonzero(edge[1].any(axis=(0, 2)))[0]] = 0  # the brain's edge differs by a few voxels
    assert own_contents(edge, stripped=True) == []
