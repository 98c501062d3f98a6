"""``mre_predict --statistics --preview``, and the names and colours of labels in the output folder."""

import csv
import json
import shutil
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import torch
from predicted import FIRST, SECOND, content, correct, predict_into, record
from test_label_table import extension_of, itksnap

import mre_lowshot
from mre_lowshot.data.colours import label_colours, rgb
from mre_lowshot.data.synthetic import LABELS
from mre_lowshot.inference.predictor import Predictor

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
FILES = ("label_descriptions.txt", "dseg.tsv")


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    """Two scans, and a folder into which they were predicted with statistics and previews."""
    return predict_into(tmp_path_factory.mktemp("predicted"), trained, "--statistics", "--preview")


def rows(out: Path, name: str = "statistics.csv") -> dict[tuple[str, str], dict[str, str]]:
    with (out / name).open(newline="") as file:
        return {(row["case"], row["label"]): row for row in csv.DictReader(file)}


def test_statistics_are_those_of_the_files(predicted):
    found, values = rows(predicted / "out"), json.loads((predicted / "out/statistics.json").read_text())
    names = {value: name for name, value in LABELS.items() if value}
    assert set(found) == {(case, name) for case in (FIRST, SECOND) for name in names.values()}
    assert {name for (_, name), row in found.items() if row["voxels"] != "0"}
    for case in (FIRST, SECOND):
        scan = nib.load(predicted / f"in/{case}_0000.nii.gz")
        image, labels = scan.get_fdata(), np.asarray(nib.load(predicted / f"out/{case}.nii.gz").dataobj)
        for value, name in names.items():
            row, mask = found[case, name], labels == value
            assert int(row["voxels"]) == mask.sum()
            assert float(row["volume_ml"]) == pytest.approx(
                mask.sum() * np.prod(scan.header.get_zooms()) / 1000, rel=1e-6
            )
            if not mask.any():
                continue
            inside = image[mask]
            got = [float(row[f"CT_{key}"]) for key in ("mean", "std", "median")]
            assert got == pytest.approx([inside.mean(), inside.std(), np.median(inside)], rel=1e-5, abs=1e-3)
            ras = nib.affines.apply_affine(scan.affine, np.argwhere(mask)).mean(0)
            lps = [float(row[f"centroid_{axis}_mm"]) for axis in "lps"]
            assert lps == pytest.approx([-ras[0], -ras[1], ras[2]], abs=1e-3)
            assert values["cases"][case]["labels"][name]["voxels"] == mask.sum()


def test_previews_and_label_files_are_listed_in_run_json(predicted):
    out, found = predicted / "out", record(predicted / "out")
    assert sorted(p.name for p in out.iterdir()) == [
        "dseg.tsv", "label_descriptions.txt", f"{FIRST}.nii.gz", f"{SECOND}.nii.gz", "previews", "quality.csv",
        "run.json", "statistics.csv", "statistics.json",
    ]  # fmt: skip
    assert [item["file"] for item in found["cases"][FIRST]["outputs"]] == [f"{FIRST}.nii.gz", f"previews/{FIRST}.png"]
    assert sorted(item["file"] for item in found["files"]) == sorted(FILES)
    (run,) = found["runs"].values()
    assert (run["options"]["statistics"], run["options"]["preview"]) == (True, True)
    assert matplotlib.image.imread(out / f"previews/{FIRST}.png").shape[1] == 1320


def test_every_file_has_the_same_names_and_colours(predicted, trained):
    colours = label_colours(LABELS)
    names = {value: name for name, value in LABELS.items() if value}
    described = itksnap((predicted / "out/label_descriptions.txt").read_text())
    assert {v: (c, n) for v, (c, _, n) in described.items() if v} == {v: (rgb(colours[v]), n) for v, n in names.items()}
    table = [line.split("\t") for line in (predicted / "out/dseg.tsv").read_text().splitlines()[1:]]
    assert {int(v): (n, c) for v, n, c in table} == {v: (n, colours[v]) for v, n in names.items()}
    validated = next((trained.model() / "fold_0/validation").glob("*.nii.gz"))
    for path in (predicted / f"out/{FIRST}.nii.gz", validated):
        assert nib.load(path).header["intent_code"] == 1002
        found = extension_of(path)[1]
        assert {v: n for v, (n, _) in found.items()} == names
        assert [round(255 * part) for part in found[1][1][:3]] == list(rgb(colours[1]))


