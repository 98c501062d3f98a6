"""The output folder of a prediction, without a prediction."""

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from mre_lowshot.data.dataset import Case
from mre_lowshot.data.volume import Volume
from mre_lowshot.errors import UserError
from mre_lowshot.inference.record import FileState, RunRecord
from mre_lowshot.workflows import outputs
from mre_lowshot.workflows.input_files import input_states, same_inputs
from mre_lowshot.workflows.outputs import OutputFolder, Request


def folder_of(root: Path) -> OutputFolder:
    root.mkdir(exist_ok=True)
    return OutputFolder(root, RunRecord(root, "run.json", {}), Request(True, True, {"background": 0, "one": 1}))


def publish(folder: OutputFolder, case: Case, staging: Path) -> None:
    outputs = [FileState.of(path, path.name) for path in sorted(staging.iterdir())]
    folder.publish(case, {"status": "done"}, staging=staging, outputs=outputs)


def test_names_that_differ_in_case_only_are_refused_where_they_are_one_file(tmp_path, monkeypatch):
    cases = [Case(name, (tmp_path / f"{name}.nii.gz",)) for name in ("Knee", "knee")]
    folder = folder_of(tmp_path / "out")
    folder.require_room(cases)
    monkeypatch.setattr(OutputFolder, "ignores_case", lambda self: True)
    with pytest.raises(UserError, match="cases Knee and knee: their label maps would be one file"):
        folder.require_room(cases)
    with pytest.raises(UserError, match="cases cafe\u0301 and caf\u00e9: "):
        folder.require_room([Case(n, (tmp_path / f"{n}.nii",)) for n in ("cafe\u0301", "caf\u00e9")])


def test_too_little_space_is_reported_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "a.nii").write_bytes(bytes(4_000_000))
    folder, cases = folder_of(tmp_path / "out"), [Case("a", (tmp_path / "a.nii",))]
    assert folder.space_warning(cases, 3) == ""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    assert "about 4.6 MB will be needed, 1 MB are free" in folder.space_warning(cases, 3)


def test_a_user_file_that_appears_during_the_run_is_not_replaced(tmp_path):
    folder, case = folder_of(tmp_path / "out"), Case("a", (tmp_path / "a.nii",))
    (tmp_path / "a.nii").write_bytes(b"scan")
    for text, refused in (("first", False), ("second", False), ("third", True)):
        if refused:
            (tmp_path / "out/a.nii").write_text("corrected")
        with folder.staged() as staging:
            (staging / "a.nii").write_text(text)
            if refused:
                with pytest.raises(UserError, match="was written or changed by another program during this run"):
                    publish(folder, case, staging)
            else:
                publish(folder, case, staging)
                assert (tmp_path / "out/a.nii").read_text() == text
    assert (tmp_path / "out/a.nii").read_text() == "corrected"


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    folder = folder_of(tmp_path / "out")
    (tmp_path / "out/a.npz").mkdir()
    with pytest.raises(UserError, match=r"a\.npz: a file and a folder of one name"):
        folder.require_room([Case("a", (tmp_path / "a.nii",))])
    (tmp_path / "out/a.npz").rmdir()
    (tmp_path / "out/overlays").write_text("")
    with pytest.raises(UserError, match="overlays: a file and a folder of one name"):
        folder.require_room([Case("a", (tmp_path / "a.nii",))])


def test_the_voxels_beside_an_mhd_header_belong_to_it(tmp_path):
    folder, case = folder_of(tmp_path / "out"), Case("a", (tmp_path / "a.mhd",))
    (tmp_path / "out/a.zraw").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"a.zraw: mre_predict has not written this"):
        folder.require_room([case])
    (tmp_path / "out/a.zraw").unlink()
    with folder.staged() as staging:
        (staging / "a.mhd").write_bytes(b"header")
        (staging / "a.zraw").write_bytes(b"voxels")
        publish(folder, case, staging)
    folder.require_room([case])
    (tmp_path / "out/a.zraw").write_bytes(b"corrected")
    with pytest.raises(UserError, match=r"a.zraw: mre_predict has not written this"):
        folder.require_room([case])


@pytest.mark.parametrize(
    ("formats", "longest"), [((), 248), (("seg.nrrd",), 246), (("mha", "seg.nrrd"), 246), (("dicom-labelmap",), 242)]
)
def test_names_are_as_long_as_the_endings_allow(formats, longest, tmp_path):
    root = tmp_path / "out"
    root.mkdir()
    request = Request(True, True, {"background": 0, "one": 1}, formats, previews=True)
    folder = OutputFolder(root, RunRecord(root, "run.json", {}), request)
    for letter, size in (("x", 1), ("é", 2)):
        kept = letter * (longest // size)
        folder.require_names([Case(kept, (tmp_path / f"{kept}.nii.gz",))])
        longer = kept + letter
        with pytest.raises(UserError, match=f"case {longer}: its file name with .* file systems allow 255; rename"):
            folder.require_names([Case(longer, (tmp_path / f"{longer}.nii.gz",))])


@pytest.mark.parametrize("endings", [(".nii.gz", ".nrrd"), (".mhd", ".zraw")])
def test_a_run_that_is_stopped_between_two_files_of_a_case_is_not_taken_for_done(endings, tmp_path, monkeypatch):
    scan = Volume.from_array(np.random.default_rng(0).random((8, 8, 8)).astype(np.float32), (1, 1, 1))
    scan.save(path := tmp_path / f"a{endings[0]}")
    case, formats = Case("a", (path,)), ("nifti", "nrrd") if endings[1] == ".nrrd" else ()
    whole = outputs.replace

    def folder_for(value: int) -> OutputFolder:
        root = tmp_path / "out"
        root.mkdir(exist_ok=True)
        record = RunRecord(root, "run.json", {"model": {"checkpoints": [{"sha256": str(value)}]}, "options": {}})
        return OutputFolder(root, record, Request(False, False, {"background": 0, "a": 1, "b": 2}, formats))

    def run(value: int, replace=whole) -> str | None:
        folder = folder_for(value)
        monkeypatch.setattr(outputs, "replace", replace)
        with folder.staged() as staging:
            for made in folder.label_maps(case):
                Volume(np.full((8, 8, 8), value, np.int16), scan.geometry).save(staging / made.name)
            states = [FileState.of(file, file.name) for file in sorted(staging.iterdir())]
            entry = {"status": "done", "inputs": input_states(case)}
            with suppress(KeyboardInterrupt):
                folder.publish(case, entry, staging=staging, outputs=states)
        return folder_for(value).why_again(case)

    def once(source: Path, target: Path) -> None:
        monkeypatch.setattr(outputs, "replace", stop)
        whole(source, target)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    assert run(1) is None
    assert "of an earlier run" in (run(2, once) or "")
    assert run(2) is None


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.nrrd", "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: voxels.raw\n\n"),
        (
            "a.mhd",
            "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementDataFile = voxels.raw\n",
        ),
    ],
)
def test_a_scan_has_changed_where_its_file_of_voxels_has(name, header, tmp_path):
    (tmp_path / name).write_text(header)
    (tmp_path / "voxels.raw").write_bytes(bytes(range(64)))
    case = Case("a", (tmp_path / name,))
    entry = {"inputs": input_states(case)}
    assert [Path(str(state["file"])).name for state in entry["inputs"]] == [name, "voxels.raw"]
    assert same_inputs(entry, case)
    (tmp_path / "voxels.raw").write_bytes(bytes(range(64, 128)))
    assert not same_inputs(entry, case)
