"""Adding an annotated scan to a planned dataset: files, splits, preprocessed case, refusals, kills, two at once."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import Space, command, edit
from test_kills import Runs
from test_two_runs import content

import mre_lowshot
from mre_lowshot import transaction
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.split_extension import extended
from mre_lowshot.data.splits import make_splits
from mre_lowshot.data.synthetic import write_dataset
from mre_lowshot.data.volume import Volume, read_image, read_labels, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.preprocessing.prepare import check_prepared
from mre_lowshot.preprocessing.references import reading
from mre_lowshot.preprocessing.store import load_case

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")


@pytest.fixture(scope="module")
def another(tmp_path_factory) -> Path:
    """A dataset with a subject that is not in the workspace's."""
    return write_dataset(
        tmp_path_factory.mktemp("more"), subjects=1, seed=1, shape=(20, 36, 44), spacing=(8.0, 8.0, 8.0)
    )


@pytest.fixture
def scan(another, tmp_path) -> tuple[Path, Path]:
    """Its image and label map, loose files."""
    image, label = tmp_path / "visit_0000.nii.gz", tmp_path / "annotated.nii.gz"
    shutil.copy(another / "imagesTr/phantom_001_0000.nii.gz", image)
    shutil.copy(another / "labelsTr/phantom_001.nii.gz", label)
    return image, label


def add(space: Space, *arguments: object) -> int:
    return command("add_case", "900", *arguments, "-p", "Tiny", "--workspace", space.root)


def splits(space: Space, level: str) -> list:
    return json.loads((space.prepared / f"splits_{level}.json").read_text())


def test_an_added_case_is_trained_on_and_tested_on(space, scan, capfd):
    edit_json = json.loads((space.raw / "dataset.json").read_text())
    (space.raw / "dataset.json").write_text(json.dumps({**edit_json, "reference": "a paper"}))
    before = {name: (space.raw / name).read_bytes() for name in ("imagesTr/phantom_001_0000.nii.gz",)}
    (space.prepared / "splits_final.json").write_text("[]")  # of nnU-Net
    one_shot = splits(space, "1shot")
    assert space.plan("--keep_plan", settings=()) == 0
    capfd.readouterr()
    assert add(space, *scan) == 0
    out = capfd.readouterr().out
    command_line = next(line for line in out.splitlines() if line.startswith("next: "))
    assert "mre_train Dataset900_Synthetic all fold0 -p Tiny --pretrained_weights" in command_line
    assert f"--pretrained_weights {space.model() / 'fold_0/checkpoint_final.pth'}" in command_line
    assert "or, from scratch: mre_train Dataset900_Synthetic all fold0 -p Tiny --workspace" in out
    assert (space.raw / "imagesTr/visit_0000.nii.gz").read_bytes() == scan[0].read_bytes()
    assert (space.raw / "labelsTr/visit.nii.gz").read_bytes() == scan[1].read_bytes()
    description = json.loads((space.raw / "dataset.json").read_text())
    assert (description["numTraining"], description["reference"]) == (4, "a paper")
    assert (space.prepared / "splits_final.json").read_text() == "[]"
    assert all((space.raw / name).read_bytes() == data for name, data in before.items())
    after = splits(space, "1shot")
    assert [fold["train"] for fold in after] == [*(fold["train"] for fold in one_shot), ["visit"]]
    assert all("visit" in fold["val"] for fold in after[:-1])
    plan = load_plan(space.prepared / "Tiny.json")
    assert set(check_prepared(plan, space.prepared)) == {"phantom_001", "phantom_002", "phantom_003", "visit"}
    assert not list(space.root.rglob(".mre-*"))
    # as if it had been there from the beginning
    added = load_case(space.prepared / "Tiny", "visit", plan)
    fingerprint = json.loads((space.prepared / "dataset_fingerprint.json").read_text())
    assert space.plan("--keep_plan", settings=()) == 0
    again = load_case(space.prepared / "Tiny", "visit", plan)
    assert np.array_equal(added.image, again.image)
    assert np.array_equal(added.label, again.label)
    assert (added.source, added.transform) == (again.source, again.transform)
    assert json.loads((space.prepared / "dataset_fingerprint.json").read_text()) == fingerprint
    assert space.train("--no_val", fold="3") == 0
    trained = load_plan(space.model() / "fold_3/plans.json").fold
    assert trained is not None
    assert trained.train == ("visit",)


