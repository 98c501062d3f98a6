"""Our prediction network through torch.compile against itself as it is, on a batch of tiles that keep their centre."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.setting import Setting
from benchmarks.timing import interleaved, ratio, seconds
from mre_lowshot.inference.compiled import ARRIVALS, Compiler
from mre_lowshot.inference.fast import FastNetwork
from mre_lowshot.network.build import build


def compiled(setting: Setting) -> dict[str, Any]:
    """Times of both, their ratio, and the seconds that compiling took; or why it is not used."""
    size, patch = setting.size, setting.size.patch
    torch.manual_seed(0)
    plain = FastNetwork(build(size.network).to(setting.device))
    compiler = Compiler(setting.device, lambda line: setting.say(f"  {line}"))
    fast = compiler.wrap([plain])[0]
    image = torch.randn(size.tile_batch, size.network.in_channels, *patch.size, device=setting.device)
    where = torch.rand(size.tile_batch, size.network.location_channels, *patch.size, device=setting.device)
    margins = [(p - c) // 2 for p, c in zip(patch.size, patch.centre, strict=True)]
    keep = [(m, m + c) for m, c in zip(margins, patch.centre, strict=True)]
    with torch.inference_mode():
        for _ in range(ARRIVALS):
            seconds(lambda: fast(image, where, keep), setting.device)
        if compiler.problem is not None:
            return {"problem": compiler.problem}
        calls = {"ours": lambda: plain(image, where, keep), "compiled": lambda: fast(image, where, keep)}
        times = interleaved(calls, setting.repeats, setting.device)
    gain = ratio(times, "ours", "compiled")
    setting.say(f"  a batch of {size.tile_batch} tiles: ours {times['ours']} s, compiled {times['compiled']} s; "
                f"ours / compiled: {gain}; compiling took {compiler.seconds:.1f} s")  # fmt: skip
    return {name: {"seconds": spread.record()} for name, spread in times.items()} | {
        "ratio": gain.record(),
        "compile_seconds": compiler.seconds,
    }
