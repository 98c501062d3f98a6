"""Models travel: exported to one zip file, used from it, and installed; predictions are the same to the last bit."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch

import mre_lowshot
from mre_lowshot import Predictor
from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.errors import UserError
from mre_lowshot.files import sha256
from tests.conftest import SETTINGS, Space, command, edit, one_thread

pytestmark = pytest.mark.usefixtures("one_thread_only")
MEMBERS = [
    "model.json",
    "MODEL_CARD.md",
    "dataset.json",
    "fold_0/checkpoint_final.pth",
    "fold_0/plans.json",
    "plans.json",
]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.zip"
    assert command("export_model", "-m", trained.model(), "-o", path) == 0
    return path


@pytest.fixture(scope="module")
def scan(trained):
    return trained.raw / "imagesTr/phantom_002_0000.nii.gz"


def result(model, scan):
    prediction = Predictor.load(model, device="cpu").predict(scan)
    return prediction.labels.array, prediction.probabilities, prediction.quality


def test_the_zip_predicts_the_same_bits_without_being_installed(trained, exported, scan):
    one, other = result(trained.model(), scan), result(exported, scan)
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])
    assert one[2] == other[2]
    assert [p.name for p in exported.parent.iterdir()] == ["model.zip"]  # nothing was unpacked beside it


def test_the_command_predicts_from_the_zip_and_goes_on_from_the_installed_model(trained, exported, tmp_path, capsys):
    """run.json names the checkpoint by its hash, so that the same model is recognised wherever it lies."""
    scans, out = trained.raw / "imagesTr", tmp_path / "out"
    assert command("predict", "-i", scans, "-o", out, "-m", exported, "-f", "0", "-device", "cpu") == 0
    run = next(iter(json.loads((out / "run.json").read_text())["runs"].values()))
    assert run["model"]["folder"] == str(exported)
    (listed,) = run["model"]["checkpoints"]
    assert listed["file"] == str(exported / "fold_0/checkpoint_final.pth")
    assert command("install_model", exported, "--workspace", tmp_path / "other") == 0
    installed = Space(tmp_path / "other").model()
    assert listed["sha256"] == sha256(installed / "fold_0/checkpoint_final.pth")
    label_map = out / "phantom_001.nii.gz"
    before = label_map.stat().st_mtime_ns
    arguments = ("-i", scans, "-o", out, "-d", "900", "-c", "1shot", "-p", "Tiny", "--workspace", tmp_path / "other")
    assert command("predict", *arguments, "-device", "cpu", "--continue_prediction") == 0
    assert label_map.stat().st_mtime_ns == before
    assert "MRETrainer__Tiny__1shot (the only trained model)" in capsys.readouterr().out


def test_the_same_model_gives_the_same_bytes(trained, exported, tmp_path):
    shutil.copytree(trained.model(), tmp_path / "elsewhere")
    mre_lowshot.export_model(tmp_path / "again.zip", model=tmp_path / "elsewhere")
    assert (tmp_path / "again.zip").read_bytes() == exported.read_bytes()


def test_members_are_listed_with_size_and_hash_and_the_checkpoint_is_smaller(trained, exported):
    import hashlib

    with zipfile.ZipFile(exported) as archive:
        assert archive.namelist() == MEMBERS
        assert {(m.compress_type, m.date_time, m.external_attr >> 16) for m in archive.infolist()} == {
            (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0), 0o100644)
        }
        card = json.loads(archive.read("model.json"))
        assert [m["file"] for m in card["members"]] == sorted(MEMBERS[1:])
        for member in card["members"]:
            content = archive.read(member["file"])
            assert (len(content), hashlib.sha256(content).hexdigest()) == (member["size"], member["sha256"])
        size = archive.getinfo("fold_0/checkpoint_final.pth").file_size
    assert size < 0.7 * (trained.model() / "fold_0/checkpoint_final.pth").stat().st_size


def test_the_card_says_what_it_was_trained_on_and_how_well(trained, exported):
    with zipfile.ZipFile(exported) as archive:
        card, text = json.loads(archive.read("model.json")), archive.read("MODEL_CARD.md").decode()
    summary = json.loads((trained.model() / "fold_0/validation/summary.json").read_text())
    (fold,) = card["folds"]
    assert (card["dataset"], card["plans_name"], card["level"]) == ("Dataset900_Synthetic", "Tiny", "1shot")
    assert card["modality"] == ["CT"]
    assert card["labels"]["background"] == 0
    assert card["training_ranges"]["scans"] == 3
    assert (fold["training_scans"], fold["labelled_scans_inside"], fold["iterations"]) == (1, 1, 3)
    assert fold["complete"] is True
    assert fold["versions"]["mre_lowshot"] == mre_lowshot.__version__
    assert fold["scores"]["cases"] == 2
    assert fold["scores"]["Dice"] == round(summary["foreground_mean"]["Dice"], 4)
    assert fold["trained"].count("-") == 2
    for part in (
        "Dataset900_Synthetic",
        "For research only",
        "CT",
        "## Intended use",
        "## Limits",
        "Patient data: each",
    ):
        assert part in text


def test_no_name_of_a_case_is_in_the_zip_unless_asked_for(trained, exported, tmp_path):
    """Nor that of the machine or a folder: members are stored, so that the file holds their texts as they are."""
    content = exported.read_bytes()
    assert b"phantom_" not in content
    assert str(trained.root).encode() not in content
    assert b"case_1" in content
    kept = tmp_path / "kept.zip"
    assert command("export_model", "-m", trained.model(), "-o", kept, "--keep_names") == 0
    assert b"phantom_001" in kept.read_bytes()


def test_names_in_reasons_are_replaced_and_other_words_are_not(trained):
    from dataclasses import replace

    from mre_lowshot.workflows.export_model import without_names

    plan = load_plan(trained.model() / "fold_0/plans.json")
    fold = replace(plan.fold, train=("case_2", "x1"), test=("case_1",), reasons={"a": "case_1, case_2: x1 of case_10"})
    changed = without_names(replace(plan, fold=fold), {})
    assert (changed.fold.train, changed.fold.test) == (("case_2", "case_3"), ("case_1",))
    assert changed.fold.reasons == {"a": "case_1, case_2: x1 of case_10"}
    fold = replace(
        fold, train=("Miller", "Miller_Jane"), test=("case_1",), reasons={"a": "Miller_Jane (Miller): Millers"}
    )
    changed = without_names(replace(plan, fold=fold), {})
    assert changed.fold.reasons == {"a": "case_2 (case_1): Millers"}


def test_lists_of_files_in_dataset_json_are_left_out(space, tmp_path):
    checkpoint = space.model() / "fold_0/checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=True)
    content["dataset"] |= {"training": [{"image": "./imagesTr/Miller_0000.nii.gz"}], "name": "Abdomen"}
    torch.save(content, checkpoint)
    mre_lowshot.export_model(tmp_path / "m.zip", model=space.model())
    assert b"Miller" not in (tmp_path / "m.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        kept = json.loads(archive.read("dataset.json"))
    assert kept["name"] == "Abdomen"
    assert kept["labels"] == content["dataset"]["labels"]


def test_install_is_whole_or_not_at_all_and_never_replaces_unasked(trained, exported, tmp_path, capsys):
    place = ("--workspace", tmp_path)
    assert command("install_model", exported, *place) == 0
    folder = Space(tmp_path).model()
    with zipfile.ZipFile(exported) as archive:
        assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == {
            name: archive.read(name) for name in archive.namelist()
        }
    assert command("install_model", exported, *place) == 0
    assert "installed already" in capsys.readouterr().out
    (folder / "plans.json").write_text("{}")
    assert command("install_model", exported, *place) == 2
    assert "another model of this name was installed" in capsys.readouterr().err
    assert (folder / "plans.json").read_text() == "{}"
    assert command("install_model", exported, *place, "--overwrite") == 0
    assert load_plan(folder / "plans.json").plans_name == "Tiny"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_model_trained_here_is_not_replaced(space, exported, capsys):
    before = sha256(space.model() / "fold_0/checkpoint_latest.pth")
    assert command("install_model", exported, "--workspace", space.root) == 2
    assert "was trained here" in capsys.readouterr().err
    assert sha256(space.model() / "fold_0/checkpoint_latest.pth") == before


@pytest.mark.parametrize("stage", ["copy_member", "rename"])
@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupted_install_leaves_nothing_half(exported, tmp_path, monkeypatch, stage, earlier):
    from mre_lowshot.inference import model_archive
    from mre_lowshot.workflows import install_model as module

    folder = Space(tmp_path).model()
    if earlier:
        folder.mkdir(parents=True)
        (folder / "mine.txt").write_text("mine")
    calls = []
    real_copy, real_rename = model_archive.copy_member, module.os.rename

    def copy(*arguments):
        calls.append(arguments)
        if stage == "copy_member" and len(calls) == 3:
            raise KeyboardInterrupt
        real_copy(*arguments)

    def rename(source, target):
        if stage == "rename" and str(target) == str(folder) and "replaced" not in str(source):
            raise KeyboardInterrupt
        real_rename(source, target)

    monkeypatch.setattr(model_archive, "copy_member", copy)
    monkeypatch.setattr(module.os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        mre_lowshot.install_model(exported, workspace=tmp_path, overwrite=True)
    left = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    assert left == ([(folder / "mine.txt").relative_to(tmp_path).as_posix()] if earlier else [])
    monkeypatch.undo()
    assert mre_lowshot.install_model(exported, workspace=tmp_path, overwrite=True).folder == folder
    assert not (folder / "mine.txt").exists()


def test_a_kill_between_the_two_renames_is_repaired_by_the_next_run(exported, tmp_path):
    folder = Space(tmp_path).model()
    aside = folder.parent / f".mre-replaced.{folder.name}"
    aside.mkdir(parents=True)
    (aside / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="another model of this name"):
        mre_lowshot.install_model(exported, workspace=tmp_path)
    assert (folder / "mine.txt").read_text() == "mine"


def test_a_full_disk_is_named_before_anything_is_written(exported, tmp_path, monkeypatch):
    from mre_lowshot.workflows import install_model as module

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match=r"are needed, 1 bytes are free; make space"):
        mre_lowshot.install_model(exported, workspace=tmp_path)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["-o", "model.tar"], "must end in .zip"),
        (["-o", "there.zip"], "exists; give another name"),
        (["-o", "folder.zip"], "is a folder"),
        (["-o", "m.zip", "-f", "7"], "fold [7] is not trained"),
        (["-o", "m.zip", "-f", "x"], "must be fold0"),
        (["-o", "m.zip", "-d", "900"], "leave out -d, -c and -p"),
        (["-o", "m.zip", "--intended_use", " "], "must be a text"),
        (["-o", "m.zip", "--intended_use", "a\x07b"], "control character"),
        (["-o", "m.zip", "--without_atlas"], "recipe.atlas.registration is 'affine' and network.atlas_prior is true"),
    ],
)
def test_wrong_use_of_the_export_writes_nothing(trained, tmp_path, monkeypatch, capsys, arguments, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.zip").write_text("mine")
    (tmp_path / "folder.zip").mkdir()
    assert command("export_model", "-m", trained.model(), *arguments) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.zip", "there.zip"]
    assert (tmp_path / "there.zip").read_text() == "mine"


def test_a_fold_or_zip_is_not_exported(trained, exported, tmp_path, capsys):
    for model, part in ((exported, "is no folder"), (trained.model() / "fold_0", "holds no trained fold")):
        assert command("export_model", "-m", model, "-o", tmp_path / "m.zip") == 2
        assert part in capsys.readouterr().err


def test_a_model_without_atlas_holds_no_scan(trained, tmp_path):
    """Registration and prior are off: the same predictions, and no image or label map in the file."""
    space = Space(tmp_path / "space")
    shutil.copytree(trained.raw, space.raw)
    off = ("recipe.atlas.registration=none", "network.atlas_prior=false")
    settings = tuple(s for s in SETTINGS if not s.startswith("recipe.atlas")) + off
    with one_thread():
        assert space.plan(settings=settings) == 0
        assert space.train("--no_val") == 0
    path = tmp_path / "m.zip"
    made = mre_lowshot.export_model(path, model=space.model(), without_atlas=True)
    assert made.scans_inside == 0
    with zipfile.ZipFile(path) as archive:
        assert "No scan is in this model" in archive.read("MODEL_CARD.md").decode()
    scan = trained.raw / "imagesTr/phantom_002_0000.nii.gz"
    assert np.array_equal(result(path, scan)[1], result(space.model(), scan)[1])


def test_an_interrupted_export_leaves_nothing(trained, tmp_path, monkeypatch):
    from mre_lowshot.inference import model_archive

    def interrupted(path, *_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(model_archive, "write_archive", interrupted)
    (tmp_path / "m.zip").write_bytes(b"earlier")
    assert command("export_model", "-m", trained.model(), "-o", tmp_path / "m.zip", "--overwrite") == 130
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.zip", b"earlier")]


@pytest.mark.slow
def test_several_folds_or_one_of_them(space, tmp_path, scan, capsys):
    with one_thread():
        assert space.train("--no_val", fold="fold1") == 0
    both, one = tmp_path / "both.zip", tmp_path / "one.zip"
    assert command("export_model", "-d", "900", "-c", "1shot", "-o", both, "--workspace", space.root) == 0
    assert "folds 0, 1" in capsys.readouterr().out
    assert mre_lowshot.export_model(one, model=space.model(), folds=[1]).folds == (1,)
    assert np.array_equal(result(both, scan)[1], result(space.model(), scan)[1])
    alone = Predictor.load(both, folds=1, device="cpu").predict(scan).probabilities
    assert np.array_equal(alone, result(one, scan)[1])
    with zipfile.ZipFile(both) as archive:
        folds = [json.loads(archive.read(f"fold_{n}/plans.json"))["fold"] for n in (0, 1)]
        scores = [fold["scores"] for fold in json.loads(archive.read("model.json"))["folds"]]
    assert [(f["train"], f["test"]) for f in folds] == [
        (["case_1"], ["case_2", "case_3"]),
        (["case_2"], ["case_1", "case_3"]),
    ]
    assert scores[0]["cases"] == 2
    assert scores[1] is None
    with pytest.raises(UserError, match=r"both\.zip: fold \[2\] is not in it \(it has \[0, 1\]\)"):
        Predictor.load(both, folds=2, device="cpu")
    shutil.copytree(space.model() / "fold_0", space.model() / "fold_7")
    with pytest.raises(UserError, match="is of fold 0, its folder is of 7"):
        mre_lowshot.export_model(tmp_path / "x.zip", model=space.model())


def test_scores_of_other_weights_are_not_listed(space, tmp_path, capsys):
    """As after mre_train --c --no_val: the summary is of the earlier weights."""
    path = space.model() / "fold_0/checkpoint_final.pth"
    held = torch.load(path, weights_only=True)
    name = next(name for name, tensor in held["weights"].items() if tensor.is_floating_point())
    held["weights"][name] += 1e-3
    torch.save(held, path)
    made = mre_lowshot.export_model(tmp_path / "m.zip", model=space.model())
    (fold,) = made.card["folds"]
    assert fold["scores"] is None
    assert "scored other weights" in fold["scores_note"]
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert "- Fold 0: the last validation scored other weights" in archive.read("MODEL_CARD.md").decode()
    assert command("export_model", "-m", space.model(), "-o", tmp_path / "n.zip") == 0
    assert "mre_train --val scores it" in capsys.readouterr().err
    folder = mre_lowshot.install_model(tmp_path / "m.zip", workspace=tmp_path / "w").folder
    assert mre_lowshot.export_model(tmp_path / "o.zip", model=folder).card["folds"] == made.card["folds"]


def test_an_installed_model_is_exported_again_with_its_scores(exported, tmp_path):
    folder = mre_lowshot.install_model(exported, workspace=tmp_path).folder
    again = mre_lowshot.export_model(tmp_path / "again.zip", model=folder)
    with zipfile.ZipFile(exported) as archive:
        card = json.loads(archive.read("model.json"))
    assert again.card["folds"] == card["folds"]
    edit(folder / "model.json", folds=[{"fold": 0, "scores": {"cases": "many"}}])
    with pytest.raises(UserError, match=r"model\.json: is no summary"):
        mre_lowshot.export_model(tmp_path / "third.zip", model=folder)


def test_an_installed_model_cannot_be_trained_on(space, exported, capsys):
    shutil.rmtree(space.model())
    assert command("install_model", exported, "--workspace", space.root) == 0
    assert space.train() == 2
    assert space.train("--c") == 2
    assert "without the state of the training" in capsys.readouterr().err
