"""Which scan to annotate next: order, reasons, files, and the measure of what it brings."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
from conftest import Space, command

import mre_lowshot
from mre_lowshot.atlas.suggestion import Comparison, rank, similarities
from mre_lowshot.data.synthetic import write_dataset

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two scans that are not annotated."""
    root = tmp_path_factory.mktemp("scans")
    made = write_dataset(root, subjects=2, seed=3, shape=(20, 36, 44), spacing=(8.0, 8.0, 8.0))
    for number, path in enumerate(sorted((made / "imagesTr").iterdir())):
        shutil.move(path, root / f"new_{number}_0000.nii.gz")
    shutil.rmtree(made)
    return root


def suggest(space: Space, *arguments: object) -> int:
    return command("suggest", *arguments, "-p", "Tiny", "--workspace", space.root)


def test_a_scan_that_stands_for_many_unlike_the_annotated_one_comes_first():
    # 0 and 1 are like the annotated scan, 2 to 4 like each other, 5 like none
    labelled = np.array([[0.9], [0.8], [0.2], [0.2], [0.2], [0.1]])
    among = np.eye(6)
    among[2:5, 2:5] = 0.7
    np.fill_diagonal(among, 1)
    order = rank(labelled, among)
    assert order[0].number == 2
    assert order[0].served == (3, 4)
    assert order[1].number == 5  # those like 2 have little left to gain
    assert [one.number for one in order[-2:]] == [1, 0]
    assert sorted(one.number for one in order) == list(range(6))
    assert all(a.gain >= b.gain - 1e-12 for a, b in pairwise(order))
    weights = np.array([0, 0, 0, 0, 0, 1.0])  # only the last one is badly predicted
    assert rank(labelled, among, weights)[0].number == 5


def test_similarity_does_not_depend_on_position_and_contrast():
    generator = np.random.default_rng(0)
    from scipy.ndimage import gaussian_filter, shift

    def body(seed):
        rng = np.random.default_rng(seed)
        return gaussian_filter(rng.standard_normal((24, 28, 28)), 2).astype(np.float32)[None] * 10

    one, other = body(1), body(2)
    moved = shift(one[0], (2, -3, 1), order=1, mode="nearest")[None] * 3 + 5
    moved += 0.01 * generator.standard_normal(moved.shape).astype(np.float32)
    frame = Comparison(one, (1.0, 1.0, 1.0))
    features = [frame.features(image, (1.0, 1.0, 1.0)) for image in (one, moved, other)]
    similar = similarities(features, features)
    assert similar[0, 1] > 0.6
    assert similar[0, 1] > similar[0, 2] + 0.2
    assert similar.diagonal() == pytest.approx(1, abs=1e-4)


def test_2d_images_of_several_sizes_are_compared():
    generator = np.random.default_rng(0)
    from scipy.ndimage import gaussian_filter, zoom

    one, other = (gaussian_filter(generator.standard_normal((60, 80)), 4).astype(np.float32) for _ in range(2))
    frame = Comparison(one[None], (0.5, 0.5))
    images = [one, zoom(one, 1.5, order=1), other]
    features = [frame.features(image[None], (0.5, 0.5)) for image in images]
    similar = similarities(features, features)
    assert similar[0, 1] > 0.9
    assert similar[0, 2] < 0.5


def test_the_command_ranks_prints_and_writes(trained, scans, tmp_path, capfd):
    (tmp_path / "quality.csv").write_text("case,score,basis\nnew_0,0.2,agreement\nnew_1,0.9,agreement\n")
    arguments = ("Synthetic", scans, "--predictions", tmp_path, "-o", tmp_path / "out")
    assert suggest(trained, *arguments) == 0
    out = capfd.readouterr().out
    assert "1. new_0: quality score 0.20 (place 1 of 2 from the lowest); similarity" in out
    content = json.loads((tmp_path / "out/suggest.json").read_text())
    first = content["suggestions"][0]
    assert (first["case"], first["quality"]) == ("new_0", 0.2)
    assert first["nearest_annotated"].startswith("phantom_00")
    rows = (tmp_path / "out/suggest.csv").read_text().splitlines()
    assert rows[0].startswith("rank,case,gain,quality")
    assert rows[1].startswith("1,new_0,")
    assert suggest(trained, *arguments) == 0  # its own files are replaced
    (tmp_path / "out/suggest.csv").write_text("mine")
    assert suggest(trained, *arguments) == 2
    assert "suggest.csv: mre_suggest has not written this" in capfd.readouterr().err


def test_a_model_holds_its_annotated_scans_and_a_scan_that_cannot_be_read_is_named(trained, scans, tmp_path):
    folder = tmp_path / "some"
    shutil.copytree(scans, folder)
    (folder / "broken_0000.nii.gz").write_bytes(b"no image")
    shutil.copy(trained.raw / "imagesTr/phantom_001_0000.nii.gz", folder)
    result = mre_lowshot.suggest(trained.model(), folder)
    assert {one.case for one in result.suggestions} == {"new_0", "new_1"}
    assert result.files == ()
    assert {one.nearest_annotated for one in result.suggestions} == {"phantom_001"}
    assert len(result.failed) == 1
    assert result.failed[0].startswith("case broken: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Nothing", "."], "dataset 'Nothing' is not in"),
        (["Synthetic", "."], ""),
        (["Synthetic", "none"], "none"),
        (["Synthetic", ".", "--predictions", "."], "has no quality.csv"),
        (["Synthetic", ".", "-n", "0"], "-n 0"),
    ],
)
def test_wrong_use(trained, capfd, arguments, words):
    assert suggest(trained, *arguments) == 2
    error = capfd.readouterr().err
    assert error.count("error: ") == 1
    assert words in error, error


def test_the_measure_takes_the_gain_on_the_same_scans():
    from benchmarks.suggestion import ROWS, compare, table_of

    names = ["a", "b", "c", "d"]
    lines = []
    for target in names:
        others = [name for name in names if name != target]
        pairs = {f"{x}|{y}": 0.9 if "d" in (x, y) else 0.6 for i, x in enumerate(others) for y in others[i + 1 :]}
        lines.append({"target": target, "one": dict.fromkeys(others, 0.5), "two": pairs})
    table = table_of(lines, names)
    assert table.gain(0, 3) == pytest.approx((0.9, 0.4))
    assert table.gain(0, 1) == pytest.approx((0.75, 0.25)) or table.gain(0, 1)[1] < 0.4
    similar = np.full((4, 4), 0.5)
    np.fill_diagonal(similar, 1)
    similar[3, :3] = similar[:3, 3] = 0.1  # d is unlike the others
    rows = compare(table, similar)
    assert set(rows) == set(ROWS)
    assert rows["least similar"][0] == pytest.approx((0.9, 0.4))
    assert rows["best"][0, 1] == pytest.approx(0.4)
    assert rows["random (mean)"][0, 1] < 0.4
