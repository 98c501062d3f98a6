"""The wheel in a new virtual environment, without extras: NIfTI is predicted, and DICOM names the extra to install."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # of Python 3.11
ROOT = Path(__file__).resolve().parents[1]
EXTRA = 'pip install -c constraints.txt -e ".[dicom]"'
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_settings")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the checkout: the build writes into its folder."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "mre_data", "mre_demo")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=leave)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_licence_and_neither_tests_nor_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert "mre_lowshot/py.typed" in names
    assert any(".dist-info/" in name and name.endswith("/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"mre_lowshot", metadata.split("/")[0]}
    inside = {name for name in names if name.startswith("mre_lowshot/")}
    package = ROOT / "mre_lowshot"
    wanted = {path.relative_to(ROOT).as_posix() for path in package.rglob("*") if path.is_file()}
    for linked in ("planners", "preprocessing", "trainers"):  # rglob does not follow links
        wanted |= {f"mre_lowshot/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / linked).rglob("*.py")}
    assert inside == {name for name in wanted if "__pycache__" not in name and not name.endswith(".pyc")}
    others = {name for name in inside if not name.endswith(".py")}
    assert {Path(name).parent.as_posix() for name in others} == {
        "mre_lowshot", "mre_lowshot/report", "mre_lowshot/viewer/web", "mre_lowshot/viewer/web/niivue",
    }  # fmt: skip
    library = "mre_lowshot/viewer/web/niivue/niivue.umd.js"  # the viewer's, beside its licence
    assert max(zipfile.ZipFile(wheel).getinfo(name).file_size for name in inside - {library}) < 100_000
    assert "Provides-Extra: dicom" in text
    assert "Provides-Extra: tensorboard" in text


def test_without_extras_nifti_is_predicted_and_dicom_names_the_extra(wheel, trained, tmp_path):
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    programs = place / ("Scripts" if os.name == "nt" else "bin")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}

    def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [programs / program, *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    for what in ("torch", wheel):  # torch first: without a GPU its build for CPUs, as in the Makefile
        done = run("python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", what)
        assert done.returncode == 0, done.stderr[-2000:]
    for name in ("pydicom", "highdicom", "tensorboard"):
        assert run("python", "-c", f"import {name}").returncode == 1
    assert str(place) in run("python", "-c", "import mre_lowshot; print(mre_lowshot.__file__)").stdout

    model = ("-m", trained.model(), "-device", "cpu")
    scan = trained.raw / "imagesTr/phantom_002_0000.nii.gz"
    done = run("mre_predict", "-i", scan, "-o", "out", *model)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/phantom_002.nii.gz").stat().st_size > 100

    write_series = pytest.importorskip("tests.dicom_scans").write_series
    write_series(tmp_path / "dicom", __import__("numpy").zeros((4, 8, 8), "int16"))
    for arguments in (
        ("mre_predict", "-i", "dicom", "-o", "seg", *model),
        ("mre_predict", "-i", "dicom", "--list", "-m", trained.model()),
        ("mre_predict", "-i", scan, "-o", "seg", "--output_format", "dicom-seg", *model),
        ("mre_import", "-i", "dicom", "--name", "7", "--workspace", "w", "--dry_run"),
    ):
        done = run(*arguments)
        assert (done.returncode, EXTRA in done.stderr, "Traceback" in done.stderr) == (2, True, False), done
    assert not (tmp_path / "seg").exists()
    done = run("mre_train", "Synthetic", "1shot", "fold0", "--tensorboard", "--workspace", "w")
    assert (done.returncode, '-e ".[tensorboard]"' in done.stderr) == (2, True), done


EXTRAS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_can_be_installed_as_the_documents_say(wheel, extra):
    """With the tested versions; antspyx, which needs older ones (docs/BASELINES.md), without them."""
    constraints = () if extra == "ants" else ("-c", ROOT / "constraints.txt")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "-q", *constraints, f"{wheel}[{extra}]"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
