"""The quality estimate of a prediction: against plain loops, its file, and in the commands."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from conftest import command

from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.agreement import expected_dice, label_agreement
from mre_lowshot.evaluation.summary import rank_correlation
from mre_lowshot.inference.quality import Quality, estimate_quality, first_to_check, read_rows, write_qualities

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def random_posterior(seed: int, classes: int = 4, size=(5, 6, 7)) -> np.ndarray:
    p = np.random.default_rng(seed).random((classes, *size)) ** 3
    return (p / p.sum(axis=0)).astype(np.float32)


def test_the_expected_dice_is_that_of_the_formula():
    p = random_posterior(0)
    labels, found = p.argmax(axis=0), expected_dice(p)
    for k in (1, 2, 3):
        inside = total = 0.0
        for voxel in np.ndindex(*labels.shape):
            total += float(p[(k, *voxel)]) + (labels[voxel] == k)
            inside += float(p[(k, *voxel)]) * (labels[voxel] == k)
        assert found[k] == pytest.approx(2 * inside / total, rel=1e-5)
    certain = np.eye(3, dtype=np.float32)[np.array([[0, 1], [1, 0]])].transpose(2, 0, 1)
    assert expected_dice(certain)[1] == 1
    assert math.isnan(expected_dice(certain)[2])


def test_agreement_is_the_dice_of_the_two_label_maps():
    one, other = (np.random.default_rng(s).integers(0, 4, (6, 5, 4)) for s in (0, 1))
    found = label_agreement(one, other, 6)
    for k in (1, 2, 3):
        both = sum(one[i] == k and other[i] == k for i in np.ndindex(*one.shape))
        assert found[k] == pytest.approx(2 * both / ((one == k).sum() + (other == k).sum()))
    assert math.isnan(found[4])
    p, q = random_posterior(2), random_posterior(3)
    quality = estimate_quality(p, q)
    assert quality.basis == "agreement"
    assert dict(quality.classes) == label_agreement(p.argmax(axis=0), q.argmax(axis=0), 4)
    assert quality.score == pytest.approx(np.mean(list(quality.classes.values())))
    assert estimate_quality(p, p).score == 1
    assert estimate_quality(p, None).basis == "expected_dice"
    partly = q.copy()
    partly[:, 2:] = 1 / 4  # an atlas annotated in two slices carries no information elsewhere
    there = label_agreement(p[:, :2].argmax(axis=0), q[:, :2].argmax(axis=0), 4)
    assert dict(estimate_quality(p, partly).classes) == there
    assert estimate_quality(p, np.full_like(q, 1 / 4)) == estimate_quality(p, None)
    nothing = np.zeros((3, 4, 4, 4), np.float32)
    nothing[0] = 1
    assert estimate_quality(nothing, nothing).score == 0  # no structure predicted: to be checked first


def test_the_table_has_the_least_trusted_first_and_keeps_earlier_rows(tmp_path):
    good, bad = Quality("agreement", 0.9, {1: 0.95, 2: 0.85}), Quality("agreement", 0.2, {1: 0.2, 2: math.nan})
    path = write_qualities(tmp_path, {"b": good, "a": bad}, LABELS)
    assert path.read_text().splitlines() == [
        "case,score,basis,liver,spleen", "a,0.2000,agreement,0.2000,", "b,0.9000,agreement,0.9500,0.8500",
    ]  # fmt: skip
    write_qualities(tmp_path, {"c": Quality("expected_dice", 0.5, {1: 0.5, 2: 0.5}), "b": bad}, LABELS)
    assert [row["case"] for row in csv.DictReader(path.open())] == ["a", "b", "c"]
    assert first_to_check({"x": good, "y": bad}) == "y (0.20), x (0.90)"
    assert read_rows(tmp_path / "absent.csv") == {}
    named = write_qualities(tmp_path, {"a": good}, {"background": 0, "score": 1, "tail": 2}, "other.csv")
    assert named.read_text().splitlines()[1] == "a,0.9000,agreement,0.9500,0.8500"
    path.write_bytes(b"name\xe9,value\nx,1\n")
    with pytest.raises(UserError, match="is not a table of qualities"):
        read_rows(path)
    path.write_text("name,value\nx,1\n")
    with pytest.raises(UserError, match="is not a table of qualities"):
        read_rows(path)


def test_the_correlation_is_reported_or_the_reason_why_there_is_none():
    def summary(scores, dices):
        rows = [{"1": {"Dice": dice}, "2": {"Dice": math.nan}} for dice in dices]
        pairs = enumerate(zip(scores, rows, strict=True))
        return {"metric_per_case": [{"case": f"c{n}", "quality": s, "metrics": row} for n, (s, row) in pairs]}

    assert "rank correlation 1.00, linear 0.9" in rank_correlation(summary([0.1, 0.2, 0.9], [0.3, 0.4, 0.7]))
    assert "rank correlation -1.00" in rank_correlation(
        summary([0, 0, 0], [0.3, 0.4, 0.7]), {"c0": 3, "c1": 2, "c2": 1}
    )
    assert "2 scans are too few" in rank_correlation(summary([0.1, 0.2], [0.3, 0.4]))
    assert "too alike" in rank_correlation(summary([0.1, 0.1, 0.1], [0.3, 0.4, 0.5]))


@pytest.mark.usefixtures("one_thread_only", "no_settings")
def test_prediction_ranks_its_scans_and_evaluation_reports_how_well(trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert trained.predict(trained.raw / "imagesTr", out) == 0
    output = capsys.readouterr().out
    rows = list(csv.DictReader((out / "quality.csv").open()))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores)
    assert {row["basis"] for row in rows} == {"agreement"}
    assert f"lowest quality scores, check these first: {rows[0]['case']} ({scores[0]:.2f})" in output
    assert command("evaluate", trained.raw / "labelsTr", out, "-djfile", trained.raw / "dataset.json") == 0
    output = capsys.readouterr().out
    assert "quality estimate" in output
    assert "3 scans" in output


@pytest.mark.usefixtures("one_thread_only", "no_settings")
def test_a_foreign_quality_file_is_refused_before_any_prediction(trained, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "quality.csv").write_text("mine,own\n1,2\n")
    assert trained.predict(trained.raw / "imagesTr", out) == 2
    assert "is not a table of qualities" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["quality.csv"]
