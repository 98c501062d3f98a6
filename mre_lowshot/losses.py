"""The per-category normalised cross-entropy with online hard-example mining (paper, III-E; equation 5), and beyond it
Dice.

Targets hold class numbers; `grid.IGNORE` marks voxels without a target (the ignore label, and padding).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mre_lowshot.config import LossConfig
from mre_lowshot.grid import IGNORE
from mre_lowshot.transfers import counts_of, positions, to_device, to_host


def hard_example_mask(
    nll: Tensor,
    target: Tensor,
    *,
    majority: Sequence[int],
    ohem_ratio: int,
    min_kept: int,
    numbers: tuple[int, int] | None = None,
) -> Tensor:
    """The voxels that the loss keeps: all of the minority classes, and the hardest of the majority classes.

    Args:
        nll: -log P(true class) per voxel, any shape: of a whole mini-batch, over which voxels are ranked.
        target: class numbers of the same shape, `IGNORE` where there is no target.
        majority: class numbers of the majority group; all others are minority.
        ohem_ratio: N_Lg, majority voxels kept per minority voxel.
        min_kept: majority voxels kept when the batch holds no minority voxel.
        numbers: of minority and of majority voxels in ``target``; None: they are read from the device.

    Returns:
        A boolean mask of the same shape. Ties are broken by position, so the number kept is exact.
    """
    large = torch.zeros_like(target, dtype=torch.bool)
    for label in majority:
        large |= target == label
    keep = (target != IGNORE) & ~large
    minority, available = numbers or to_host(torch.stack([keep.sum(), large.sum()]))[0].tolist()
    count = majority_kept(minority, available, ohem_ratio, min_kept)
    if not count:
        return keep
    ranked = nll.detach().masked_fill(~large, -torch.inf).flatten()
    chosen = torch.topk(ranked, count, sorted=False).indices
    return keep.flatten().index_fill(0, chosen, True).view_as(keep)


def majority_kept(minority: int, available: int, ohem_ratio: int, min_kept: int) -> int:
    """How many of the ``available`` majority voxels OHEM keeps beside ``minority`` minority voxels."""
    return min(ohem_ratio * minority if minority else min_kept, available)


def per_category_cross_entropy(
    nll: Tensor, target: Tensor, *, kept: Tensor, classes: int, class_balance: float = 1.0
) -> Tensor:
    """Equation 5: sum over classes of the mean -log P over that class's kept voxels; an absent class adds 0.

    Args:
        nll: -log P(true class) per voxel.
        target: class numbers, of the same shape.
        kept: positions of the kept voxels in the flattened ``target``.
        classes: K.
        class_balance: 1 is equation 5; below 1 the class means are weighted by N_k^(1 - class_balance), the weights
            averaging 1 over the classes present, so that 0 is the plain mean over voxels times their number.

    Returns:
        A scalar that can be differentiated through ``nll``.
    """
    label, value = (t.flatten().index_select(0, kept) for t in (target, nll))
    counts = counts_of(label, classes).to(value.dtype)
    present = counts > 0
    weight = torch.where(present, counts.clamp_min(1) ** (1 - class_balance), 0)
    weight = weight * present.sum() / weight.sum().clamp_min(1e-12)
    return (value * (weight / counts.clamp_min(1))[label]).sum()


def soft_dice_loss(logits: Tensor, target: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Sum of 1 - soft Dice over the foreground classes present in the batch, computed over the whole batch; 0 when none
    is.

    A sum over classes, as equation 5 is, so that the proportion of the two terms does not depend on the number of
    classes. ``counts`` are the voxels of each class in ``target``; None: they are counted, and read from the device.
    """
    classes = logits.shape[1]
    counts = to_host(counts_of(target, classes))[0].tolist() if counts is None else counts
    present = [k - 1 for k in range(1, classes) if counts[k]]
    if not present:
        return logits.sum() * 0
    valid = (target != IGNORE).unsqueeze(1)
    probability = torch.softmax(logits, dim=1) * valid
    one_hot = F.one_hot(target.clamp_min(0), classes).movedim(-1, 1).to(logits.dtype) * valid
    axes = [0, *range(2, logits.dim())]
    overlap = (probability * one_hot).sum(axes)
    total = probability.sum(axes) + one_hot.sum(axes)
    dice = (2 * overlap + 1e-5) / (total + 1e-5)
    return (1 - dice[1:].index_select(0, to_device(torch.tensor(present), dice.device))).sum()


class MRELoss:
    """Equation 5 over the voxels that OHEM keeps, plus ``dice_weight`` times the soft Dice loss. Always in float32.

    Args:
        classes: K.
        majority: class numbers of OHEM's majority group.
        config: the recipe's `LossConfig`.
    """

    def __init__(self, classes: int, majority: Sequence[int], config: LossConfig) -> None:
        self.classes, self.majority, self.config = classes, tuple(majority), config

    def __call__(self, logits: Tensor, target: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """``logits`` (B, K, *size), ``target`` (B, *size) int64 -> scalar.

        ``counts`` are the voxels of each class in ``target``. None: they are counted, and read from the device, for
        which a GPU is waited for.
        """
        config = self.config
        logits = logits if logits.dtype == torch.float64 else logits.float()
        counts = to_host(counts_of(target, self.classes))[0].tolist() if counts is None else counts
        nll = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
        number, majority = sum(counts), self.majority
        if config.ohem:
            ratio, least = config.ohem_ratio, config.ohem_min_kept
            available = sum(counts[k] for k in set(majority))
            minority = number - available
            keep = hard_example_mask(
                nll, target, majority=majority, ohem_ratio=ratio, min_kept=least, numbers=(minority, available)
            )
            number = minority + majority_kept(minority, available, ratio, least)
        else:
            keep = target != IGNORE
        loss = per_category_cross_entropy(
            nll, target, kept=positions(keep, number), classes=self.classes, class_balance=config.class_balance
        )
        if config.dice_weight:
            loss = loss + config.dice_weight * soft_dice_loss(logits, target, counts)
        return loss
