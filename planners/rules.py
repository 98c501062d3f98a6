"""One pure function per decision: numbers and names in, the decision and its reason out. No file or label is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from mre_lowshot.config import ChannelNormalization, InferenceConfig, PatchConfig, RefinementConfig
from mre_lowshot.config.network import MAX_DILATION
from mre_lowshot.config.plan import CropRule
from mre_lowshot.config.recipe import Registration
from mre_lowshot.data.paper_datasets import groups_of
from mre_lowshot.data.vocabulary import (
    QUANTITATIVE_WORDS,
    contralateral,
    is_corrected,
    is_ct,
    is_known_channel,
    is_mri,
    lesions_among_organs,
    lesions_of,
    only_lesions,
)
from mre_lowshot.grid import coarsen_spacing

COARSE = 2.0  # an axis more than this many times coarser than the finest is not pooled twice


def normalization_rule(channel: str, stripped: bool) -> tuple[ChannelNormalization, str]:
    """By channel name, as in nnU-Net: CT is clipped in HU and scaled, everything else z-scored; over the foreground
    only where the background is constant (``stripped``)."""
    if is_ct(channel):
        return ChannelNormalization("clip"), f"channel {channel!r} is CT: clip HU to [-210, 290], scale to [0, 1]"
    where = "over the foreground (constant background)" if stripped else "over the whole crop"
    reason = f"channel {channel!r}: z-score {where}"
    if not is_known_channel(channel):
        reason = f"NOTE channel name {channel!r} is unknown (CT, MRI, T1, FLAIR, US ... are known): z-score {where}; "
        reason += "if it is CT or MRI, name it so in dataset.json"
    return ChannelNormalization("zscore", foreground_only=stripped), reason


BIAS_FIELD_MM = 100.0  # in a smaller image anatomy varies as smoothly as a bias field
MAX_UNDERSHOOT = 0.05  # share of the maximum that interpolation leaves below 0; z-scored images reach further


def corrected_rule(channels: Sequence[str], labels: Sequence[str], stated: bool | None) -> str:
    """Why the scans' bias field counts as corrected already; empty where nothing states it. ``stated``:
    ``bias_field_corrected`` of dataset.json, which overrides the names of channels and labels."""
    if stated is not None:
        return "dataset.json has bias_field_corrected: true" if stated else ""
    if named := [name for name in channels if is_corrected(name)]:
        return f"the name of channel {', '.join(named)} states it"
    known = groups_of(labels)
    if known is not None and known.bias_field_corrected:
        return f"labels are those of {known.dataset}, whose scans were corrected with N4 (paper, IV-A)"
    return ""


def bias_field_rule(
    channels: Sequence[str], stripped: bool, extents_mm: np.ndarray, lowest: float, *, corrected: str = ""
) -> tuple[bool, str]:
    """Whether the bias field is corrected: for MRI of a body or a head.

    Args:
        channels: channel names.
        stripped: the background is constant. Such scans have been corrected already (docs/LOG.md, 2026-11-26).
        extents_mm: (n, 3), of the scans.
        lowest: the least of their 0.5th percentiles, as a share of the 99.5th.
        corrected: why they were corrected already (`corrected_rule`); empty: they were not, as far as is known.
    """
    if not all(is_mri(name) and not any(word in name.lower() for word in QUANTITATIVE_WORDS) for name in channels):
        return False, f"not corrected: not all channels are MRI with bias field ({', '.join(channels)})"
    if corrected:
        return False, f"not corrected again: {corrected}; --n4 on corrects"
    if stripped:
        return False, "not corrected: the background is constant, so the scans were preprocessed before"
    sides = np.sort(np.median(extents_mm, axis=0))[::-1]
    if sides[1] < BIAS_FIELD_MM:
        reason = f"images of {_mm(sides)} mm are too small to separate the bias field from anatomy"
        return False, f"not corrected: {reason}"
    if lowest < -MAX_UNDERSHOOT:
        reason = f"the lowest intensities are {lowest:.0%} of the maximum, so the scans were normalised before"
        return False, f"not corrected: {reason}"
    return True, "MRI of a body or head: corrected (N4), then z-score inside the patient, without the surrounding air"


# Of the paper's recipes on CT without a crops.json
NO_CROPS = (
    "NOTE the paper crops each CT to coordinates given with another work (IV-A, its reference 39), which is another "
    "task: write such boxes to crops.json beside dataset.json, or compare with its figures only if scans were cropped"
)


def crop_rule(is_ct: bool, stripped: bool, body_ratio: float, is_2d: bool) -> tuple[CropRule, str]:
    """Which box to crop to. ``body_ratio``: median share of the image inside the body box."""
    if is_2d:
        return "none", "2D images are not cropped"
    if is_ct:
        return "body", "CT: box of the patient, found from the image alone (Otsu, largest object; no fixed air level)"
    if stripped:
        return "nonzero", "constant background in every scan: box of the non-zero voxels, with a small margin"
    if body_ratio < 0.8:
        return "body", f"the object fills {body_ratio:.0%} of the image (median): box of the object"
    return "none", f"the object fills {body_ratio:.0%} of the image (median): no crop"


def spacing_rule(
    spacings: np.ndarray, extents_mm: np.ndarray, voxel_limit: int | None
) -> tuple[tuple[float, ...], str]:
    """Target spacing: the per-axis median, coarsened (finest axes first) until the median scan, of ``extents_mm``
    after cropping, has at most ``voxel_limit`` voxels."""
    target = np.median(spacings, axis=0)
    extent = np.median(extents_mm, axis=0)
    reason = f"median spacing of the scans, {_mm(target)} mm"
    if voxel_limit and np.prod(extent / target) > voxel_limit:
        target = coarsen_spacing(voxel_limit, target, extent)
        reason += f", coarsened to {_mm(target)} mm so that the median scan has at most {voxel_limit:,} voxels"
    return tuple(float(f"{v:.5g}") for v in target), reason


MAX_DOWNSAMPLING = 4.0  # of 2D images: small objects must remain visible


def image_spacing_rule(
    spacings: np.ndarray, shapes: np.ndarray, pixel_limit: int
) -> tuple[tuple[float, ...] | None, str]:
    """Target spacing (z, y, x) of 2D images: the median, coarsened equally in both directions until the median image
    of ``shapes`` has at most ``pixel_limit`` pixels, so that one patch covers a whole image. None: the images' own
    grid, where all have one spacing and are small enough."""
    target, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    pixels = float(np.prod(np.median(spacings * shapes, axis=0)[1:] / target[1:]))
    factor = min(MAX_DOWNSAMPLING, max(1.0, (pixels / pixel_limit) ** 0.5))
    if factor == 1 and np.allclose(spacings, spacings[0], rtol=1e-3, atol=0):
        return None, "2D images of one pixel spacing, small enough for one patch: each keeps its own grid"
    target[1:] *= factor
    reason = f"2D images of {shape[1]:.0f} x {shape[2]:.0f} pixels (median)"
    if factor > 1:
        reason += f" downsampled by {factor:.3g}, towards {pixel_limit:,} pixels, "
        reason += "so that one patch covers a whole image"
    return tuple(float(f"{v:.5g}") for v in target), reason + f": pixel spacing {_mm(target[1:])}"


def _mm(values: np.ndarray) -> str:
    return " x ".join(f"{v:.3g}" for v in values)


def strides_rule(spacing: tuple[float, ...]) -> tuple[tuple[int, ...], ...]:
    """First pooling by 2 on every axis, the second only on axes within a factor `COARSE` of the finest."""
    finest = min(spacing)
    return (2,) * len(spacing), tuple(1 if s > COARSE * finest else 2 for s in spacing)


def patch_rule(
    spacing: tuple[float, ...], median_size: tuple[int, ...], voxels: int, divisor: tuple[int, ...]
) -> tuple[PatchConfig, str]:
    """Sides in proportion to 1/spacing with about ``voxels`` voxels, at most the median scan, divisible by ``divisor``;
    the kept centre leaves 1/9 of the side (1/6 on a coarse axis) as margin. The paper's 12 x 36 x 36 with its centre
    8 x 28 x 28 follows from its spacing (3, 0.958, 0.958 mm) and number of voxels."""
    ideal = 1 / np.asarray(spacing)
    limit = np.maximum(np.asarray(median_size) // divisor * divisor, divisor).astype(float)
    free = np.ones(len(spacing), dtype=bool)
    sides = limit.copy()
    while free.any():  # an axis that reaches the scan's size is fixed there, and the others share the rest
        rest = voxels / np.prod(sides[~free]) if (~free).any() else voxels
        sides[free] = ideal[free] * (rest / np.prod(ideal[free])) ** (1 / free.sum())
        over = free & (sides > limit)
        if not over.any():
            break
        sides[over] = limit[over]
        free &= ~over
    size = tuple(int(max(d, round(s / d) * d)) for s, d in zip(sides, divisor, strict=True))
    size = tuple(int(min(s, m)) for s, m in zip(size, limit, strict=True))
    finest = min(spacing)
    parts = [6 if s > COARSE * finest else 9 for s in spacing]
    margin = [round(n / part) for n, part in zip(size, parts, strict=True)]
    centre = tuple(max(1, n - 2 * m) for n, m in zip(size, margin, strict=True))
    reason = f"about {voxels:,} voxels, sides in proportion to 1/spacing, at most the median scan {tuple(median_size)}"
    return PatchConfig(size, centre), reason + f", divisible by {divisor}; margin 1/9 of a side (1/6 on a coarse axis)"


Dilations = tuple[tuple[int, ...], ...]


def dilation_rule(patch: tuple[int, ...]) -> tuple[Dilations, str]:
    """ASPP dilations of 1/6, 1/3 and 1/2 of the patch side, as 6, 12, 18 are of the paper's patch side of 36; at most
    `MAX_DILATION`, which a network can have. Sides of more than 257 voxels occur in long, thin images."""
    rows = tuple(tuple(min(MAX_DILATION, max(1, round(n * share))) for n in patch) for share in (1 / 6, 1 / 3, 1 / 2))
    reason = "1/6, 1/3 and 1/2 of the patch side, as 6, 12, 18 are of the paper's patch side of 36"
    if round(max(patch) / 2) > MAX_DILATION:
        reason += f"; at most {MAX_DILATION}"
    return rows, reason


def paper_dilations(patch: tuple[int, ...]) -> tuple[Dilations, str]:
    """The paper's 6, 12, 18 on every axis, however thick the slices."""
    return tuple((d,) * len(patch) for d in (6, 12, 18)), "6, 12 and 18 on every axis, as in the paper"


