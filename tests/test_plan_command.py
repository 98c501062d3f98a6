"""``mre_plan_and_preprocess`` on three tiny phantoms: files, refusals, exit codes, messages."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import command, edit

from mre_lowshot.config.plan_files import load_plan
from mre_lowshot.data.volume import read_image, read_labels, write_volume

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")


def test_references_in_two_files_are_copied_whole(space):
    """A .mhd is a header; its voxels are in a .raw beside it."""
    for folder in ("imagesTr", "labelsTr"):
        for path in list((space.raw / folder).iterdir()):
            volume = read_image(path)
            kind = np.uint8 if folder == "labelsTr" else np.float32
            write_volume(path.with_name(path.name.replace(".nii.gz", ".mhd")), volume.array[0].astype(kind),
                         volume.geometry)  # fmt: skip
            path.unlink()
    edit(space.raw / "dataset.json", file_ending=".mhd")
    assert space.plan(name="Heads") == 0
    for path in (space.raw / "labelsTr").glob("*.mhd"):
        copied = read_labels(space.prepared / "gt_segmentations" / path.name)
        assert np.array_equal(copied.array, read_labels(path).array)


def test_a_kept_plan_must_be_of_this_dataset(space, capsys):
    edit(space.raw / "dataset.json", channel_names={"0": "MRI"})
    assert space.plan("--keep_plan", settings=()) == 2
    assert "channel_names is ('CT',), the dataset's ('MRI',)" in capsys.readouterr().err


def test_cases_annotated_later_are_reported(space, capsys):
    path = space.prepared / "splits_1shot.json"
    splits = json.loads(path.read_text())
    gone = splits.pop()["train"][0]
    path.write_text(json.dumps([{**s, "val": [n for n in s["val"] if n != gone]} for s in splits]))
    assert space.train("--val") in (0, 2)
    assert f"leaves out {gone}" in capsys.readouterr().out


def test_a_plan_edited_by_hand_is_kept_or_refused_never_lost(space, capsys):
    path = space.prepared / "Tiny.json"
    edit(path, recipe={"optimizer": {"iterations": 5}})
    mine = path.read_bytes()
    assert space.plan() == 2
    message = capsys.readouterr().err
    assert "already exists and differs from the new plan" in message
    assert "(recipe.optimizer.iterations: existing 5, new 3; possible causes: edited by hand" in message
    assert "--keep_plan uses it, --overwrite replaces it, -p NAME makes another" in message
    assert space.plan("--keep_plan", settings=()) == 0
    assert path.read_bytes() == mine
    assert space.plan("--overwrite", "--no_pp") == 0
    assert json.loads(path.read_text())["recipe"]["optimizer"]["iterations"] == 3
    assert space.plan("--no_pp") == 0  # the same again is no difference


def test_an_unknown_key_in_a_plan_is_named_by_every_command_that_reads_it(space, capsys):
    edit(space.prepared / "Tiny.json", recipe={"optimizer": {"iteratons": 5}})
    for attempt in (lambda: space.train(fold="1"), lambda: space.plan("--keep_plan", settings=()), space.plan):
        assert attempt() == 2
        message = "Tiny.json.recipe.optimizer: unknown key 'iteratons'; did you mean 'iterations'?"
        assert message in capsys.readouterr().err
    assert space.plan("--overwrite", "--no_pp") == 0


def test_a_plan_copied_to_another_name_leaves_the_first_ones_cases_unchanged(space):
    edit(space.prepared / "Tiny.json", preprocessing={"spacing": [12.0, 12.0, 12.0]})
    (space.prepared / "Tiny.json").rename(space.prepared / "Mine.json")
    before = (space.prepared / "Tiny/phantom_001.npz").read_bytes()
    code = space.plan("--keep_plan", name="Mine", settings=())
    assert (space.prepared / "Tiny/phantom_001.npz").read_bytes() == before
    assert code == 2 or (space.prepared / "Mine/phantom_001.npz").is_file()


def planned(space, name="New"):
    return json.loads((space.prepared / f"{name}.json").read_text())


def test_fields_that_must_agree_are_set_together(space):
    pair = ("patch.size=[8, 16, 16]", "patch.centre=[4, 12, 12]")
    for number, settings in enumerate((pair, pair[::-1])):
        assert space.plan("--no_pp", name=f"New{number}", settings=settings) == 0
        assert planned(space, f"New{number}")["patch"] == {"size": [8, 16, 16], "centre": [4, 12, 12]}
    shallow = ("network.widths=[4, 8]", "network.convs=[1, 1]", "network.strides=[[2, 2, 2]]")
    assert space.plan("--no_pp", name="Shallow", settings=shallow) == 0


def test_a_second_set_does_not_undo_the_first(space):
    first, second = "network.prototypes_per_class=1", "recipe.optimizer.iterations=7"
    assert space.plan("--no_pp", "--set", first, name="New", settings=(second,)) == 0
    plan = planned(space)
    assert (plan["network"]["prototypes_per_class"], plan["recipe"]["optimizer"]["iterations"]) == (1, 7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "network.prototypes_per_class=1"], "--set makes another plan; give it its own name with -p NAME"),
        (["-p", "New", "--set", "network.prototypes_per_clas=1"], "did you mean 'prototypes_per_class'?"),
        (["-p", "New", "--set", "network.prototypes_per_class"], "write KEY=VALUE"),
        (["-p", "New", "--set", "network.prototypes_per_class=many"], "must be an int"),
        (["-p", "../New"], "letters, digits, - and _ only"),
        (["-p", "New__er"], "-p 'New__er'"),
        (["--recipe", "papper"], "did you mean 'paper'?"),
        (["--keep_plan", "--overwrite"], "leave out --set and --overwrite"),
        (["--keep_plan", "--n4", "off"], "leave out --n4"),
        (["--n4", "on"], "--n4 on: N4 corrects MRI volumes, found channel CT"),
        (["--keep_plan", "-p", "Absent"], "Absent.json is missing"),
        (["--memory", "-1"], "--memory -1.0"),
        (["-d", "Nothing"], "dataset 'Nothing' is not in"),
    ],
)
def test_wrong_use_of_planning_is_refused(space, arguments, words, capsys):
    before = sorted(space.prepared.rglob("*"))
    assert command("plan", "-d", "900", "--workspace", space.root, *arguments) == 2
    assert words in capsys.readouterr().err
    assert sorted(space.prepared.rglob("*")) == before


def test_a_broken_dataset_is_refused_with_every_problem(space, capsys):
    (space.raw / "imagesTr/phantom_002_0000.nii.gz").write_bytes(b"none")
    (space.raw / "labelsTr/phantom_003.nii.gz").write_bytes(b"none")
    assert space.plan("--overwrite") == 2
    message = capsys.readouterr().err
    assert "2 problems found" in message
    assert "case phantom_002: imagesTr/phantom_002_0000.nii.gz" in message
    assert "case phantom_003: labelsTr/phantom_003.nii.gz" in message


@pytest.mark.parametrize(
    ("scale", "shift", "words"),
    [
        (1.0, 1024.0, "subtract the offset that it is stored with (often 1024)"),
        (1.0, -1024.0, "add the offset that was subtracted (often 1024)"),
        (10.0, 0.0, "undo its scaling"),
        (0.001, 0.5, "undo its scaling"),
    ],
)
def test_a_ct_that_is_not_in_hu_is_refused(space, scale, shift, words, capsys):
    for path in (space.raw / "imagesTr").iterdir():
        volume = read_image(path)
        write_volume(path, volume.array[0] * scale + shift, volume.geometry)
    assert space.plan(name="New") == 2
    message = capsys.readouterr().err
    assert "3 problems found" in message
    assert "case phantom_001: channel 'CT' is not in HU: most values lie between" in message
    assert words in message
    edit(space.raw / "dataset.json", channel_names={"0": "other"})
    assert space.plan("--no_pp", name="New") == 0


def test_references_are_found_with_endings_in_capitals(space):
    for path in [*(space.raw / "labelsTr").iterdir(), *(space.raw / "imagesTr").iterdir()]:
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    references = space.prepared / "gt_segmentations"
    wanted = {path.name for path in references.iterdir()}
    shutil.rmtree(references)  # of the plan before
    assert space.plan("--overwrite") == 0
    assert {path.name for path in references.iterdir()} == wanted


@pytest.mark.slow
def test_an_mri_of_a_body_is_planned_with_bias_field_correction_and_two_coils_give_one_image(space, capsys):
    """The phantoms as an MRI; in the second copy a coil makes one side twice as bright as the other."""
    spread = []
    for name, strength in (("Even", 0.0), ("Coil", 1.0)):
        for path in (space.raw / "imagesTr").iterdir():
            volume = read_image(path)
            x = np.linspace(-0.5, 0.5, volume.array.shape[-1])
            grey = np.clip(volume.array + 1000, 0, None) if name == "Even" else volume.array
            write_volume(path, (grey * 2.0 ** (strength * x))[0].astype(np.float32), volume.geometry)
        edit(space.raw / "dataset.json", channel_names={"0": "T1"})
        assert space.plan(name=name) == 0
        assert "bias_field: MRI of a body or head: corrected (N4)" in capsys.readouterr().out
        spread.append([np.load(path)["image"] for path in sorted((space.prepared / name).glob("*.npz"))])
    for even, coil in zip(*spread, strict=True):
        inside = even > -2  # without the air, which lies many standard deviations below
        assert 0.2 < inside.mean() < 1
        assert np.corrcoef(even[inside], coil[inside])[0, 1] > 0.95


def test_nnunets_own_fingerprint_is_not_replaced(space):
    """nnU-Net's folders are used where ours are not set, and nnU-Net trusts an existing fingerprint."""
    ours = space.prepared / "dataset_fingerprint.json"
    theirs = json.dumps({"spacings": [[1, 1, 1]], "shapes_after_crop": [[8, 8, 8]]})
    ours.write_text(theirs)
    assert space.plan("--overwrite", "--no_pp") == 0
    assert ours.read_text() == theirs
    assert "cases" in json.loads((space.prepared / "mre_fingerprint.json").read_text())


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("dataset_name=foo", "the dataset"),
        ('channel_names=["MR"]', "dataset.json"),
        ("labels.liver=2", "dataset.json"),
        ("file_ending=.png", "dataset.json"),
        ("ignore_label=9", "dataset.json"),
        ("training_ranges={}", "the dataset"),
        ("plans_name=Bar", "-p"),
        ("reasons={}", "the planner"),
        ("fold=null", "the planner"),
    ],
)
def test_what_is_given_by_the_dataset_is_not_set(space, capsys, change, place):
    assert space.plan("--no_pp", name="Other", settings=(change,)) == 2
    field = change.split("=")[0]
    assert f"--set: {field} is not decided but given by {place}; change it there" in capsys.readouterr().err
    assert not (space.prepared / "Other.json").exists()


