"""Decisions derived from labels: taken per fold from its own training scans, and saved with the fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mre_lowshot.config import ChannelNormalization, FoldDecisions, MinHu, Plan
from mre_lowshot.grid import IGNORE
from mre_lowshot.preprocessing.normalization import smoothed

# A class is in the OHEM majority group when it has at least this share of the largest class's voxels.
MAJORITY_SHARE = 0.1
# A class counts as a single component when its largest component has this share: a few scattered voxels do not count.
SINGLE_COMPONENT_SHARE = 0.98
# A class's lower HU limit in CT: its MIN_HU_PERCENTILE minus HU_MARGIN, at most MAX_LIMIT_HU (water), so that a scan
# without contrast agent, in which an organ is darker than in the labelled one, keeps it. Fat lies below -30 HU.
MIN_HU_PERCENTILE, HU_MARGIN, MAX_LIMIT_HU = 2, 60.0, 0.0
# Left-right symmetry: Dice of labels and their registered mirror image, the least mean over classes and the least of
# any class (a class on one side only must not be copied to both). docs/LOG.md has the figures.
SYMMETRIC_MEAN, SYMMETRIC_EACH = 0.7, 0.3


def ohem_groups_rule(counts: np.ndarray) -> tuple[tuple[int, ...], str]:
    """OHEM's majority group from voxel counts per class (background first): background, and every class with at least
    a tenth of the largest class's voxels.

    Classes without voxels are minority (they never occur). Where no minority voxel would be left, the smallest class
    that occurs becomes the minority class, because OHEM's ratio needs one.
    """
    limit = MAJORITY_SHARE * counts.max()
    large = (counts >= limit) | (np.arange(len(counts)) == 0)
    reason = f"background and classes with at least {MAJORITY_SHARE:.0%} of the largest class's voxels"
    occurring = np.flatnonzero(counts[1:]) + 1
    if len(occurring) and large[occurring].all():
        large[occurring[np.argmin(counts[occurring])]] = False
        reason += ", except the smallest class, because otherwise there would be no minority class"
    return tuple(int(k) for k in np.flatnonzero(large)), reason


def single_component_rule(
    labels: Sequence[np.ndarray], classes: int, lesions: Sequence[int] = ()
) -> tuple[tuple[int, ...], str]:
    """Classes whose largest connected component has nearly all of their voxels in every training scan that has them.

    Ignored voxels count as if they were a second component. The classes ``lesions`` are none of them, and connect what
    they divide (`refinement.components`).
    """
    from skimage.measure import label as components

    single = []
    hidden = [int(np.count_nonzero(label == IGNORE)) for label in labels]
    between = [np.isin(label, lesions) if len(lesions) else None for label in labels]
    for k in range(1, classes):
        shares = []
        for label, unknown, lesion in zip(labels, hidden, between, strict=True):
            mask = label == k
            if mask.any() and k not in lesions:
                parts = components(mask if lesion is None else mask | lesion, connectivity=mask.ndim)
                sizes = np.bincount(parts[mask])[1:]
                shares.append(sizes.max() / (sizes.sum() + unknown))
        if shares and min(shares) >= SINGLE_COMPONENT_SHARE:
            single.append(k)
    reason = (
        f"in every training scan the largest component has at least {SINGLE_COMPONENT_SHARE:.0%} of the class's voxels"
    )
    return tuple(single), reason + (", even if all ignored voxels were a second component" if any(hidden) else "")


def min_hu_rule(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    classes: int,
    windows: Sequence[ChannelNormalization],
    lesions: Sequence[int] = (),
) -> tuple[tuple[MinHu, ...], str]:
    """For each class and CT channel the HU below which no voxel belongs to the class.

    Args:
        images: preprocessed images (C, *size); the darkest of them determines the limit.
        labels: their label maps (*size).
        classes: K.
        windows: the channels' normalisation. A limit at or below a window's lower end has no effect and is left out.
        lesions: classes without a limit: one lesion does not show how dark the next one is.
    """
    limits = []
    for channel, window in enumerate(windows):
        if window.scheme != "clip":
            continue
        grey = [smoothed(image[channel]) for image in images]
        for k in range(1, classes):
            inside = [values[label == k] for values, label in zip(grey, labels, strict=True) if (label == k).any()]
            if not inside or k in lesions:
                continue
            darkest = min(float(np.percentile(values, MIN_HU_PERCENTILE)) for values in inside)
            hu = round(min(window.lower + darkest * window.width - HU_MARGIN, MAX_LIMIT_HU), 1)
            if hu > window.lower:
                limits.append(MinHu(k, channel, hu))
    reason = (
        f"{HU_MARGIN:g} HU below the {MIN_HU_PERCENTILE}nd percentile of the class in the darkest training scan, "
        f"at most {MAX_LIMIT_HU:g} HU"
    )
    return tuple(limits), reason


def mirrored_atlases_rule(symmetry: Sequence[Mapping[str, float]]) -> tuple[bool, str]:
    """Whether the training scans' mirror images are atlases too, from each scan's left-right symmetry: Dice of each
    class, by name, between the labels and their mirror image after affine registration."""
    if not all(symmetry):
        why = "a mirrored scan cannot be registered, or all voxels of a class are ignored in it"
        return False, f"left-right symmetry cannot be measured ({why}): no mirrored atlases"
    mean = min(float(np.mean([*dice.values()])) for dice in symmetry)
    reason = f"left-right symmetry of the labels (Dice after affine registration) is {mean:.3f}"
    if mean < SYMMETRIC_MEAN:
        return False, f"{reason}, below {SYMMETRIC_MEAN:g}: no mirrored atlases"
    least, name = min((value, name) for dice in symmetry for name, value in dice.items())
    if least < SYMMETRIC_EACH:
        return False, f"{reason}, but that of {name} is {least:.3f}, below {SYMMETRIC_EACH:g}: no mirrored atlases"
    return True, f"{reason}: mirrored atlases are used"


def decide_fold(
    plan: Plan,
    *,
    level: str,
    fold: int,
    train: Sequence[str],
    test: Sequence[str],
    labels: Sequence[np.ndarray],
    seed: int,
    images: Sequence[np.ndarray] = (),
    symmetry: Sequence[Mapping[str, float]] = (),
) -> FoldDecisions:
    """Take the decisions of a fold.

    Args:
        plan: the dataset's plan.
        level, fold: the fold's name, as in ``1shot``, 0.
        train, test: names of its scans.
        labels: the training scans' preprocessed label maps (*size), `IGNORE` where not annotated.
        seed: of the training.
        images: their preprocessed images (C, *size); without them no lower HU limit is decided.
        symmetry: each scan's left-right symmetry, where it was measured (`trainers.symmetry`).
    """
    recipe = plan.recipe
    counts = np.zeros(plan.network.classes, dtype=np.int64)
    for label in labels:
        counts += np.bincount(label[label != IGNORE].ravel(), minlength=plan.network.classes)
    names = {number: name for name, number in plan.labels.items()}
    if recipe.loss.majority:
        majority = tuple(sorted(plan.labels[name] for name in recipe.loss.majority))
        reason = "given by recipe.loss.majority"
    else:
        majority, reason = ohem_groups_rule(counts)
    lesions = plan.lesion_classes
    single, single_reason = single_component_rule(labels, plan.network.classes, lesions)
    missing = [names[k] for k in range(1, len(counts)) if counts[k] == 0]
    reasons = {"majority": f"OHEM majority group {', '.join(names[k] for k in majority)}: {reason}"}
    if recipe.refinement.largest_component:
        listed = ", ".join(names[k] for k in single)
        reasons["single_component"] = (
            f"small components of {listed} are removed: {single_reason}"
            if single
            else f"small components of no class are removed (condition: {single_reason})"
        )
    limits: tuple[MinHu, ...] = ()
    if recipe.refinement.min_hu and len(images):
        windows = plan.preprocessing.normalization
        limits, limit_reason = min_hu_rule(images, labels, plan.network.classes, windows, lesions)
        if limits:
            listed = ", ".join(f"{names[limit.label]} {limit.value:g}" for limit in limits)
            reasons["min_hu"] = f"lower HU limits {listed}: {limit_reason}"
    mirrored = False
    if symmetry:
        mirrored, reasons["mirrored_atlases"] = mirrored_atlases_rule(symmetry)
    if missing:
        reasons["missing"] = (
            f"classes without a voxel in the training scans, which cannot be learned: {', '.join(missing)}"
        )
    total = max(1, int(counts.sum()))
    return FoldDecisions(
        level=level,
        fold=fold,
        train=tuple(train),
        test=tuple(test),
        majority=majority,
        voxel_shares={names[k]: round(int(n) / total, 6) for k, n in enumerate(counts)},
        reasons=reasons,
        seed=seed,
        single_component=single,
        min_hu=limits,
        mirrored_atlases=mirrored,
    )