# Names that `--set network.dilations=NAME` accepts besides numbers.
DILATION_RULES = {"patch": dilation_rule, "paper": paper_dilations}


def mirror_rule(channels: Sequence[str], labels: Sequence[str]) -> tuple[bool, str]:
    """Whether training patches are mirrored left-right: in MRI (the paper: MRBrainS18 only, IV-C) where no label has a
    side (our reading)."""
    sided = [name for name in labels if contralateral(name, labels)]
    if sided:
        return False, f"not mirrored: {', '.join(sided[:4])} would get the wrong side"
    if not all(is_mri(name) for name in channels):
        return False, f"not mirrored: {', '.join(channels)} is not MRI, and the paper mirrors brain MRI only"
    return True, "left and right are swapped in half of the patches"


def lesion_unet_rule(labels: Sequence[str]) -> tuple[bool, str]:
    """Whether a plain U-Net replaces MRE-Net: where every label is a lesion. Coordinates and a wide context would
    teach the lesion's position and surroundings in the labelled scan, which the next scan does not share."""
    if only_lesions(labels):
        return True, "every label is a lesion: a plain U-Net without coordinates, wide context and OHEM"
    return False, "MRE-Net: not every label is a lesion"


def image_mirror_rule(labels: Sequence[str]) -> tuple[tuple[int, ...], str]:
    """Axes (y, x) along which 2D training images are mirrored: x where every label is a lesion without a side. Never y
    (in ultrasound, depth runs along y)."""
    if only_lesions(labels) and not any(contralateral(name, labels) for name in labels):
        named = ", ".join(lesions_of(labels))
        return (1,), f"2D images of lesions without a side ({named}): mirrored left and right"
    return (), "not mirrored: not every label is a lesion without a side"


