"""The demonstration from end to end, through its command; slow: it preprocesses and predicts seven whole scans."""

import json

import pytest
from conftest import command


@pytest.mark.slow
def test_the_demo_trains_predicts_scores_and_draws(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert command("demo", "-o", folder, "--iterations", 30, "-device", "cpu") == 0
    output = capsys.readouterr().out
    scores = json.loads((folder / "predictions/summary.json").read_text())
    assert len(scores["metric_per_case"]) == 6
    assert scores["mean"]["1"]["Dice"] > 0.3  # the liver, after 30 iterations
    assert "not a medical device" in output
    assert "6 cases" in output
    pictures = list(folder.glob("overlay_*.png"))
    assert len(pictures) == 1
    assert str(pictures[0]) in output
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
