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
from mre_lowshot.data.dataset import Case
from mre_lowshot.data.dicom.seg import write_seg
from mre_lowshot.data.dicom.series import find_series
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.synthetic import LABELS
from mre_lowshot.data.volume import Volume, read_image, read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.inference.formats import FORMATS, ModelLabels
from mre_lowshot.inference.predictor import Predictor
from tests.dicom_scans import NAME, SAGITTAL, SPACING, phantom, sagittal, write_scan
from tests.dicom_series import ORIENTATIONS, positions, write_enhanced, write_series
from tests.test_dicom_seg import check_references, label_points, seg_points

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
TEXTS = ("dseg.tsv", "label_descriptions.txt")  # names and colours of the labels


@pytest.fixture(scope="module")
def hu(trained) -> np.ndarray:
    return phantom(trained)


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


def test_formats_that_cannot_be_written_are_refused_before_the_work(trained, hu, tmp_path, capsys):
    scans = trained.raw / "imagesTr"
    for arguments, words in (
        (["--output_format", "dicom-seg"], "dicom-seg: a DICOM SEG refers to a DICOM series, and case phantom_001 is"),
        (["--output_format", "nifty"], "did you mean 'nifti'"),
        (["--output_format", "nrrd", "nrrd"], "names a format twice"),
        (["--series", "3"], "--series selects DICOM series"),
        (["--output_format", "rtstruct"], "RTSTRUCT is not written: it holds contours instead of voxels"),
        (["--output_format", "nifti", "DICOM-RTSTRUCT"], "write dicom-seg and convert it, as docs/DICOM.md describes"),
    ):  # fmt: skip
        assert trained.predict(scans, tmp_path / "out", *arguments) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
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


def test_a_seg_is_read_by_the_names_of_its_segments(hu, expected, tmp_path):
    """Another program removes an empty segment, and numbers the others anew."""
    write_scan(tmp_path / "in", hu, "axial")
    (series,) = find_series(tmp_path / "in")
    case = Case(NAME, tuple(series.files), series=(series,))
    moved = {name: max(value - 1, 0) for name, value in LABELS.items() if value != 1}
    array = np.where(expected.array > 1, expected.array - 1, 0)
    made, path = FORMATS["dicom-seg"], tmp_path / "seg.dcm"

    def write(names):
        write_seg(path, Volume(array, expected.geometry), series, label_names=names, algorithm=("a", "1"))

    write(moved)
    assert made.misfit(path, case, LABELS) == ""
    wanted = np.where(expected.array == 1, 0, expected.array)
    assert np.array_equal(made.read(path, case, LABELS).array, wanted)
    assert not np.array_equal(made.read(path, case, None).array, wanted)  # by number
    write({**moved, "tumour": len(moved)})
    assert "holds the segment 'tumour', and the model's labels" in made.misfit(path, case, LABELS)


def test_a_format_that_fails_leaves_the_others(trained, hu, tmp_path, capsys):
    write_series(tmp_path / "in", hu + 1000, spacing=SPACING, FrameOfReferenceUID=None)
    out = tmp_path / "out"
    assert trained.predict(tmp_path / "in", out, "--output_format", "dicom-seg", "nifti") == 1
    assert "has no Frame of Reference UID, which a DICOM SEG needs; write another format" in capsys.readouterr().err
    assert [p.name for p in out.glob("P1*")] == [f"{NAME}.nii.gz"]
    assert json.loads((out / "run.json").read_text())["cases"][NAME]["status"] == "failed"


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


@pytest.mark.slow
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
        assert (done.returncode, 'pip install -c constraints.txt -e ".[dicom]"' in done.stderr) == (2, True), done


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