def test_colours_of_dataset_json_are_used_everywhere(space, predicted, tmp_path):
    path = space.model() / "fold_0/checkpoint_final.pth"
    held = torch.load(path, weights_only=True)
    name, value = next((n, v) for n, v in LABELS.items() if v == 1)
    held["dataset"]["label_colours"] = {name: "#ff00ff"}
    held["dataset"]["label_codes"] = {name: ["123", "99X", "My organ"]}
    torch.save(held, path)
    predictor = Predictor.load(space.model(), device="cpu")
    prediction = predictor.predict(predicted / f"in/{FIRST}_0000.nii.gz")
    assert predictor.colours[value] == prediction.colours[value] == "#ff00ff"
    assert prediction.codes == {name: ("123", "99X", "My organ")}
    prediction.save(tmp_path / "a.nii.gz")
    assert extension_of(tmp_path / "a.nii.gz")[1][value][1] == [1, 0, 1, 1]
    assert space.predict(predicted / "in", tmp_path / "out", "--overlays", "--preview") == 0
    assert itksnap((tmp_path / "out/label_descriptions.txt").read_text())[value][0] == (255, 0, 255)
    assert f"{value}\t{name}\t#ff00ff" in (tmp_path / "out/dseg.tsv").read_text().splitlines()
    for picture in ("overlays", "previews"):
        pixels = (matplotlib.image.imread(tmp_path / f"out/{picture}/{FIRST}.png")[..., :3] * 255).round()
        assert (pixels == [255, 0, 255]).all(-1).sum() > 20


def test_wrong_colours_in_a_checkpoint_are_refused(space, predicted, tmp_path, capsys):
    path = space.model() / "fold_0/checkpoint_final.pth"
    held = torch.load(path, weights_only=True)
    for given in ({next(iter(LABELS)): "red"}, "red"):
        held["dataset"]["label_colours"] = given
        torch.save(held, path)
        assert space.predict(predicted / "in", tmp_path / "out") == 2
        assert "label_colours" in capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_label_files_of_the_user_are_kept(done, trained, counted, capsys, name):
    """Also a folder of that name; files that a run has written are updated."""
    out = done / "out"
    (out / name).write_text("mine")
    other = FILES[1 - FILES.index(name)]
    (out / other).unlink()
    assert trained.predict(done / "in", out, "--continue_prediction") == 0
    assert counted == []
    assert (out / name).read_text() == "mine"
    assert f"{name} was not written by mre_predict, or has changed since, and is kept" in capsys.readouterr().out
    assert (out / other).is_file()
    assert trained.predict(done / "in", out, "--continue_prediction", "--overwrite") == 0
    assert (out / name).read_text() != "mine"
    (out / name).unlink()
    (out / name).mkdir()
    assert trained.predict(done / "in", out, "--continue_prediction", "--overwrite") == 0
    assert (out / name).is_dir()


def test_label_files_of_an_earlier_model_are_replaced(done, trained, counted):
    out = done / "out"
    before = (out / "dseg.tsv").read_text()
    text = before.replace("\t#", "\t#f", 1)
    (out / "dseg.tsv").write_text(text)
    found = record(out)
    from mre_lowshot.files import sha256

    (item,) = [item for item in found["files"] if item["file"] == "dseg.tsv"]
    item |= {"size": len(text), "sha256": sha256(out / "dseg.tsv")}
    (out / "run.json").write_text(json.dumps(found))
    assert trained.predict(done / "in", out, "--continue_prediction") == 0
    assert (out / "dseg.tsv").read_text() == before


def test_a_corrected_label_map_is_measured_and_not_predicted_again(done, trained, counted):
    out = done / "out"
    correct(out / f"{SECOND}.nii.gz")
    name = next(n for n, v in LABELS.items() if v == 1)
    before = rows(out)
    lines = (out / "statistics.csv").read_text().splitlines()
    (out / "statistics.csv").write_text("\n".join([lines[0] + ",remark", *(line + ",seen" for line in lines[1:])]))
    options = ("--continue_prediction", "--statistics")
    assert trained.predict(done / "in", out, *options) == 0
    assert counted == []
    after = rows(out)
    wanted = int((np.asarray(nib.load(out / f"{SECOND}.nii.gz").dataobj) == 1).sum())
    assert int(after[SECOND, name]["voxels"]) == wanted != int(before[SECOND, name]["voxels"])
    assert after[SECOND, name]["touches_border"] == "yes"
    assert after[FIRST, name] == before[FIRST, name] | {"remark": "seen"}
    assert after[SECOND, name]["remark"] == "seen"
    unchanged = content(out)
    assert trained.predict(done / "in", out, *options) == 0
    assert {k: v for k, v in content(out).items() if k != "run.json"} == {
        k: v for k, v in unchanged.items() if k != "run.json"
    }
    (out / "statistics.csv").unlink()
    (out / "statistics.json").unlink()
    assert trained.predict(done / "in", out, *options) == 0
    assert {key: row["voxels"] for key, row in rows(out).items()} == {k: r["voxels"] for k, r in after.items()}
    assert counted == []


