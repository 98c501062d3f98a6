"""The per-category normalised cross-entropy with online hard-example mining (paper, III-E; equation 5), and Dice.

Targets hold class numbers; `grid.IGNORE` marks voxels without a target (the ignore label, and padding).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mre_lowshot.config import LossConfig
from mre_lowshot.grid import IGNORE


def hard_example_mask(
    nll: Tensor, target: Tensor, *, majority: Sequence[int], ohem_ratio: int, min_kept: int
) -> Tensor:
    """The voxels that the loss keeps: all of the minority classes, and the hardest of the majority classes.

    Args:
        nll: -log P(true class) per voxel, any shape: of a whole mini-batch, over which voxels are ranked.
        target: class numbers of the same shape, `IGNORE` where there is no target.
        majority: class numbers of the majority group; all others are minority.
        ohem_ratio: N_Lg, majority voxels kept per minority voxel.
        min_kept: majority voxels kept when the batch holds no minority voxel.

    Returns:
        A boolean mask of the same shape. Ties are broken by position, so the number kept is exact.
    """
    valid = target != IGNORE
    large = torch.zeros_like(valid)
    for label in majority:
        large |= target == label
    keep = valid & ~large
    minority_count = int(keep.sum())
    count = ohem_ratio * minority_count if minority_count else min_kept
    ranked = nll.detach().masked_fill(~large, -torch.inf).flatten()
    count = min(count, int(large.sum()))
    if count:
        chosen = torch.topk(ranked, count, sorted=False).indices
        keep = keep.flatten().index_fill(0, chosen, True).view_as(keep)
    return keep


def per_category_cross_entropy(
    nll: Tensor, target: Tensor, *, keep: Tensor, classes: int, class_balance: float = 1.0
) -> Tensor:
    """Equation 5: sum over classes of the mean -log P over that class's kept voxels; an absent class adds 0.

    Args:
        nll: -log P(true class) per voxel.
        target, keep: class numbers and the kept voxels, of the same shape.
        classes: K.
        class_balance: 1 is equation 5; below 1 the class means are weighted by N_k^(1 - class_balance), the weights
            averaging 1 over the classes present, so that 0 is the plain mean over voxels times their number.

    Returns:
        A scalar that can be differentiated through ``nll``.
    """
    label, value = target[keep], nll[keep]
    counts = torch.bincount(label, minlength=classes).to(value.dtype)
    present = counts > 0
    weight = torch.where(present, counts.clamp_min(1) ** (1 - class_balance), 0)
    weight = weight * present.sum() / weight.sum().clamp_min(1e-12)
    return (value * (weight / counts.clamp_min(1))[label]).sum()


def soft_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sum of 1 - soft Dice over the foreground classes present in the batch, computed over the whole batch; 0 when none
    is.

    A sum over classes, as equation 5 is, so that the proportion of the two terms does not depend on the number of
    classes.
    """
    classes = logits.shape[1]
    valid = (target != IGNORE).unsqueeze(1)
    probability = torch.softmax(logits, dim=1) * valid
    one_hot = F.one_hot(target.clamp_min(0), classes).movedim(-1, 1).to(logits.dtype) * valid
    axes = [0, *range(2, logits.dim())]
    overlap = (probability * one_hot).sum(axes)
    total = probability.sum(axes) + one_hot.sum(axes)
    present = one_hot.sum(axes)[1:] > 0
    if not bool(present.any()):
        return logits.sum() * 0
    dice = (2 * overlap + 1e-5) / (total + 1e-5)
    return (1 - dice[1:][present]).sum()


class MRELoss:
    """Equation 5 over the voxels that OHEM keeps, plus ``dice_weight`` times the soft Dice loss. Always in float32.

    Args:
        classes: K.
        majority: class numbers of OHEM's majority group.
        config: the recipe's `LossConfig`.
    """

    def __init__(self, classes: int, majority: Sequence[int], config: LossConfig) -> None:
        self.classes, self.majority, self.config = classes, tuple(majority), config

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """``logits`` (B, K, *size), ``target`` (B, *size) int64 -> scalar."""
        config = self.config
        logits = logits if logits.dtype == torch.float64 else logits.float()
        nll = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
        if config.ohem:
            keep = hard_example_mask(
                nll, target, majority=self.majority, ohem_ratio=config.ohem_ratio, min_kept=config.ohem_min_kept
            )
        else:
            keep = target != IGNORE
        loss = per_category_cross_entropy(
            nll, target, keep=keep, classes=self.classes, class_balance=config.class_balance
        )
        if config.dice_weight:
            loss = loss + config.dice_weight * soft_dice_loss(logits, target)
        return loss
