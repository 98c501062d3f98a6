"""The per-category normalised cross-entropy with online hard-example mining (paper, III-E; equation 5), and Dice.

Targets hold class numbers; ``IGNORE`` marks voxels that never count (the ignore label, and padding).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -1


def hard_example_mask(nll: Tensor, target: Tensor, majority: Sequence[int], n_lg: int, floor: int) -> Tensor:
    """Which voxels the loss keeps: all of the minority classes, and the hardest of the majority classes.

    Args:
        nll: -log P(true class) a voxel, any shape (a whole mini-batch: the ranking is pooled over it).
        target: class numbers of the same shape, ``IGNORE`` where nothing counts.
        majority: class numbers of the majority group; all others are minority.
        n_lg: N_Lg, how many majority voxels are kept for each minority voxel.
        floor: how many majority voxels are kept when the batch holds no minority voxel.

    Returns:
        A boolean mask of the same shape. Ties are broken by position, so the number kept is exact.
    """
    valid = target != IGNORE
    large = torch.zeros_like(valid)
    for label in majority:
        large |= target == label
    keep = valid & ~large
    minority_count = int(keep.sum())
    count = n_lg * minority_count if minority_count else floor
    ranked = nll.detach().masked_fill(~large, -torch.inf).flatten()
    count = min(count, int(large.sum()))
    if count:
        chosen = torch.topk(ranked, count, sorted=False).indices
        keep = keep.flatten().index_fill(0, chosen, True).view_as(keep)
    return keep


def per_category_cross_entropy(
    nll: Tensor, target: Tensor, keep: Tensor, classes: int, class_balance: float = 1.0
) -> Tensor:
    """Equation 5: sum over classes of the mean -log P over that class's kept voxels; an absent class adds 0.

    Args:
        nll: -log P(true class) a voxel. target, keep: same shape. classes: K.
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
    """Sum of 1 - soft Dice over the foreground classes present in the batch (pooled over it); 0 when none is.

    A sum over classes, as equation 5 is, so that both terms keep their proportion whatever the number of classes.
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
    """Equation 5 over the voxels OHEM keeps, plus ``dice_weight`` times the soft Dice loss. Always in float32."""

    def __init__(
        self,
        classes: int,
        majority: Sequence[int],
        ohem: bool,
        n_lg: int,
        ohem_floor: int,
        dice_weight: float = 0.0,
        class_balance: float = 1.0,
    ) -> None:
        self.classes, self.majority = classes, tuple(majority)
        self.ohem, self.n_lg, self.floor = ohem, n_lg, ohem_floor
        self.dice_weight, self.class_balance = dice_weight, class_balance

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """``logits`` (B, K, *size), ``target`` (B, *size) int64 -> scalar."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        nll = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
        if self.ohem:
            keep = hard_example_mask(nll, target, self.majority, self.n_lg, self.floor)
        else:
            keep = target != IGNORE
        loss = per_category_cross_entropy(nll, target, keep, self.classes, self.class_balance)
        if self.dice_weight:
            loss = loss + self.dice_weight * soft_dice_loss(logits, target)
        return loss
