"""Lower HU limits of classes in CT: how they are derived from the training labels, and that they are applied."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import with_settings

from mre_lowshot.config import ChannelNormalization, MinHu, Plan
from mre_lowshot.config.json import from_json
from mre_lowshot.data.volume import read_image, read_labels
from mre_lowshot.inference.ensemble import ensemble_hu_limits
from mre_lowshot.planners.fold import decide_fold, min_hu_rule
from mre_lowshot.preprocessing.normalization import normalize, smoothed
from mre_lowshot.refinement.hu_limits import apply_min_hu

CT, MRI = ChannelNormalization("clip", lower=-200, upper=300), ChannelNormalization("zscore")


def blocks(hu: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """An image (1, 10, 10, 10 n) in HU of n blocks side by side, and their labels."""
    label = np.repeat(np.asarray(list(hu), np.int16), 10)[None, None, :] * np.ones((10, 10, 1), np.int16)
    return np.vectorize(hu.get)(label).astype(np.float32)[None], label


def test_a_limit_lies_below_the_darkest_voxels_of_a_class_and_never_above_water():
    image, label = blocks({1: 150.0, 2: 20.0, 3: -100.0, 4: -150.0})
    prepared = normalize(image, (CT,))
    grey = smoothed(prepared[0]) * 500 - 200
    limits, reason = min_hu_rule([prepared], [label], 6, (CT,))
    # none of 4, for which the window ends first, and none of 5, which does not occur
    assert [(limit.label, limit.channel) for limit in limits] == [(1, 0), (2, 0), (3, 0)]
    assert limits[0].value == 0
    for limit in limits[1:]:
        assert limit.value == pytest.approx(np.percentile(grey[label == limit.label], 2) - 60, abs=0.06)
    assert "60 HU below" in reason
    darker = normalize(image - 30, (CT,))
    both = min_hu_rule([prepared, darker], [label, label], 6, (CT,))[0]
    second_class = [limit.value for limit in both if limit.label == 2]
    assert second_class == [pytest.approx(limits[1].value - 30, abs=0.11)]  # the darkest scan determines it
    assert min_hu_rule([prepared], [label], 6, (MRI,))[0] == ()
    of_second = min_hu_rule([np.concatenate([-prepared, prepared])], [label], 6, (MRI, CT))[0]
    assert of_second == tuple(replace(limit, channel=1) for limit in limits)


@given(st.integers(0, 2**32 - 1))
def test_limits_remove_a_class_from_dark_voxels_in_favour_of_the_others(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(4), (3, 4, 5)).transpose(3, 0, 1, 2).astype(np.float32)
    probabilities[:, 0, 0, 0] = (0, 0.5, 0.5, 0)  # no class is left where both are removed
    image = rng.normal(0, 1, (2, 3, 4, 5)).astype(np.float32)
    image[:, 0, :2, :2] = -9
    limits = (MinHu(1, 0, -0.2), MinHu(2, 1, 0.1), MinHu(2, 0, -1.0))
    before = probabilities.copy()
    apply_min_hu(probabilities, image, limits)
    grey = [smoothed(channel) for channel in image]
    for at in np.ndindex(3, 4, 5):
        left = before[(slice(None), *at)].astype(float)
        for limit in limits:
            if grey[limit.channel][at] < limit.value:
                left[limit.label] = 0
        left = left / left.sum() if left.sum() else np.array([1.0, 0, 0, 0])
        assert np.allclose(probabilities[(slice(None), *at)], left, atol=1e-6)
    assert probabilities[:, 0, 0, 0].tolist() == [1, 0, 0, 0]
    untouched = before.copy()
    apply_min_hu(untouched, image, ())
    assert np.array_equal(untouched, before)


def test_the_limit_of_several_folds_is_the_lowest_and_none_where_a_fold_has_none(trained):
    file = trained.model() / "fold_0/plans.json"
    plan = from_json(Plan, json.loads(file.read_text()), str(file))

    def with_limits(*limits: MinHu) -> Plan:
        return replace(plan, fold=replace(plan.fold, min_hu=limits))

    one = with_limits(MinHu(1, 0, -20.0), MinHu(2, 0, -30.0))
    other = with_limits(MinHu(1, 0, -50.0))
    window = plan.preprocessing.normalization[0]
    assert (window.lower, window.upper) == (-210, 290)
    (limit,) = ensemble_hu_limits([one, other])
    assert (limit.label, limit.channel, limit.value) == (1, 0, pytest.approx(160 / 500))
    assert len(ensemble_hu_limits([one])) == 2
    assert ensemble_hu_limits([one, replace(plan, fold=None)]) == ()


def test_a_fold_decides_limits_where_the_recipe_wants_them(trained):
    file = trained.model() / "fold_0/plans.json"
    plan = from_json(Plan, json.loads(file.read_text()), str(file))
    off = replace(plan, recipe=with_settings(plan.recipe, min_hu=False))
    label = np.ones((4, 4, 4), np.int16)
    image = np.full((1, 4, 4, 4), 0.9, np.float32)
    case = {"level": "1shot", "fold": 0, "train": ["a"], "test": [], "labels": [label], "seed": 0, "images": [image]}
    assert decide_fold(plan, **case).min_hu[0].value == 0
    assert decide_fold(off, **case).min_hu == ()


def test_predict_applies_the_limits_of_the_checkpoint(space, tmp_path, no_settings):
    """A trained CT model has limits, with their reason; above all voxels of a scan they remove the classes."""
    fold = json.loads((space.model() / "fold_0/plans.json").read_text())["fold"]
    assert fold["min_hu"]
    assert all(limit["value"] <= 0 for limit in fold["min_hu"])
    assert "HU below" in fold["reasons"]["min_hu"]
    scan = space.raw / "imagesTr/phantom_002_0000.nii.gz"
    assert space.predict(scan, tmp_path / "as_trained") == 0
    kept = read_labels(tmp_path / "as_trained/phantom_002.nii.gz").array
    raised = [limit["label"] for limit in fold["min_hu"]]
    assert np.isin(kept, raised).any()
    path = space.model() / "fold_0/checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    for limit in content["plan"]["fold"]["min_hu"]:
        limit["value"] = float(read_image(scan).array.max()) + 1000
    torch.save(content, path)
    assert space.predict(scan, tmp_path / "raised") == 0
    assert not np.isin(read_labels(tmp_path / "raised/phantom_002.nii.gz").array, raised).any()
