"""Metrics against figures worked out by hand, a slow plain reference, SimpleITK and MedPy."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mre_lowshot.evaluation.metrics import PROFILES, case_metrics, counts, dice, hd95, image_diagonal, surface_distances

UNIT = (1.0, 1.0, 1.0)
ANISOTROPIC = (3.0, 0.5, 0.75)


def box(shape, *sides):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def blobs(seed, shape=(7, 12, 11)):
    """Two overlapping, ragged masks; some voxels touch the image's edge."""
    rng = np.random.default_rng(seed)
    core = box(shape, (2, 6), (3, 9), (0, 7))
    return core ^ (rng.random(shape) < 0.1), np.roll(core, 1, 2) ^ (rng.random(shape) < 0.05)


def slow_surface(mask):
    """A mask voxel with one of its six neighbours (four in a one-slice volume) outside the mask or the image."""
    found = []
    for index in map(tuple, np.argwhere(mask)):
        for axis in range(3):
            for step in (-1, 1):
                other = list(index)
                other[axis] += step
                inside = all(0 <= o < n for o, n in zip(other, mask.shape, strict=True))
                if mask.shape[axis] > 1 and not (inside and mask[tuple(other)]):
                    found.append(index)
    return np.array(sorted(set(found)))


def slow_distances(a, b, spacing):
    here, there = slow_surface(a) * np.array(spacing), slow_surface(b) * np.array(spacing)
    pairs = np.sqrt(((here[:, None] - there[None]) ** 2).sum(-1))
    return pairs.min(1), pairs.min(0)


def test_counts_and_overlap_by_hand():
    reference, prediction = box((2, 4, 5), (0, 1), (0, 2), (0, 3)), box((2, 4, 5), (0, 2), (0, 2), (1, 3))
    assert counts(reference, prediction) == {"TP": 4, "FP": 4, "FN": 2, "TN": 30, "n_pred": 8, "n_ref": 6}
    assert dice(reference, prediction) == pytest.approx(8 / 14)
    row = case_metrics(reference * 7, prediction * 7, {"organ": 7}, (2.0, 0.5, 10.0))[7]
    assert row["IoU"] == pytest.approx(4 / 10)
    assert (row["volume_ref_ml"], row["volume_pred_ml"]) == (pytest.approx(0.06), pytest.approx(0.08))


def test_empty_masks():
    empty, full = np.zeros((3, 4, 5), int), np.ones((3, 4, 5), int)
    assert math.isnan(dice(empty > 0, empty > 0))
    assert dice(full > 0, empty > 0) == dice(empty > 0, full > 0) == 0
    both = case_metrics(empty, empty, {"a": 1}, UNIT)[1]
    assert all(math.isnan(both[m]) for m in ("Dice", "IoU", "HD95", "HD95_diagonal"))
    for reference, prediction in ((empty, full), (full, empty)):
        row = case_metrics(reference, prediction, {"a": 1}, (2.0, 3.0, 4.0))[1]
        assert (row["Dice"], row["IoU"]) == (0, 0)
        assert math.isnan(row["HD95"])
        assert row["HD95_diagonal"] == pytest.approx(math.sqrt(6**2 + 12**2 + 20**2))
    assert image_diagonal((1, 3, 4), (5.0, 1.0, 1.0)) == 5  # a slice has no depth


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("axis", "expected"), [(0, 3.0), (1, 1.0), (2, 1.5)])
def test_hd95_of_a_shift_is_the_shift_in_mm(profile, axis, expected):
    """A plate moved across itself: by one voxel along z (3 mm), by two along y or x."""
    sides = [(2, 10)] * 3
    sides[axis] = (5, 6)
    plate = box((12, 12, 12), *sides)
    moved = np.roll(plate, 1 if axis == 0 else 2, axis)
    assert hd95(plate, moved, ANISOTROPIC, profile) == pytest.approx(expected)


def test_medpy_hides_small_false_positives_and_default_does_not():
    """100 single voxels found, 7 more predicted: over 5 % of the prediction's surface, under 5 % of both together."""
    reference = np.zeros((1, 1, 400), bool)
    reference[..., :200:2] = True
    prediction = reference.copy()
    prediction[..., 300:314:2] = True
    far = np.percentile([0] * 100 + [102 + 2 * i for i in range(7)], 95)  # the last found voxel is number 198
    assert hd95(reference, prediction, UNIT) == hd95(prediction, reference, UNIT) == pytest.approx(far)
    assert far > 100
    assert hd95(reference, prediction, UNIT, "medpy") == 0


