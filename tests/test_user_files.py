"""Files of a person in the folders of a fold: corrected label maps and notes are never lost."""

import shutil

import pytest
from conftest import command

from mre_lowshot.data.volume import read_labels, write_volume

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")


def corrected(path):
    """Draw in a label map; returns its content."""
    volume = read_labels(path)
    array = volume.array.copy()
    array[2:4, 2:4, 2:4] = 1
    write_volume(path, array, volume.geometry)
    return path.read_bytes()


def test_a_label_map_of_validation_that_was_corrected_is_kept(space, capsys):
    validation = space.model() / "fold_0/validation"
    map_ = validation / "phantom_002.nii.gz"
    predicted, other = map_.read_bytes(), (validation / "phantom_003.nii.gz").read_bytes()
    first = corrected(map_)
    assert space.train("--val") == 0
    assert f"{map_} was changed since it was written; the changed one is kept as {map_.name}.old" in str(
        capsys.readouterr()
    )
    assert map_.read_bytes() == predicted
    assert (validation / f"{map_.name}.old").read_bytes() == first
    second = corrected(map_)
    assert space.train("--val") == 0
    assert (validation / f"{map_.name}.old").read_bytes() == (validation / f"{map_.name}.old2").read_bytes() == second
    assert (validation / "phantom_003.nii.gz").read_bytes() == other
    assert len(list(validation.glob("*.old*"))) == 2
    assert command("evaluate", space.raw / "labelsTr", validation, "-o", space.root / "scores") == 1  # one is missing


def test_overwriting_a_fold_deletes_its_own_files_only(space):
    fold = space.model() / "fold_0"
    kept = {
        fold / "notes.txt": b"mine",
        fold / "validation/phantom_003_detail.nii.gz": b"mine",
        fold / "a/b.json": b"{}",
    }
    for path, content in kept.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    kept[fold / "validation/phantom_002.nii.gz"] = corrected(fold / "validation/phantom_002.nii.gz")
    (fold / "validation/summary.csv").write_text("mine")
    kept[fold / "validation/summary.csv"] = b"mine"
    log = next(fold.glob("training_log_*.txt"))
    log.rename(fold / "training_log_2020_01_01_00_00_00.txt")
    assert space.train("--overwrite", "--no_val") == 0
    assert {path: path.read_bytes() for path in kept} == kept
    names = {path.name for path in fold.iterdir()} - {path.name for path in fold.glob("training_log_*")}
    assert names == {
        "notes.txt", "validation", "a", "checkpoint_latest.pth", "checkpoint_final.pth", "plans.json", "debug.json",
        "progress.png", "run.json", "training_log.jsonl",
    }  # fmt: skip
    assert len((fold / "training_log.jsonl").read_text().splitlines()) == 3  # of the new training alone
    assert not (fold / "training_log_2020_01_01_00_00_00.txt").exists()
    assert {path.name for path in (fold / "validation").iterdir()} == {
        "phantom_003_detail.nii.gz", "phantom_002.nii.gz", "summary.csv",
    }  # fmt: skip


def test_a_reference_that_is_a_broken_link_is_named(tmp_path, trained, capsys):
    for name in ("references", "predictions"):
        shutil.copytree(trained.raw / "labelsTr", tmp_path / name)
    broken = tmp_path / "references/phantom_002.nii.gz"
    broken.unlink()
    broken.symlink_to(tmp_path / "gone.nii.gz")
    assert command("evaluate", tmp_path / "references", tmp_path / "predictions", "-o", tmp_path / "scores") == 1
    assert "phantom_002" in str(capsys.readouterr())


def test_a_copied_label_map_that_was_corrected_is_kept(space, capsys):
    copied = space.prepared / "gt_segmentations/phantom_002.nii.gz"
    drawn = corrected(copied)
    assert space.plan() == 0
    assert "NOTE gt_segmentations/phantom_002.nii.gz.old: a label map that was changed there is kept" in str(
        capsys.readouterr()
    )
    assert copied.read_bytes() == (space.raw / "labelsTr/phantom_002.nii.gz").read_bytes()
    assert (copied.parent / "phantom_002.nii.gz.old").read_bytes() == drawn
    corrected(space.raw / "labelsTr/phantom_002.nii.gz")
    assert space.plan("--overwrite") == 0  # what was copied and not changed is replaced
    assert len(list(copied.parent.iterdir())) == 4
