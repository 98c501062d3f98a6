"""The synthetic CT: reproducible, anatomically consistent, and not segmentable by intensity alone."""

import numpy as np
import pytest
from scipy import ndimage

from mre_lowshot.data.synthetic import DATASET, LABELS, make_subject, write_dataset
from mre_lowshot.data.volume import read_image, read_labels
from mre_lowshot.files import read_json

SMALL = {"shape": (20, 36, 44), "spacing": (8.0, 8.0, 8.0)}
ORGANS = [name for name in LABELS if name != "background"]


@pytest.fixture(scope="module")
def subject():
    return make_subject(3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("raw"), subjects=4, seed=5, **SMALL)


def best_interval_dice(image, mask):
    """The best Dice that any single interval of HU reaches, in steps of 10 HU."""
    edges = np.arange(-200, 501, 10)
    inside = np.concatenate([[0], np.cumsum(np.histogram(image[mask], edges)[0])])
    all_voxels = np.concatenate([[0], np.cumsum(np.histogram(image, edges)[0])])
    hit = np.maximum(inside[None, :] - inside[:, None], 0)
    found = np.maximum(all_voxels[None, :] - all_voxels[:, None], 0)
    return float((2 * hit / (found + mask.sum())).max())


def test_a_seed_gives_one_subject_and_another_seed_another():
    image, labels = make_subject(1, **SMALL)
    again, same = make_subject(1, **SMALL)
    other = make_subject(2, **SMALL)[1]
    assert image.dtype == np.float32
    assert labels.dtype == np.uint8
    assert np.array_equal(image, again)
    assert np.array_equal(labels, same)
    assert (labels != other).mean() > 0.01


def test_every_subject_has_every_organ():
    for seed in range(40):
        counts = np.bincount(make_subject(seed, **SMALL)[1].ravel(), minlength=len(LABELS))
        assert counts.min() >= 8, (seed, counts)


def test_organs_differ_in_size_and_lie_on_their_side(subject):
    labels = subject[1]
    volume = np.bincount(labels.ravel()) * 0.064  # ml
    assert volume[LABELS["liver"]] > 5 * volume[LABELS["spleen"]] > 5 * volume[LABELS["gallbladder"]]
    x = {name: np.nonzero(labels == LABELS[name])[2].mean() for name in ORGANS}
    assert x["liver"] < x["aorta"] < x["spleen"]  # LPS: x grows to the patient's left
    assert x["right_kidney"] < x["aorta"] < x["left_kidney"]
    assert np.nonzero(labels == LABELS["gallbladder"])[1].mean() < np.nonzero(labels == LABELS["aorta"])[1].mean()


def test_every_organ_is_a_single_component(subject):
    assert [ndimage.label(subject[1] == LABELS[name])[1] for name in ORGANS] == [1] * len(ORGANS)


def test_coarse_and_fine_grids_show_the_same_anatomy():
    fine, coarse = make_subject(4)[1], make_subject(4, **SMALL)[1]
    for name in ORGANS:
        ratio = 8 * (coarse == LABELS[name]).sum() / (fine == LABELS[name]).sum()
        assert 0.7 < ratio < 1.4, name


@pytest.mark.parametrize("seed", range(4))
def test_the_table_lies_below_the_body_without_touching_it(seed):
    image, labels = make_subject(seed)
    tissue = ndimage.binary_opening(ndimage.gaussian_filter(image, 0.5) > -400, iterations=1)
    parts, _ = ndimage.label(tissue)
    body = parts == np.bincount(parts[labels > 0]).argmax()
    assert body[labels > 0].mean() > 0.99
    back = np.nonzero(body)[1].max()
    table = image[:, back + 1 :] > -500
    assert table.mean() > 0.02
    assert not labels[:, back + 1 :].any()
    solid, _ = ndimage.label(image > -300)
    assert (solid == solid[labels > 0].max()).sum() > 0.1 * image.size
    assert not np.isin(solid[:, -8:], np.unique(solid[labels > 0])[1:]).any(), "the body reaches the table"


def test_no_interval_of_hu_segments_an_organ(subject):
    image, labels = subject
    scores = {name: best_interval_dice(image, labels == LABELS[name]) for name in ORGANS}
    assert max(scores.values()) < 0.6, scores


def test_a_field_of_view_too_small_is_refused():
    with pytest.raises(ValueError, match="at least"):
        make_subject(0, shape=(10, 20, 20), spacing=(4.0, 4.0, 4.0))


def test_the_written_dataset_is_read_without_a_difference(written):
    about = read_json(written / "dataset.json", "dataset.json")
    assert written.name == DATASET
    assert about["labels"] == LABELS
    assert about["channel_names"] == {"0": "CT"}
    images, labels = sorted((written / "imagesTr").iterdir()), sorted((written / "labelsTr").iterdir())
    assert len(images) == len(labels) == about["numTraining"] == 4
    spacings, orientations = set(), set()
    for image_path, label_path in zip(images, labels, strict=True):
        assert image_path.name.replace("_0000", "") == label_path.name
        image, label = read_image(image_path), read_labels(label_path)
        assert not image.geometry.differences(label.geometry)
        assert np.unique(label.array).tolist() == sorted(LABELS.values())
        liver, spleen = (np.nonzero(label.array == LABELS[name])[2].mean() for name in ("liver", "spleen"))
        assert liver < spleen, "the pipeline's LPS form must have the liver on the right in every file"
        spacings.add(image.geometry.spacing)
        orientations.add(image.geometry.orientation)
    assert len(spacings) == 4
    assert orientations == {"LPS", "RAS", "LAS"}


def test_the_written_dataset_is_reproducible(written, tmp_path):
    again = write_dataset(tmp_path, subjects=1, seed=5, **SMALL)
    name = "imagesTr/phantom_001_0000.nii.gz"
    assert np.array_equal(read_image(written / name).array, read_image(again / name).array)