def test_one_slice_is_not_all_surface():
    disc = box((1, 20, 20), (0, 1), (4, 16), (4, 16))
    hollow = disc & ~box((1, 20, 20), (0, 1), (9, 11), (9, 11))
    there, _ = surface_distances(disc, hollow, UNIT)
    assert len(there) == 4 * 12 - 4  # the outline only
    assert hd95(disc, disc & ~box((1, 20, 20), (0, 1), (4, 5), (0, 20)), UNIT) == pytest.approx(1)


def test_voxels_at_the_edge_of_the_image_are_surface():
    full = np.ones((5, 5, 5), bool)
    here, _ = surface_distances(full, full, UNIT)
    assert len(here) == 5**3 - 3**3
    assert surface_distances(full, full, UNIT, "mrbrains18") is None  # for the challenge the edge is no edge
    inside = box((5, 9, 9), (1, 4), (2, 7), (3, 8))  # away from it there is a ring in each of the three slices
    here, _ = surface_distances(inside, inside, UNIT, "mrbrains18")
    assert len(here) == 3 * 16


@pytest.mark.parametrize("spacing", [UNIT, ANISOTROPIC])
@pytest.mark.parametrize("shape", [(7, 12, 11), (1, 30, 25), (9, 20, 1)])
def test_against_slow_reference(spacing, shape):
    a, b = blobs(3, shape) if shape[0] == 7 else [np.random.default_rng(s).random(shape) < 0.8 for s in (1, 2)]
    slow = slow_distances(a, b, spacing)
    for fast, expected in zip(surface_distances(a, b, spacing), slow, strict=True):
        np.testing.assert_allclose(fast, expected)
    assert hd95(a, b, spacing) == pytest.approx(max(np.percentile(d, 95) for d in slow))
    assert hd95(a, b, spacing, "medpy") == pytest.approx(np.percentile(np.concatenate(slow), 95))


@pytest.mark.parametrize("seed", range(4))
def test_against_simpleitk(seed):
    """Dice and IoU by LabelOverlapMeasures; the full Hausdorff distance (100th percentile) by its own filter."""
    # closed solids without holes: there the farthest voxel of one from the other always lies on the surface
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 4, 3)
    a, b = box((9, 12, 11), (2, 7), (3, 9), (0, 7)), box((9, 12, 11), *((s, s + 5) for s in start))
    images = [sitk.GetImageFromArray(m.astype(np.uint8)) for m in (a, b)]
    for image in images:
        image.SetSpacing(ANISOTROPIC[::-1])
    overlap, full = sitk.LabelOverlapMeasuresImageFilter(), sitk.HausdorffDistanceImageFilter()
    overlap.Execute(*images)
    full.Execute(*images)
    row = case_metrics(a.astype(int), b.astype(int), {"a": 1}, ANISOTROPIC)[1]
    assert row["Dice"] == pytest.approx(overlap.GetDiceCoefficient(1), abs=1e-9)
    assert row["IoU"] == pytest.approx(overlap.GetJaccardCoefficient(1), abs=1e-9)
    assert max(d.max() for d in surface_distances(a, b, ANISOTROPIC)) == pytest.approx(full.GetHausdorffDistance())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spacing", [UNIT, ANISOTROPIC])
def test_medpy_profile_against_medpy(seed, spacing):
    binary = pytest.importorskip("medpy.metric.binary")
    a, b = blobs(seed)
    assert hd95(a, b, spacing, "medpy") == pytest.approx(binary.hd95(b, a, voxelspacing=spacing))
    flat = hd95(a[3:4], b[3:4], spacing, "medpy")
    assert flat == pytest.approx(binary.hd95(b[3], a[3], voxelspacing=spacing[1:]))


