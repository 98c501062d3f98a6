"""The demonstration from end to end, through its command; slow, for it preprocesses and predicts seven whole scans."""

import json

import pytest
from conftest import command


@pytest.mark.slow
def test_the_demo_trains_predicts_scores_and_draws(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert command("demo", "-o", folder, "--iterations", 30, "-device", "cpu") == 0
    said = capsys.readouterr().out
    scores = json.loads((folder / "predictions/summary.json").read_text())
    assert len(scores["metric_per_case"]) == 6
    assert scores["mean"]["1"]["Dice"] > 0.3  # the liver, after 30 iterations
    assert "not a medical device" in said
    assert "6 cases" in said
    pictures = list(folder.glob("overlay_*.png"))
    assert len(pictures) == 1
    assert str(pictures[0]) in said
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
