"""``mre_predict`` from DICOM with a model of several channels: which series of a study is which channel."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("pydicom")

import pydicom
from conftest import Space, command

from mre_lowshot.data.synthetic import write_dataset
from mre_lowshot.data.volume import read_image, read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.workflows.inputs import find_inputs
from tests.dicom_series import uid, write_series
from tests.test_dicom_seg import label_points, seg_points

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
SMALL = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
CHANNELS = ("FLAIR", "T1")


def write_study(folder, *series, patient="P1", **more):
    """Series of one study by their descriptions; a tuple also gives the modality."""
    for number, text in enumerate(series, start=1):
        text, modality = text if isinstance(text, tuple) else (text, "MR")
        write_series(folder / patient, SMALL + number, modality=modality, series=text, PatientID=patient,
                     StudyInstanceUID=uid(patient), SeriesInstanceUID=uid(patient, number), SeriesNumber=number,
                     seed=100 * number, **more)  # fmt: skip


def of_cases(found):
    return {case.name: [one.description for one in case.series] for case in found.cases}


def test_channels_are_found_by_the_words_of_the_descriptions(tmp_path):
    write_study(tmp_path, "SAG T1w MPRAGE", "DWI b1000", "ax flair fs")
    write_study(tmp_path, "FLAIR", "T1", patient="P2")
    found = find_inputs(tmp_path, channels=CHANNELS)
    assert of_cases(found) == {
        "P1_3_ax-flair-fs": ["ax flair fs", "SAG T1w MPRAGE"],
        "P2_1_FLAIR": ["FLAIR", "T1"],
    }
    assert found.problems == ()
    assert found.left_out == ("series P1_2_DWI-b1000 is none of the channels FLAIR, T1",)
    assert {s.name: s.channel for s in found.scans if not s.reason} == {
        "P1_1_SAG-T1w-MPRAGE": "T1", "P1_3_ax-flair-fs": "FLAIR", "P2_1_FLAIR": "FLAIR", "P2_2_T1": "T1",
    }  # fmt: skip


def test_channels_named_after_modalities_are_found_by_these(tmp_path):
    write_study(tmp_path, ("WB low dose for PET", "CT"), ("WB corrected", "PT"))
    assert of_cases(find_inputs(tmp_path, channels=("PET", "CT"))) == {
        "P1_2_WB-corrected": ["WB corrected", "WB low dose for PET"]
    }


@pytest.mark.parametrize(
    ("series", "message"),
    [
        (["T1", "T1 post", "FLAIR"], "several series fit channel T1 (P1_1_T1, P1_2_T1-post)"),
        (["T1", "DWI"], "no series fits channel FLAIR"),
        (["DWI"], "no series fits channel FLAIR"),
        (["T1 FLAIR"], "series P1_1_T1-FLAIR fits several channels"),
        ([("T1", "CT"), "FLAIR"], "no series fits channel T1"),
    ],
)
def test_what_is_not_certain_is_refused_with_the_series_and_the_fix(series, message, tmp_path):
    write_study(tmp_path, *series)
    write_study(tmp_path, "FLAIR", "T1", patient="P2")
    found = find_inputs(tmp_path, channels=CHANNELS)
    assert list(of_cases(found)) == ["P2_1_FLAIR"]
    (problem,) = found.problems
    assert problem.startswith(f"study of patient P1: {message}; its series: P1_1_")
    assert problem.endswith("name one for each channel, in the order FLAIR, T1, with --series")


def test_series_are_named_in_the_order_of_the_channels(tmp_path):
    write_study(tmp_path, "T1", "T1 post", "FLAIR", "DWI")
    write_study(tmp_path, "mprage", patient="P2")
    found = find_inputs(tmp_path, channels=CHANNELS, series=["flair", "post"])
    assert of_cases(found) == {"P1_3_FLAIR": ["FLAIR", "T1 post"]}
    assert (found.problems, found.left_out[0]) == ((), "series P1_1_T1 is none of the channels FLAIR, T1")
    assert next(s.reason for s in found.scans if s.name == "P2_1_mprage") == "is not selected by --series"
    assert of_cases(find_inputs(tmp_path, channels=CHANNELS, series=["4", "1"])) == {"P1_4_DWI": ["DWI", "T1"]}
    with pytest.raises(UserError, match=r"takes 2 channels; name one series for each, in the order FLAIR, T1 \(found"):
        find_inputs(tmp_path, channels=CHANNELS, series=["flair"])
    with pytest.raises(UserError, match="--series 'liver': is no Series Instance UID"):
        find_inputs(tmp_path, channels=CHANNELS, series=["flair", "liver"])
    with pytest.raises(UserError, match="two have one name"):
        find_inputs(tmp_path, channels=("MRI", "MRI"))


def test_channels_on_two_grids_and_damaged_series_are_refused(tmp_path):
    write_study(tmp_path, "FLAIR")
    t1 = {"modality": "MR", "series": "T1", "StudyInstanceUID": uid("P1"), "seed": 900, "SeriesNumber": 2}
    write_series(tmp_path / "more", SMALL, spacing=(3.0, 0.8, 0.9), **t1)
    (problem,) = find_inputs(tmp_path, channels=CHANNELS).problems
    assert problem.startswith("series P1_2_T1: is not on the grid of P1_1_FLAIR: ")
    shutil.rmtree(tmp_path / "more")
    gap = write_series(tmp_path / "more", np.concatenate([SMALL, SMALL]), **t1)
    gap[2].unlink()
    (problem,) = find_inputs(tmp_path, channels=CHANNELS).problems
    assert problem.startswith("series P1_2_T1 (channel T1) lacks 1 slice(s)")


@pytest.mark.slow
def test_the_seg_refers_to_the_first_channel_and_has_the_labels_of_the_files(tmp_path, capsys):
    """Two channels that differ, so that their order counts."""
    from tests.conftest import SETTINGS

    space = Space(tmp_path / "w")
    write_dataset(space.root / "raw", subjects=2, shape=(20, 36, 44), spacing=(8.0, 8.0, 8.0))
    for path in sorted((space.raw / "imagesTr").iterdir()):
        volume = read_image(path)
        type(volume)(np.rint(np.abs(volume.array)), volume.geometry).save(path)
        type(volume)(np.rint(volume.array.max() - volume.array), volume.geometry).save(
            path.with_name(path.name.replace("_0000", "_0001"))
        )
    about = json.loads((space.raw / "dataset.json").read_text())
    about["channel_names"] = {"0": "T1", "1": "FLAIR"}
    (space.raw / "dataset.json").write_text(json.dumps(about))
    assert space.plan(settings=SETTINGS) == 0
    assert space.train("--no_val") == 0
    scans = space.raw / "imagesTr"
    assert space.predict(scans, tmp_path / "nifti") == 0
    for channel, (text, seed) in enumerate((("T1", 0), ("FLAIR", 500))):
        image = read_image(scans / f"phantom_002_{channel:04d}.nii.gz")
        write_series(tmp_path / "in", image.array[0].astype(np.int16), modality="MR", series=text, intercept=0,
                     spacing=image.geometry.spacing, seed=seed, SeriesNumber=channel + 1)  # fmt: skip
    capsys.readouterr()
    assert space.predict(tmp_path / "in", tmp_path / "out", "--output_format", "dicom-seg", "nifti") == 0
    assert command("predict", "-i", tmp_path / "in", "--list", "-m", space.model()) == 0
    assert "taken as channel FLAIR" in capsys.readouterr().out
    (path,) = (tmp_path / "out").glob("*.seg.dcm")
    assert path.name == "P1_1_T1.seg.dcm"
    seg = pydicom.dcmread(path)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uid("study", "T1")
    labels, expected = read_labels(tmp_path / "out/P1_1_T1.nii.gz"), read_labels(tmp_path / "nifti/phantom_002.nii.gz")
    assert np.array_equal(labels.array, expected.array)
    assert seg_points(seg) == label_points(labels)
    entry = json.loads((tmp_path / "out/run.json").read_text())["cases"]["P1_1_T1"]
    assert entry["series"] == [uid("study", "T1"), uid("study", "FLAIR")]
    assert space.predict(tmp_path / "in", tmp_path / "out", "--continue_prediction") == 0
