"""The comparison of the parts of the registration, on a preprocessed dataset."""

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
    arguments = [space.prepared, "-p", "Tiny", "--cohorts", file, "--most", 1, "--train", names[1]]
    assert registration.main(list(map(str, arguments))) == 0
    out = capsys.readouterr().out
    assert f"{names[0]} from {names[1]}: Dice" in out
    found = re.findall(rf"from {names[1]} to 1 scans, (.+): Dice (\d\.\d+), \d", out)
    assert [kind for kind, _ in found] == list(registration.KINDS)
    assert all(0.3 < float(score) <= 1 for _, score in found)


@pytest.mark.slow
def test_the_reference_in_simpleitk_is_scored_on_the_same_scans(space, cohorts, capsys):
    file, names = cohorts
    arguments = [space.prepared, "-p", "Tiny", "--cohorts", file, "--most", 1, "--train", names[1], "--reference"]
    assert registration.main(list(map(str, arguments))) == 0
    out = capsys.readouterr().out
    found = dict(re.findall(rf"from {names[1]} to 1 scans, (.+): Dice (\d\.\d+), \d", out))
    assert tuple(found) == registration.KINDS + registration.REFERENCE
    for kind, theirs in zip(registration.KINDS, registration.REFERENCE, strict=True):
        (difference,) = re.findall(rf"scans, {kind}: Dice minus SimpleITK's (\S+) \(", out)
        assert float(difference) == pytest.approx(float(found[kind]) - float(found[theirs]), abs=2e-4)


@pytest.mark.slow
def test_the_mirrored_atlas_is_scored_too(space, cohorts, capsys):
    """In an abdomen its labels fit worse. A plan without registration has no mirrored atlases."""
    file, names = cohorts
    arguments = ["--cohorts", file, "--most", 1, "--train", names[1], "--mirrored"]
    assert registration.main(list(map(str, [space.prepared, "-p", "Tiny", *arguments]))) == 0
    out = capsys.readouterr().out
    assert re.search(
        rf"{names[1]} and its mirror image, affine: Dice \d.* is 0\.\d+, below 0\.7: no mirrored atlases", out
    )
    found = dict(re.findall(rf"from {names[1]} to 1 scans, (.+): Dice (\d\.\d+), \d", out))
    assert tuple(found) == registration.KINDS + registration.MIRRORED
    scan, image, both = (float(found[kind]) for kind in (registration.KINDS[-1], *registration.MIRRORED))
    assert image < 0.8 * scan
    assert image < both
    edit(space.prepared / "Tiny.json", recipe={"atlas": {"registration": "none", "mirrored_atlases": True}})
    assert registration.main(list(map(str, [space.prepared, "-p", "Tiny", *arguments]))) == 2
    assert "--mirrored: plan Tiny uses no mirrored atlases" in capsys.readouterr().err


@pytest.mark.slow
def test_fused_atlases_are_scored_on_the_scans_that_are_none_of_them(space, cohorts, capsys):
    file, names = cohorts
    arguments = [space.prepared, "-p", "Tiny", "--cohorts", file, "--fused", "--train", *names[:2]]
    assert registration.main(list(map(str, arguments))) == 0
    out = capsys.readouterr().out
    found = re.findall(r"  (\w+) from all, fused: Dice (\d\.\d+) equal weights, (\d\.\d+) by similarity", out)
    assert [name for name, *_ in found] == names[2:]
    assert all(0.3 < float(score) <= 1 for _, *scores in found for score in scores)
    mean = float(np.mean([float(score) for _, _, score in found]))
    (last,) = re.findall(rf"from all to {len(found)} scans, fused: Dice \S+ equal weights, (\S+) by similarity", out)
    assert float(last) == pytest.approx(mean, abs=1e-3)


def test_the_score_is_the_mean_dice_of_the_labels_that_the_scan_has():
    rng = np.random.default_rng(0)
    truth, one = rng.integers(-1, 3, (6, 7, 8)), rng.integers(0, 4, (6, 7, 8))
    known = truth >= 0
    wanted = np.mean([dice((truth == k) & known, (one == k) & known) for k in (1, 2)])
    assert registration.mean_dice(one, truth, 4) == pytest.approx(wanted)


def test_wrong_use_is_reported(space, cohorts, capsys):
    file, names = cohorts
    arguments = [str(space.prepared), "-p", "Tiny", "--cohorts", str(file)]
    assert registration.main([*arguments, "--train", "nobody"]) == 2
    assert "--train nobody: not in cohort 'develop'; choose among" in capsys.readouterr().err
    assert registration.main([*arguments, "--cohort", "report"]) == 2
    assert "no cohort 'report'" in capsys.readouterr().err
    assert registration.main([*arguments, "--most", "0"]) == 2
    assert "--most 0: must be 1 or more" in capsys.readouterr().err
    assert registration.main([*arguments, "--threads", "0"]) == 2
    assert "--threads 0: must be 1 or more" in capsys.readouterr().err
    assert registration.main([*arguments, "--fused"]) == 2
    assert "--fused: needs two scans or more" in capsys.readouterr().err
    file.write_text(json.dumps({space.prepared.name: {"develop": names[:1]}}))
    assert registration.main(arguments) == 2
    assert "has no scan besides" in capsys.readouterr().err
