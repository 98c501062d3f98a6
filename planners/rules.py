"""One pure function a decision: numbers in, the decision and its reason out. Nothing here reads a file or a label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mre_lowshot.preprocessing.resampling import spacing_with
from mre_lowshot.specs import ChannelNormalization, InferenceSpec, PatchSpec

CT_NAMES = ("ct",)
MRI_WORDS = ("mri", "mr", "flair", "adc", "dwi", "pd", "pdw", "ir", "swi", "bold", "cine", "mprage", "dixon", "gre",
             "tof", "stir", "bravo", "spgr")  # fmt: skip
MRI_BEGINNINGS = ("t1", "t2")  # t1w, T1-IR, T1DUAL, T2SPIR, T2*
OTHER_NAMES = ("us", "ultrasound", "pet", "r", "g", "b", "red", "green", "blue", "nonct", "zscore", "gray", "grey")

PAPER_BUDGET = 12 * 36 * 36  # voxels of the paper's patch
PAPER_GRID = 72 * 324 * 396  # of its CT; 14 classes' probabilities on it are .5 GB, and prediction keeps a few such
COARSE = 2.0  # an axis more than this many times coarser than the finest is not pooled twice
CropRule = Literal["none", "nonzero", "body", "centre", "given"]
Alignment = Literal["none", "affine", "deformable"]


def normalization_rule(channel: str, stripped: bool) -> tuple[ChannelNormalization, str]:
    """By channel name, as nnU-Net does: CT is clipped in HU and scaled, everything else z-scored. ``stripped`` says
    that the background is constant, so the statistics are those of the inside."""
    name = channel.strip().lower()
    if name in CT_NAMES:
        return ChannelNormalization("clip"), f"channel {channel!r} is CT: clip HU to [-210, 290], scale to [0, 1]"
    where = "inside the non-constant region" if stripped else "over the whole crop"
    reason = f"channel {channel!r}: z-score {where}"
    if name not in OTHER_NAMES and not is_mri(channel):
        reason = f"NOTE channel name {channel!r} is unknown (CT, MRI, T1, FLAIR, US ... are known): taken as z-score, "
        reason += f"{where}; if it is CT or MRI, write so in dataset.json"
    return ChannelNormalization("zscore", inside_only=stripped), reason


def is_mri(channel: str) -> bool:
    """Whether a word of the channel's name tells a sequence of MRI, and none another modality."""
    words = re.findall(r"[a-z0-9]+", channel.lower())
    if any(word in CT_NAMES + OTHER_NAMES for word in words):
        return False
    return any(word in MRI_WORDS or word.startswith(MRI_BEGINNINGS) for word in words)


# With nothing below 0 (no air, no fat), so bright a scan is stored with an offset; so narrow a range is no CT's.
SHIFTED_HU, FLAT_HU = 800.0, 20.0


def hu_rule(channel: str, low: float, high: float) -> str | None:
    """What speaks against a CT channel being in HU, by the scan's 0.5th and 99.5th percentiles: nothing below water
    and much above bone (stored with an offset, as +1024), or hardly any range (scaled to 0 to 1). Clipping to the
    window would leave little of either. None for other channels, and where nothing does."""
    if channel.strip().lower() not in CT_NAMES:
        return None
    if (low < 0 or high < SHIFTED_HU) and high - low >= FLAT_HU:
        return None
    mend = "subtract the offset that it is stored with (often 1024)" if high >= SHIFTED_HU else "undo its scaling"
    return (
        f"channel {channel!r} is not in HU: most values lie between {low:.4g} and {high:.4g}; {mend}, "
        "or name the channel otherwise (it is z-scored then)"
    )


MEASURED = ("adc",)  # an MRI's maps of a quantity: what looks like shading there is not
SHADED_MM = 100.0  # a smaller image is a cut-out, in which anatomy is as smooth as shading
UNDERSHOOT = 0.05  # of the brightest: so far below 0 an MRI comes by interpolation; z-scored images go further