def test_splits_keep_the_training_scans_of_existing_folds():
    names = ["a", "b", "c"]
    for level in ("1shot", "2shot", "3shot", "50pct"):
        made = make_splits(level, names)
        after = extended(level, made, names, "aa")
        assert [fold["train"] for fold in after[: len(made)]] == [fold["train"] for fold in made]
        assert all("aa" in fold["val"] for fold in after[: len(made)])
        assert all(sorted(fold["train"] + fold["val"]) == ["a", "aa", "b", "c"] for fold in after)
        assert all("aa" in fold["train"] for fold in after[len(made) :])
    assert len(extended("1shot", make_splits("1shot", names), names, "d")) == 4
    assert len(extended("2shot", make_splits("2shot", names), names, "d")) == 6
    assert len(extended("2shot", make_splits("2shot", names)[:1], names, "d")) == 1  # edited
    assert extended("all", make_splits("all", names), names, "d") == make_splits("all", [*names, "d"])
    assert extended("loo", make_splits("loo", names), names, "d") == make_splits("loo", [*names, "d"])
    cohort = [{"train": ["a"], "val": ["b"]}]
    assert extended("1shot_two", cohort, names, "d") == cohort


def broken(scan: tuple[Path, Path], what: str) -> tuple[list, str]:
    """Arguments with one mistake, and words of the message."""
    image, label = scan
    data, truth = read_image(image), read_labels(label)
    other = image.with_name("other_0000.nii.gz")
    if what == "unknown label":
        write_volume(label, truth.array + 90 * (truth.array > 0), truth.geometry)
        return [image, label], "is not in dataset.json labels"
    if what == "other grid":
        write_volume(label, truth.array[1:], Volume.from_array(truth.array[1:], (8.0, 8.0, 8.0)).geometry)
        return [image, label], "not on one grid"
    if what == "empty label map":
        write_volume(label, truth.array * 0, truth.geometry)
        return [image, label], "has no voxel of any class"
    if what == "not in HU":
        write_volume(image, (data.array[0] - data.array[0].min()) / 4000, data.geometry)
        return [image, label], "HU"
    if what == "spacing":
        write_volume(other, data.array[0], Volume.from_array(data.array, (40.0, 40.0, 40.0)).geometry)
        write_volume(label, truth.array, Volume.from_array(data.array, (40.0, 40.0, 40.0)).geometry)
        return [other, label], "spacing along z is 40 mm"
    if what == "two channels":
        shutil.copy(image, other)
        return [image, other, label], "contain 2 channel(s)"
    if what == "missing":
        return [image.with_name("none.nii.gz"), label], "none.nii.gz: is missing"
    if what == "text":
        label.write_text("no image")
        return [image, label], "annotated.nii.gz"
    if what == "name":
        return [image, label, "--name", "../visit"], "--name '../visit'"
    return [image, label, "--name", "Phantom_001"], "differs from phantom_001 only in upper and lower case"


MISTAKES = ("unknown label", "other grid", "empty label map", "not in HU", "spacing", "two channels", "missing", "text",
            "name", "case of letters")  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(trained, scan, capfd, what):
    """The shared workspace is not copied: nothing may be written there."""
    arguments, words = broken(scan, what)
    before = content(trained.root)
    assert add(trained, *arguments) == 2
    error = capfd.readouterr().err
    assert words in error, error
    assert error.count("error: ") == 1
    assert content(trained.root) == before
    assert not list(trained.root.rglob(".mre-*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "nowhere"], "--from nowhere: is not a folder"),
        (["only.nii.gz"], "give the scan's file (or files) and its label map"),
        (["a.nii.gz", "b.nii.gz", "-i", "x"], "belong to a folder of predictions"),
    ],
)
def test_wrong_use(trained, capfd, arguments, words):
    assert add(trained, *arguments) == 2
    assert words in capfd.readouterr().err


def test_a_case_that_the_dataset_has_already_is_refused(space, scan, capfd):
    image, label = scan
    assert add(space, image, label, "--name", "phantom_002") == 2
    assert "labelsTr/phantom_002.nii.gz, which is not overwritten" in capfd.readouterr().err
    known = space.raw / "imagesTr/phantom_002_0000.nii.gz"
    assert add(space, known, space.raw / "labelsTr/phantom_002.nii.gz", "--name", "twin") == 2
    assert "its scan is case phantom_002 of Dataset900_Synthetic already" in capfd.readouterr().err
    (space.raw / "imagesTs").mkdir()
    shutil.copy(image, space.raw / "imagesTs")
    assert add(space, image, label) == 2
    assert "is a test case of Dataset900_Synthetic (imagesTs)" in capfd.readouterr().err
    assert not list(space.root.rglob(".mre-*"))


def test_the_label_map_of_an_unlabelled_scan_of_the_dataset(space, scan):
    image, label = scan
    shutil.copy(image, space.raw / "imagesTr")
    edit(space.raw / "dataset.json", numTraining=4)
    result = mre_lowshot.add_case("Synthetic", image, label, plans_name="Tiny", workspace=space.root)
    assert result.cases == ("visit",)
    assert json.loads((space.raw / "dataset.json").read_text())["numTraining"] == 4
    assert "visit" in check_prepared(load_plan(space.prepared / "Tiny.json"), space.prepared)
    assert space.plan("--keep_plan", "--no_pp", settings=()) == 0


