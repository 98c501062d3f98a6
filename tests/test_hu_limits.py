"""Classes kept off what is too dark for them in a CT: how the floors are decided, and that they are obeyed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mre_lowshot.inference.floors import joint_floors, keep_above
from mre_lowshot.planners.fold import decide, hu_floors_rule
from mre_lowshot.preprocessing.normalization import normalize, smoothed
from mre_lowshot.specs import ChannelNormalization, FoldDecisions, HuFloor
from mre_lowshot.volume import read_image, read_labels

CT, MRI = ChannelNormalization("clip", lower=-200, upper=300), ChannelNormalization("zscore")


def blocks(hu: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """An image (1, 10, 10, 10 n) in HU of n blocks side by side, and their labels."""
    label = np.repeat(np.asarray(list(hu), np.int16), 10)[None, None, :] * np.ones((10, 10, 1), np.int16)
    return np.vectorize(hu.get)(label).astype(np.float32)[None], label


def test_a_floor_lies_below_the_darkest_voxels_of_a_class_and_never_above_water():
    image, label = blocks({1: 150.0, 2: 20.0, 3: -100.0, 4: -150.0})
    prepared = normalize(image, (CT,))
    grey = smoothed(prepared[0]) * 500 - 200
    floors, reason = hu_floors_rule([prepared], [label], 6, (CT,))
    assert [(f.label, f.channel) for f in floors] == [(1, 0), (2, 0), (3, 0)]  # 4: the window ends first; 5: nowhere
    assert floors[0].hu == 0
    for floor in floors[1:]:
        assert floor.hu == pytest.approx(np.percentile(grey[label == floor.label], 2) - 60, abs=0.06)
    assert "60 HU below" in reason
    darker = normalize(image - 30, (CT,))
    both = hu_floors_rule([prepared, darker], [label, label], 6, (CT,))[0]
    assert [f.hu for f in both if f.label == 2] == [pytest.approx(floors[1].hu - 30, abs=0.11)]  # the darkest decides
    assert hu_floors_rule([prepared], [label], 6, (MRI,))[0] == ()
    second = hu_floors_rule([np.concatenate([-prepared, prepared])], [label], 6, (MRI, CT))[0]
    assert second == tuple(replace(f, channel=1) for f in floors)


@given(st.integers(0, 2**32 - 1))
def test_floors_take_dark_voxels_from_a_class_and_give_them_to_the_others(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(4), (3, 4, 5)).transpose(3, 0, 1, 2).astype(np.float32)
    probabilities[:, 0, 0, 0] = (0, 0.5, 0.5, 0)  # nothing is left of it where both are refused
    image = rng.normal(0, 1, (2, 3, 4, 5)).astype(np.float32)
    image[:, 0, :2, :2] = -9
    floors = (HuFloor(1, 0, -0.2), HuFloor(2, 1, 0.1), HuFloor(2, 0, -1.0))
    before = probabilities.copy()
    keep_above(probabilities, image, floors)
    grey = [smoothed(channel) for channel in image]
    for at in np.ndindex(3, 4, 5):
        left = before[(slice(None), *at)].astype(float)
        for floor in floors:
            if grey[floor.channel][at] < floor.hu:
                left[floor.label] = 0
        left = left / left.sum() if left.sum() else np.array([1.0, 0, 0, 0])
        assert np.allclose(probabilities[(slice(None), *at)], left, atol=1e-6)
    assert probabilities[:, 0, 0, 0].tolist() == [1, 0, 0, 0]
    untouched = before.copy()
    keep_above(untouched, image, ())
    assert np.array_equal(untouched, before)


def test_several_folds_allow_a_class_what_any_of_them_saw(trained):
    from mre_lowshot.codec import from_json
    from mre_lowshot.specs import Plan

    file = trained.model() / "fold_0/plans.json"
    plan = from_json(Plan, json.loads(file.read_text()), str(file))

    def with_floors(*floors: HuFloor) -> Plan:
        fold: FoldDecisions = replace(plan.fold, hu_floors=floors)
        return replace(plan, fold=fold)

    one = with_floors(HuFloor(1, 0, -20.0), HuFloor(2, 0, -30.0))
    other = with_floors(HuFloor(1, 0, -50.0))
    window = plan.preprocessing.normalization[0]
    assert (window.lower, window.upper) == (-210, 290)
    assert joint_floors([one, other]) == (HuFloor(1, 0, pytest.approx(160 / 500)),)
    assert len(joint_floors([one])) == 2
    assert joint_floors([one, replace(plan, fold=None)]) == ()
    off = replace(plan, recipe=replace(plan.recipe, hu_floors=False))
    label = np.ones((4, 4, 4), np.int16)
    image = np.full((1, 4, 4, 4), 0.9, np.float32)
    assert decide(plan, "1shot", 0, ["a"], [], [label], 0, [image]).hu_floors[0].hu == 0
    assert decide(off, "1shot", 0, ["a"], [], [label], 0, [image]).hu_floors == ()


def test_predict_obeys_the_floors_of_the_checkpoint(space, tmp_path, no_settings):
    """A trained CT model has floors, with their reason; raised above all that the scan shows, they leave nothing."""
    fold = json.loads((space.model() / "fold_0/plans.json").read_text())["fold"]
    assert fold["hu_floors"]
    assert all(f["hu"] <= 0 for f in fold["hu_floors"])
    assert "HU below" in fold["reasons"]["hu_floors"]
    scan = space.raw / "imagesTr/phantom_002_0000.nii.gz"
    assert space.predict(scan, tmp_path / "as_trained") == 0
    kept = read_labels(tmp_path / "as_trained/phantom_002.nii.gz").array
    raised = [f["label"] for f in fold["hu_floors"]]
    assert np.isin(kept, raised).any()
    path = space.model() / "fold_0/checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    for floor in content["plan"]["fold"]["hu_floors"]:
        floor["hu"] = float(read_image(scan).array.max()) + 1000
    torch.save(content, path)
    assert space.predict(scan, tmp_path / "raised") == 0
    assert not np.isin(read_labels(tmp_path / "raised/phantom_002.nii.gz").array, raised).any()
