"""``mre_predict`` from DICOM: the SEG, read by pydicom alone, has the labels of the NIfTI label map at every voxel."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")

import pydicom
from conftest import SETTINGS, command, one_thread
from scipy.spatial import cKDTree

import mre_lowshot
from mre_lowshot.data.dicom.series import find_series
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import Volume, read_image, read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.inference.formats import FORMATS, ModelLabels
from mre_lowshot.inference.predictor import Predictor
from tests.dicom_series import ORIENTATIONS, positions, uid, write_enhanced, write_series
from tests.test_dicom_seg import check_references, label_points, seg_points

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
SPACING = (8.25, 8.0, 8.5)  # of slices, rows, columns of the axial scan
SAGITTAL = (8.5, 8.25, 8.0)
TEXTS = ("dseg.tsv", "label_descriptions.txt")  # names and colours of the labels
NAME = "P1_3_Abdomen"


@pytest.fixture(scope="module")
def hu(trained) -> np.ndarray:
    """HU of a phantom (z, y, x) in LPS."""
    return np.rint(read_image(trained.raw / "imagesTr/phantom_002_0000.nii.gz").array[0]).astype(np.int16)


def sagittal(array: np.ndarray) -> np.ndarray:
    """The slices of the same patient as a sagittal scan stores them: from right to left, rows from the head down."""
    return np.ascontiguousarray(array[::-1, :, ::-1].transpose(2, 0, 1))


def write_scan(folder: Path, hu: np.ndarray, how: str) -> list[Path]:
    """The phantom as a series; axial, sagittal and multi-frame at the same place in the world."""
    stored, z, _, x = hu + 1000, *(np.array(hu.shape) - 1) * np.array(SPACING)
    if how == "sagittal":
        start = np.array([-30 + x, -20, 5.5 + z])
        places = positions(hu.shape[2], ORIENTATIONS[how], SAGITTAL[0], start)
        return write_series(folder, sagittal(stored), how, spacing=SAGITTAL, at=places)
    if how == "enhanced":
        return [write_enhanced(folder / "scan", stored, spacing=SPACING, SeriesDescription="Abdomen")]
    return write_series(folder, stored, how, spacing=SPACING)


def assert_same_points(points: dict, others: dict) -> None:
    """The same labels at the same places in the world; NIfTI rounds them to 32 bits."""
    assert len(points) == len(others)
    distance, index = cKDTree(list(others)).query(list(points))
    assert distance.max() < 0.01
    assert len(set(index.tolist())) == len(points)
    labels = list(others.values())
    assert [labels[i] for i in index] == list(points.values())


@pytest.fixture(scope="module")
def expected(trained, hu, tmp_path_factory) -> Volume:
    """The label map of the same scan given as NIfTI."""
    folder = tmp_path_factory.mktemp("nifti")
    scan = Volume(hu[None].astype(np.float32), Geometry(hu.shape, SPACING, (-30.0, -20.0, 5.5)))
    (folder / "in").mkdir()
    scan.save(folder / "in/scan_0000.nii.gz")
    with one_thread():
        assert trained.predict(folder / "in", folder / "out") == 0
    labels = read_labels(folder / "out/scan.nii.gz")
    assert len(np.unique(labels.array)) > 2
    return labels


@pytest.mark.parametrize("kind", ["dicom-seg", "dicom-labelmap"])
@pytest.mark.parametrize("how", ["axial", "sagittal", "oblique", "enhanced"])
def test_the_seg_has_the_labels_of_the_nifti_label_map(how, kind, trained, hu, expected, tmp_path, capsys):
    write_scan(tmp_path / "in/a b/ü", hu, how)
    assert trained.predict(tmp_path / "in", tmp_path / "out", "--output_format", kind, "nifti", "nrrd", "mha") == 0
    assert "1 of 1 scans segmented" in capsys.readouterr().out
    seg = pydicom.dcmread(tmp_path / f"out/{NAME}{FORMATS[kind].ending}")
    points = seg_points(seg)
    if how != "oblique":  # it lies elsewhere in the world
        assert points == label_points(expected)
    assert len(points) == np.count_nonzero(expected.array) > 50
    for ending in (".nii.gz", ".nrrd", ".mha"):
        labels = read_labels(tmp_path / f"out/{NAME}{ending}")
        assert_same_points(points, label_points(labels))
    check_references(seg, tmp_path / "in/a b/ü")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"{NAME}{FORMATS[kind].ending}", f"{NAME}.nii.gz", f"{NAME}.nrrd", f"{NAME}.mha", *TEXTS,
        "quality.csv", "run.json",
    }  # fmt: skip


def test_dicom_in_gives_dicom_out_with_the_models_names_codes_and_colours(space, hu, tmp_path):
    import torch

    path = space.model() / "fold_0/checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    content["dataset"] |= {"label_colours": {"liver": "#0000ff"}, "label_codes": {"spleen": ["1", "99X", "Mine"]}}
    torch.save(content, path)
    write_scan(tmp_path / "in", hu, "axial")
    assert space.predict(tmp_path / "in", tmp_path / "out", "--overlays", "--save_probabilities") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"{NAME}.seg.dcm", f"{NAME}.npz", "overlays", *TEXTS, "quality.csv", "run.json",
    }  # fmt: skip
    seg = pydicom.dcmread(tmp_path / f"out/{NAME}.seg.dcm")
    labels = content["dataset"]["labels"]
    segments = {s.SegmentLabel: s for s in seg.SegmentSequence}
    assert {name: s.SegmentNumber for name, s in segments.items()} == {n: v for n, v in labels.items() if v}
    assert segments["spleen"].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Mine"
    shown = __import__("highdicom").color.CIELabColor.from_dicom_value(segments["liver"].RecommendedDisplayCIELabValue)
    assert np.abs(np.array(shown.to_rgb()) - (0, 0, 255)).max() <= 2
    algorithm = segments["liver"].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "Dataset900_Synthetic Tiny 1shot fold 0"
    assert algorithm.AlgorithmVersion.startswith(f"{mre_lowshot.__version__} ")
    picture = __import__("matplotlib.image").image.imread(tmp_path / f"out/overlays/{NAME}.png")[..., :3]
    assert (np.abs(picture - (0, 0, 1)).max(axis=-1) < 0.1).any()  # the liver's outline
    content["dataset"]["label_colours"] = {"liver": "blue"}
    torch.save(content, path)
    assert space.predict(tmp_path / "in", tmp_path / "out") == 2


def test_patients_and_series_are_cases_and_what_is_no_scan_is_left_out(trained, hu, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "in/out"
    write_scan(folder / "one", hu, "axial")
    write_series(folder / "all", hu + 1000, spacing=SPACING, series="Lung kernel", SeriesNumber=4, seed=100)
    write_series(folder / "all", hu + 1000, spacing=SPACING, PatientID="P2", SeriesInstanceUID="1.2.3", seed=200)
    write_series(
        folder / "all", hu[:2] + 1000, series="Scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], seed=300
    )
    (folder / "readme.txt").write_text("no image")
    wanted = {"P1_3_Abdomen", "P1_4_Lung-kernel", "P2_3_Abdomen"}
    for _ in range(2):  # the output folder is no input
        assert trained.predict(folder, out) == 0
        printed = capsys.readouterr().out
        assert "left out: series P1_3_Scout is a localizer (scout), not a scan; leave it out" in printed
        assert "3 of 3 scans segmented" in printed
    assert {p.name for p in out.glob("*.dcm")} == {f"{name}.seg.dcm" for name in wanted}
    record = json.loads((out / "run.json").read_text())
    assert set(record["cases"]) == wanted
    case = record["cases"]["P2_3_Abdomen"]
    assert (case["series"], len(case["inputs"]), case["status"]) == ("1.2.3", len(hu), "done")
    assert [item["file"] for item in case["outputs"]] == ["P2_3_Abdomen.seg.dcm"]


def test_refused_series_are_named_with_the_fix_and_the_others_are_predicted(trained, hu, tmp_path, capsys):
    write_scan(tmp_path / "in", hu, "axial")
    write_series(tmp_path / "in", hu + 1000, spacing=SPACING, modality="MR", series="T1", seed=100)
    gap = write_series(tmp_path / "in", hu + 1000, spacing=SPACING, series="Gap", seed=200)
    gap[4].unlink()
    (tmp_path / "in/broken").write_bytes(bytes(128) + b"DICM" + b"x" * 50)
    assert trained.predict(tmp_path / "in", tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "failed: series P1_3_T1 has modality MR, and the model takes CT; leave it out" in printed.err
    assert "failed: series P1_3_Gap lacks 1 slice(s): a gap of 16.5 mm" in printed.err
    assert f"failed: {tmp_path}/in/broken: " in printed.err
    assert "1 of 4 scans segmented" in printed.out
    assert trained.predict(tmp_path / "in", tmp_path / "chosen", "--series", "abdomen") == 0
    assert trained.predict(tmp_path / "in", tmp_path / "refused", "--series", "T1", uid("study", "Abdomen")) == 1
    assert trained.predict(tmp_path / "in", tmp_path / "none", "--series", "liver") == 2
    message = capsys.readouterr().err
    assert "--series 'liver': is no Series Instance UID, name or number of a series here" in message
    assert "P1_3_Gap" in message
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "names"),
    [("4", ["P1_4_Portal-1-5-mm"]), ("04", ["P1_4_Portal-1-5-mm"]), ("P1_5_Portal-5-mm", ["P1_5_Portal-5-mm"]),
     ("portal", ["P1_4_Portal-1-5-mm", "P1_5_Portal-5-mm"]), ("5 MM", ["P1_4_Portal-1-5-mm", "P1_5_Portal-5-mm"]),
     (uid("study", "Portal 5 mm"), ["P1_5_Portal-5-mm"])],
)  # fmt: skip
def test_a_series_is_chosen_by_uid_name_number_or_description(text, names, trained, tmp_path):
    small = np.zeros((3, 4, 4), np.int16)
    write_series(tmp_path, small, series="Portal 1.5 mm", SeriesNumber=4)
    write_series(tmp_path, small, series="Portal 5 mm", SeriesNumber=5, seed=100)
    found = mre_lowshot.list_scans(tmp_path, model=trained.model(), series=[text])
    assert [case.name for case in found.cases] == names
    assert {scan.name: scan.reason for scan in found.scans if scan.name not in names} == {
        scan.name: "is not selected by --series" for scan in found.scans if scan.name not in names
    }


def test_list_shows_what_would_be_taken_and_why_not(trained, hu, tmp_path, capsys):
    write_scan(tmp_path / "in", hu, "axial")
    write_series(tmp_path / "in", hu + 1000, modality="MR", series="T1\x1b[31m", SeriesNumber=7, seed=100)
    assert command("predict", "-i", tmp_path / "in", "--list", "-m", trained.model()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("P1_3_Abdomen: CT; number 3; Abdomen; ")
    assert "8.25 x 8 x 8.5 mm" in lines[1]
    assert lines[2] == "  taken"
    assert lines[3].startswith("P1_7_T1")
    assert "\x1b" not in lines[3]
    assert (
        lines[4]
        == "  not taken: has modality MR, and the model takes CT; leave it out, or give a model of its modality"
    )
    assert lines[-1] == "1 of 2 taken"
    assert command("predict", "-i", tmp_path / "in", "--list", "--workspace", tmp_path) == 0
    assert "2 of 2 taken" in capsys.readouterr().out
    assert command("predict", "-i", tmp_path / "in", "--list", "-d", "5", "--workspace", tmp_path) == 2
    assert command("predict", "-i", trained.raw / "imagesTr", "--list", "--workspace", trained.root) == 0
    assert "3 of 3 taken" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_dicom_beside_other_images(trained, hu, tmp_path, capsys):
    nifti = trained.raw / "imagesTr/phantom_002_0000.nii.gz"
    (tmp_path / "images").mkdir()
    shutil.copy(nifti, tmp_path / "images")
    write_scan(tmp_path / "images/dicom", hu, "axial")
    assert trained.predict(tmp_path / "images", tmp_path / "out") == 1
    printed = "".join(capsys.readouterr())
    assert f"{len(hu)} DICOM file(s) in subfolders (dicom/IM" in printed
    assert "1 of 2 scans segmented" in printed
    write_scan(tmp_path / "dicom", hu, "axial")
    (tmp_path / "dicom/more").mkdir()
    shutil.copy(nifti, tmp_path / "dicom/more")
    assert trained.predict(tmp_path / "dicom", tmp_path / "out2") == 1
    assert "1 other image file(s) (more/phantom_002_0000.nii.gz) are not read beside DICOM" in capsys.readouterr().err


def test_formats_that_cannot_be_written_are_refused_before_the_work(trained, hu, tmp_path, capsys):
    scans = trained.raw / "imagesTr"
    for arguments, words in (
        (["--output_format", "dicom-seg"], "dicom-seg: a DICOM SEG refers to a DICOM series, and case phantom_001 is"),
        (["--output_format", "nifty"], "did you mean 'nifti'"),
        (["--output_format", "nrrd", "nrrd"], "names a format twice"),
        (["--series", "3"], "--series selects DICOM series"),
    ):  # fmt: skip
        assert trained.predict(scans, tmp_path / "out", *arguments) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_the_rules_of_the_output_folder_hold_for_every_format(trained, hu, tmp_path, capsys):
    write_scan(tmp_path / "in", hu, "axial")
    out = tmp_path / "out"
    seg, nifti = out / f"{NAME}.seg.dcm", out / f"{NAME}.nii.gz"
    assert trained.predict(tmp_path / "in", out, "--output_format", "dicom-seg", "nifti") == 0
    assert trained.predict(tmp_path / "in", out, "--output_format", "nrrd") == 0  # the same result: they stay
    assert seg.exists()
    assert nifti.exists()
    time = seg.stat().st_mtime_ns
    assert trained.predict(tmp_path / "in", out, "--output_format", "dicom-seg", "nifti", "--continue_prediction") == 0
    assert seg.stat().st_mtime_ns == time
    seg.unlink()
    assert trained.predict(tmp_path / "in", out, "--output_format", "nifti", "dicom-seg", "--continue_prediction") == 0
    assert seg.exists()
    assert trained.predict(tmp_path / "in", out, "-step_size", "0.9") == 0  # other options: another result
    assert {p.name for p in out.iterdir()} == {seg.name, *TEXTS, "quality.csv", "run.json"}
    seg.write_bytes(seg.read_bytes()[:-300])
    assert trained.predict(tmp_path / "in", out, "-step_size", "0.9") == 2
    assert f"{NAME}.seg.dcm: mre_predict has not written this, or it has changed since" in capsys.readouterr().err
    assert trained.predict(tmp_path / "in", out, "-step_size", "0.9", "--continue_prediction") == 0
    assert "its label map is damaged" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {seg.name, f"{seg.name}.damaged", *TEXTS, "quality.csv", "run.json"}
    assert len(seg_points(pydicom.dcmread(seg))) > 50


def test_a_seg_of_another_series_is_not_taken_for_a_result(trained, hu, tmp_path, capsys):
    write_scan(tmp_path / "in", hu, "axial")
    write_series(tmp_path / "other", hu + 1000, spacing=SPACING, SeriesInstanceUID="1.2.3")
    for name in ("in", "other"):
        assert trained.predict(tmp_path / name, tmp_path / f"out {name}") == 0
    file = f"{NAME}.seg.dcm"
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(tmp_path / "out in" / file, mixed)
    assert trained.predict(tmp_path / "in", mixed, "--continue_prediction") == 0
    shutil.copy(tmp_path / "out other" / file, mixed)
    assert trained.predict(tmp_path / "in", mixed, "--continue_prediction") == 2
    assert "(is a DICOM SEG of another series)" in capsys.readouterr().err


def test_a_format_that_fails_leaves_the_others(trained, hu, tmp_path, capsys):
    write_series(tmp_path / "in", hu + 1000, spacing=SPACING, FrameOfReferenceUID=None)
    out = tmp_path / "out"
    assert trained.predict(tmp_path / "in", out, "--output_format", "dicom-seg", "nifti") == 1
    assert "has no Frame of Reference UID, which a DICOM SEG needs; write another format" in capsys.readouterr().err
    assert [p.name for p in out.glob("P1*")] == [f"{NAME}.nii.gz"]
    assert json.loads((out / "run.json").read_text())["cases"][NAME]["status"] == "failed"


def test_one_file_and_several_channels(space, hu, tmp_path, capsys):
    files = write_scan(tmp_path / "in", hu, "axial")
    (many,) = write_scan(tmp_path / "enhanced", hu, "enhanced")
    assert space.predict(many, tmp_path / "out") == 0
    assert space.predict(files[0], tmp_path / "out") == 1
    assert "is a single slice, without the distance to a next one; give the whole series" in capsys.readouterr().err
    from mre_lowshot.workflows.inputs import find_inputs

    with pytest.raises(UserError, match=r"is DICOM, and the model takes 2 channels \(T1, T2\)"):
        find_inputs(tmp_path / "in", channels=("T1", "T2"))


def test_python_takes_folders_series_and_files(trained, hu, expected, tmp_path):
    files = write_scan(tmp_path / "in/deep", hu, "sagittal")
    predictor = Predictor.load(trained.model(), device="cpu")
    (series,) = find_series(tmp_path / "in")
    for scan in (tmp_path / "in", series, files[::-1]):
        prediction = predictor.predict(scan)
        assert prediction.name == NAME
        assert np.array_equal(prediction.labels.array, expected.array)
    assert np.array_equal(Volume.read(tmp_path / "in").array[0], hu)
    two = Volume.read(tmp_path / "in", tmp_path / "in/deep")
    assert two.array.shape == (2, *hu.shape)
    labels = ModelLabels.of(predictor.model)
    FORMATS["dicom-seg"].write(tmp_path / "a.dcm", prediction, labels, series)
    assert seg_points(pydicom.dcmread(tmp_path / "a.dcm")) == label_points(expected)
    write_series(tmp_path / "in", hu + 1000, series="Second", SeriesNumber=4, seed=100)
    with pytest.raises(UserError, match=r"2 series \(P1_3_Abdomen, P1_4_Second\); give one of them"):
        predictor.predict(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no DICOM file"):
        Volume.read(tmp_path / "empty")


WITHOUT = """
import sys
sys.modules["pydicom"] = sys.modules["highdicom"] = None
from mre_lowshot.cli.predict import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_extra_nifti_is_predicted_and_dicom_names_the_extra(trained, hu, tmp_path):
    write_scan(tmp_path / "in", hu, "axial")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def predict(scans: Path, *more: str) -> subprocess.CompletedProcess[str]:
        arguments = ["-i", str(scans), "-o", str(tmp_path / "out"), "-m", str(trained.model()), "-device", "cpu", *more]
        return subprocess.run(
            [sys.executable, "-c", WITHOUT, *arguments], env=environment, capture_output=True, text=True
        )

    scan = trained.raw / "imagesTr/phantom_002_0000.nii.gz"
    assert predict(scan).returncode == 0
    for done in (predict(tmp_path / "in"), predict(tmp_path / "in", "--list")):
        assert (done.returncode, "mre-lowshot[dicom]" in done.stderr) == (2, True), done