PASSES = 50  # over a scan's voxels that training should make
MAX_LONGER = 2.0  # times the recipe's iterations, at most


def iterations_rule(wanted: int, voxels: float, batch_voxels: int) -> tuple[int, str]:
    """The recipe's ``wanted`` iterations, or more where these batches of ``batch_voxels`` voxels make fewer than
    `PASSES` passes over a median scan of ``voxels`` voxels; at most `MAX_LONGER` times as many."""
    needed = PASSES * voxels / batch_voxels
    iterations = int(np.ceil(min(max(wanted, needed), MAX_LONGER * wanted)))
    reason = f"{iterations} iterations cover the {voxels:,.0f} voxels of the median scan "
    reason += f"{iterations * batch_voxels / voxels:.0f} times"
    if iterations > wanted:
        reason += f" (the recipe's {wanted} iterations: {wanted * batch_voxels / voxels:.0f} times)"
    return iterations, reason


MIN_SLICES = 8  # registration smooths and downsamples by up to 4 along each axis


def registration_rule(
    wanted: Registration, labels: Sequence[str], median_size: tuple[int, ...]
) -> tuple[Registration, str]:
    """Whether scans are registered to the labelled ones: as the recipe wants, but not 2D images or a few slices, and
    not where every label is a lesion, whose position differs from scan to scan."""
    if wanted == "none":
        return "none", "none in this recipe: coordinates run over each scan's own volume"
    if len(median_size) < 3 or min(median_size) < MIN_SLICES:
        size = " x ".join(map(str, median_size))
        return "none", f"none: images of {size} voxels are 2D or have fewer than {MIN_SLICES} voxels along an axis"
    if only_lesions(labels):
        named = ", ".join(lesions_of(labels))
        return "none", f"none: labels {named} are lesions, whose position differs from scan to scan"
    reason = "registration to the training scans; their labels are the network's atlas prior"
    return wanted, f"{wanted} {reason}"


