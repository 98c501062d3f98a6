"""Which start an affine registration chooses."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from mre_lowshot.atlas.registration import affine

sitk = pytest.importorskip("SimpleITK")


def test_a_start_that_fits_only_one_end_of_the_other_scan_is_not_chosen(monkeypatch):
    """``fixed`` lies in ``moving`` twice: small and clear at one end, which leaves most of ``moving`` unexplained, and
    less clear all along it. Measured over ``fixed`` alone the small one fits better."""
    random = np.random.default_rng(0)
    scan = gaussian_filter(random.normal(size=(48, 24, 24)), 1.5)
    scan /= scan.std()
    noise = gaussian_filter(random.normal(size=(80, 24, 24)), 1.5)
    long = zoom(scan, (80 / 48, 1, 1), order=1) + 0.7 * noise / noise.std()
    moving = np.concatenate([zoom(scan, (16 / 48, 1, 1), order=1), long]).astype(np.float32)
    starts = []
    for low, length in ((0, 16), (16, 80)):
        start = sitk.AffineTransform(3)
        start.SetMatrix((1, 0, 0, 0, 1, 0, 0, 0, (length - 1) / 47))
        start.SetTranslation((0, 0, low))
        starts.append(start)
    monkeypatch.setattr(affine, "_starts", lambda *_: starts)
    monkeypatch.setattr(affine, "_descend", lambda fixed, moving, start, *_: start)
    monkeypatch.setattr(affine, "downsampled", lambda image, _: image)
    one, other = sitk.GetImageFromArray(scan.astype(np.float32)), sitk.GetImageFromArray(moving)
    small, whole = (affine._correlation(affine.locally_normalised(one), other, start) for start in starts)
    assert small > whole
    assert affine.affine(one, other) is starts[1]


@pytest.mark.usefixtures("all_starts")
def test_a_scan_is_laid_on_both_ends_of_the_other_and_in_between(monkeypatch):
    """At its own size, and scaled to the other's width and depth."""
    one, other = sitk.GetImageFromArray(np.zeros((40, 10, 20), np.float32)), sitk.Image(10, 30, 80, sitk.sitkFloat32)
    tried = []
    monkeypatch.setattr(affine, "_descend", lambda fixed, moving, start, *_: tried.append(start) or start)
    monkeypatch.setattr(affine, "_correlation", lambda *_: 0.0)
    affine.affine(one, other)
    *starts, last = tried
    assert last is starts[0]  # of equal ones the first is refined
    found = {
        (tuple(np.diag(np.reshape(s.GetMatrix(), (3, 3)))), round(s.TransformPoint((9.5, 4.5, 19.5))[2], 3))
        for s in starts
    }
    middle, scales = 39.5, [(1.0, 1.0, 1.0), (0.5, 3.0, 1.5**0.5)]
    assert found == {(s, round(middle + part * 40, 3)) for s in scales for part in (-0.4, -0.2, 0.0, 0.2, 0.4)}
