"""The baseline sSE-guided few-shot segmentation: its equations against loops, the pairing of slices, and a fold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from baseline_folds import ellipsoids, mean_dice, toy_fold
from references import EVERYTHING, NONE, single_thread, tiny_plan  # noqa: F401

from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines import sse
from mre_lowshot.experiments.baselines.common import nearest_to_average
from mre_lowshot.experiments.baselines.sse_network import SpatialExcitation, TwoArms, dice_loss
from mre_lowshot.experiments.baselines.sse_pairs import PairSampler
from mre_lowshot.experiments.baselines.sse_slices import (
    groups_of_queries,
    mask_to_network,
    merge_classes,
    network_size,
    slices_with,
    support_slices,
)
from mre_lowshot.grid import IGNORE
from mre_lowshot.sampling import TrainingCase


def test_excitation_weights_each_pixel_by_the_sigmoid_of_its_channels():
    torch.manual_seed(0)
    excite, features = SpatialExcitation(3), torch.randn(2, 3, 4, 5)
    gate = excite(features).detach()
    weights, bias = (p.detach().flatten() for p in excite.squeeze.parameters())
    assert gate.shape == (2, 1, 4, 5)
    for b, y, x in ((0, 0, 0), (1, 3, 4), (0, 2, 1)):
        value = sum(float(w) * float(f) for w, f in zip(weights, features[b, :, y, x], strict=True)) + float(bias)
        assert float(gate[b, 0, y, x]) == pytest.approx(1 / (1 + np.exp(-value)), rel=1e-5)


def test_the_gates_of_the_support_multiply_the_segmenter_at_all_nine_levels():
    torch.manual_seed(0)
    network = TwoArms(1, conditioner=2, segmenter=3).eval()
    query, ones = torch.randn(1, 1, 32, 16), [torch.ones(1)] * 9
    gates = network.gates(torch.randn(1, 1, 32, 16), torch.ones(1, 32, 16))
    assert [g.shape[2] for g in gates] == [16, 8, 4, 2, 2, 4, 8, 16, 32]
    assert torch.equal(network.segmenter(query)[-1], network.segmenter(query, ones)[-1])
    for level in range(9):
        halved = [one * (0.5 if n == level else 1) for n, one in enumerate(ones)]
        plain, changed = network.segmenter(query, ones), network.segmenter(query, halved)
        torch.testing.assert_close(changed[level], plain[level] / 2)
        assert all(torch.equal(a, b) for a, b in zip(plain[:level], changed[:level], strict=True))


def test_dice_loss_is_the_mean_over_background_and_foreground_of_the_annotated_pixels():
    logits = torch.tensor([[[2.0, -1.0], [0.0, 3.0]]])
    mask, known = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    p = [1 / (1 + np.exp(-v)) for v in (2, -1, 0)]
    inside = 1 - (2 * (p[0] + p[2]) + 1e-4) / (sum(p) + 2 + 1e-4)
    outside = 1 - (2 * (1 - p[1]) + 1e-4) / (3 - sum(p) + 1 + 1e-4)
    assert float(dice_loss(logits, mask, known)) == pytest.approx((inside + outside) / 2, rel=1e-5)


def test_support_slices_are_the_middles_of_k_groups():
    assert support_slices((10, 29), 10) == [11, 13, 15, 17, 19, 21, 23, 25, 27, 29]
    assert support_slices((10, 39), 3) == [15, 25, 35]
    assert support_slices((4, 6), 10) == support_slices((4, 6), None) == [4, 5, 6]


def test_query_slices_are_grouped_within_a_given_extent():
    groups = groups_of_queries(50, 3, support_extent=(10, 39), support_depth=60, query_extent=(20, 28))
    assert groups == {0: [20, 21, 22], 1: [23, 24, 25], 2: [26, 27, 28]}


def test_without_an_extent_a_query_slice_has_its_position_in_the_volume():
    groups = groups_of_queries(12, 2, support_extent=(4, 7), support_depth=24)  # a sixth to a third of the volume
    assert groups == {0: [0, 1, 2], 1: [3, 4, 5, 6, 7, 8, 9, 10, 11]}
    assert sorted(z for group in groups.values() for z in group) == list(range(12))  # every slice is segmented
    own = groups_of_queries(24, 4, support_extent=(4, 7), support_depth=24)
    assert [own[g][-1] for g in range(3)] == [4, 5, 6]
    assert own[3][0] == 7


def test_slices_in_the_network_and_back():
    assert network_size((51, 36), 128) == (64, 48)
    assert network_size((512, 256), 128) == (128, 64)
    mask = np.zeros((3, 20, 20), bool)
    mask[1, :2, :6] = mask[2, 0, 0] = True
    assert list(slices_with(mask)) == [1]
    assert list(slices_with(mask[2:])) == [0]  # a small structure has no slice with more
    assert float(mask_to_network(np.ones((2, 20, 20), bool), (32, 32)).min()) == pytest.approx(1)


def test_classes_are_merged_by_their_odds():
    logits = torch.tensor([[1.0, -1.0, 2.0], [0.5, -2.0, 3.0]])
    merged = merge_classes(logits)
    for voxel in range(3):
        odds = [1.0, *np.exp(logits[:, voxel].numpy()).tolist()]
        np.testing.assert_allclose(merged[:, voxel], [o / sum(odds) for o in odds], rtol=1e-5)
    assert merged.argmax(dim=0).tolist() == [1, 0, 2]


def pairs(spec=NONE, label=None) -> PairSampler:
    case = ellipsoids(0)
    cases = [TrainingCase(case.image, case.label if label is None else label, (1.0, 1.0, 1.0))]
    return PairSampler(cases, 4, size=(32, 32), batch=2, augmentation=spec, seed=0)


def test_pairs_hold_a_class_that_occurs_and_leave_out_what_is_not_annotated():
    label = ellipsoids(0).label.copy()
    label[:, :4] = IGNORE
    sampler = pairs(label=label)
    assert sampler.classes == [1, 2]  # class 3 does not occur
    for n in range(6):
        batch = sampler[n]
        assert batch.support.shape == batch.query.shape == (2, 1, 32, 32)
        assert all(float(mask.sum()) > 5 for mask in (*batch.support_mask, *batch.query_mask))
        assert float(batch.query_known[:, :7].max()) == 0
        assert float(batch.query_known[:, 9:].min()) == 1


def test_augmentation_changes_pairs_reproducibly():
    plain, augmented, again = pairs()[3], pairs(EVERYTHING)[3], pairs(EVERYTHING)[3]
    assert all(torch.equal(a, b) for a, b in zip(augmented, again, strict=True))
    assert not torch.equal(plain.query, augmented.query)


@pytest.fixture
def quick(monkeypatch):
    """A small network that learns in a few iterations."""
    monkeypatch.setattr(sse, "SMALL", sse.Size(4, 16, 32))
    monkeypatch.setattr(sse, "LEARNING_RATE", 0.02)
    monkeypatch.setattr(sse, "MOMENTUM", 0.9)


def test_a_fold_is_learned(tmp_path, quick):
    lines = []
    segment = sse.BASELINES["sse_10"].fit(
        toy_fold(tmp_path, train=[ellipsoids(0, (12, 24, 20))], iterations=250, log=lines.append)
    )
    scan = ellipsoids(7, (10, 22, 24))  # another grid than the support's
    found = segment(replace(scan, label=None))
    assert found.shape == (3, 10, 22, 24)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    assert mean_dice(found, scan.label) > 0.4
    assert any("nothing is known" in line for line in lines)


def test_a_seed_gives_the_same_result_and_the_label_of_a_query_does_not_matter(tmp_path, quick):
    scan = ellipsoids(7)
    one, other, third = (sse.fit(toy_fold(tmp_path, iterations=1, seed=seed), k=10) for seed in (0, 0, 1))
    assert np.array_equal(one(scan), other(replace(scan, label=None)))
    assert not np.array_equal(one(scan), third(scan))


def test_given_extents_leave_the_other_slices_background(tmp_path, quick):
    found = sse.fit(toy_fold(tmp_path, iterations=1), k=10).segment(ellipsoids(7), {1: (3, 6)})
    assert found[1, 3:7].min() > 1e-3
    assert max(found[1, :3].max(), found[1, 7:].max(), found[2].max()) < 1e-6


def test_training_ends_when_the_loss_no_longer_falls(tmp_path, monkeypatch):
    monkeypatch.setattr(sse, "EPOCH", 1)
    monkeypatch.setattr(sse, "LEARNING_RATE", 1e-12)
    monkeypatch.setattr(sse, "dice_loss", lambda *a: dice_loss(*a) * 0 + 1)
    monkeypatch.setattr(sse, "SMALL", sse.Size(1, 1, 16))
    lines = []
    sse.fit(toy_fold(tmp_path, log=lines.append), k=None)
    assert lines[-1] == f"converged after {1 + sse.PATIENCE * (sse.DROPS + 1)} iterations"


def test_volumes_without_a_class_are_refused(tmp_path):
    empty = replace(ellipsoids(0), label=np.zeros_like(ellipsoids(0).label))
    with pytest.raises(UserError, match="scan0 hold background only"):
        sse.fit(toy_fold(tmp_path, train=[empty]), k=10)


def test_of_several_labelled_scans_the_one_nearest_to_their_average_is_taken():
    scans = [ellipsoids(0), ellipsoids(1), ellipsoids(2)]
    scans[1] = replace(scans[1], image=(scans[0].image + scans[2].image) / 2)
    assert nearest_to_average(scans) == 1