def prior_rule(lesions: Sequence[str], *, is_ct: bool) -> tuple[Literal["input", "logits"], str]:
    """Where the atlas prior joins the network: an input beside the coordinates, or a term of the logits, then without
    SE and ASPP (docs/LOG.md, 2026-11-28).

    A network with a wide context that reads the prior overfits to the training scan's own, which is nearly the truth.
    On abdominal CT it scored better nevertheless. With ``lesions`` among the organs the prior stays an input, as the
    atlases have none of them.
    """
    if lesions:
        return "input", f"an input of the network: the atlases have no prior of {', '.join(lesions)}"
    if is_ct:
        return "input", "an input of the network, with AMS: on abdominal CT better than a term of the logits"
    return "logits", (
        "a term of the logits, so that the network learns what the image adds to the warped labels; without AMS "
        "(multi-scale features, SE and ASPP), which overfits to the training scan's own prior"
    )


def tiling_rule(wanted: InferenceConfig, *, registered: bool, is_ct: bool) -> tuple[InferenceConfig, str]:
    """Tiles of prediction: the recipe's, or fewer where the mean Dice was at most .002 lower (docs/LOG.md, 2026-11-28;
    `python -m benchmarks.tiling`).

    Args:
        wanted: the recipe's.
        registered: scans are registered, so that the warped labels support the network.
        is_ct: a channel is CT. The network then has AMS (`prior_rule`): ASPP and head are most of the work, and with
            centre tiling they are computed for the kept voxels only.
    """
    if wanted.tiling != "overlap" or not registered:
        return wanted, ""
    if is_ct:
        return replace(wanted, tiling="centre"), (
            "the centre of each tile, as in the paper (IV-C): each voxel is predicted once, in about a third of the "
            "time of tiles half a patch apart"
        )
    return replace(wanted, step=0.75), (
        "overlapping tiles three quarters of a patch apart: about half the time of tiles half a patch apart"
    )


def lesions_rule(labels: Sequence[str], *, registered: bool) -> tuple[tuple[str, ...], str]:
    """The labels of lesions among organs, by their names, and what they take no part in. ``registered``: whether scans
    are registered."""
    named = lesions_among_organs(labels)
    if not named:
        return (), ""
    atlas = "no atlas prior, no fusion with warped labels, " if registered else ""
    reason = f"{', '.join(named)}: position and number of lesions differ from scan to scan, so they have {atlas}"
    reason += "no HU limit, and small components are kept"
    return tuple(named), reason + ("; the other labels are treated as without them" if registered else "")


EM_FACTOR = 2  # times the recipe's em_weight, in CT and for lesions
CT_SHARE = 0.5  # of the warped labels


def fusion_rule(wanted: RefinementConfig, *, registered: bool, is_ct: bool) -> tuple[RefinementConfig, str]:
    """How network and warped labels are fused: as the recipe wants, but in CT by their mean. There the network misses
    organs that registration finds, and in a product such an organ stays missed (docs/LOG.md, 2026-11-29)."""
    if not (registered and is_ct and wanted.atlas_weight):
        return wanted, ""
    return replace(wanted, atlas_weight=0.0, atlas_share=CT_SHARE), (
        "CT: the mean of the network's posterior and the warped labels, not their product, in which an organ that the "
        "network misses stays missed"
    )


def refinement_rule(
    wanted: RefinementConfig, labels: Sequence[str], *, is_2d: bool, is_ct: bool
) -> tuple[RefinementConfig, str]:
    """Weights of the EM step and the CRF: the recipe's, with twice the EM weight in CT, whose intensities depend on the
    tissue alone (in MRI and ultrasound also on shading), and where every label of volumes is a lesion, whose position
    is unknown."""
    if not (wanted.em_weight or wanted.crf_weight):
        return wanted, "no EM step and no CRF in this recipe"
    why = " (doubled for CT)" if is_ct else " (doubled for lesions)" if only_lesions(labels) and not is_2d else ""
    chosen = replace(wanted, em_weight=wanted.em_weight * (EM_FACTOR if why else 1))
    return chosen, f"EM step with weight {chosen.em_weight:g}{why}; CRF with weight {chosen.crf_weight:g}"
