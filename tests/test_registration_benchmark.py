"""The comparison of the registration's parts, on a preprocessed dataset."""

import json
import re

import numpy as np
import pytest
from conftest import edit

from benchmarks import registration
from mre_lowshot.evaluation.metrics import dice


@pytest.fixture
def cohorts(space, tmp_path):
    names = sorted(path.stem for path in (space.prepared / "Tiny").glob("*.npz"))
    file = tmp_path / "cohorts.json"
    file.write_text(json.dumps({space.prepared.name: {"develop": names}}))
    return file, names


def test_each_part_is_scored_on_the_other_scans(space, cohorts, capsys):
    file, names = cohorts
    asked = [space.prepared, "-p", "Tiny", "--cohorts", file, "--most", 1, "--train", names[1]]
    assert registration.main(list(map(str, asked))) == 0
    out = capsys.readouterr().out
    assert f"{names[0]} from {names[1]}: Dice" in out
    told = re.findall(rf"from {names[1]} to 1 scans, (.+): Dice (\d\.\d+), \d", out)
    assert [kind for kind, _ in told] == list(registration.KINDS)
    assert all(0.3 < float(score) <= 1 for _, score in told)


def test_the_mirror_image_is_scored_too(space, cohorts, capsys):
    """In an abdomen its labels fit worse; where the plan aligns nothing there is nothing to ask."""
    file, names = cohorts
    asked = ["--cohorts", file, "--most", 1, "--train", names[1], "--mirrored"]
    assert registration.main(list(map(str, [space.prepared, "-p", "Tiny", *asked]))) == 0
    out = capsys.readouterr().out
    assert re.search(rf"{names[1]} and its mirror image, affine: Dice \d.*left and right differ", out)
    told = dict(re.findall(rf"from {names[1]} to 1 scans, (.+): Dice (\d\.\d+), \d", out))
    assert tuple(told) == registration.KINDS + registration.MIRRORED
    scan, image, both = (float(told[kind]) for kind in (registration.KINDS[-1], *registration.MIRRORED))
    assert image < 0.8 * scan
    assert image < both
    edit(space.prepared / "Tiny.json", recipe={"alignment": "none"})
    assert registration.main(list(map(str, [space.prepared, "-p", "Tiny", *asked]))) == 2
    assert "plan Tiny: uses no mirror images" in capsys.readouterr().err


def test_scans_together_are_scored_on_what_is_none_of_them(space, cohorts, capsys):
    file, names = cohorts
    asked = [space.prepared, "-p", "Tiny", "--cohorts", file, "--together", "--train", *names[:2]]
    assert registration.main(list(map(str, asked))) == 0
    out = capsys.readouterr().out
    told = re.findall(r"  (\w+), from all: counted alike (\d\.\d+), by likeness (\d\.\d+)", out)
    assert [name for name, *_ in told] == names[2:]
    assert all(0.3 < float(score) <= 1 for _, *scores in told for score in scores)
    mean = float(np.mean([float(score) for _, _, score in told]))
    (last,) = re.findall(rf"from all to {len(told)} scans: counted alike Dice \S+, by likeness (\S+)", out)
    assert float(last) == pytest.approx(mean, abs=1e-3)


def test_the_score_is_the_mean_dice_of_the_labels_that_are_there():
    rng = np.random.default_rng(0)
    truth, one = rng.integers(-1, 3, (6, 7, 8)), rng.integers(0, 4, (6, 7, 8))
    known = truth >= 0
    wanted = np.mean([dice((truth == k) & known, (one == k) & known) for k in (1, 2)])
    assert registration.mean_dice(one, truth, 4) == pytest.approx(wanted)


def test_wrong_use_is_told(space, cohorts, capsys):
    file, names = cohorts
    asked = [str(space.prepared), "-p", "Tiny", "--cohorts", str(file)]
    assert registration.main([*asked, "--train", "nobody"]) == 2
    assert "--train nobody: not in cohort 'develop'; choose among" in capsys.readouterr().err
    assert registration.main([*asked, "--cohort", "report"]) == 2
    assert "no cohort 'report'" in capsys.readouterr().err
    assert registration.main([*asked, "--most", "0"]) == 2
    assert "--most 0: must be 1 or more" in capsys.readouterr().err
    assert registration.main([*asked, "--together"]) == 2
    assert "--together: needs two scans or more" in capsys.readouterr().err
    file.write_text(json.dumps({space.prepared.name: {"develop": names[:1]}}))
    assert registration.main(asked) == 2
    assert "no scan beside" in capsys.readouterr().err
