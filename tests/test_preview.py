"""The preview of a case: where structures appear, on planes and projections."""

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import Volume
from mre_lowshot.report.preview import draw_preview

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"background": 0, "one": 1, "two": 2}
COLOURS = {1: "#ff0000", 2: "#00ff00"}
SIDE = 30


def volumes(labels, spacing=(2.0, 2.0, 2.0)):
    labels = np.asarray(labels, np.uint8)
    geometry = Geometry(labels.shape, spacing)
    return Volume(np.zeros((1, *labels.shape), np.float32), geometry), Volume(labels, geometry)


def drawn(path, labels, **options):
    """The picture as (rows, columns, 3), 0 to 1."""
    scan, label_map = volumes(labels, **options)
    draw_preview(path, scan, label_map, label_names=NAMES, colours=COLOURS, title="case")
    return matplotlib.image.imread(path)[..., :3]


def panels(picture):
    """The six panels of a cube: planes and projections, each axial, coronal, sagittal. They are dark."""
    dark = picture.max(axis=-1) < 0.98
    rows = np.flatnonzero(dark.mean(axis=1) > 0.85)
    middle = (rows[0] + rows[-1]) // 2
    third = picture.shape[1] // 3
    halves = ((rows[0], middle), (middle, rows[-1] + 1))
    return [[picture[a:b, third * n : third * (n + 1)] for n in range(3)] for a, b in halves]


def red(panel):
    return (panel[..., 0] > 0.4) & (panel[..., 1] < 0.1) & (panel[..., 2] < 0.1)


def green(panel):
    return (panel[..., 1] > 0.4) & (panel[..., 0] < 0.1) & (panel[..., 2] < 0.1)


def place(mask):
    """Centre of a mask as shares of height and width."""
    rows, columns = np.nonzero(mask)
    return rows.mean() / mask.shape[0], columns.mean() / mask.shape[1]


def test_the_patients_right_is_on_the_left_and_superior_on_top(tmp_path):
    labels = np.zeros((SIDE,) * 3)
    labels[20:28, 2:8, 4:10] = 1  # superior, anterior, right
    planes, projections = panels(drawn(tmp_path / "a.png", labels))
    for axial, coronal, sagittal in (planes, projections):
        for panel, expected in ((axial, (5 / 30, 7 / 30)), (coronal, (6 / 30, 7 / 30)), (sagittal, (6 / 30, 5 / 30))):
            assert place(red(panel)) == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_projection_shows_what_lies_in_front(tmp_path, axis):
    """Of two slabs behind each other, the one nearer to the feet, the front, or the patient's left."""
    labels = np.zeros((SIDE,) * 3)
    inner = [slice(10, 20)] * 3
    for value, part in ((1, slice(4, 8)), (2, slice(20, 26))):
        box = list(inner)
        box[axis] = part
        labels[tuple(box)] = value
    projection = panels(drawn(tmp_path / "a.png", labels))[1][axis]
    near, far = (green, red) if axis == 2 else (red, green)
    assert near(projection).sum() > 20 * max(far(projection).sum(), 1)


def test_panels_have_one_scale(tmp_path):
    """A cube in mm is as wide in all panels, whatever the voxels."""
    labels = np.zeros((10, 60, 40))
    labels[4:6, 20:40, 10:20] = 1  # 20 mm in each direction
    picture = drawn(tmp_path / "a.png", labels, spacing=(10.0, 1.0, 2.0))
    rows = np.flatnonzero((picture.max(axis=-1) < 0.98).mean(axis=1) > 0.2)
    lower = picture[(rows[0] + rows[-1]) // 2 : rows[-1]]
    columns = np.flatnonzero(red(lower).sum(axis=0) > 10)
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 10) + 1)
    assert len(groups) == 3
    assert np.ptp([len(group) for group in groups]) <= 3


def test_empty_flat_and_thin_volumes_are_drawn(tmp_path):
    for number, shape in enumerate([(1, 20, 30), (2, 20, 30), (40, 3, 3), (1, 1, 1)]):
        for labels in (np.zeros(shape), np.ones(shape)):
            assert drawn(tmp_path / f"{number}.png", labels).size > 0


@pytest.mark.slow
def test_names_of_any_length_and_many_labels(tmp_path):
    labels = np.arange(64).reshape(4, 4, 4)
    names = {"background": 0, **{f"$x^{n} a name {'that is long ' * (n % 9)}": n for n in range(1, 64)}}
    geometry = Geometry(labels.shape, (1.0, 1.0, 1.0))
    scan = Volume(np.zeros((1, *labels.shape), np.float32), geometry)
    colours = dict.fromkeys(range(1, 64), "#ff0000")
    draw_preview(tmp_path / "a.png", scan, Volume(labels, geometry), label_names=names, colours=colours)
    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert max(picture.shape) < 4000


def test_the_same_label_map_makes_the_same_file(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (8, 9, 10))
    drawn(tmp_path / "a.png", labels)
    drawn(tmp_path / "b.png", labels)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_another_grid_is_refused(tmp_path):
    scan, _ = volumes(np.zeros((2, 3, 4)))
    _, labels = volumes(np.zeros((2, 3, 5)))
    with pytest.raises(ValueError, match="not on the grid"):
        draw_preview(tmp_path / "a.png", scan, labels, label_names=NAMES, colours=COLOURS)


def test_a_large_scan_takes_little_more_than_itself(tmp_path):
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import Volume
from mre_lowshot.report.preview import draw_preview
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def draw(side, path):
    geometry = Geometry((side, 200, 200), (1.0, 1.0, 1.0))
    labels = np.zeros(geometry.shape, np.uint8)
    labels[10:-10, 20:180, 20:180] = 1
    scan = Volume(np.ones((1, *geometry.shape), np.float32), geometry)
    before = peak()
    draw_preview(path, scan, Volume(labels, geometry), label_names={"a": 1}, colours={1: "#ff0000"})
    return peak() - before
draw(30, Path(sys.argv[1]))
print(draw(1000, Path(sys.argv[1])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert int(done.stdout) < 120_000_000  # the scan has 160 MB, the label map 40 MB
