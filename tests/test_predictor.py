"""The predictor: a scan gives the same prediction in every form of input, through the command, in validation, and stage
by stage."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from mre_lowshot import Predictor, Volume
from mre_lowshot.atlas.alignment import align
from mre_lowshot.data.dataset import Case
from mre_lowshot.data.importing.slicer import read_segments
from mre_lowshot.data.scan_input import read_scan
from mre_lowshot.data.volume import geometry_of, read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.files import read_json
from mre_lowshot.inference.export import Prediction

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
NAME = "phantom_002"  # a scan that fold 0 was not trained on
FOLD = "fold_0"


@pytest.fixture(scope="module")
def scan(trained) -> Path:
    return trained.raw / f"imagesTr/{NAME}_0000.nii.gz"


@pytest.fixture(scope="module")
def predictor(trained) -> Predictor:
    return Predictor.load(trained.model(), device="cpu")


@pytest.fixture(scope="module")
def prediction(predictor, scan, one_thread_only) -> Prediction:
    """Of the scan's file."""
    return predictor.predict(scan)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are equal to the bit."""
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def quality_row(folder: Path) -> dict[str, str]:
    with (folder / "quality.csv").open(newline="") as lines:
        (row,) = [row for row in csv.DictReader(lines) if row["case"] == NAME]
    return row


def test_a_prediction_lies_on_the_scans_grid(prediction, predictor, scan):
    assert prediction.name == NAME
    assert not prediction.labels.geometry.differences(geometry_of(scan))
    assert prediction.labels.array.any()
    assert prediction.label_names == predictor.plan.labels
    assert prediction.warnings == ()
    assert 0 <= prediction.quality.score < 1


@pytest.mark.parametrize("form", ["volume", "sitk", "array"])
def test_every_form_of_a_scan_gives_the_same_prediction(form, prediction, predictor, scan):
    volume = Volume.read(scan)
    before = volume.array.copy()
    forms = {"volume": volume, "sitk": sitk.ReadImage(str(scan)), "array": (volume.array, volume.geometry.spacing)}
    found = predictor.predict(forms[form])
    assert same(found.labels.array, prediction.labels.array)
    assert found.quality == prediction.quality
    assert found.name == (NAME if form == "volume" else "scan")
    assert same(volume.array, before)  # what the caller gave is unchanged


@pytest.mark.parametrize("form", [str, Path, lambda path: [path], lambda path: (str(path),)])
def test_a_file_can_be_given_as_text_path_or_sequence(form, scan):
    name, volume = read_scan(form(scan))
    assert name == NAME
    assert same(volume.array, Volume.read(scan).array)


def test_the_command_gives_the_same_prediction(prediction, trained, scan, tmp_path):
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    (scans / scan.name).write_bytes(scan.read_bytes())
    assert trained.predict(scans, out, "--save_probabilities") == 0
    prediction.save(tmp_path / f"{NAME}.nii.gz", probabilities=True)
    assert (out / f"{NAME}.nii.gz").read_bytes() == (tmp_path / f"{NAME}.nii.gz").read_bytes()
    assert same(read_labels(out / f"{NAME}.nii.gz").array, prediction.labels.array.astype(np.int32))
    assert same(np.load(out / f"{NAME}.npz")["probabilities"], prediction.probabilities)
    row = quality_row(out)
    assert (row["score"], row["basis"]) == (f"{prediction.quality.score:.4f}", prediction.quality.basis)
    assert row == quality_row(trained.model() / FOLD / "validation")


def test_validation_gives_the_same_prediction(prediction, trained):
    validation = trained.model() / FOLD / "validation"
    assert same(read_labels(validation / f"{NAME}.nii.gz").array, prediction.labels.array.astype(np.int32))
    summary = read_json(validation / "summary.json", "summary")
    (case,) = [case for case in summary["metric_per_case"] if case["case"] == NAME]
    assert case["quality"] == prediction.quality.score


def test_the_stages_one_by_one_give_the_same_prediction(prediction, predictor, scan):
    prepared = predictor.preprocess(Volume.read(scan), name="mine")
    assert (prepared.name, prepared.label) == ("mine", None)
    registered = predictor.register(prepared)
    assert registered.prepared is prepared
    assert [maps.shape for maps in registered.coordinates] == [(3, *prepared.image.shape[1:])]
    tiles: list[tuple[int, int]] = []
    output = predictor.run_network(registered, progress=lambda done, count: tiles.append((done, count)))
    assert tiles[-1][0] == tiles[-1][1]
    assert output.scan is registered
    assert output.posterior.shape == output.warped.shape == (7, *output.image.shape[1:])
    assert output.quality == prediction.quality
    refined = predictor.refine(output)
    assert refined.quality == prediction.quality
    found = predictor.export(refined)
    assert found.name == "mine"
    assert same(found.labels.array, prediction.labels.array)
    assert same(found.probabilities, prediction.probabilities)
    assert found.quality == prediction.quality


def test_a_saved_prediction_is_read_back_unchanged(prediction, tmp_path):
    for name in ("out.nii.gz", "out.nrrd"):
        prediction.save(tmp_path / name)
        found = Volume.read(tmp_path / name)
        assert not found.geometry.differences(prediction.labels.geometry)
        assert same(read_labels(tmp_path / name).array, prediction.labels.array.astype(np.int32))
    assert not list(tmp_path.glob("*.npz"))
    prediction.save(tmp_path / "new/out.nii.gz", probabilities=True)
    with np.load(tmp_path / "new/out.npz") as content:
        assert content.files == ["probabilities"]
        saved = content["probabilities"]
    assert same(saved, prediction.probabilities)
    assert (saved.dtype, saved.shape) == (np.float32, (7, *prediction.labels.array.shape))
    np.testing.assert_allclose(saved.sum(axis=0), 1, atol=1e-5)
    labels = prediction.labels.array
    assert (saved.argmax(axis=0) == labels)[labels > 0].all()  # elsewhere small components are background


def test_a_prediction_saved_as_a_segmentation_of_slicer_names_its_segments(prediction, tmp_path):
    path = tmp_path / "out.Seg.nrrd"
    prediction.save(path, probabilities=True)
    assert (tmp_path / "out.npz").is_file()
    _, segments = read_segments(path)
    assert {s.name: s.value for s in segments} == {n: v for n, v in prediction.label_names.items() if v}
    assert same(read_labels(path).array, prediction.labels.array.astype(np.int32))
    with pytest.raises(UserError, match=r"a\.seg\.nrrd: .*labels have names.*write_seg_nrrd, or end .* \.nrrd"):
        prediction.labels.save(tmp_path / "a.seg.nrrd")
    with pytest.raises(UserError, match=r"a\.seg\.dcm: .*DICOM SEG is written by .*FORMATS"):
        prediction.save(tmp_path / "a.seg.dcm")


def test_a_prediction_is_not_saved_in_an_unknown_format(prediction, tmp_path):
    with pytest.raises(UserError, match=r"out\.xyz: .*\.nii\.gz"):
        prediction.save(tmp_path / "out.xyz", probabilities=True)
    assert not list(tmp_path.iterdir())


IMAGE = np.zeros((4, 5, 6), np.float32)
FORMS = (
    "give a file, a folder of DICOM, a list of channel files, a Series, a Volume, a SimpleITK image, or "
    r"\(array, spacing\)"
)
SPACING = r"give three numbers from 1e-06 to 500, \(z, y, x\) in mm"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, f"scan of type NoneType: {FORMS}"),
        (7, f"scan of type int: {FORMS}"),
        (IMAGE, f"scan of type ndarray: {FORMS}"),
        ([], f"scan of type list: {FORMS}"),
        (["scan_0000.nii.gz", 1], f"scan of type list: {FORMS}"),
        ({"image": IMAGE}, f"scan of type dict: {FORMS}"),
        ((IMAGE[0], (1, 1, 1)), r"array of shape \(5, 6\): an image is \(D, H, W\) or \(C, D, H, W\)"),
        ((IMAGE, (1, 1)), rf"spacing \(1\.0, 1\.0\): {SPACING}"),
        ((IMAGE, (1, 0, 1)), rf"spacing \(1\.0, 0\.0, 1\.0\): {SPACING}"),
        ((IMAGE, (1, 1, float("inf"))), rf"spacing \(1\.0, 1\.0, inf\): {SPACING}"),
        ((IMAGE, 1.0), rf"spacing 1\.0: {SPACING}"),
        ((IMAGE, "3 mm"), rf"spacing '3 mm': {SPACING}"),
        (("absent_0000.nii.gz",), r"absent_0000\.nii\.gz: the file is missing"),
        (
            (np.ones((2, 4, 5, 6)), (1, 1, 1)),
            r"case scan: the scan has 2 channel\(s\), the model takes 1 \(CT\)",
        ),
        ((np.full((4, 5, 6), np.nan), (1, 1, 1)), "voxels are NaN or infinite; replace them"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_a_wrong_form_of_a_scan_is_refused_with_the_fix(given, words, predictor):
    with pytest.raises(UserError, match=words):
        predictor.predict(given)


def test_a_scan_that_fails_is_named_with_its_reason(predictor, tmp_path):
    absent = Case("absent", (tmp_path / "absent_0000.nii.gz",))
    (outcome,) = predictor.predict_cases([absent])
    assert (outcome.case, outcome.prediction) == (absent, None)
    assert outcome.problem.startswith("case absent: ")
    assert outcome.problem.endswith("absent_0000.nii.gz: the file is missing")


def test_the_folder_of_a_fold_or_its_checkpoint_is_a_model_too(predictor, trained):
    fold = trained.model() / FOLD
    for path in (fold, fold / "checkpoint_final.pth", str(trained.model())):
        loaded = Predictor.load(path, device="cpu")
        assert loaded.plan == predictor.plan
        assert loaded.model.folds == (0,)
        assert loaded.model.unfinished == ()


def test_a_model_or_option_that_does_not_exist_is_refused_with_the_fix(trained, tmp_path):
    missing = tmp_path / "MRETrainer__MREPlans__1shot"
    with pytest.raises(UserError, match=r"1shot: does not exist; give .*, a model's zip file or a checkpoint file"):
        Predictor.load(missing)
    missing.mkdir()
    with pytest.raises(UserError, match=r"1shot: holds no trained fold \(fold_N/checkpoint_\*\.pth\)"):
        Predictor.load(missing)
    with pytest.raises(UserError, match=r"fold \[3\] is not trained \(trained: \[0\]\)"):
        Predictor.load(trained.model(), folds=[0, 3], device="cpu")
    with pytest.raises(UserError, match="is a single fold; leave out the choice of folds"):
        Predictor.load(trained.model() / FOLD, folds=[0], device="cpu")
    with pytest.raises(UserError, match="exclude each other; choose one tiling"):
        Predictor.load(trained.model(), device="cpu", step_size=0.5, centre_tiles=True)
    with pytest.raises(UserError, match=r"step_size 1\.5: must lie in \[0\.05, 1\]"):
        Predictor.load(trained.model(), device="cpu", step_size=1.5)


def test_two_saved_scans_from_memory_do_not_overwrite_each_other(prediction, tmp_path):
    for name in ("a", "b"):
        replace(prediction, name="scan").save(tmp_path / f"{name}.nii.gz", probabilities=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "a.npz", "b.nii.gz", "b.npz"]


def test_a_label_map_is_not_taken_for_a_scan(predictor, scan):
    image = Volume.read(scan)
    with pytest.raises(UserError, match=r"the scan has no channel\(s\), the model takes 1"):
        predictor.predict(Volume(image.array[0], image.geometry))


def test_an_array_off_its_grid_is_refused():
    grid = Volume.from_array(IMAGE, (1, 1, 1)).geometry
    for shape in ((1, 4, 5, 7), (4, 5), (1, 1, 4, 5, 6)):
        with pytest.raises(UserError, match=r"on a grid of \(4, 5, 6\) voxels"):
            Volume(np.zeros(shape, np.float32), grid)


def test_warnings_reach_the_prediction_through_the_stages(predictor, scan):
    image = Volume.read(scan)
    wide = Volume.from_array(image.array, np.multiply(image.geometry.spacing, 4))
    prepared = predictor.preprocess(wide, name="wide")
    assert any(warning.startswith("spacing along z") for warning in prepared.warnings)
    whole = Predictor.preprocess(predictor, image, name="scan")
    output = predictor.run_network(predictor.register(replace(whole, warnings=prepared.warnings)))
    assert predictor.export(predictor.refine(output)).warnings == prepared.warnings


def test_refining_twice_gives_the_same(predictor, scan):
    """The stage changes no array of its input, with or without labels to fuse."""
    output = predictor.run_network(predictor.register(predictor.preprocess(Volume.read(scan), name="scan")))
    for given in (output, replace(output, warped=None)):
        posterior = given.posterior.clone()
        first, second = predictor.refine(given), predictor.refine(given)
        assert same(first.array, second.array)
        assert torch.equal(given.posterior, posterior)


def reregistering(predictor: Predictor) -> Predictor:
    """Registers every scan deformably, and again."""
    recipe = predictor.plan.recipe
    deformable = replace(recipe, atlas=replace(recipe.atlas, registration="deformable"))
    plans = tuple(replace(plan, recipe=deformable) for plan in predictor.model.plans)
    predictor.model = replace(predictor.model, plans=plans)
    config = replace(predictor.settings.config, reregister_below=1.0)
    predictor.settings = replace(predictor.settings, config=config)
    return predictor


def test_an_uncertain_scan_is_registered_twice_again(trained, scan, monkeypatch):
    predictor, register, again = reregistering(Predictor.load(trained.model(), device="cpu")), Predictor.register, []

    def counted(self, prepared, *, previous=None):
        again.append(previous is not None)
        return register(self, prepared, previous=previous)

    monkeypatch.setattr(Predictor, "register", counted)
    assert predictor.predict(scan).labels.array.any()
    assert again == [False, True, True]


def test_messages_go_to_stderr_or_to_the_log_that_is_given(trained, scan, capsys, monkeypatch):
    def fails_with_a_prediction(*arguments, previous, **options):
        if previous is not None:
            raise UserError("cannot be registered to a training scan")
        return align(*arguments, previous=previous, **options)

    monkeypatch.setattr("mre_lowshot.inference.predictor.align", fails_with_a_prediction)
    lines: list[str] = []
    default = reregistering(Predictor.load(trained.model(), device="cpu"))
    logged = reregistering(Predictor.load(trained.model(), device="cpu", log=lines.append))
    output = default.run_network(default.register(default.preprocess(Volume.read(scan), name=NAME)))
    posterior = output.posterior.clone()
    default.refine(output)
    message = (
        f"prediction-guided registration failed: case {NAME}: cannot be registered to a training scan; "
        "keeping the previous registration"
    )
    assert capsys.readouterr() == ("", f"{message}\n")  # once: after a failure no further registration is tried
    assert torch.equal(output.posterior, posterior)
    logged.refine(output)
    assert lines == [message]
    assert capsys.readouterr() == ("", "")
