"""3D Slicer's extension SlicerNNUnet, with ``mre_predict`` in place of ``nnUNetv2_predict``.

A stand-in finds the command, makes its arguments and environment, and looks for its result, as the extension does
(revision d05d772, Parameter.py and SegmentationLogic.py).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import command

from mre_lowshot.data.volume import geometry_of, read_labels
from mre_lowshot.errors import UserError
from mre_lowshot.inference.predictor import Predictor

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
ROOT = Path(__file__).resolve().parents[1]
DISABLE_TTA = "--disable_tta"


class SlicerNNUnet:
    """The extension with the settings of its panel: the model's folder, folds as text, numbers of processes."""

    def __init__(
        self, model: Path, folder: Path, *, folds: str = "", checkpoint: str = "", macos: bool = False
    ) -> None:
        self.model, self.folder, self.folds = model, folder, folds
        self.checkpoint, self.processes = checkpoint or "checkpoint_final.pth", 0 if macos else 1
        self.described = next(model.rglob("dataset.json"))
        self.ending = json.loads(self.described.read_text()).get("file_ending", ".nii.gz")

    def arguments(self) -> list[str]:
        configuration = self.described.parent
        trainer, plans, name = configuration.name.split("__")
        folds = [int(fold) for fold in self.folds.strip().split(",")] if self.folds else [0]
        for fold in folds:
            assert (configuration / f"fold_{fold}" / self.checkpoint).exists()
        assert configuration.parent.name.startswith("Dataset")
        made = ["-i", (self.folder / "input").as_posix(), "-o", (self.folder / "output").as_posix(),
                "-d", configuration.parent.name, "-tr", trainer, "-p", plans, "-c", name, "-f", *folds,
                "-npp", self.processes, "-nps", self.processes, "-step_size", 0.5, "-device", "cpu",
                "-chk", self.checkpoint, DISABLE_TTA]  # fmt: skip
        return [str(argument) for argument in made]

    def environment(self) -> dict[str, str]:
        results = self.described.parents[2].as_posix()
        return {"nnUNet_preprocessed": results, "nnUNet_raw": results, "nnUNet_results": results}

    def give(self, scan: Path) -> None:
        (self.folder / "output").mkdir(parents=True)
        (self.folder / "input").mkdir()
        shutil.copy(scan, self.folder / f"input/volume_0000{self.ending}")

    def result(self) -> Path:
        return next((self.folder / "output").rglob(f"*{self.ending}"))


@pytest.mark.usefixtures("all_starts")  # as in the other process
def test_the_extension_starts_mre_predict_and_finds_its_result(trained, tmp_path):
    extension = SlicerNNUnet(trained.model().parent, tmp_path / "temporary")
    scan = trained.raw / "imagesTr/phantom_002_0000.nii.gz"
    extension.give(scan)
    scripts = tmp_path / "lib/Python/bin"
    scripts.mkdir(parents=True)
    (scripts / "nnUNetv2_predict_from_modelfolder").write_text("")
    script = scripts / "nnUNetv2_predict"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mre_lowshot.cli.predict "$@"\n')
    script.chmod(0o755)
    program = sorted(scripts.glob("nnUNetv2_predict*"))[0].resolve()
    environment = {**os.environ, **extension.environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([program, *extension.arguments()], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 1 scans segmented" in done.stdout
    labels = read_labels(extension.result())
    assert not labels.geometry.differences(geometry_of(scan))
    wanted = Predictor.load(trained.model(), device="cpu", step_size=0.5, mirroring=False).predict(scan)
    assert np.array_equal(labels.array, wanted.labels.array)


@pytest.mark.parametrize("macos", [False, True])
def test_its_exact_command_line(macos, trained, tmp_path, monkeypatch, capsys):
    extension = SlicerNNUnet(trained.model(), tmp_path, folds="0", macos=macos)
    extension.give(trained.raw / "imagesTr/phantom_002_0000.nii.gz")
    count = "0" if macos else "1"
    line = (
        f"-i {tmp_path}/input -o {tmp_path}/output -d Dataset900_Synthetic -tr MRETrainer -p Tiny -c 1shot -f 0 "
        f"-npp {count} -nps {count} -step_size 0.5 -device cpu -chk checkpoint_final.pth --disable_tta"
    )
    assert " ".join(extension.arguments()) == line
    for name, value in extension.environment().items():
        monkeypatch.setenv(name, value)
    assert command("predict", *extension.arguments()) == 0
    assert extension.result().name == "volume.nii.gz"
    options = next(iter(json.loads((tmp_path / "output/run.json").read_text())["runs"].values()))["options"]
    assert (options["step_size"], options["mirroring"]) == (0.5, False)
    assert options["checkpoint_name"] == "checkpoint_final.pth"
    assert capsys.readouterr().err == ""


def test_options_of_nnunet_that_hold_or_are_refused(space, tmp_path, capsys):
    scan, out = space.raw / "imagesTr/phantom_002_0000.nii.gz", tmp_path / "out"
    for arguments, words in (
        (["-tr", "nnUNetTrainer"], "-tr 'nnUNetTrainer': models are trained by MRETrainer only"),
        (["-chk", "checkpoint_best.pth"], "there is none, because training keeps no scan apart to choose"),
        (["-chk", "../x.pth"], "is not checkpoint_final.pth or checkpoint_latest.pth"),
        (["-chk", "checkpoint_latest.pth"], "-chk checkpoint_latest.pth: "),
        (["-npp", "-1"], "-npp -1: must lie in 0 to 999"),
        (["-nps", "1000"], "-nps 1000: must lie in 0 to 999"),
    ):  # fmt: skip
        if arguments[1] == "checkpoint_latest.pth":
            (space.model() / "fold_0/checkpoint_latest.pth").unlink(missing_ok=True)
        assert space.predict(scan, out, *arguments) == 2
        assert words in capsys.readouterr().err
        assert not out.exists()
    final = space.model() / "fold_0/checkpoint_final.pth"
    latest = shutil.copy(final, final.with_name("checkpoint_latest.pth"))
    for arguments in (["-chk", latest.name], ["-chk", latest.name, "-m", space.model() / "fold_0"]):
        assert space.predict(scan, out, "-npp", "3", "-nps", "3", *arguments) == 0
        assert "-nps above 1 has no effect" in capsys.readouterr().out
        record = json.loads((out / "run.json").read_text())
        files = [run["model"]["checkpoints"][0]["file"] for run in record["runs"].values()]
        assert files[-1] == str(latest)
    with pytest.raises(UserError, match="is a checkpoint file itself, and not checkpoint_latest"):
        Predictor.load(final, device="cpu", checkpoint_name="checkpoint_latest.pth")


def test_verbose_prints_the_seconds_of_each_case(trained, tmp_path, capsys):
    scan = trained.raw / "imagesTr/phantom_002_0000.nii.gz"
    assert trained.predict(scan, tmp_path, "--verbose") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("case phantom_002: "))
    assert "network " in line
    assert line.endswith("; phantom_002.nii.gz")
