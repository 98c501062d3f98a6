"""Bad inputs of every kind: each is refused by name with the reason, in one line, and the good ones are processed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import corpus.other_formats  # noqa: F401  (registers its scans)
import pytest
from conftest import command
from corpus.checkpoints import BAD_CHECKPOINTS, MARK
from corpus.datasets import BAD_DATASETS
from corpus.options import BAD_OPTIONS
from corpus.plans import BAD_PLANS
from corpus.scans import BAD_SCANS, write_all

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")


def message(code: int, capsys, *, expected: int, pattern: str) -> str:
    """The output on stderr, after checking the exit code, the pattern, and that there is no traceback."""
    found = capsys.readouterr()
    text = found.err
    assert "Traceback" not in text
    assert "internal" not in text, text
    assert code == expected, f"exit code {code}: {found.out[-300:]} {text}"
    assert re.search(pattern, text, re.IGNORECASE), f"{pattern!r} is not in: {text}"
    return text


def line_of(text: str, name: str) -> str:
    """The line of a report that is about ``name``."""
    lines = [line for line in text.splitlines() if name in line]
    assert lines, f"{name} is not named in: {text}"
    return " ".join(lines)


@pytest.fixture
def scans(tmp_path) -> Path:
    write_all(tmp_path / "bad")
    return tmp_path / "bad"


def test_every_bad_scan_is_named_with_its_reason_and_the_good_one_is_segmented(
    trained, scans, tmp_path, capsys, record_property
):
    good = "phantom_001_0000.nii.gz"
    shutil.copyfile(trained.raw / "imagesTr" / good, scans / good)
    out = tmp_path / "out"
    code = trained.predict(scans, out)
    text = message(code, capsys, expected=1, pattern="failed: ")
    wrong = []
    for name, (_, _, pattern) in BAD_SCANS.items():
        line = line_of(text, name)
        if not re.search(pattern, line.replace(name, ""), re.IGNORECASE):
            wrong.append(f"{name}: {pattern!r} is not in: {line}")
    assert wrong == [], "\n".join(wrong)
    maps = [
        p.name for p in out.iterdir() if not p.name.startswith(".") and p.suffix in (".gz", ".nii", ".mha", ".nrrd")
    ]
    assert maps == ["phantom_001.nii.gz"]
    record_property("inputs tried", len(BAD_SCANS) + 1)


def test_every_bad_scan_is_named_at_planning(trained, tmp_path, capsys, record_property):
    """The same files as training scans, each format as a dataset of its own."""
    count = 0
    for ending in sorted({ending for ending, _, _ in BAD_SCANS.values()}):
        raw = shutil.copytree(trained.raw, tmp_path / f"raw{ending}" / "Dataset901_Bad")
        shutil.rmtree(raw / "labelsTr")
        description = raw / "dataset.json"
        description.write_text(description.read_text().replace(".nii.gz", ending))
        for path in (raw / "imagesTr").iterdir():
            path.unlink()
        (raw / "labelsTr").mkdir()
        names = [name for name, (its, _, _) in BAD_SCANS.items() if its == ending]
        for name in names:
            BAD_SCANS[name][1](raw / f"imagesTr/{name}_0000{ending}")
        shutil.copyfile(trained.raw / "labelsTr/phantom_001.nii.gz", raw / f"labelsTr/{names[-1]}{ending}")
        code = command("plan", "-d", raw, "--workspace", tmp_path / "space", "-device", "cpu")
        text = message(code, capsys, expected=2, pattern="error: ")
        for name in names:
            line_of(text, name)
        count += len(names)
    assert count == len(BAD_SCANS)
    record_property("inputs tried", count)


@pytest.mark.parametrize("name", BAD_DATASETS)
def test_a_bad_dataset_is_refused(trained, tmp_path, capsys, name, record_property):
    change, pattern = BAD_DATASETS[name]
    raw = shutil.copytree(trained.raw, tmp_path / "Dataset900_Synthetic")
    change(raw)
    code = command("plan", "-d", raw, "--workspace", tmp_path / "space", "-device", "cpu", "--no_pp")
    message(code, capsys, expected=2, pattern=pattern)
    assert not list(tmp_path.glob("space/preprocessed/*/MREPlans.json"))
    record_property("inputs tried", 1)


@pytest.mark.parametrize("name", BAD_PLANS)
def test_a_bad_plan_is_refused(space, capsys, name, record_property):
    change, pattern = BAD_PLANS[name]
    change(space)
    message(space.train("--no_val", "--overwrite"), capsys, expected=2, pattern=pattern)
    assert not (space.root.parent / "outside").exists()
    record_property("inputs tried", 1)


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused(trained, tmp_path, capsys, name, record_property):
    change, pattern = BAD_CHECKPOINTS[name]
    path = tmp_path / "checkpoint_final.pth"
    shutil.copyfile(trained.model() / "fold_0/checkpoint_final.pth", path)
    change(path)
    code = trained.predict(trained.raw / "imagesTr/phantom_002_0000.nii.gz", tmp_path / "out", "-m", path)
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert code in (1, 2), text
    assert re.search(pattern, text, re.IGNORECASE), f"{pattern!r} is not in: {text}"
    assert not Path(MARK).exists()
    assert not list(tmp_path.glob("out/*.nii.gz"))
    record_property("inputs tried", 1)


@pytest.mark.parametrize(("name", "arguments", "pattern"), BAD_OPTIONS, ids=lambda value: str(value)[-60:])
def test_a_wrong_option_is_refused_before_anything_is_written(
    trained, tmp_path, capsys, name, arguments, pattern, record_property
):
    scans = shutil.copytree(trained.raw / "imagesTr", tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    words = {"{in}": str(scans), "{out}": str(out), "{space}": str(trained.root)}

    def filled(text: str) -> str:
        for word, path in words.items():
            text = text.replace(word, path)
        return text

    before = sorted(p for p in trained.root.rglob("*"))
    try:
        code = command(name, *map(filled, arguments))
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    message(code, capsys, expected=2, pattern=pattern)
    assert list(out.iterdir()) == []
    assert len(list(scans.iterdir())) == 3
    assert sorted(p for p in trained.root.rglob("*")) == before
    record_property("inputs tried", 1)