def test_a_missing_preview_is_drawn_again_and_a_foreign_one_refused(done, trained, counted, capsys):
    out = done / "out"
    (out / f"previews/{FIRST}.png").unlink()
    assert trained.predict(done / "in", out, "--continue_prediction", "--preview") == 0
    assert counted == [FIRST]
    assert f"previews/{FIRST}.png is missing" in capsys.readouterr().out
    (out / f"previews/{SECOND}.png").write_bytes(b"mine")
    before = content(out)
    assert trained.predict(done / "in", out, "--preview") == 2
    assert f"previews/{SECOND}.png: mre_predict has not written this" in capsys.readouterr().err
    assert content(out) == before
    shutil.rmtree(out / "previews")
    (out / "previews").write_text("mine")
    assert trained.predict(done / "in", out, "--preview") == 2
    assert "previews: a file and a folder of one name" in capsys.readouterr().err


def test_another_table_is_refused_before_the_work(done, trained, counted, capsys):
    for name in ("statistics.csv", "statistics.json"):
        kept = (done / "out" / name).read_bytes()
        (done / "out" / name).write_text("a,b\n1,2\n")
        before = content(done)
        assert trained.predict(done / "in", done / "out", "--statistics") == 2
        assert f"{name}: " in capsys.readouterr().err
        assert content(done) == before
        (done / "out" / name).write_bytes(kept)
    assert counted == []


def test_parts_write_tables_of_their_own(done, trained):
    out = done / "parts"
    for part in (0, 1):
        assert trained.predict(done / "in", out, "--statistics", "-num_parts", 2, "-part_id", part) == 0
    assert {case for case, _ in rows(out, "statistics_part0.csv")} == {FIRST}
    assert {case for case, _ in rows(out, "statistics_part1.csv")} == {SECOND}
    assert rows(out, "statistics_part1.csv")[SECOND, "liver"] == rows(done / "out")[SECOND, "liver"]


def test_a_scan_that_vanishes_is_a_failure_and_its_label_map_is_kept(done, trained, monkeypatch, capsys):
    from mre_lowshot.workflows import case_files

    def fails(*arguments):
        raise OSError("gone")

    monkeypatch.setattr(case_files, "read_case", fails)
    assert trained.predict(done / "in", done / "new", "--statistics") == 1
    assert (done / f"new/{FIRST}.nii.gz").is_file()
    assert "gone" in capsys.readouterr().err
    assert not (done / "new/statistics.csv").exists()


def test_from_python(done, trained):
    found = mre_lowshot.predict(
        done / "in", done / "new", model=trained.model(), device="cpu", statistics=True, preview=True
    )
    assert set(found.statistics) == {FIRST, SECOND}
    (liver,) = [row for row in found.statistics[FIRST] if row.name == "liver"]
    assert str(liver.voxels) == rows(done / "out")[FIRST, "liver"]["voxels"]
    assert (done / f"new/previews/{SECOND}.png").is_file()


def test_segmentations_for_slicer_hold_the_same_voxels_names_and_colours(done, trained):
    import nrrd

    options = ("--output_format", "nifti", "seg.nrrd", "--statistics")
    assert trained.predict(done / "in", done / "new", *options) == 0
    assert [item["file"] for item in record(done / "new")["cases"][FIRST]["outputs"]] == [
        f"{FIRST}.nii.gz", f"{FIRST}.seg.nrrd",
    ]  # fmt: skip
    array, header = nrrd.read(str(done / f"new/{FIRST}.seg.nrrd"))
    np.testing.assert_array_equal(array, np.asarray(nib.load(done / f"new/{FIRST}.nii.gz").dataobj))
    assert [header[f"Segment{n}_Name"] for n in range(6)] == list(LABELS)[1:]
    red, green, blue = (round(255 * float(part)) for part in header["Segment0_Color"].split())
    assert (red, green, blue) == rgb(label_colours(LABELS)[1])
    assert rows(done / "new") == rows(done / "out")
    (done / f"new/{FIRST}.nii.gz").unlink()
    assert trained.predict(done / "in", done / "new", "--output_format", "seg.nrrd", "--continue_prediction") == 0
