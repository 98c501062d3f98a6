"""Whether a CT channel is in HU: from where air, fat and soft tissue lie in its histogram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mre_lowshot.data.vocabulary import is_ct

SAMPLE = 1_000_000  # voxels that the histogram is made of, at most
MIN_RANGE_HU = 20.0  # a narrower range is scaled
PADDING_HU = -1150.0  # below air; constant values there are padding
OTHER_NAME = "or give the channel another name (it is then z-scored)"


@dataclass(frozen=True)
class HuProblem:
    """Why a CT is not in HU, one sentence with the fix. ``certain``: it is refused; otherwise it is a warning."""

    sentence: str
    certain: bool = True

    @property
    def for_prediction(self) -> str:
        """The sentence without the fix that only planning offers."""
        return self.sentence.removesuffix(f", {OTHER_NAME}")


def hu_histogram(channel: np.ndarray) -> dict[str, float]:
    """Shares of a CT channel (D, H, W) by intensity, plain values for the fingerprint.

    ``lowest`` and ``highest`` are shares of all voxels, ``border_highest`` of those at the in-plane border. The others
    are shares of the voxels that are neither clipped (the lowest or the highest value) nor padding (a constant below
    air, or 0); ``narrow``, ``positive_soft`` and ``above_110`` of a part of these.
    """
    step = max(1, int(np.ceil((channel.size / SAMPLE) ** (1 / 3))))
    values = channel[tuple(slice(None, None, step if n > 4 * step else 1) for n in channel.shape)].astype(np.float64)
    border = np.concatenate([values[:, [0, -1]].ravel(), values[:, :, [0, -1]].ravel()])
    values = values.ravel()
    values = values[np.isfinite(values)]
    if not values.size:  # refused as an image, whatever its unit
        return {}
    low, high = float(values.min()), float(values.max())
    inner = values[(values > low) & (values < high)]
    constants, counts = np.unique(inner[inner < PADDING_HU], return_counts=True)
    padding = constants[counts > 0.005 * values.size]
    if padding.size and padding.size <= 3:
        inner = inner[~np.isin(inner, padding)]
    zero, around_zero = np.count_nonzero(inner == 0), np.count_nonzero(np.abs(inner) <= 3)
    if zero > 0.03 * values.size and zero > 0.5 * around_zero and np.abs(inner).max() > MIN_RANGE_HU:
        inner = inner[inner != 0]  # padded with, or masked by, 0
    if not inner.size:
        inner = values

    def share(lower: float, upper: float) -> float:
        return float(((inner >= lower) & (inner < upper)).mean())

    percentile = np.percentile(inner, [0.5, 99.5])
    narrow, wide = share(-15, 15), share(-70, 150)  # without air at -100, as a tenth of its HU
    bright = share(20, np.inf)
    return {
        "min": low,
        "max": high,
        "low": float(percentile[0]),
        "high": float(percentile[1]),
        "lowest": float((values == low).mean()),
        "highest": float((values == high).mean()),
        "border_highest": float((border == high).mean()),
        "below_air": share(-np.inf, PADDING_HU),
        "air": share(-1100, -900),
        "half_air": _peak(inner[(inner > -600) & (inner < -150)]) / inner.size,
        "high_peak": _peak(inner[(inner > 220) & (inner < 3000)], 60) / max(1, int((inner >= 20).sum())),
        "bright": share(110, np.inf),
        "around_minus_1024": share(-1300, -850),
        "lung": share(-850, -600),
        "between": share(-600, -300),
        "soft": share(-200, 200),
        "positive_soft": share(20, 200) / bright if bright else 0.0,
        "above_110": share(110, 256) / bright if bright else 0.0,
        "narrow": narrow / wide if wide else 0.0,
        "dense": share(200, 1200),
        "bone": share(300, 850),
        "hard_bone": share(400, 850),
        "around_1024": share(850, 1200),
        "far_above": share(2000, np.inf),
        "wrapped": share(32767.5, np.inf),
        "tens": float((np.abs(np.remainder(inner, 10)) < 1e-3).mean()),
    }


def _peak(values: np.ndarray, width: float = 30) -> int:
    """The number of values within ``width`` of the most frequent one (in steps of 20)."""
    if not values.size:
        return 0
    counts = np.bincount(((values - values.min()) / 20).astype(int))
    mode = values.min() + 20 * (int(counts.argmax()) + 0.5)
    return int((np.abs(values - mode) <= width).sum())


def hu_rule(channel: str, measured: dict[str, Any] | None) -> HuProblem | None:
    """Why a CT channel with the histogram ``measured`` (`hu_histogram`) is not in HU; None where it is, for a channel
    that is no CT, and for fingerprints without a histogram."""
    if not is_ct(channel) or not measured:
        return None
    found = _reason(measured)
    if found is None:
        return None
    reason, fix, certain = found
    where = f"most values lie between {measured['low']:.4g} and {measured['high']:.4g}"
    verb = "is" if certain else "is perhaps"
    return HuProblem(f"channel {channel!r} {verb} not in HU: {where}, {reason}; {fix}, {OTHER_NAME}", certain)


def _reason(m: dict[str, Any]) -> tuple[str, str, bool] | None:
    """What contradicts HU, its fix, and whether it is certain. The first rule that holds is reported."""
    unscale, offset = "undo its scaling", "subtract the offset that it is stored with (often 1024)"
    low, high = m["low"], m["high"]
    if high - low < MIN_RANGE_HU:
        return "a range that no CT has", unscale, True
    if low < -32768 or (high > 65535 and m["min"] < 0):
        return "beyond 16 bits", unscale, True
    if low > 30000:
        return "around 32768", "subtract the offset that it is stored with (32768)", True
    if m["wrapped"] > 0.001 or (m["max"] > 32767 and m["highest"] > 0.001):
        return "beyond 32767", "negative values were stored as unsigned integers: subtract 65536 from them", True
    if low >= -50 and m["around_1024"] > max(0.05, 0.4 * m["bright"], 2.5 * m["hard_bone"]):
        return "with a peak near 1000", offset, True
    if m["narrow"] > 0.75 and low < 0:
        return f"{m['narrow']:.0%} of the tissue within 15 of 0", unscale, True
    if m["below_air"] > 0.05 and low < -4000:
        return "far below air", unscale, True
    if high < -300 or (m["soft"] < 0.05 and m["below_air"] > 0.05) or _is_lowered(m):
        return "so soft tissue is not near 0", "add the offset that was subtracted (often 1024)", True
    if m["highest"] > 0.2 and m["border_highest"] > 0.5 and m["lowest"] < 0.5 * m["highest"]:
        return "and the air around the body is the brightest", "invert it", True
    if low >= 0 and m["max"] <= 255.5 and (m["max"] >= 253.5 or m["above_110"] > 0.4):
        certain = m["max"] >= 253.5 or m["above_110"] > 0.6 or m["max"] % 5 > 0
        return "the range of an 8-bit image", "export the CT in HU instead of a windowed 8-bit image", certain
    if m["around_1024"] > 0.1 and m["around_1024"] > 3 * m["bone"] and m["around_1024"] > m["soft"] / 4:
        inverted = m["min"] < -300
        return "with a peak near 1000", "invert it" if inverted else offset, True
    peak = m.get("high_peak", 0.0)  # bone and contrast agent have none
    if peak > (0.3 if m["positive_soft"] >= 0.1 else 0.2) and (m["positive_soft"] < 0.3 or low > 40):
        return "so soft tissue is not near 0", f"{unscale}, or {offset}", True
    if m["half_air"] > 0.1 and m["soft"] < 0.5 * m["half_air"]:
        return "so soft tissue is not near 0", f"{unscale}, or add the offset that was subtracted", True
    if m["far_above"] > 0.4:
        return f"{m['far_above']:.0%} above 2000", f"{unscale}, or {offset}", True
    if low >= -60 and high >= 300 and m["positive_soft"] < 0.3:
        return "so soft tissue is not near 0", offset if m["min"] > 200 else unscale, m["positive_soft"] < 0.1
    if (m["below_air"] > 0.1 or m["half_air"] > 0.15) and m["air"] < 0.01:
        return "and air is not near -1000", unscale, True
    if m["below_air"] > 0.003 and m["soft"] < 0.2 and m["dense"] > 0.2 and m["min"] < PADDING_HU and m["air"] < 0.3:
        return "and most tissue lies above 200", unscale, True
    if m["below_air"] > 0.02 and m["dense"] > 0.05 and m["soft"] < 0.25:
        return f"{m['below_air']:.0%} below air", unscale, True
    if m["soft"] < 0.3 and m["dense"] > 0.3 and (low < -700 or m["min"] < PADDING_HU):
        return "and most tissue lies above 200", unscale, m["tens"] > 0.99
    if low > 40 and peak > 0.1:
        return "and neither air nor fat is there", f"{unscale}, or {offset}", False
    if high - low < 60 and low < -5 and m["lowest"] > 0.05:
        return "a range that hardly any CT has", unscale, False
    return None


def _is_lowered(m: dict[str, Any]) -> bool:
    """Whether fat and soft tissue lie near -1024: a mass there that is not the air of a normal CT, which lies beside
    tissue near 0."""
    mass = m["around_minus_1024"]
    constant_below = m["min"] < PADDING_HU and m["lowest"] > 0.05
    return bool(constant_below and mass > 0.5 and m["soft"] < 2 * m["between"] and m["lung"] < 0.25 * mass)
