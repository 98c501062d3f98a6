import numpy as np
import pytest
from matplotlib.image import imread

from mre_lowshot.data.synthetic import LABELS, make_subject
from mre_lowshot.report import figures
from mre_lowshot.trainers.training_log import draw_progress, smoothed

SPACING = (3.0, 1.5, 1.0)


def marked(*voxel):
    array = np.zeros((12, 20, 30), np.float32)
    array[voxel] = 1
    return array


def test_the_patients_right_is_on_the_images_left():
    right_front = marked(6, 2, 3)  # LPS: small x is the patient's right, small y the front
    view = figures.make_view(0, 6, SPACING)
    row, column = np.argwhere(view.take(right_front))[0]
    assert (row, column) == (2, 3)
    assert view.edges == "RLAP"
    assert view.aspect == pytest.approx(1.5)


def test_the_head_is_on_top_of_coronal_and_sagittal_views():
    head = marked(11, 5, 4)  # large z is superior
    coronal, sagittal = figures.make_view(1, 5, SPACING), figures.make_view(2, 4, SPACING)
    assert np.argwhere(coronal.take(head)).tolist() == [[0, 4]]
    assert np.argwhere(sagittal.take(head)).tolist() == [[0, 5]]
    assert (coronal.edges, sagittal.edges) == ("RLSI", "APSI")
    assert coronal.aspect == pytest.approx(3)
    assert sagittal.aspect == pytest.approx(2)


def test_the_marker_is_drawn_in_the_left_half_of_the_axial_panel(tmp_path):
    image = np.tile(np.linspace(0, 0.2, 30, dtype=np.float32), (1, 20, 1))
    image[0, 3:6, 4:8] = 1
    path = tmp_path / "marker.png"
    figures.overlay(path, image, None, np.zeros(image.shape, np.uint8), {"background": 0}, (1, 1, 1), letters=False)
    drawn = imread(path)[..., :3]
    panel = drawn[64:-64, 4 : drawn.shape[1] // 2 - 8].mean(axis=2)
    rows, columns = np.nonzero(panel > 0.9)
    assert columns.mean() < panel.shape[1] / 2
    assert rows.mean() < panel.shape[0] / 2


def test_views_show_every_class_and_accept_no_labels():
    labels = np.zeros((12, 20, 30), np.uint8)
    labels[1:4, 3:12, 3:12] = 1
    labels[9, 5:7, 5:7] = 2
    chosen = figures.best_slices(labels, 0, 2)
    assert {int(v) for index in chosen for v in np.unique(labels[index])} == {0, 1, 2}
    assert [v.axis for v in figures.choose_views(labels, SPACING)] == [0, 0, 0, 1]
    assert figures.best_slices(np.zeros_like(labels), 0, 3) == [6]
    assert [v.name for v in figures.choose_views(labels[:1], SPACING)] == ["axial"]


def test_the_window_of_a_ct_is_in_hu():
    assert figures.window(make_subject(0, (20, 36, 44), (8.0, 8.0, 8.0))[0]) == figures.CT_WINDOW
    low, high = figures.window(np.arange(1000.0))
    assert 0 < low < 10
    assert 990 < high < 999
    assert figures.window(np.full(5, 3.0)) == (3.0, 4.0)
    assert figures.window(np.full(5, np.nan)) == (0.0, 1.0)


@pytest.mark.parametrize("with_reference", [True, False])
def test_overlay_of_a_volume(tmp_path, with_reference):
    image, labels = make_subject(0, (20, 36, 44), (8.0, 8.0, 8.0))
    path = tmp_path / "new" / "case.png"
    scores = {"liver": 0.93, "aorta": float("nan")}
    before = image.copy(), labels.copy()
    reference = labels if with_reference else None
    figures.overlay(path, image, reference, np.roll(labels, 1, 2), LABELS, (8, 8, 8), "phantom", scores)
    assert imread(path).shape[1] == (1056 if with_reference else 704)
    assert [p.name for p in path.parent.iterdir()] == ["case.png"]
    assert np.array_equal(before[0], image)
    assert np.array_equal(before[1], labels)


def test_overlay_of_a_2d_image_and_of_nothing(tmp_path):
    image = np.random.default_rng(0).normal(size=(1, 40, 60)).astype(np.float32)
    figures.overlay(tmp_path / "flat.png", image, None, np.zeros((1, 40, 60), np.uint8), {"lesion": 1}, (1, 1, 1))
    assert imread(tmp_path / "flat.png").size


def test_overlay_refuses_another_grid(tmp_path):
    with pytest.raises(ValueError, match="grid"):
        figures.overlay(tmp_path / "x.png", np.zeros((2, 4, 4)), None, np.zeros((2, 4, 5)), {"a": 1}, (1, 1, 1))
    assert not list(tmp_path.iterdir())


def test_smoothing_starts_unbiased_and_bridges_gaps():
    values = np.array([np.nan, 2.0, 2.0, np.nan, 2.0])
    assert np.isnan(smoothed(values)[0])
    assert np.allclose(smoothed(values)[1:], 2)


@pytest.mark.parametrize("count", [0, 1, 300])
def test_progress_is_drawn_at_any_iteration(tmp_path, count):
    steps = list(range(count))
    history = {
        "iteration": steps,
        "loss": [1 / (1 + s / 30) for s in steps],
        "dice": [float("nan") if s % 10 else s / 300 for s in steps],
        "learning_rate": [0.01 * (1 - s / 300) ** 0.9 for s in steps],
    }
    draw_progress(tmp_path / "progress.png", history)
    assert imread(tmp_path / "progress.png").shape[:2] == (660, 990)
    draw_progress(tmp_path / "progress.png", {"iteration": steps, "loss": history["loss"]})
