"""Probabilities on the scan's own grid: written class by class, equal to the bit to those in memory."""

import tracemalloc

import numpy as np
import pytest

from mre_lowshot.config import ChannelNormalization, PreprocessingConfig
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.errors import UserError
from mre_lowshot.inference.export import EMPTY, RefinedScan, check_probabilities, export_scan
from mre_lowshot.inference.quality import Quality
from mre_lowshot.preprocessing.pipeline import forward

SHAPE, CLASSES = (12, 40, 44), 30


def refined(*, scales: bool) -> RefinedScan:
    """Thirty classes of a scan that is resampled from 12 x 40 x 44 to 6 x 20 x 22 voxels, inside a margin of zeros."""
    rng = np.random.default_rng(0)
    image = np.zeros((1, *SHAPE), np.float32)
    image[:, 1:-1, 3:-3, 3:-3] = rng.random((1, 10, 34, 38), np.float32)
    config = PreprocessingConfig("nonzero", (ChannelNormalization(),), "size", size=(6, 20, 22))
    _, transform = forward(image, (1.0, 1.0, 1.0), config)
    probabilities = rng.random((CLASSES, 6, 20, 22)).astype(np.float32) ** 8
    probabilities /= probabilities.sum(axis=0)
    quality = Quality("agreement", 0.2, {1: 0.2})
    return RefinedScan("a", probabilities, quality, transform, Geometry(SHAPE, (1.0, 1.0, 1.0)), scales)


@pytest.mark.parametrize("scales", [False, True])
def test_written_probabilities_are_those_in_memory(scales, tmp_path):
    scan = refined(scales=scales)
    prediction = export_scan(scan, {"background": 0, "organ": 1})
    assert (scan.temperature > 1) == scales
    prediction.save(tmp_path / "a.NII.GZ", probabilities=True)
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["probabilities"].dtype == np.float32
        assert np.array_equal(stored["probabilities"], prediction.probabilities)
    assert prediction.probabilities.sum(axis=0) == pytest.approx(1, abs=1e-5)


def test_writing_holds_one_class_in_memory(tmp_path):
    scan = refined(scales=True)
    prediction = export_scan(scan, {"background": 0, "organ": 1})
    prediction.save_probabilities(tmp_path / "first.npz")  # imports and caches
    tracemalloc.start()
    try:
        prediction.save_probabilities(tmp_path / "a.npz")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    one_class = 4 * np.prod(SHAPE)
    assert most < 12 * one_class  # all of them would be 30


def test_a_file_that_was_cut_off_is_recognised(tmp_path):
    prediction = export_scan(refined(scales=False), {"background": 0, "organ": 1})
    prediction.save_probabilities(tmp_path / "a.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    check_probabilities(tmp_path / "a.npz")
    np.savez(tmp_path / "other.npz", labels=np.zeros(3))
    for content in (b"", whole[:-1], whole[:1000], (tmp_path / "other.npz").read_bytes()):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(UserError, match="holds no probabilities, or was cut off"):
            check_probabilities(tmp_path / "b.npz")


def test_a_label_map_without_any_structure_has_a_warning():
    scan = refined(scales=False)
    assert export_scan(scan, {"background": 0, "organ": 1}).warnings == ()
    scan.probabilities[0] = 2
    assert export_scan(scan, {"background": 0, "organ": 1}).warnings == (EMPTY,)
