"""Doing to the images what the plan says, and undoing it on the scan's own grid."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from mre_lowshot.dataset import RawDataset
from mre_lowshot.errors import UserError
from mre_lowshot.preprocessing.cropping import body_box, centre_box, nonzero_box
from mre_lowshot.preprocessing.normalization import normalize
from mre_lowshot.preprocessing.pipeline import (
    GridTransform,
    find_box,
    forward,
    forward_labels,
    inverse_labels,
    inverse_probabilities,
)
from mre_lowshot.preprocessing.prepare import check_prepared, prepare_dataset, read_crops
from mre_lowshot.preprocessing.resampling import argmax_resized, resize_image, resize_labels, resize_linear
from mre_lowshot.preprocessing.store import PreparedCase, load_case, save_case
from mre_lowshot.specs import ChannelNormalization, NetworkSpec, PatchSpec, Plan, PreprocessingSpec, Recipe
from mre_lowshot.synthetic import make_subject
from mre_lowshot.volume import Geometry, read_labels, write_volume

ZSCORE, SPACING = (ChannelNormalization(),), (2.0, 1.0, 1.0)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def scan(shape=(14, 30, 26), seed=0, channels=1):
    """Noise on a constant background of -3, away from the borders."""
    image = np.full((channels, *shape), -3.0, np.float32)
    inside = tuple(slice(2, n - 3) for n in shape)
    image[(slice(None), *inside)] = np.random.default_rng(seed).normal(100, 30, image[(slice(None), *inside)].shape)
    return image


def ball(shape, centre, radius):
    z, y, x = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum(((a - c) / r) ** 2 for a, c, r in zip((z, y, x), centre, radius, strict=True)) <= 1


def one_hot(labels, classes):
    return np.stack([labels == k for k in range(classes)]).astype(np.float32)


def spec(crop="none", grid="native", **fields):
    return PreprocessingSpec(crop, fields.pop("normalization", ZSCORE), grid, **fields)


BOX = ((3, 9), (5, 25), (1, 20))
CROPS = {"none": ((0, 14), (0, 30), (0, 26)), "nonzero": ((2, 11), (2, 27), (2, 23)), "given": BOX,
         "centre": ((0, 14), (1, 28), (1, 24))}  # fmt: skip


@pytest.mark.parametrize("crop", CROPS)
def test_labels_come_back_on_the_native_grid_with_background_outside_the_crop(crop):
    labels = np.random.default_rng(1).integers(0, 4, (14, 30, 26))
    image, transform = forward(scan(), SPACING, spec(crop), BOX)
    assert transform.box == CROPS[crop]
    assert image.dtype == np.float32
    assert image.shape[1:] == transform.size
    cut = forward_labels(labels, transform)
    inside = np.zeros(labels.shape, bool)
    inside[tuple(slice(*side) for side in transform.box)] = True
    probabilities = one_hot(cut, 4)
    assert np.array_equal(inverse_labels(probabilities, transform), np.where(inside, labels, 0))
    native = inverse_probabilities(probabilities, transform)
    assert np.array_equal(native, one_hot(np.where(inside, labels, 0), 4))


COARSER = {"spacing": {"spacing": (2.6, 1.3, 1.3)}, "size": {"size": (15, 30, 23)}}


@pytest.mark.parametrize("grid", COARSER)
def test_a_smooth_shape_survives_a_coarser_grid(grid):
    labels = np.zeros((24, 40, 36), np.int16)
    labels[ball(labels.shape, (12, 18, 16), (8, 12, 11))] = 1
    labels[ball(labels.shape, (12, 18, 16), (4, 6, 6))] = 2
    _, transform = forward(scan(labels.shape), SPACING, spec("nonzero", grid, **COARSER[grid]))
    back = inverse_labels(one_hot(forward_labels(labels, transform), 3), transform)
    for label in (1, 2):
        assert 2 * ((back == label) & (labels == label)).sum() / ((back == label).sum() + (labels == label).sum()) > 0.9


def test_the_grid_follows_from_crop_and_spacing():
    _, transform = forward(scan(), SPACING, spec("given", "spacing", spacing=(4.0, 0.5, 1.3)), BOX)
    assert transform.size == (3, 40, 15)  # 6 * 2 / 4, 20 / 0.5, 19 / 1.3
    assert transform.spacing == pytest.approx((4.0, 0.5, 19 / 15))
    assert GridTransform.from_json(json.loads(json.dumps(transform.to_json()))) == transform
    flat = forward(scan()[:, 5:6], SPACING, spec("none", "spacing", spacing=(9.0, 2.0, 2.0)))[1]
    assert flat.size == (1, 15, 13)


def centroid(array):
    """Middle of mass as shares of the sides: independent of the grid where voxel centres are aligned."""
    weights = array / array.sum()
    return [float((weights.sum(axis=tuple(a for a in range(3) if a != axis)) * (np.arange(n) + 0.5)).sum() / n)
            for axis, n in enumerate(array.shape)]  # fmt: skip


@pytest.mark.parametrize("size", [(16, 25, 24), (37, 60, 61), (16, 60, 32), (24, 40, 32)])
@pytest.mark.parametrize("resize", ["image", "linear"])
def test_what_lies_in_the_middle_stays_there_and_so_does_the_rest(size, resize):
    for centre in ((11.5, 19.5, 15.5), (6.0, 32.0, 7.0)):
        z, y, x = np.ogrid[:24, :40, :32]
        blob = np.exp(-sum(((a - c) / 2.5) ** 2 for a, c in zip((z, y, x), centre, strict=True))).astype(np.float32)
        resized = resize_image(blob[None], size)[0] if resize == "image" else resize_linear(blob, size)
        assert resized.shape == size
        off = np.subtract(centroid(resized), centroid(blob)) * np.minimum(size, blob.shape)
        assert np.abs(off).max() < 0.1


def test_shrinking_smooths_and_a_constant_stays_constant():
    noise = np.random.default_rng(0).normal(size=(1, 16, 40, 40)).astype(np.float32)
    assert resize_image(noise, (16, 10, 10)).std() < 0.45
    assert np.allclose(resize_image(np.full((1, 5, 9, 9), 7.5, np.float32), (8, 4, 13)), 7.5, atol=1e-4)


def test_labels_are_resized_with_no_new_values_and_argmax_needs_no_stack():
    rng = np.random.default_rng(0)
    maps = rng.random((5, 6, 8, 7)).astype(np.float32)
    for size in ((9, 6, 15), (6, 8, 7), (3, 4, 4)):
        whole = np.stack([resize_linear(m, size) for m in maps]).argmax(axis=0)
        assert np.array_equal(argmax_resized(iter(maps), size), whole)
    assert not argmax_resized([maps[0], maps[0]], (9, 9, 9)).any()  # ties go to the lower label
    labels = rng.choice([-1, 0, 2, 7], (6, 8, 7))
    assert set(np.unique(resize_labels(labels, (9, 11, 5)))) <= {-1, 0, 2, 7}
    assert np.array_equal(resize_labels(np.repeat(labels, 3, axis=1)[:, 1::3], (6, 8, 7)), labels)
    block = np.where(ball((12, 12, 12), (5, 5, 5), (3, 3, 3)), 7, -1)
    assert set(np.unique(resize_labels(block, (8, 17, 12)))) == {-1, 7}


@pytest.mark.parametrize("low", [-1024, -125])
@pytest.mark.parametrize("seed", range(3))
def test_the_body_box_holds_the_patient_and_leaves_the_table(seed, low):
    """With true and with clipped air: in exported scans it may read -125 HU."""
    image, labels = make_subject(seed)
    box = body_box(np.clip(image, low, 275)[None], (4.0, 4.0, 4.0))
    cut = tuple(slice(*side) for side in box)
    assert np.count_nonzero(labels[cut]) == np.count_nonzero(labels)
    parts, _ = ndimage.label(ndimage.binary_opening(image > -400))
    body = np.nonzero(parts == np.bincount(parts[labels > 0]).argmax())
    for (first, end), where in zip(box, body, strict=True):
        assert first >= where.min() - 3  # 12 mm; the table reaches 30 mm further to both sides
        assert end <= where.max() + 4


def test_the_body_box_of_an_mri_with_noise_and_of_no_image():
    rng = np.random.default_rng(0)
    inside = ball((20, 64, 64), (10, 30, 34), (30, 20, 22))
    image = np.abs(rng.normal(0, 6, inside.shape)) + inside * rng.normal(200, 30, inside.shape)
    (z0, z1), (y0, y1), (x0, x1) = body_box(image[None].astype(np.float32), (3.0, 1.0, 1.0))
    assert (z0, z1) == (0, 20)
    for found, true in zip((y0, y1, x0, x1), (10, 51, 12, 57), strict=True):
        assert abs(found - true) <= 3
    wider = body_box(image[None].astype(np.float32), (3.0, 1.0, 1.0), margin_mm=4)
    assert wider[1] == (y0 - 4, y1 + 4)
    assert body_box(np.zeros((1, 5, 6, 7), np.float32), SPACING) == ((0, 5), (0, 6), (0, 7))


def test_the_body_is_found_in_whichever_channel_shows_it():
    """PET before CT: the first channel shows a hot spot alone."""
    inside, hot = ball((24, 64, 64), (12, 30, 34), (30, 20, 22)), ball((24, 64, 64), (12, 30, 34), (4, 5, 5))
    pet, ct = np.where(hot, 40.0, np.where(inside, 0.5, 0.0)), np.where(inside, 40.0, -1000.0)
    rng = np.random.default_rng(0)
    both = np.stack([pet + rng.normal(0, 0.05, pet.shape), ct + rng.normal(0, 20, ct.shape)]).astype(np.float32)
    assert body_box(both, (3.0, 1.0, 1.0)) == body_box(both[1:], (3.0, 1.0, 1.0))


def test_a_stripped_background_may_ring_a_little():
    image = scan()
    ringing = image + np.random.default_rng(0).uniform(-1e-5, 1e-5, image.shape).astype(np.float32) * np.ptp(image)
    assert nonzero_box(ringing, SPACING) == nonzero_box(image, SPACING)


def test_boxes_literally():
    image = scan(channels=2)
    image[1, 1, 1, 1] = 0  # one channel is enough
    assert nonzero_box(image, SPACING) == ((1, 11), (1, 27), (1, 23))
    assert nonzero_box(scan(), SPACING, margin_mm=2) == ((1, 12), (0, 29), (0, 25))
    assert nonzero_box(np.zeros((1, 3, 4, 5)), SPACING) == ((0, 3), (0, 4), (0, 5))
    assert centre_box((48, 240, 240), (1.0, 0.9, 0.9)) == ((0, 48), (12, 228), (12, 228))  # the paper's 216 x 216 x 48
    for given, words in ((None, "no box for this case"), (((0, 15), (0, 30), (0, 26)), "does not lie inside")):
        with pytest.raises(UserError, match=words):
            find_box(scan(), SPACING, spec("given"), given)


def test_zscore_statistics_hold_near_a_million():
    """Float32 has steps of 1/16 there: sums in float32 would lose the spread."""
    image = (1e6 + np.random.default_rng(0).normal(0, 20, (1, 40, 90, 90))).astype(np.float32)
    done = normalize(image, ZSCORE)
    assert done.dtype == np.float32
    assert abs(done.mean(dtype=np.float64)) < 1e-3
    assert done.std(dtype=np.float64) == pytest.approx(1, abs=1e-3)


def test_normalisation_literally():
    image = np.array([-1000, -210, 40, 290, 3000], np.float32).reshape(1, 1, 1, 5)
    assert normalize(image, (ChannelNormalization("clip"),)).ravel().tolist() == [0, 0, 0.5, 1, 1]
    stripped = scan()
    done = normalize(stripped, (ChannelNormalization(inside_only=True),))
    inside = done[stripped != -3]
    assert abs(inside.mean()) < 1e-3
    assert inside.std() == pytest.approx(1, abs=1e-3)
    assert done.mean() < -0.5  # the background is no part of the statistics, and lies low


def test_what_cannot_be_normalised_is_refused():
    with pytest.raises(UserError, match=r"channel 1 is constant \(4\)"):
        normalize(np.stack([scan()[0], np.full((14, 30, 26), 4.0)]), ZSCORE * 2)
    with pytest.raises(UserError, match="has 2 channels, the plan 1"):
        forward(scan(channels=2), SPACING, spec())
    image = scan()
    image[0, 0, 0, :2] = np.nan, np.inf
    with pytest.raises(UserError, match="2 voxels are NaN or infinite"):
        forward(image, SPACING, spec("given"), BOX)  # also outside the crop


@pytest.fixture
def stored(tmp_path):
    image, transform = forward(scan(), SPACING, spec("nonzero"))
    label = forward_labels(np.random.default_rng(0).integers(-1, 3, (14, 30, 26)), transform).astype(np.int16)
    geometry = Geometry((14, 30, 26), SPACING, (1.0, 2.0, 3.0), IDENTITY, "RAS").to_json()
    case = PreparedCase("a.b", image, label, transform, geometry)
    return case, save_case(tmp_path, case)


def test_a_case_without_a_label_map_is_refused_where_one_is_needed(stored):
    case, _ = stored
    assert case.needed_label() is case.label
    with pytest.raises(UserError, match=r"case a\.b: .*without a label map.*mre_plan_and_preprocess again"):
        replace(case, label=None).needed_label()


def test_a_stored_case_comes_back(stored, tmp_path):
    case, path = stored
    assert path == tmp_path / "a.b.npz"
    back = load_case(tmp_path, "a.b")
    assert np.array_equal(back.image, case.image)
    assert np.array_equal(back.label, case.label)
    assert (back.transform, back.geometry, back.label.dtype) == (case.transform, case.geometry, np.int16)
    save_case(tmp_path, replace(case, name="bare", label=None))
    assert load_case(tmp_path, "bare").label is None


@pytest.mark.parametrize("harm", ["empty", "half", "no end", "one bit", "garbage", "array", "missing"])
def test_a_damaged_store_is_refused_by_name(stored, tmp_path, harm):
    _, path = stored
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    harmed = {"empty": b"", "half": data[: len(data) // 2], "no end": data[:-20], "one bit": bytes(flipped),
              "garbage": b"garbage" * 99}  # fmt: skip
    if harm == "missing":
        path.unlink()
    elif harm == "array":
        np.savez(path, image=np.zeros(3))
    else:
        path.write_bytes(harmed[harm])
    with pytest.raises(UserError, match=r"case a\.b: .*a\.b\.npz is .*mre_plan_and_preprocess again"):
        load_case(tmp_path, "a.b")


@pytest.fixture
def dataset(tmp_path):
    """Two labelled cases in two orientations and one without labels; label 3 is to be ignored. The image's constant
    surroundings hold no label."""
    root = tmp_path / "raw/Dataset001_X"
    for number, code in enumerate(("RAS", "LPI", "LPS")):
        geometry = Geometry((14, 30, 26), SPACING, (0.0, 0.0, 0.0), IDENTITY, code)
        labels = np.zeros(geometry.shape, np.int32)
        labels[2:11, 2:27, 2:23] = np.random.default_rng(number).integers(0, 4, geometry.shape)[2:11, 2:27, 2:23]
        write_volume(root / f"imagesTr/c{number}_0000.nii.gz", scan(seed=number)[0], geometry)
        if number < 2:
            write_volume(root / f"labelsTr/c{number}.nii.gz", labels, geometry)
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "x": 1, "y": 2, "ignore": 3},
             "numTraining": 2, "file_ending": ".nii.gz"}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(about))
    return RawDataset.load(root)


def plan_for(preprocessing, name="P"):
    return Plan("Dataset001_X", name, ("MRI",), {"background": 0, "x": 1, "y": 2}, ".nii.gz", preprocessing,
                PatchSpec((4, 8, 8), (4, 8, 8)), NetworkSpec(1, 3), Recipe(), {}, {}, ignore_label=3)  # fmt: skip


def test_a_dataset_is_prepared_and_recorded(dataset, tmp_path):
    plan = plan_for(spec("nonzero"))
    prepare_dataset(dataset, plan, tmp_path / "out")
    assert check_prepared(plan, tmp_path / "out") == ["c0", "c1"]
    assert sorted(p.name for p in (tmp_path / "out/P").iterdir()) == ["c0.npz", "c1.npz", "preprocessing.json"]
    for number, name in enumerate(("c0", "c1")):
        case = load_case(tmp_path / "out/P", name)
        labels = np.random.default_rng(number).integers(0, 4, (14, 30, 26))[2:11, 2:27, 2:23]
        assert np.array_equal(case.label, np.where(labels == 3, -1, labels))
        assert case.image.shape == (1, 9, 25, 21)
        assert case.geometry["orientation"] == ("RAS", "LPI")[number]
        copy = tmp_path / f"out/gt_segmentations/{name}.nii.gz"
        assert copy.read_bytes() == (dataset.folder / f"labelsTr/{name}.nii.gz").read_bytes()
    assert (tmp_path / "out/dataset.json").read_bytes() == (dataset.folder / "dataset.json").read_bytes()


def test_labels_that_the_crop_would_cut_off_are_named(dataset, tmp_path):
    path = dataset.folder / "labelsTr/c1.nii.gz"
    marked = read_labels(path)
    marked.array[0, :2] = 1
    write_volume(path, marked.array, marked.geometry)
    with pytest.raises(UserError, match=r"case c1: 52 of \d+ labelled voxels lie outside the box .*crop=none"):
        prepare_dataset(dataset, plan_for(spec("nonzero")), tmp_path / "out")
    with pytest.raises(UserError, match=r"case c[01]: \d+ of \d+ labelled voxels lie outside the box .*crop=none"):
        prepare_dataset(dataset, plan_for(spec("centre")), tmp_path / "out")
    assert prepare_dataset(dataset, plan_for(spec("none")), tmp_path / "whole") == []


def test_a_small_class_that_the_crop_would_cut_off_is_named_though_it_is_a_small_share_of_all(dataset, tmp_path):
    path = dataset.folder / "labelsTr/c1.nii.gz"
    marked = read_labels(path)
    marked.array[marked.array == 2] = 1
    marked.array[0, 0, :2] = marked.array[7, 12, 12:16] = 2
    write_volume(path, marked.array, marked.geometry)
    with pytest.raises(UserError, match=r"case c1: 2 of 6 y voxels lie outside the box"):
        prepare_dataset(dataset, plan_for(spec("nonzero")), tmp_path / "out")


def test_a_class_that_falls_between_the_voxels_of_the_grid_is_told(dataset, tmp_path):
    path = dataset.folder / "labelsTr/c1.nii.gz"
    marked = read_labels(path)
    marked.array[:] = 1
    marked.array[7, 12, 12] = 2
    write_volume(path, marked.array, marked.geometry)
    coarse = spec("none", grid="spacing", spacing=tuple(4 * s for s in marked.geometry.spacing))
    (note,) = prepare_dataset(dataset, plan_for(coarse), tmp_path / "out")
    assert note.startswith("case c1: y (1 voxels) falls between the voxels")


def test_cases_of_another_plan_or_of_an_interrupted_run_are_refused(dataset, tmp_path, monkeypatch):
    plan, out = plan_for(spec("nonzero")), tmp_path / "out"
    with pytest.raises(UserError, match=r"no complete set .*mre_plan_and_preprocess -d Dataset001_X -p P --keep_plan"):
        check_prepared(plan, out)
    prepare_dataset(dataset, plan, out)
    other = replace(plan, preprocessing=spec("nonzero", crop_margin_mm=1.0))
    with pytest.raises(UserError, match="preprocessed otherwise"):
        check_prepared(other, out)

    def stopped(cases):
        yield cases[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(dataset, plan, out, stopped)
    with pytest.raises(UserError, match="no complete set"):
        check_prepared(plan, out)


def test_a_bad_scan_is_named(dataset, tmp_path):
    (dataset.folder / "crops.json").write_text('{"c0": [[0, 14], [0, 30], [0, 26]]}')
    with pytest.raises(UserError, match=r"case c1: .*no box for this case"):
        prepare_dataset(dataset, plan_for(spec("given")), tmp_path / "out")
    (dataset.folder / "crops.json").write_text('{"c0": [[1, 14], [0, 30], [2, 26]], "c1": [[0, 4], [0, 9], [0, 7]]}')
    prepare_dataset(dataset, plan_for(spec("given")), tmp_path / "out")
    assert load_case(tmp_path / "out/P", "c1").image.shape == (1, 4, 9, 7)


@pytest.mark.parametrize("text", ['{"c0": [[0, 14], [0, 30]]}', '{"c0": 3}', '{"c0": [[0, 1, 2]]}', "[[0, 1]]"])
def test_a_crops_file_of_another_form_is_refused(text, tmp_path):
    assert read_crops(tmp_path) == {}
    (tmp_path / "crops.json").write_text(text)
    with pytest.raises(UserError, match=r"crops\.json: box of case .*write \[\[z0, z1\]"):
        read_crops(tmp_path)


def test_labels_from_many_classes_need_no_further_maps():
    """Beside the label map itself and the maps torch makes, next to nothing, however many classes."""
    import tracemalloc

    rng = np.random.default_rng(0)
    maps = rng.random((14, 4, 16, 16)).astype(np.float32)
    size = (16, 128, 128)
    argmax_resized(iter(maps), size)
    tracemalloc.start()
    labels = argmax_resized(iter(maps), size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = np.stack([resize_linear(m, size) for m in maps])
    np.testing.assert_array_equal(labels, whole.argmax(axis=0))
    assert peak < 1.5 * labels.nbytes