@pytest.mark.parametrize("seed", range(3))
def test_mrbrains18_profile_against_its_definition_in_simpleitk(seed):
    """Edge = mask less its in-plane BinaryErode; the larger of the directed 95th percentiles in world coordinates."""
    masks = blobs(seed)
    points = []
    for mask in masks:
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        edge = sitk.GetArrayFromImage(image - sitk.BinaryErode(image, (1, 1, 0)))
        points.append(np.argwhere(edge) * np.array(ANISOTROPIC))
    pairs = np.sqrt(((points[0][:, None] - points[1][None]) ** 2).sum(-1))
    expected = max(np.percentile(pairs.min(1), 95), np.percentile(pairs.min(0), 95))
    assert hd95(*masks, ANISOTROPIC, "mrbrains18") == pytest.approx(expected)


def test_ignored_voxels_leave_both_maps():
    reference = np.array([[[1, 1, 14, 14, 2, 0, 0, 0]]])
    prediction = np.array([[[1, 0, 1, 2, 2, 2, 14, 0]]])
    labels = {"a": 1, "b": 2}
    with_it, without = (
        case_metrics(reference, prediction, labels, UNIT, 14),
        case_metrics(np.delete(reference, [2, 3], 2), np.delete(prediction, [2, 3], 2), labels, UNIT),
    )
    for value in labels.values():
        for metric in ("Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref", "volume_pred_ml"):
            assert with_it[value][metric] == without[value][metric]
    assert with_it[1]["FP"] == 0
    assert case_metrics(reference, prediction, labels, UNIT)[1]["FP"] == 1
    # without the ignored false positive at the end the distance is the one gap's
    assert with_it[2]["HD95"] == pytest.approx(0.95)


def test_mrbrains18_ignores_reference_labels_9_and_10():
    reference, prediction = np.array([[[1, 1, 9, 10, 0]]]), np.array([[[1, 1, 1, 1, 0]]])
    assert case_metrics(reference, prediction, {"a": 1}, UNIT, profile="mrbrains18")[1]["Dice"] == 1
    assert case_metrics(reference, prediction, {"a": 1}, UNIT)[1]["Dice"] == pytest.approx(2 / 3)


def test_wrong_use_is_refused():
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(ValueError, match="'hausdorff' is not one of default, medpy, mrbrains18"):
        hd95(mask, mask, UNIT, "hausdorff")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="differ in shape"):
        case_metrics(np.ones((1, 2, 2), int), np.ones((2, 2, 2), int), {"a": 1}, UNIT)


maps = hnp.arrays(np.int8, hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=6), elements=st.integers(0, 2))
spacings = st.tuples(*[st.floats(0.2, 5)] * 3)


@settings(max_examples=60)
@given(data=st.data(), reference=maps, spacing=spacings, profile=st.sampled_from(PROFILES))
def test_symmetric_and_shift_invariant(data, reference, spacing, profile):
    prediction = data.draw(hnp.arrays(np.int8, reference.shape, elements=st.integers(0, 2)))
    a, b = reference == 1, prediction == 1
    forward, backward = hd95(a, b, spacing, profile), hd95(b, a, spacing, profile)
    assert forward == pytest.approx(backward, nan_ok=True)
    assert dice(a, b) == pytest.approx(dice(b, a), nan_ok=True)
    # away from the image's edge, where it lies does not matter
    near, far = [[np.pad(m, widths) for m in (a, b)] for widths in (1, ((1, 3), (4, 1), (2, 5)))]
    assert hd95(*near, spacing, profile) == pytest.approx(hd95(*far, spacing, profile), nan_ok=True)
    assert dice(*near) == pytest.approx(dice(a, b), nan_ok=True)


@settings(max_examples=40)
@given(reference=maps, spacing=spacings, profile=st.sampled_from(PROFILES))
def test_a_map_agrees_with_itself(reference, spacing, profile):
    reference = np.pad(reference, 1)
    for value, row in case_metrics(reference, reference.copy(), {"a": 1, "b": 2}, spacing, profile=profile).items():
        if (reference == value).any():
            assert (row["Dice"], row["IoU"], row["HD95"], row["HD95_diagonal"]) == (1, 1, 0, 0)
            assert row["FP"] == row["FN"] == 0
        else:
            assert all(math.isnan(row[m]) for m in ("Dice", "IoU", "HD95", "HD95_diagonal"))