def bias_field_rule(channels: Sequence[str], stripped: bool, extents_mm: np.ndarray, lowest: float) -> tuple[bool, str]:
    """Whether scans, (n, 3) ``extents_mm``, have their bias field divided out: MRI of a body or a head. ``lowest``:
    the least of their 0.5th percentiles, in shares of the 99.5th. Skull-stripped scans have been through that already
    (docs/LOG.md, 2026-11-26)."""
    if not all(is_mri(name) and not any(word in name.lower() for word in MEASURED) for name in channels):
        return False, f"left as it is: {', '.join(channels)} is not MRI alone"
    if stripped:
        return False, "left as it is: a constant background tells scans that were prepared already"
    sides = np.sort(np.median(extents_mm, axis=0))[::-1]
    if sides[1] < SHADED_MM:
        return False, f"left as it is: images of {_mm(sides)} mm are cut-outs, where anatomy cannot be told from it"
    if lowest < -UNDERSHOOT:
        told = f"down to {lowest:.0%} of the brightest"
        return False, f"left as it is: intensities {told} are not an MRI's own, but changed already"
    return True, "an MRI of a body or head: divided out (N4), then z-score over the patient, not over the air around"


def crop_rule(is_ct: bool, stripped: bool, body_ratio: float, is_flat: bool) -> tuple[CropRule, str]:
    """Which box to cut to. ``body_ratio`` is the median share of the image that the body box fills."""
    if is_flat:
        return "none", "2D images are used whole"
    if is_ct:
        return "body", "CT: box of the patient, found from the image alone (Otsu, largest object; no fixed air level)"
    if stripped:
        return "nonzero", "constant background in every scan: box of the non-zero voxels, a small margin around it"
    if body_ratio < 0.8:
        return "body", f"the object fills {body_ratio:.0%} of the image (median): box of the object"
    return "none", f"the object fills {body_ratio:.0%} of the image (median): nothing to cut off"


def spacing_rule(
    spacings: np.ndarray, extents_mm: np.ndarray, voxel_limit: int | None
) -> tuple[tuple[float, ...], str]:
    """Target spacing: the per-axis median, made coarser (finest axes first) until the median scan, of ``extents_mm``
    after cropping, has at most ``voxel_limit`` voxels."""
    target = np.median(spacings, axis=0)
    extent = np.median(extents_mm, axis=0)
    reason = f"median spacing of the scans, {_mm(target)} mm"
    if voxel_limit and np.prod(extent / target) > voxel_limit:
        target = spacing_with(voxel_limit, target, extent)
        reason += f", made coarser to {_mm(target)} mm so that the median scan has at most {voxel_limit:,} voxels"
    return tuple(float(f"{v:.5g}") for v in target), reason


MOST_SHRUNK = 4.0  # a 2D image is made at most this many times coarser: small objects must remain visible


def flat_spacing_rule(
    spacings: np.ndarray, shapes: np.ndarray, pixel_limit: int
) -> tuple[tuple[float, ...] | None, str]:
    """Target spacing (z, y, x) of 2D images: the median one, made coarser alike in both directions until the median
    image of ``shapes`` has at most ``pixel_limit`` pixels, so that one patch sees a whole image. None: their own
    grid, where all have one spacing already and are small enough."""
    target, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    pixels = float(np.prod(np.median(spacings * shapes, axis=0)[1:] / target[1:]))
    factor = min(MOST_SHRUNK, max(1.0, (pixels / pixel_limit) ** 0.5))
    if factor == 1 and np.allclose(spacings, spacings[0], rtol=1e-3):
        return None, "2D images of one pixel spacing, small enough for a patch: their own grid"
    target[1:] *= factor
    reason = f"2D images of {shape[1]:.0f} x {shape[2]:.0f} pixels (median)"
    if factor > 1:
        reason += f" made {factor:.3g} times coarser, towards {pixel_limit:,} pixels, so that a patch sees a whole one"
    return tuple(float(f"{v:.5g}") for v in target), reason + f": pixel spacing {_mm(target[1:])}"


def _mm(values: np.ndarray) -> str:
    return " x ".join(f"{v:.3g}" for v in values)


def strides_rule(spacing: tuple[float, ...]) -> tuple[tuple[int, ...], ...]:
    """First pooling by 2 on every axis, the second only on axes within a factor 2 of the finest."""
    finest = min(spacing)
    return (2,) * len(spacing), tuple(1 if s > COARSE * finest else 2 for s in spacing)


