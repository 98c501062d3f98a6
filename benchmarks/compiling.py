"""Our prediction network with torch.compile against the same network uncompiled, on one batch of tiles that keep their
centre."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.setting import Setting
from benchmarks.timing import interleaved, ratio, seconds
from mre_lowshot.inference.compiled import MIN_OCCURRENCES, Compiler
from mre_lowshot.network.build import build
from mre_lowshot.network.optimized.inference import InferenceNetwork


def compiled(setting: Setting) -> dict[str, Any]:
    """Times of both, their ratio, and the seconds spent on compiling; or the reason why torch.compile is not used."""
    size, patch = setting.size, setting.size.patch
    torch.manual_seed(0)
    uncompiled = InferenceNetwork(build(size.network).to(setting.device))
    compiler = Compiler(setting.device, lambda line: setting.log(f"  {line}"))
    fast = compiler.wrap([uncompiled])[0]
    image = torch.randn(size.tile_batch, size.network.in_channels, *patch.size, device=setting.device)
    location = torch.rand(size.tile_batch, size.network.location_channels, *patch.size, device=setting.device)
    margins = [(p - c) // 2 for p, c in zip(patch.size, patch.centre, strict=True)]
    keep = tuple((m, m + c) for m, c in zip(margins, patch.centre, strict=True))
    with torch.inference_mode():
        for _ in range(MIN_OCCURRENCES):
            seconds(lambda: fast(image, location, keep), setting.device)
        if compiler.problem is not None:
            return {"problem": compiler.problem}
        calls = {"ours": lambda: uncompiled(image, location, keep), "compiled": lambda: fast(image, location, keep)}
        times = interleaved(calls, setting.repeats, setting.device)
    gain = ratio(times, "ours", "compiled")
    setting.log(f"  a batch of {size.tile_batch} tiles: ours {times['ours']} s, compiled {times['compiled']} s; "
                f"ours / compiled: {gain}; compiling took {compiler.seconds:.1f} s")  # fmt: skip
    return {name: {"seconds": spread.record()} for name, spread in times.items()} | {
        "ratio": gain.record(),
        "compile_seconds": compiler.seconds,
    }