def test_help_names_every_format(capsys):
    with pytest.raises(SystemExit):
        command("predict", "-h")
    text = " ".join(capsys.readouterr().out.split())
    assert f"one or several of {', '.join(FORMATS)} (" in text


@pytest.mark.slow
@pytest.mark.parametrize("how", ["axial", "sagittal", "oblique", "enhanced"])
@pytest.mark.parametrize("dataset", ["Dataset017_BTCV", "Dataset004_Hippocampus"])
def test_real_scans(dataset, how, tmp_path):
    """A real scan, coarsened, as DICOM, and the same one as NIfTI, segmented by a briefly trained model."""
    source = Path(__file__).resolve().parents[2] / "shared/data" / dataset
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    raw, space, step = tmp_path / "raw" / dataset, tmp_path, (2, 4, 4) if "BTCV" in dataset else (1, 1, 1)
    label = sorted((source / "labelsTr").iterdir())[0]
    about = json.loads((source / "dataset.json").read_text()) | {"numTraining": 1, "file_ending": ".nii.gz"}
    for part, path in (
        ("imagesTr", source / "imagesTr" / label.name.replace(".nii", "_0000.nii")),
        ("labelsTr", label),
    ):
        volume = read_labels(path) if part == "labelsTr" else read_image(path)
        array = volume.array[..., :: step[0], :: step[1], :: step[2]]
        shape = array.shape[-3:]
        grid = Geometry(shape, SPACING, (-30.0, -20.0, 5.5))
        (raw / part).mkdir(parents=True)
        Volume(np.rint(array).clip(-1000, 30000).astype(array.dtype), grid).save(raw / part / path.name)
    (raw / "dataset.json").write_text(json.dumps(about))
    common = ("--workspace", space, "-device", "cpu")
    assert command("plan", "-d", raw, "-p", "Tiny", *common, "--set", *SETTINGS) == 0
    assert command("train", raw.name, "1shot", "fold0", "-p", "Tiny", *common) == 0
    values = np.rint(read_image(next((raw / "imagesTr").iterdir())).array[0]).astype(np.int16)
    modality = "CT" if "BTCV" in dataset else "MR"
    if how == "enhanced":
        write_enhanced(tmp_path / "in/scan", values + 1000, spacing=SPACING, modality=modality)
    elif how == "sagittal":
        z, _, x = (np.array(values.shape) - 1) * np.array(SPACING)
        places = positions(values.shape[2], ORIENTATIONS[how], SAGITTAL[0], np.array([-30 + x, -20, 5.5 + z]))
        write_series(tmp_path / "in", sagittal(values + 1000), how, spacing=SAGITTAL, at=places, modality=modality)
    else:
        write_series(tmp_path / "in", values + 1000, how, spacing=SPACING, modality=modality)
    assert command("predict", "-i", tmp_path / "in", "-o", tmp_path / "out", *common) == 0
    assert command("predict", "-i", raw / "imagesTr", "-o", tmp_path / "nifti", *common) == 0
    (seg,) = (tmp_path / "out").glob("*.seg.dcm")
    points = seg_points(pydicom.dcmread(seg))
    expected = read_labels(next((tmp_path / "nifti").glob("*.nii.gz")))
    assert len(points) == np.count_nonzero(expected.array) > 0
    if how != "oblique":
        assert_same_points(points, label_points(expected))