def patch_rule(
    spacing: tuple[float, ...], median_size: tuple[int, ...], budget: int, divisor: tuple[int, ...]
) -> tuple[PatchSpec, str]:
    """Sides in proportion to 1/spacing with ``budget`` voxels, at most the median scan, divisible by ``divisor``;
    the kept centre leaves 1/9 of the side (1/6 on a coarse axis) as margin. The paper's 12 x 36 x 36 with its centre
    8 x 28 x 28 follows from its spacing (3, 0.958, 0.958 mm) and budget."""
    ideal = 1 / np.asarray(spacing)
    limit = np.maximum(np.asarray(median_size) // divisor * divisor, divisor).astype(float)
    free = np.ones(len(spacing), dtype=bool)
    sides = limit.copy()
    while free.any():  # an axis that hits the scan's size is fixed there, and the others share what is left
        rest = budget / np.prod(sides[~free]) if (~free).any() else budget
        sides[free] = ideal[free] * (rest / np.prod(ideal[free])) ** (1 / free.sum())
        over = free & (sides > limit)
        if not over.any():
            break
        sides[over] = limit[over]
        free &= ~over
    size = tuple(int(max(d, round(s / d) * d)) for s, d in zip(sides, divisor, strict=True))
    size = tuple(int(min(s, m)) for s, m in zip(size, limit, strict=True))
    finest = min(spacing)
    share = [6 if s > COARSE * finest else 9 for s in spacing]
    margin = [round(n / part) for n, part in zip(size, share, strict=True)]
    centre = tuple(max(1, n - 2 * m) for n, m in zip(size, margin, strict=True))
    reason = f"about {budget:,} voxels, sides in proportion to 1/spacing, at most the median scan {tuple(median_size)}"
    return PatchSpec(size, centre), reason + f", divisible by {divisor}; margin 1/9 of a side (1/6 on a coarse axis)"


def dilation_rule(patch: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], str]:
    """ASPP dilations reaching the same shares of the patch as the paper's 6, 12, 18 of 36: 1/6, 1/3 and 1/2."""
    rows = tuple(tuple(max(1, round(n * share)) for n in patch) for share in (1 / 6, 1 / 3, 1 / 2))
    return rows, "1/6, 1/3 and 1/2 of the patch side, as the paper's 6, 12, 18 are of 36"


def paper_dilations(patch: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], str]:
    """The paper's 6, 12, 18 on every axis, however thick the slices."""
    return tuple((d,) * len(patch) for d in (6, 12, 18)), "6, 12 and 18 on every axis, as the paper's"


# What `--set network.dilations=NAME` takes beside numbers.
DILATION_RULES = {"patch": dilation_rule, "paper": paper_dilations}


_SIDES = {"left": "right", "l": "r", "lh": "rh", "lt": "rt"}
_OPPOSITE = {**_SIDES, **{right: left for left, right in _SIDES.items()}}
_SIDE = re.compile(rf"(?<![a-z])({'|'.join(_OPPOSITE)})(?![a-z])")


def spelled(name: str) -> str:
    """A label's name in lower case, words that a capital begins parted: ``left_kidney`` for ``LeftKidney``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def other_side(name: str) -> str | None:
    """The name of the same structure on the other side, `spelled`: ``left_kidney`` for ``Right_Kidney``. None where
    the name tells no side (left and right, l and r, lh and rh, lt and rt)."""
    swapped, found = _SIDE.subn(lambda side: _OPPOSITE[side[0]], spelled(name))
    return swapped if found else None


def mirror_rule(channels: Sequence[str], labels: Sequence[str]) -> tuple[bool, str]:
    """Whether left and right may be swapped in training: in MRI only (paper, IV-C), and where no label is a side's."""
    sided = [name for name in labels if other_side(name)]
    if sided:
        return False, f"not mirrored: {', '.join(sided[:4])} would change sides"
    if not all(is_mri(name) for name in channels):
        return False, f"not mirrored: {', '.join(channels)} is no MRI, and the paper mirrors brain MRI only"
    return True, "left and right are swapped in half of the patches"


