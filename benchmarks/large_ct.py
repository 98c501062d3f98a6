"""``python -m benchmarks.large_ct``: peak memory of the way of a large CT from its file to its label map.

A synthetic 600x512x512 CT, 14 classes, the paper's grid (72x324x396), all that `mre_predict` does with the paper's
recipe (nothing is registered, pooled or mended) but the network, which is a stub: its own memory is bounded by its
tiles, and `python -m benchmarks` shows it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CLASSES = 14
PAPER_GRID = (72, 324, 396)


def write_ct(path: Path, shape: tuple[int, ...]) -> None:
    """Noise in a box of soft tissue, air around it, int16 HU, compressed as scanners' exports are."""
    import numpy as np
    import SimpleITK as sitk

    scan = np.full(shape, -1000, np.int16)
    body = tuple(slice(n // 10, n - n // 10) for n in shape)
    scan[body] = np.random.default_rng(0).integers(-100, 200, scan[body].shape, dtype=np.int16)
    image = sitk.GetImageFromArray(scan)
    image.SetSpacing((0.8, 0.8, 1.0))
    sitk.WriteImage(image, str(path), True)


def peak_gb() -> float:
    """The largest memory this process has had, GB (10^9 bytes)."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def way(scan: Path, out: Path, grid: tuple[int, ...]) -> None:
    """From ``scan`` to a label map in ``out``, the stages and the peak so far printed."""
    import torch

    from mre_lowshot.inference.export import native_labels
    from mre_lowshot.inference.predictor import Predictor
    from mre_lowshot.preprocessing.pipeline import forward
    from mre_lowshot.specs import ChannelNormalization, InferenceSpec, NetworkSpec, PatchSpec, PreprocessingSpec
    from mre_lowshot.volume import read_channels, write_volume

    class Stub(torch.nn.Module):
        def forward(self, image: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
            return image * torch.linspace(-1, 1, CLASSES).view(1, CLASSES, 1, 1, 1)

    begun = time.monotonic()

    def tell(what: str) -> None:
        print(f"  {what:11} peak {peak_gb():.2f} GB, {time.monotonic() - begun:.0f} s", flush=True)

    tell("start")
    image = read_channels([scan])
    geometry = image.geometry
    tell("read")
    spec = PreprocessingSpec("body", (ChannelNormalization("clip"),), grid="size", size=grid)
    array, transform = forward(image.array, geometry.spacing, spec)
    del image
    tell("preprocess")
    predictor = Predictor([Stub()], NetworkSpec(1, CLASSES), PatchSpec(), InferenceSpec(), torch.device("cpu"))
    labels = native_labels(predictor.predict(array), transform, (1,))
    tell("predict")
    write_volume(out, labels, geometry)
    tell("write")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    made = argparse.ArgumentParser("python -m benchmarks.large_ct", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    made.add_argument("--quick", action="store_true", help="a small scan, to see that it runs")
    made.add_argument("--scan", type=Path, help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    shape, grid = ((30, 48, 48), (12, 36, 36)) if options.quick else ((600, 512, 512), PAPER_GRID)
    if options.scan:  # the measured process: making the scan must not count
        way(options.scan, options.scan.with_name("labels.nii.gz"), grid)
        return 0
    import subprocess

    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "ct_0000.nii.gz"
        write_ct(scan, shape)
        print(f"CT of {' x '.join(map(str, shape))} voxels (z, y, x), {CLASSES} classes", flush=True)
        again = [sys.executable, "-m", "benchmarks.large_ct", "--scan", str(scan), *["--quick"] * options.quick]
        return subprocess.run(again, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