def test_a_batch_that_the_gpus_cannot_share_is_refused_before_it_is_planned(space, capsys):
    odd = ("recipe.sampling.batch_size=4",)
    assert space.plan("--no_pp", "--gpus", "3", name="Three", settings=odd) == 2
    said = capsys.readouterr().err
    assert "--gpus 3: recipe.sampling.batch_size 4 cannot be divided evenly among 3 processes" in said
    assert "recipe.sampling.batch_size=3" in said
    assert not (space.prepared / "Three.json").exists()
    assert space.plan("--no_pp", "--gpus", "3", name="Three", settings=("recipe.sampling.batch_size=3",)) == 0


def test_a_label_that_no_label_map_contains_is_noted(space, capsys):
    assert space.plan(name="All") == 0
    assert "no label map contains" not in "".join(capsys.readouterr())
    labels = json.loads((space.raw / "dataset.json").read_text())["labels"]
    edit(space.raw / "dataset.json", labels={**labels, "adrenal": 7})
    assert space.plan(name="More") == 0
    assert "NOTE no label map contains adrenal (7), named in dataset.json" in "".join(capsys.readouterr())


def test_a_labelled_scan_with_a_faulty_slice_is_named(space, capsys):
    """An MRI whose channel is not in HU; the plan is that of the clean scan."""
    edit(space.raw / "dataset.json", channel_names={"0": "MRI"})
    assert space.plan(name="Clean") == 0
    assert "faulty slices" not in capsys.readouterr().out
    path = space.raw / "imagesTr/phantom_002_0000.nii.gz"
    image = nib.load(path)
    array = image.get_fdata()
    array[:, :, 9] = 20000
    nib.save(nib.Nifti1Image(array, image.affine), path)
    assert space.plan(name="Faulty") == 0
    assert "case phantom_002: 1584 voxels have extreme intensities or lie in faulty slices" in (
        "".join(capsys.readouterr())
    )
    clean, faulty = (load_plan(space.prepared / f"{name}.json") for name in ("Clean", "Faulty"))
    assert (faulty.preprocessing, faulty.patch) == (clean.preprocessing, clean.patch)
