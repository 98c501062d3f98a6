"""``python -m benchmarks.large_ct``: peak memory of the prediction of a large CT, from its file to its label map.

A synthetic 600x512x512 CT, 14 classes, the paper's grid (72x324x396), and the whole of `Predictor` with the paper's
recipe (which has neither registration nor refinement), except the network. It is replaced by a stub, because its memory
is bounded by its tiles and is shown by `python -m benchmarks`.

With --model a trained model (of one CT channel) segments a 1000x512x512 CT instead: registration, network, refinement.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mre_lowshot.config import Plan

CLASSES = 14
PAPER_GRID = (72, 324, 396)
SPACING = (1.0, 0.8, 0.8)  # mm


def write_ct(path: Path, shape: tuple[int, ...]) -> None:
    """Write noise in a box of soft tissue with air around it, int16 HU, compressed as in clinical exports."""
    import numpy as np

    from mre_lowshot.data.geometry import Geometry
    from mre_lowshot.data.readers import write_array

    scan = np.full(shape, -1000, np.int16)
    body = tuple(slice(n // 10, n - n // 10) for n in shape)
    scan[body] = np.random.default_rng(0).integers(-100, 200, scan[body].shape, dtype=np.int16)
    write_array(path, scan, Geometry(shape, SPACING))


def peak_gb() -> float:
    """The peak memory of this process so far, GB (10^9 bytes)."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def ct_plan(grid: tuple[int, ...]) -> Plan:
    """The paper's recipe for one CT channel on a given grid; the largest component is kept of one class."""
    from dataclasses import replace

    from mre_lowshot.config import (
        ChannelNormalization,
        FoldDecisions,
        NetworkConfig,
        PatchConfig,
        Plan,
        PreprocessingConfig,
        RefinementConfig,
    )
    from mre_lowshot.config.presets import PAPER

    return Plan(
        dataset_name="Dataset999_LargeCT",
        plans_name="MREPlans",
        channel_names=("CT",),
        labels={f"class_{k}" if k else "background": k for k in range(CLASSES)},
        file_ending=".nii.gz",
        preprocessing=PreprocessingConfig("body", (ChannelNormalization("clip"),), grid="size", size=grid),
        patch=PatchConfig(),
        network=NetworkConfig(1, CLASSES),
        recipe=replace(PAPER, refinement=RefinementConfig(largest_component=True)),
        reasons={},
        training_ranges={
            "spacing": [SPACING, SPACING],
            "extent_mm": [(0.0,) * 3, (1e3,) * 3],
            "channels": [{"median": [-1000.0, 1000.0]}],
        },
        fold=FoldDecisions("1shot", 0, ("one",), (), (0,), voxel_shares={}, reasons={}, single_component=(1,)),
    )


def segment(scan: Path, out: Path, grid: tuple[int, ...], model: Path | None = None) -> None:
    """Predict ``scan``, write the label map to ``out``, and print each stage with the peak memory so far. ``model`` is
    a trained one, instead of the stub on ``grid``."""
    import torch

    from mre_lowshot.data.volume import Volume
    from mre_lowshot.inference.models import Model
    from mre_lowshot.inference.predictor import Predictor

    class Stub(torch.nn.Module):
        def forward(self, image: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
            return image * torch.linspace(-1, 1, CLASSES).view(1, CLASSES, 1, 1, 1)

    begun = time.monotonic()

    def report(stage: str) -> None:
        print(f"  {stage:11} peak {peak_gb():.2f} GB, {time.monotonic() - begun:.0f} s", flush=True)

    if model:
        predictor = Predictor.load(model, device="cpu")
    else:
        predictor = Predictor(Model.of_fold(ct_plan(grid), Stub(), ()), device=torch.device("cpu"))
    report("start")
    volume = Volume.read(scan)
    report("read")
    prepared = predictor.preprocess(volume, name="ct")
    del volume
    report("preprocess")
    registered = predictor.register(prepared)
    report("register")
    output = predictor.run_network(registered)
    report("network")
    refined = predictor.refine(output)
    del registered, output
    report("refine")
    prediction = predictor.export(refined)
    report("export")
    prediction.save(out)
    report("write")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser("python -m benchmarks.large_ct", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a small scan, to check that it runs")
    parser.add_argument("--model", type=Path, metavar="PATH", help="a trained model's folder, instead of a stub")
    parser.add_argument("--scan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    shape, grid = ((30, 48, 48), (12, 36, 36)) if options.quick else ((600, 512, 512), PAPER_GRID)
    if options.model and not options.quick:
        shape = (1000, 512, 512)
    if options.scan:  # the measured process, which must not contain the memory used for making the scan
        segment(options.scan, options.scan.with_name("labels.nii.gz"), grid, options.model)
        return 0
    import subprocess

    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "ct_0000.nii.gz"
        write_ct(scan, shape)
        print(f"CT of {' x '.join(map(str, shape))} voxels (z, y, x), {CLASSES} classes", flush=True)
        again = [sys.executable, "-m", "benchmarks.large_ct", "--scan", str(scan), *["--quick"] * options.quick]
        again += ["--model", str(options.model.resolve())] if options.model else []
        return subprocess.run(again, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