def test_a_label_map_in_another_format_is_converted(space, scan):
    image, label = scan
    truth = read_labels(label)
    other = label.with_name("annotated.nrrd")
    write_volume(other, truth.array, truth.geometry)
    mre_lowshot.add_case("Synthetic", image, other, name="visit-2", plans_name="Tiny", workspace=space.root)
    added = read_labels(space.raw / "labelsTr/visit-2.nii.gz")
    assert np.array_equal(added.on_axes_of(truth.geometry).array, truth.array)


def test_a_dicom_series_is_converted(space, scan):
    pytest.importorskip("pydicom")
    from tests.dicom_scans import write_scan

    hu = np.rint(read_image(scan[0]).array[0]).astype(np.int16)
    series = space.root / "series"
    write_scan(series, hu, "axial")
    read = Volume.read(series)
    write_volume(scan[1], read_labels(scan[1]).array, read.geometry)
    mre_lowshot.add_case("900", series, scan[1], name="visit", plans_name="Tiny", workspace=space.root)
    added = read_image(space.raw / "imagesTr/visit_0000.nii.gz").on_axes_of(read.geometry)
    assert np.array_equal(added.array, read.array)
    assert added.geometry.spacing == pytest.approx(read.geometry.spacing)


def corrected(space: Space, scan: tuple[Path, Path]) -> Path:
    """A folder of predictions of two scans; the label map of one was corrected."""
    scans, out = space.root / "scans", space.root / "out"
    scans.mkdir()
    shutil.copy(scan[0], scans)
    shutil.copy(space.raw / "imagesTr/phantom_003_0000.nii.gz", scans / "again_0000.nii.gz")
    assert space.predict(scans, out, "-d", "900") == 0
    predicted = nibabel.load(out / "visit.nii.gz")
    array = np.asarray(predicted.dataobj).copy()
    array[5:9, 5:9, 5:9] = 1
    nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), predicted.affine, predicted.header), out / "visit.nii.gz")
    return out


def test_the_corrected_label_maps_of_a_folder_are_added_with_their_scans(space, scan, capfd):
    out = corrected(space, scan)
    shutil.move(space.root / "scans/visit_0000.nii.gz", space.root / "visit_0000.nii.gz")
    assert add(space, "--from", out) == 2
    assert "is missing; name the folder of the scans (-i)" in capfd.readouterr().err
    (space.raw / "imagesTs").mkdir()
    shutil.move(space.root / "visit_0000.nii.gz", space.raw / "imagesTs")
    assert add(space, "--from", out, "-i", space.raw / "imagesTs") == 2
    assert (
        "from imagesTs and labelsTs to other folders first and name the folder of the scan (-i)"
        in capfd.readouterr().err
    )
    shutil.move(space.raw / "imagesTs/visit_0000.nii.gz", space.root / "scans")
    assert add(space, "--from", out, "none") == 2
    assert "case 'none' is not in its run.json" in capfd.readouterr().err
    assert add(space, "--from", out, "-i", space.root / "scans") == 0
    assert (space.raw / "labelsTr/visit.nii.gz").read_bytes() == (out / "visit.nii.gz").read_bytes()
    assert not (space.raw / "labelsTr/again.nii.gz").exists()
    capfd.readouterr()
    assert add(space, "--from", out) == 0
    assert "case visit is in Dataset900_Synthetic already, with the same label map" in capfd.readouterr().out
    assert add(space, "--from", out, "again") == 2
    assert "its scan is case phantom_003" in capfd.readouterr().err


