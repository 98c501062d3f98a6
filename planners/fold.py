"""What is derived from labels: decided for each fold from its own training scans, and saved with the fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mre_lowshot.losses import IGNORE
from mre_lowshot.preprocessing.normalization import smoothed
from mre_lowshot.specs import ChannelNormalization, FoldDecisions, HuFloor, Plan

# A class is in the OHEM majority group when it holds at least this share of the largest class's voxels.
MAJORITY_SHARE = 0.1
# A class counts as one piece when its largest piece holds this share: a few stray voxels do not make it two.
ONE_PIECE_SHARE = 0.98
# A class's floor in a CT: its DARKEST_PERCENTILE less HU_MARGIN, but no higher than HU_CEILING (water), so that a scan
# without contrast agent, in which an organ is darker than in the labelled one, keeps it. Fat lies below -30 HU.
DARKEST_PERCENTILE, HU_MARGIN, HU_CEILING = 2, 60.0, 0.0
# Labels and their mirror image agree at least so well where left and right are alike (docs/LOG.md has figures): the
# mean over classes, and each class, for one that is on one side only must not be brought to both.
ALIKE, ALIKE_EACH = 0.7, 0.3


def groups_rule(counts: np.ndarray) -> tuple[tuple[int, ...], str]:
    """OHEM's majority group from voxel counts a class (background first): background, and every class with at least
    a tenth of the largest class's voxels. Empty classes are minority (they never occur). Where that leaves no minority
    voxel, the smallest class that occurs is the minority: OHEM would have nothing to measure its share by."""
    limit = MAJORITY_SHARE * counts.max()
    large = (counts >= limit) | (np.arange(len(counts)) == 0)
    reason = f"background and classes with at least {MAJORITY_SHARE:.0%} of the largest class's voxels"
    occurring = np.flatnonzero(counts[1:]) + 1
    if len(occurring) and large[occurring].all():
        large[occurring[np.argmin(counts[occurring])]] = False
        reason += ", but for the smallest class, as none is smaller than that"
    return tuple(int(k) for k in np.flatnonzero(large)), reason


def single_component_rule(labels: Sequence[np.ndarray], classes: int) -> tuple[tuple[int, ...], str]:
    """Classes whose largest connected piece holds nearly all of their voxels in every training scan that has them,
    whatever stands under ignored voxels: those are counted as if they were a second piece."""
    from skimage.measure import label as components

    single = []
    hidden = [int(np.count_nonzero(label == IGNORE)) for label in labels]
    for k in range(1, classes):
        shares = []
        for label, unknown in zip(labels, hidden, strict=True):
            mask = label == k
            if mask.any():
                sizes = np.bincount(components(mask, connectivity=mask.ndim).ravel())[1:]
                shares.append(sizes.max() / (sizes.sum() + unknown))
        if shares and min(shares) >= ONE_PIECE_SHARE:
            single.append(k)
    reason = f"their largest piece holds at least {ONE_PIECE_SHARE:.0%} of them in every training scan"
    return tuple(single), reason + (", whatever the ignored voxels are" if any(hidden) else "")


def hu_floors_rule(
    images: Sequence[np.ndarray], labels: Sequence[np.ndarray], classes: int, windows: Sequence[ChannelNormalization]
) -> tuple[tuple[HuFloor, ...], str]:
    """For each class and CT channel the HU below which no voxel is taken for it, from preprocessed images (C, *size)
    and their labels. The darkest of the scans decides; no floor where the window ends above it."""
    floors = []
    for channel, window in enumerate(windows):
        if window.scheme != "clip":
            continue
        grey = [smoothed(image[channel]) for image in images]
        for k in range(1, classes):
            seen = [values[label == k] for values, label in zip(grey, labels, strict=True) if (label == k).any()]
            if not seen:
                continue
            darkest = min(float(np.percentile(values, DARKEST_PERCENTILE)) for values in seen)
            hu = round(min(window.lower + darkest * window.width - HU_MARGIN, HU_CEILING), 1)
            if hu > window.lower:
                floors.append(HuFloor(k, channel, hu))
    reason = (
        f"{HU_MARGIN:g} HU below the {DARKEST_PERCENTILE}nd percentile of the class in the darkest training scan, "
        f"{HU_CEILING:g} HU at most"
    )
    return tuple(floors), reason


def mirror_images_rule(likeness: Sequence[Mapping[str, float]]) -> tuple[bool, str]:
    """Whether the mirror images of the training scans are atlases too, from how well each one's labels,
    mirrored and brought to it by affine registration, agree with its own: Dice of each class, by name."""
    if not all(likeness):
        why = "an image cannot be registered, or a class is ignored where it would lie in one"
        return False, f"whether left and right are alike cannot be told ({why}): mirror images are not used"
    mean = min(float(np.mean([*dice.values()])) for dice in likeness)
    told = f"the labels of mirror images, registered, agree with the scans' own by {mean:.3f} (Dice)"
    if mean < ALIKE:
        return False, f"{told}, less than {ALIKE:g}: left and right differ, mirror images are not used"
    least, name = min((value, name) for dice in likeness for name, value in dice.items())
    if least < ALIKE_EACH:
        told += f", but {name} by {least:.3f}, less than {ALIKE_EACH:g}"
        return False, f"{told}: it is not on both sides, mirror images are not used"
    return True, f"{told}: left and right are alike, and mirror images are registered too"


def decide(
    plan: Plan,
    level: str,
    fold: int,
    train: Sequence[str],
    test: Sequence[str],
    labels: Sequence[np.ndarray],
    seed: int,
    images: Sequence[np.ndarray] = (),
    likeness: Sequence[Mapping[str, float]] = (),
) -> FoldDecisions:
    """Decide from the training scans' preprocessed ``labels`` ((*size), -1 ignored) and ``images`` (C, *size) alone;
    without images nothing is decided that needs them. ``likeness`` is each scan's to its mirror image, where it was
    measured (`trainers.symmetry`)."""
    counts = np.zeros(plan.network.classes, dtype=np.int64)
    for label in labels:
        counts += np.bincount(label[label != IGNORE].ravel(), minlength=plan.network.classes)
    names = {number: name for name, number in plan.labels.items()}
    if plan.recipe.majority:
        majority = tuple(sorted(plan.labels[name] for name in plan.recipe.majority))
        reason = "given by recipe.majority"
    else:
        majority, reason = groups_rule(counts)
    single, single_reason = single_component_rule(labels, plan.network.classes)
    missing = [names[k] for k in range(1, len(counts)) if counts[k] == 0]
    reasons = {"majority": f"{', '.join(names[k] for k in majority)}: {reason}"}
    if plan.recipe.largest_component:
        reasons["single_component"] = f"{', '.join(names[k] for k in single) or 'no class'}: {single_reason}"
    floors: tuple[HuFloor, ...] = ()
    if plan.recipe.hu_floors and len(images):
        floors, floor_reason = hu_floors_rule(images, labels, plan.network.classes, plan.preprocessing.normalization)
        if floors:
            told = ", ".join(f"{names[f.label]} {f.hu:g}" for f in floors)
            reasons["hu_floors"] = f"HU floors {told}: {floor_reason}"
    mirrored = False
    if likeness:
        mirrored, reasons["mirror_images"] = mirror_images_rule(likeness)
    if missing:
        reasons["missing"] = f"no voxel in the training scans, so they cannot be learned: {', '.join(missing)}"
    total = max(1, int(counts.sum()))
    shares = {names[k]: round(int(n) / total, 6) for k, n in enumerate(counts)}
    return FoldDecisions(
        level, fold, tuple(train), tuple(test), majority, shares, reasons, seed, single, floors, mirrored
    )
