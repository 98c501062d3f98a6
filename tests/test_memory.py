"""Memory: estimates are compared with measured peaks, and what does not fit is refused by name before it starts."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mre_lowshot.config import ChannelNormalization, PreprocessingConfig
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.errors import UserError
from mre_lowshot.grid import full_box
from mre_lowshot.inference.export import Prediction, RefinedScan
from mre_lowshot.inference.memory import prediction_bytes
from mre_lowshot.inference.probabilities import write_probabilities
from mre_lowshot.inference.quality import Quality
from mre_lowshot.preprocessing.grid_limits import forward_bytes
from mre_lowshot.preprocessing.pipeline import GridTransform, forward

ROOT = Path(__file__).resolve().parents[1]
PEAK = """
import os, threading, time
import numpy as np, torch
torch.set_num_threads(1)
def resident():
    return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
def peak(action):
    action()  # libraries are loaded and caches filled
    begun, found, done = resident(), [0], threading.Event()
    def watch():
        while not done.is_set():
            found[0] = max(found[0], resident() - begun)
            time.sleep(0.001)
    watcher = threading.Thread(target=watch); watcher.start(); action(); done.set(); watcher.join()
    return found[0]
"""
pytestmark = pytest.mark.usefixtures("one_thread_only")
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def measured(script):
    done = subprocess.run([sys.executable, "-c", PEAK + script], cwd=ROOT, capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_TRIM_THRESHOLD_": "0"})  # fmt: skip
    return float(done.stdout)


@needs_linux
@pytest.mark.slow
def test_preprocessing_needs_less_than_estimated_and_not_much_less():
    shape, size = (100, 200, 200), (80, 170, 170)
    found = measured(f"""
from mre_lowshot.preprocessing.pipeline import forward
from mre_lowshot.config import PreprocessingConfig, ChannelNormalization
config = PreprocessingConfig("none", (ChannelNormalization(),), grid="size", size={size})
image = np.random.default_rng(0).normal(size=(1, *{shape})).astype(np.float32)
print(peak(lambda: forward(image, (1.0, 1.0, 1.0), config)))
""")
    config = PreprocessingConfig("none", (ChannelNormalization(),), grid="size", size=size)
    estimate = forward_bytes(full_box(shape), size, config)
    assert estimate / 4 < found < 1.1 * estimate, (found, estimate)


@needs_linux
@pytest.mark.slow
def test_prediction_needs_less_than_estimated_and_not_much_less():
    found = measured("""
from benchmarks.large_ct import ct_plan, CLASSES
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import Volume
from mre_lowshot.inference.models import Model
from mre_lowshot.inference.predictor import Predictor
class Stub(torch.nn.Module):
    def forward(self, image, coordinates):
        return image * torch.linspace(-1, 1, CLASSES).view(1, CLASSES, 1, 1, 1)
predictor = Predictor(Model.of_fold(ct_plan((48, 108, 108)), Stub(), ()), device=torch.device("cpu"))
scan = np.random.default_rng(0).integers(-100, 200, (1, 100, 240, 240)).astype(np.int16)
prepared = predictor.preprocess(Volume(scan, Geometry(scan.shape[1:], (1.0, 1.0, 1.0))), name="x")
print(peak(lambda: predictor.predict_prepared(predictor.register(prepared))))
""")
    transform = GridTransform((100, 240, 240), (1.0,) * 3, full_box((100, 240, 240)), (48, 108, 108))
    estimate = prediction_bytes(transform, channels=1, classes=14)
    assert estimate / 5 < found < 1.1 * estimate, (found, estimate)


def refined(shape, box, size, classes, score):
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(classes, 0.3), size).transpose(3, 0, 1, 2).astype(np.float32)
    return RefinedScan(
        name="x",
        probabilities=np.ascontiguousarray(probabilities),
        quality=Quality("agreement", score, {1: score}),
        transform=GridTransform(shape, (1.0, 1.0, 1.0), box, size),
        geometry=Geometry(shape, (1.0, 1.0, 1.0)),
        scales_temperature=True,
    )


@pytest.mark.parametrize(("score", "scaled"), [(0.1, True), (1.0, False)])
def test_probabilities_written_class_by_class_are_those_computed_at_once(tmp_path, score, scaled):
    scan = refined((9, 12, 10), ((1, 8), (0, 11), (2, 9)), (5, 8, 7), 4, score)
    assert (scan.temperature != 1) == scaled
    write_probabilities(tmp_path / "x.npz", scan.probabilities, transform=scan.transform, temperature=scan.temperature)
    whole = Prediction("x", None, scan.quality, {}, refined=scan).probabilities
    with np.load(tmp_path / "x.npz") as content:
        assert content.files == ["probabilities"]
        saved = content["probabilities"]
    assert saved.dtype == np.float32
    np.testing.assert_array_equal(saved, whole)


@needs_linux
@pytest.mark.slow
def test_writing_probabilities_needs_a_few_maps_however_many_classes(tmp_path):
    found = measured(f"""
from tests.test_memory import refined
from mre_lowshot.inference.probabilities import write_probabilities
from pathlib import Path
scan = refined((64, 160, 160), ((0, 64), (0, 160), (0, 160)), (16, 40, 40), 24, 0.1)
assert scan.temperature > 1
path, temperature = Path({str(tmp_path / "x.npz")!r}), scan.temperature
print(peak(lambda: write_probabilities(path, scan.probabilities, transform=scan.transform, temperature=temperature)))
""")
    one_map = 4 * 64 * 160 * 160
    assert found < 6 * one_map  # all 24 classes at once take 24


PLAN = PreprocessingConfig("none", (ChannelNormalization(),), spacing=(1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        (replace(PLAN, spacing=(1e-6, 1.0, 1.0)), "(8000000, 8, 8)"),
        (replace(PLAN, grid="size", size=(65535, 65535, 65535)), "(65535, 65535, 65535)"),
    ],
)
def test_a_grid_of_terabytes_is_refused_before_it_is_allocated(monkeypatch, config, grid):
    monkeypatch.setenv("MRE_MEMORY_GB", "1")
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    with pytest.raises(UserError, match=r"needs .* of memory") as problem:
        forward(image, (1.0, 1.0, 1.0), config)
    assert grid in str(problem.value)


def test_a_scan_that_does_not_fit_is_refused_by_name_and_the_others_are_segmented(
    trained, tmp_path, monkeypatch, capsys
):
    scans, out = tmp_path / "in", tmp_path / "out"
    from mre_lowshot.data.readers import write_array

    generator = np.random.default_rng(0)
    for name, shape in (("large", (64, 150, 150)), ("small", (20, 36, 44))):
        values = generator.integers(-900, 300, shape).astype(np.int16)
        write_array(scans / f"{name}_0000.nii.gz", values, Geometry(shape, (8.0, 8.0, 8.0)))
    monkeypatch.setenv("MRE_MEMORY_GB", "0.03")
    assert trained.predict(scans, out) == 1
    text = capsys.readouterr().err
    assert "case large: " in text
    assert "of memory, 30 MB are available" in text
    assert "MRE_MEMORY_GB" in text
    assert [path.name for path in out.glob("*.nii.gz")] == ["small.nii.gz"]