def test_an_interrupted_addition_goes_on_or_leaves_nothing(space, scan, monkeypatch):
    """Interrupted before each of the files is moved."""
    before, move = content(space.root), transaction.replace
    shutil.copytree(space.root, space.root.with_name("kept"))

    def interrupted_at(number: int) -> None:
        calls = []

        def moves(source, target):
            calls.append(target)
            if len(calls) == number:
                raise KeyboardInterrupt
            move(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(transaction, "replace", moves)
            assert add(space, *scan) == 130

    assert add(space, *scan) == 0
    after = content(space.root)
    assert after.keys() - before.keys() == {
        f"{folder}/{file}"
        for folder, file in (
            ("raw/Dataset900_Synthetic", "imagesTr/visit_0000.nii.gz"),
            ("raw/Dataset900_Synthetic", "labelsTr/visit.nii.gz"),
            ("preprocessed/Dataset900_Synthetic", "gt_segmentations/visit.nii.gz"),
            ("preprocessed/Dataset900_Synthetic", "Tiny/visit.npz"),
        )
    }
    for number in (1, 4, 8):
        shutil.rmtree(space.root)
        shutil.copytree(space.root.with_name("kept"), space.root)
        interrupted_at(number)
        with reading(space.prepared, "Tiny"):
            assert "visit" in check_prepared(load_plan(space.prepared / "Tiny.json"), space.prepared)
        found = content(space.root)
        assert found.keys() == after.keys()
        assert {name for name in found if found[name] != after[name]} <= {
            "preprocessed/Dataset900_Synthetic/Tiny/preprocessing.json"  # the times of files
        }


def test_a_file_changed_after_an_interrupted_addition_is_kept(space, scan, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transaction, "replace", interrupted)
        assert add(space, *scan) == 130
    (space.prepared / "splits_1shot.json").write_text("[]")
    with pytest.raises(UserError, match=r"splits_1shot\.json: was changed after a run that adds case visit"):
        transaction.finish(space.prepared)
    assert (space.prepared / "splits_1shot.json").read_text() == "[]"


def test_a_journal_from_elsewhere_moves_no_other_files(tmp_path):
    home = tmp_path / "preprocessed/Dataset900_Synthetic"
    journal = home / transaction.JOURNAL_FOLDER / transaction.JOURNAL
    journal.parent.mkdir(parents=True)
    raw = tmp_path / "raw/Dataset900_Synthetic"
    good = {"format": transaction.FORMAT, "what": "adds", "raw": str(raw), "raw_relative": "../x",
            "raw_staging": ".mre-partial.aaaaaaaa.1.bbbbbbbb", "files": []}  # fmt: skip
    for bad in (
        {"files": [{"folder": "raw", "file": "../../x", "sha256": "", "before": None}]},
        {"files": [{"folder": "raw", "file": "notes.txt", "sha256": "", "before": None}]},
        {"files": [{"folder": "home", "file": "x", "sha256": "", "before": None}]},
        {"raw_staging": "../elsewhere"},
        {"raw": "/etc"},
        {"files": None},
        {"format": "other"},
    ):
        journal.write_text(json.dumps({**good, **bad}))
        with pytest.raises(UserError, match="is no journal of changes"):
            transaction.finish(home)


def test_two_additions_at_once_are_done_one_after_the_other(space, scan, another):
    image, label = scan

    def added(name: str) -> tuple[str, ...]:
        return mre_lowshot.add_case("900", copies[name], label, plans_name="Tiny", workspace=space.root).cases

    copies = {}
    data = read_image(image)
    for number, name in enumerate(("one", "two")):
        copies[name] = image.with_name(f"{name}_0000.nii.gz")
        write_volume(copies[name], data.array[0] + number, data.geometry)
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(added, copies)) == [("one",), ("two",)]
    trains = [fold["train"] for fold in splits(space, "1shot")]
    assert sorted(trains[3:]) == [["one"], ["two"]]
    assert len(check_prepared(load_plan(space.prepared / "Tiny.json"), space.prepared)) == 5
    assert json.loads((space.raw / "dataset.json").read_text())["numTraining"] == 5


def test_no_addition_while_a_training_reads_the_cases(space, scan, capfd):
    with reading(space.prepared, "Tiny"):
        assert add(space, *scan) == 2
    assert "in use by another run, which trains with Tiny" in capfd.readouterr().err
    assert "visit" not in str(list(space.raw.rglob("*")))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [12])
def test_an_addition_killed_at_any_moment_is_whole_or_not_there(space, scan, kills):
    runs = Runs(space, seed=5)
    kept = space.root.with_name("kept")
    shutil.copytree(space.root, kept)
    arguments = ("add_case", "900", *scan, "-p", "Tiny")
    assert runs.run(*arguments) == 0, runs.output
    wanted = content(space.root).keys()
    added = 0
    while runs.kills < kills:
        shutil.rmtree(space.root)
        shutil.copytree(kept, space.root)
        ended = runs.kill(*arguments)
        assert ended in (None, 0), runs.output
        visible = {name for name in content(space.root) if ".mre-" not in name}
        labels = {path.name: read_labels(path) for path in (space.raw / "labelsTr").glob("[!.]*")}
        assert len(labels) in (3, 4)
        assert visible <= wanted
        again = runs.run(*arguments)
        assert again == 0 or (again == 2 and "is not overwritten" in runs.output), runs.output
        added += again == 2 or "is finished now" in runs.output
        assert content(space.root).keys() == wanted
        assert "visit" in check_prepared(load_plan(space.prepared / "Tiny.json"), space.prepared)
        assert [fold["train"] for fold in splits(space, "1shot")][3:] == [["visit"]]
        assert not list(space.root.rglob(".mre-*"))
    runs.report(f"adding a case, {added} times whole after the kill")