# Words in label names that tell a lesion: where it lies in one scan says nothing about the next.
LESIONS = (
    "tumor", "tumour", "lesion", "edema", "oedema", "necro", "cyst", "metasta", "cancer", "carcinoma", "infarct",
    "stroke", "ischem", "ischaem", "hemorrhage", "haemorrhage", "hematoma", "haematoma", "bleed", "plaque", "nodule",
    "polyp", "abscess", "aneurysm", "effusion", "calcification", "hyperintens", "wmh", "benign", "malignant",
)  # fmt: skip


def lesions_of(labels: Sequence[str]) -> list[str]:
    """The labels whose names tell a lesion."""
    return [name for name in labels if any(word in name.lower() for word in LESIONS)]


def only_lesions(labels: Sequence[str]) -> bool:
    """Whether every foreground label's name tells a lesion."""
    foreground = [name for name in labels if name != "background"]
    return bool(foreground) and lesions_of(foreground) == foreground


def plain_rule(labels: Sequence[str]) -> tuple[bool, str]:
    """Whether the plain U-Net takes MRE-Net's place: where all that it looks for are lesions. Coordinates and a wide
    context then teach where the labelled scan has its lesion and what is around it, which the next scan has not."""
    if only_lesions(labels):
        return True, "every label names a lesion: the plain U-Net, told neither place nor wide surroundings; no OHEM"
    return False, "MRE-Net"


def flat_mirror_rule(labels: Sequence[str]) -> tuple[tuple[int, ...], str]:
    """Axes (y, x) along which 2D training images are mirrored: x where all foreground labels are lesions, which have
    no side; top and bottom never (in ultrasound depth runs along y)."""
    if only_lesions(labels) and not any(other_side(name) for name in labels):
        named = ", ".join(lesions_of(labels))
        return (1,), f"2D images of lesions ({named}), which have no side: mirrored left and right"
    return (
        (),
        "not every label is a lesion without a side: one may be a left or a right structure, so nothing is mirrored",
    )


PASSES = 50  # how often training should have seen a scan's voxels, as far as `length_rule` lets it
MOST_LONGER = 2.0


def length_rule(wanted: int, voxels: float, batch_voxels: int) -> tuple[int, str]:
    """Iterations: the ``wanted`` ones, more where batches of ``batch_voxels`` would not have covered a median scan of
    ``voxels`` `PASSES` times by then, at most `MOST_LONGER` times as many."""
    needed = PASSES * voxels / batch_voxels
    iterations = int(np.ceil(min(max(wanted, needed), MOST_LONGER * wanted)))
    reason = f"{iterations} iterations see a median scan's {voxels:,.0f} voxels "
    reason += f"{iterations * batch_voxels / voxels:.0f} times over"
    if iterations > wanted:
        reason += f" ({wanted} would do so {wanted * batch_voxels / voxels:.0f} times)"
    return iterations, reason


FEWEST_SLICES = 8  # registration smooths and thins by up to 4 along each axis


def alignment_rule(wanted: Alignment, labels: Sequence[str], median_size: tuple[int, ...]) -> tuple[Alignment, str]:
    """Whether scans are registered to the labelled one: what the recipe wants, but not for 2D images or a few slices,
    and not for lesions (told by the labels' names), which have no place of their own."""
    if wanted == "none":
        return "none", "the recipe aligns nothing: coordinates run over each scan's own volume"
    if len(median_size) < 3 or min(median_size) < FEWEST_SLICES:
        return "none", f"images of {' x '.join(map(str, median_size))} voxels are not aligned: too few slices"
    lesions = lesions_of(labels)
    if lesions:
        return "none", f"labels {', '.join(lesions)} name lesions, which have no place of their own: nothing to align"
    return wanted, f"{wanted} registration to the training scans, whose labels are told to the network as a prior"


DOUBLED = 2  # times the recipe's intensity weight, where little else tells, or the image tells much


