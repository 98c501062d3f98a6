"""Pictures and probabilities beside a label map that a person has corrected."""

import shutil

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from conftest import one_thread

from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.viewer.cases import find_cases
from mre_lowshot.workflows.report import write_report

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
NAME = "phantom_001"
EXTRAS = ("--overlays", "--preview", "--save_probabilities")


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "in").mkdir()
    shutil.copyfile(trained.raw / f"imagesTr/{NAME}_0000.nii.gz", folder / f"in/{NAME}_0000.nii.gz")
    with one_thread():
        assert trained.predict(folder / "in", folder / "out", *EXTRAS) == 0
    return folder


@pytest.fixture
def corrected(predicted, tmp_path, monkeypatch):
    """A copy of ``predicted`` in which the label map was changed; any prediction fails."""
    folder = shutil.copytree(predicted, tmp_path / "copy")
    correct(folder, 1)
    monkeypatch.setattr(Predictor, "register", lambda *_, **__: pytest.fail("predicted again"))
    return folder


def correct(folder, value):
    path = folder / f"out/{NAME}.nii.gz"
    image = nib.load(path)
    array = np.asarray(image.dataobj).copy()
    array[10:20, 10:20, 5:15] = value
    nib.save(nib.Nifti1Image(array, image.affine, image.header), path)


def pictures(folder):
    return [(folder / f"out/{kind}/{NAME}.png").read_bytes() for kind in ("overlays", "previews")]


def test_pictures_are_drawn_from_the_corrected_map_and_probabilities_are_named(corrected, trained, capsys):
    before, label = pictures(corrected), (corrected / f"out/{NAME}.nii.gz").read_bytes()
    options = ("--continue_prediction", *EXTRAS)
    assert trained.predict(corrected / "in", corrected / "out", *options) == 0
    shown = capsys.readouterr().out
    assert f"case {NAME}: overlays, previews: drawn from the label map as it is now" in shown
    assert "1 of 1 scans segmented (1 of them in earlier runs)" in shown
    assert f"case {NAME}: {NAME}.npz: of the label map that mre_predict wrote, not of the one that is there" in shown
    drawn = pictures(corrected)
    assert all(one != other for one, other in zip(drawn, before, strict=True))
    assert (corrected / f"out/{NAME}.nii.gz").read_bytes() == label
    assert trained.predict(corrected / "in", corrected / "out", *options) == 0
    assert "drawn from" not in capsys.readouterr().out  # once for each correction
    correct(corrected, 2)
    assert trained.predict(corrected / "in", corrected / "out", *options) == 0
    assert all(one != other for one, other in zip(pictures(corrected), drawn, strict=True))


def test_viewer_and_report_say_that_the_quality_score_is_of_the_label_map_before(predicted, corrected):
    mark = "its label map was changed after the prediction; the quality score is that of the predicted one"
    for folder, wanted in ((predicted, 0), (corrected, 1)):
        (shown,) = find_cases(folder / "out")
        assert shown.warnings.count(mark) == wanted
        (reported,) = write_report(folder / "out", folder / "report.html").content.cases
        assert reported.warnings.count(mark) == wanted


def test_pictures_that_are_not_asked_for_are_named(corrected, trained, capsys):
    before = pictures(corrected)
    assert trained.predict(corrected / "in", corrected / "out", "--continue_prediction") == 0
    assert f"overlays/{NAME}.png, previews/{NAME}.png, {NAME}.npz: of the label map that mre_predict wrote" in (
        capsys.readouterr().out
    )
    assert pictures(corrected) == before


def test_missing_pictures_are_drawn_without_a_prediction_and_those_of_a_person_are_kept(corrected, trained, capsys):
    (corrected / f"out/overlays/{NAME}.png").unlink()
    matplotlib.image.imsave(corrected / f"out/previews/{NAME}.png", np.zeros((40, 40)))
    other = (corrected / f"out/previews/{NAME}.png").read_bytes()
    assert trained.predict(corrected / "in", corrected / "out", "--continue_prediction", *EXTRAS) == 0
    assert f"previews/{NAME}.png: not written by mre_predict, so not drawn again" in capsys.readouterr().out
    assert (corrected / f"out/overlays/{NAME}.png").stat().st_size > 1000
    assert (corrected / f"out/previews/{NAME}.png").read_bytes() == other
