"""A small folder of label maps as mre_predict writes it, for reports."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import write_volume
from mre_lowshot.inference.record import FileState

LABELS = {"liver": 1, "spleen": 2}
SHAPE, SPACING = (10, 24, 20), (4.0, 2.0, 2.0)


def reference_array() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:8, 4:16, 2:10] = 1
    labels[5:9, 12:20, 12:17] = 2
    return labels


def write_folder(root: Path, names=("a", "b", "c"), labels=LABELS, warnings=()) -> Path:
    """Scans, references, and label maps that are the worse the later their name: ``root/pred``, ``scans``, ``ref``."""
    geometry, rng = Geometry(SHAPE, SPACING), np.random.default_rng(0)
    for folder in ("pred", "scans", "ref"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    cases, rows = {}, []
    for number, name in enumerate(names):
        truth = reference_array()
        predicted = np.roll(truth, min(number, 9), axis=2)
        if number == 2:
            predicted[predicted == 2] = 0  # the spleen is missed
        scan = root / "scans" / f"case{number}_0000.nii.gz"
        write_volume(scan, (truth * 60.0 + rng.normal(0, 5, SHAPE)).astype(np.float32), geometry)
        file = f"case{number}.nii.gz"
        write_volume(root / "ref" / file, truth, geometry)
        write_volume(root / "pred" / file, predicted, geometry)
        rows.append({"case": name, "score": f"{1 - 0.1 * number:.4f}", "basis": "agreement"})
        cases[name] = {
            "status": "done", "reason": None, "inputs": [{"file": str(scan)}], "warnings": list(warnings),
            "quality": {"score": 1 - 0.1 * min(number, 9), "basis": "agreement"}, "run": "r",
            "seconds": {"read": 0.1, "network": 1.0 + number},
            "outputs": [FileState.of(root / "pred" / file, file).to_json()],
        }  # fmt: skip
    run = {"started": "2026-11-28T10:00:00+00:00", "status": "complete", "device": "cpu", "input": str(root / "scans")}
    content = {"format": "mre_lowshot prediction", "format_version": 1, "runs": {"r": run}, "cases": cases}
    (root / "pred/run.json").write_text(json.dumps(content))
    with (root / "pred/dseg.tsv").open("w", newline="") as file:
        file.write("index\tname\tcolor\n" + "".join(f"{v}\t{n}\t#{v:02x}80ff\n" for n, v in labels.items()))
    with (root / "pred/quality.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["case", "score", "basis"])
        table.writeheader()
        table.writerows(rows)
    return root / "pred"