def mending_rule(wanted: InferenceSpec, labels: Sequence[str], flat: bool, is_ct: bool) -> tuple[InferenceSpec, str]:
    """How far a scan's own intensities and edges mend its prediction: as the recipe wants, by intensities twice as much
    in a CT, where voxels differ by tissue alone (an MRI's and an ultrasound's by shading too), and for lesions in
    volumes, whose place tells nothing."""
    if not (wanted.intensity_weight or wanted.neighbour_weight):
        return wanted, "the recipe leaves predictions as they are"
    why = ", a CT" if is_ct else ", lesions" if lesions_of(labels) and not flat else ""
    mended = replace(wanted, intensity_weight=wanted.intensity_weight * (DOUBLED if why else 1))
    reason = f"by each class's intensities in the scan itself (weight {mended.intensity_weight:g}{why})"
    return mended, f"{reason}, and like neighbours agree ({mended.neighbour_weight:g})"


@dataclass(frozen=True)
class Device:
    """The device planned for: ``kind`` cuda, mps or cpu; ``memory_gb`` of it."""

    kind: str
    memory_gb: float


@dataclass(frozen=True)
class NetworkSize:
    """Widths of one size of the network and the number of patches a batch."""

    name: str
    widths: tuple[int, ...]
    aspp_channels: int
    embedding: int
    mixer_width: int
    batch_size: int
    budget: int  # voxels a patch
    voxel_limit: int  # voxels of a median preprocessed scan
    pixel_limit: int  # pixels of a median preprocessed 2D image, and of a 2D patch


# A patch of a finer grid shows less of the surroundings. Where scans can be registered the network is told its place
# all the same, and small organs need the voxels (docs/LOG.md, 2026-11-25).
FINER = 3

PAPER_SIZE = NetworkSize("paper", (64, 128, 256), 256, 2048, 512, 24, PAPER_BUDGET, PAPER_GRID, 128 * 128)
SMALL_SIZE = NetworkSize("small", (16, 32, 64), 32, 64, 64, 4, PAPER_BUDGET, 500_000, 96 * 96)
# The paper's network took 4 x 10.2 GB for 24 patches (its Table III): 1.7 GB a patch, N_e = 2048.
PAPER_GB_A_PATCH = 1.7
TOLD_GB = 0.5  # for a class map of a scan: several such are no matter on a machine of 8 GB
POOLED_NORM_BATCH = 16  # smaller batches leave the image-level branch's norm, one vector a patch, too few to average


def paper_batch(device: Device, wanted: int = PAPER_SIZE.batch_size) -> int:
    """The paper's 24 patches (64 for its U-Net), or as many as a GPU holds; a CPU may swap."""
    if device.kind != "cuda":
        return wanted
    return int(min(wanted, max(2, device.memory_gb * 0.9 // PAPER_GB_A_PATCH)))


def voxel_limit_rule(device: Device, placed: bool) -> int:
    """The most voxels of a median preprocessed scan; for the small network `FINER` times as many where structures have
    a place that registration finds (``placed``)."""
    size = size_rule(device)[0]
    return size.voxel_limit * (FINER if placed and size.name == SMALL_SIZE.name else 1)


def memory_rule(classes: int, median_size: tuple[int, ...]) -> str | None:
    """What to say of the memory that prediction needs on a median scan's grid; None where it is little."""
    gigabytes = 4 * classes * float(np.prod(median_size)) / 1e9
    if gigabytes < TOLD_GB:
        return None
    return (
        f"prediction keeps several arrays of {gigabytes:.1f} GB ({classes} classes on a median scan's grid) in the "
        "machine's memory; a coarser one (-p NAME --set preprocessing.spacing=[z,y,x]) needs less"
    )


def size_rule(device: Device) -> tuple[NetworkSize, str]:
    """The paper's network where a GPU of 12 GB or more is there, with the batch that fits; a small one elsewhere."""
    if device.kind == "cuda" and device.memory_gb >= 11.5:  # a "12 GB" card reports a little less
        batch = paper_batch(device)
        size = NetworkSize(**{**PAPER_SIZE.__dict__, "batch_size": batch})
        return size, f"GPU with {device.memory_gb:.0f} GB: the paper's network, {batch} patches of about 1.7 GB each"
    return (
        SMALL_SIZE,
        f"{device.kind} with {device.memory_gb:.0f} GB: the small network, so that training takes minutes",
    )
