"""``--overwrite`` keeps the earlier results of a fold until the new training has a checkpoint."""

import json
import shutil

import pytest
from conftest import edit, interrupt_after

from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.inference.model_folders import REPLACED
from mre_lowshot.inference.models import trained_folds
from mre_lowshot.trainers import replaced
from mre_lowshot.trainers.trainer import MRETrainer

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")


def stop_before_the_first_checkpoint(patch):
    """As a kill: the training ends without a checkpoint."""

    def step(self, *batch):
        raise KeyboardInterrupt

    patch.setattr(MRETrainer, "step", step)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("notes", [False, True], ids=["whole folder", "with a user's file"])
def test_a_training_that_ends_before_its_first_checkpoint_leaves_the_earlier_one_in_use(
    space, monkeypatch, capsys, notes
):
    fold = space.model() / "fold_0"
    if notes:
        (fold / "notes.txt").write_text("mine")
    before = contents(fold)
    with monkeypatch.context() as patch:
        stop_before_the_first_checkpoint(patch)
        assert space.train("--overwrite", "--no_val", "--seed", "5") == 130
    assert not list(fold.glob("*.pth"))
    assert trained_folds(space.model(), None) == {0: space.model() / REPLACED / "fold_0/checkpoint_final.pth"}
    assert trained_folds(space.model(), [0]) == trained_folds(space.model(), None)
    assert space.predict(space.raw / "imagesTr/phantom_001_0000.nii.gz", space.root / "out") == 0
    capsys.readouterr()
    assert space.train() == 2  # trained already: the earlier results are back
    assert "was trained already" in capsys.readouterr().err
    assert contents(fold) == before
    assert not list(space.root.rglob(".mre-*"))


def test_the_first_checkpoint_ends_the_earlier_results(space, monkeypatch):
    fold = space.model() / "fold_0"
    seen = []
    save = MRETrainer.save

    def saving(self, name):
        seen.append((space.model() / REPLACED / "fold_0/checkpoint_final.pth").is_file())
        save(self, name)
        seen.append((space.model() / REPLACED).exists())

    monkeypatch.setattr(MRETrainer, "save", saving)
    interrupt_after(monkeypatch, 2)
    assert space.train("--overwrite", "--no_val") == 130
    assert seen == [True, False]
    assert [path.name for path in fold.glob("*.pth")] == ["checkpoint_latest.pth"]
    assert not list(space.root.rglob(".mre-*"))


def test_a_kill_between_checkpoint_and_deletion_is_cleaned_by_the_next_run(space, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(replaced, "_delete", lambda *_: None)
        assert space.train("--overwrite", "--no_val", "--seed", "5") == 0
    after = (space.model() / "fold_0/checkpoint_final.pth").read_bytes()
    assert (space.model() / REPLACED / "fold_0").is_dir()
    assert trained_folds(space.model(), None) == {0: space.model() / "fold_0/checkpoint_final.pth"}
    replaced.restore(space.model())
    assert (space.model() / "fold_0/checkpoint_final.pth").read_bytes() == after
    assert not list(space.root.rglob(".mre-*"))


def test_a_kill_while_files_are_moved_loses_none(space, monkeypatch):
    fold = space.model() / "fold_0"
    (fold / "notes.txt").write_text("mine")
    before = contents(fold)
    move = replaced._move

    for count in (3, 1):  # while it is set aside, and while it is given back

        def stopped(paths, source, target, count=count):
            move(list(paths)[:count], source, target)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(replaced, "_move", stopped)
            assert space.train("--overwrite") == 130
        assert list((space.model() / REPLACED).glob("fold_0.moving/*"))
    replaced.restore(space.model())
    assert contents(fold) == before
    assert not list(space.root.rglob(".mre-*"))


@pytest.mark.slow
def test_the_earlier_plan_of_the_model_comes_back_with_its_results(space, monkeypatch, capsys):
    model = space.model()
    shutil.copytree(model / "fold_0", model / "fold_1")
    data = json.loads((model / "fold_1/plans.json").read_text())
    data["fold"]["fold"] = 1
    (model / "fold_1/plans.json").write_text(json.dumps(data))
    before = load_plan(model / "plans.json")
    edit(space.prepared / "Tiny.json", recipe={"optimizer": {"learning_rate": 0.5}})
    with monkeypatch.context() as patch:
        stop_before_the_first_checkpoint(patch)
        assert space.train("--overwrite", "--no_val", fold="all") == 130
    assert load_plan(model / "plans.json") != before
    assert sorted(trained_folds(model, None)) == [0, 1]
    capsys.readouterr()
    assert space.train(fold="2") == 2
    assert "holds results of another plan" in capsys.readouterr().err
    assert load_plan(model / "plans.json") == before
    assert sorted(path.parent.name for path in model.glob("fold_*/checkpoint_final.pth")) == ["fold_0", "fold_1"]
    assert space.train("--overwrite", "--no_val", fold="all") == 0  # all under the new plan
    assert load_plan(model / "plans.json").recipe.optimizer.learning_rate == 0.5
    assert not list(space.root.rglob(".mre-*"))
