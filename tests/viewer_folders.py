"""A folder of predictions as mre_predict leaves it, with scans and references beside it, for tests of the viewer."""

import http.client
import json
from pathlib import Path

import nibabel as nib
import numpy as np

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.label_table import DSEG, LabelTable
from mre_lowshot.data.volume import Volume, write_volume
from mre_lowshot.inference.quality import Quality, write_qualities
from mre_lowshot.inference.record import FORMAT, VERSION, FileState

LABELS = {"background": 0, "liver": 1, "left kidney": 4}
COLOURS = {1: "#00c389", 4: "#56b4e9"}  # none of the colours of niivue's cube as seen from the front
SCORES = {"good": 0.9, "bad": 0.2, "middle": 0.55}
SHAPE = (10, 20, 16)  # z, y, x


def oblique(shape=SHAPE, orientation="RAS"):
    """A grid that is turned by 10 degrees, in a file of this orientation."""
    turn = np.radians(10)
    columns = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]) * [1.5, 1.0, 3.0]
    if orientation == "RAS":
        columns = columns * [-1, -1, 1]
    return Geometry.of_file(columns, np.array([12.0, -7.0, 40.0]), shape[::-1], name="scan")


def scan_array(shape=SHAPE, seed=0):
    """A gradient with noise and a bright box, whole numbers."""
    noise = np.random.default_rng(seed).integers(0, 20, shape)
    made = noise + 4 * np.arange(shape[2])
    made[2:8, 5:15, 3:9] += 100
    return made.astype(np.float32)


def label_array(shape=SHAPE, shift=0):
    """Two boxes."""
    made = np.zeros(shape, np.int32)
    made[2:8, 5:15, 3 + shift : 7 + shift] = 1
    made[3:6, 6:12, 10:14] = 4
    return made


def write_folder(root: Path, ending: str = ".nii.gz") -> Path:
    """Scans, references and predictions of the cases of `SCORES`, and of one whose prediction failed."""
    scans, references, folder = root / "scans", root / "references", root / "predictions"
    for place in (scans, references, folder):
        place.mkdir(parents=True)
    cases = {}
    for seed, name in enumerate([*SCORES, "broken"]):
        grid = oblique()
        scan = scans / f"{name}_0000{ending}"
        write_volume(scan, scan_array(seed=seed), grid)
        states = [FileState.of(scan, f"in/{scan.name}").to_json()]  # as given: -i in/, from another folder
        if name == "broken":
            cases[name] = {"run": "one", "status": "failed", "reason": "case broken: out of memory", "inputs": states}
            continue
        write_volume(folder / f"{name}{ending}", label_array(), grid)
        write_volume(references / f"{name}{ending}", label_array(shift=1), grid)
        warnings = ["spacing differs from the training scans"] if name == "bad" else []
        cases[name] = {"run": "one", "status": "done", "inputs": states, "warnings": warnings}
    runs = {"one": {"input": str(scans)}}
    record = {"format": FORMAT, "format_version": VERSION, "runs": runs, "cases": cases}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / DSEG).write_text(LabelTable.of(LABELS, COLOURS).dseg())
    qualities = {name: Quality("agreement", score, {1: score, 4: score}) for name, score in SCORES.items()}
    write_qualities(folder, qualities, LABELS, warnings={"bad": cases["bad"]["warnings"]})
    return folder


def photograph(path: Path) -> np.ndarray:
    """Write a 2D picture: its pixels."""
    array = scan_array((1, 24, 30)).clip(0, 255)
    Volume(array.astype(np.uint8).astype(np.int32), Geometry((1, 24, 30), (1.0, 1.0, 1.0), dimensions=2)).save(path)
    return array


def ask(running, path="", *, method="GET", host=None, token=None, raw=False):
    """Status, headers and content of an answer; ``raw``: ``path`` is the whole path."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    target = path if raw else f"/{running.url.split('/')[3] if token is None else token}/{path}"
    connection.putrequest(method, target, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{running.port}")
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def ask_json(running, path):
    status, _, content = ask(running, path)
    assert status == 200
    return json.loads(content)


def volume_of(content):
    """Array (z, y, x) in LPS order and affine of a NIfTI file."""
    image = nib.Nifti1Image.from_bytes(content)
    return np.asarray(image.dataobj).transpose(2, 1, 0), image.affine, image.header


def numbers(running):
    return {case.name: number for number, case in enumerate(running.cases)}
