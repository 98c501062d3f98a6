"""Equation 5, online hard-example mining and the Dice loss against loops in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import cross_entropy_loop, dice_loop, kept_by_ohem, single_thread  # noqa: F401
from torch import Tensor

from mre_lowshot.config import LossConfig
from mre_lowshot.grid import IGNORE
from mre_lowshot.losses import MRELoss, hard_example_mask, soft_dice_loss

MANY = settings(max_examples=40, derandomize=True)


@st.composite
def batches(draw, classes: int = 4, ignored: bool = True):
    """Logits (B, K, *size) float64 and targets (B, *size), often lacking classes."""
    shape = (draw(st.integers(1, 2)), *draw(st.lists(st.integers(1, 3), min_size=2, max_size=3)))
    used = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes, unique=True))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    target = torch.tensor([*used, IGNORE] if ignored else used)[torch.randint(len(used) + ignored, shape)]
    logits = torch.randn(shape[0], classes, *shape[1:], dtype=torch.float64) * draw(st.sampled_from([0.1, 1, 10]))
    return logits, target


def flat(logits: Tensor) -> Tensor:
    return logits.movedim(1, -1).reshape(-1, logits.shape[1])


def same(ours, theirs, logits: Tensor) -> None:
    """Two losses as functions of the logits: equal values, equal gradients."""
    results = []
    for function in (ours, theirs):
        x = logits.clone().requires_grad_()
        loss = function(x)
        results.append((loss.detach(), *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def mre_loss(ohem: bool = True, ohem_ratio: int = 2, ohem_min_kept: int = 3, **weights: float) -> MRELoss:
    """The loss of four classes, of which the first two are the majority group."""
    return MRELoss(4, (0, 1), LossConfig(ohem=ohem, ohem_ratio=ohem_ratio, ohem_min_kept=ohem_min_kept, **weights))


@MANY
@given(batches())
def test_equation_5(batch):
    logits, target = batch
    same(
        lambda x: mre_loss(ohem=False)(x, target),
        lambda x: cross_entropy_loop(flat(x), target.flatten()),
        logits,
    )


@MANY
@given(batches(), st.floats(0, 1))
def test_class_balance_between_equal_classes_and_equal_voxels(batch, balance):
    logits, target = batch
    same(
        lambda x: mre_loss(ohem=False, class_balance=balance)(x, target),
        lambda x: cross_entropy_loop(flat(x), target.flatten(), balance=balance),
        logits,
    )
    if (target != IGNORE).any():
        classes = len(target[target != IGNORE].unique())
        mean = torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORE)
        torch.testing.assert_close(mre_loss(ohem=False, class_balance=0.0)(logits, target), classes * mean)


@MANY
@given(batches())
def test_soft_dice(batch):
    logits, target = batch
    same(lambda x: soft_dice_loss(x, target), lambda x: dice_loop(flat(x), target.flatten()), logits)


@MANY
@given(batches(), st.integers(1, 4), st.integers(1, 6), st.floats(0, 2))
def test_whole_loss_with_mining(batch, ohem_ratio, min_kept, dice_weight):
    """N_k counts kept voxels only, and the voxels left out get no gradient."""
    logits, target = batch
    nll = -torch.log_softmax(flat(logits), dim=1).gather(1, target.flatten().clamp_min(0)[:, None])[:, 0]
    keep = kept_by_ohem(nll.tolist(), target.flatten().tolist(), {0, 1}, ohem_ratio, min_kept)

    def theirs(x):
        return cross_entropy_loop(flat(x), target.flatten(), keep) + dice_weight * dice_loop(flat(x), target.flatten())

    loss = mre_loss(ohem_ratio=ohem_ratio, ohem_min_kept=min_kept, dice_weight=dice_weight)
    same(lambda x: loss(x, target), theirs, logits)


@MANY
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_mining_keeps_exact_numbers_despite_ties(voxels, ohem_ratio, min_kept):
    nll = [float(value) for value, _ in voxels]
    target = [label for _, label in voxels]
    wanted = kept_by_ohem(nll, target, {0, 1}, ohem_ratio, min_kept)
    tensors = torch.tensor(nll), torch.tensor(target)
    mask = hard_example_mask(*tensors, majority=(0, 1), ohem_ratio=ohem_ratio, min_kept=min_kept)

    def kept(chosen):
        pairs = zip(nll, target, chosen, strict=True)
        return sorted((value, label in (0, 1)) for value, label, keep in pairs if keep)

    assert kept(mask.tolist()) == kept(wanted)  # as many, as hard; which of equal voxels is not specified
    again = hard_example_mask(*tensors, majority=(0, 1), ohem_ratio=ohem_ratio, min_kept=min_kept)
    assert torch.equal(mask, again)


def test_mining_ranks_over_the_whole_batch():
    nll = torch.tensor([[5.0, 6.0, 0.1, 0.2], [1.0, 2.0, 3.0, 0.0]])
    target = torch.tensor([[0, 0, 0, 2], [0, 1, 0, IGNORE]])  # one minority voxel in all, none in the second patch
    mask = hard_example_mask(nll, target, majority=(0, 1), ohem_ratio=2, min_kept=100)
    assert mask.tolist() == [[True, True, False, True], [False, False, False, False]]


@pytest.mark.parametrize(("min_kept", "count"), [(1, 1), (5, 5), (50, 12)])
def test_minimum_kept_when_there_is_no_minority_voxel(min_kept, count):
    nll = torch.arange(16.0)
    target = torch.tensor([0] * 8 + [1] * 4 + [IGNORE] * 4)
    mask = hard_example_mask(nll, target, majority=(0, 1), ohem_ratio=6, min_kept=min_kept)
    assert mask.nonzero().flatten().tolist() == list(range(12 - count, 12))


def test_fewer_majority_voxels_than_the_ratio_allows_are_all_kept():
    target = torch.tensor([2, 2, 3, 0, 1, IGNORE])
    mask = hard_example_mask(torch.rand(6), target, majority=(0, 1), ohem_ratio=6, min_kept=1)
    assert mask.tolist() == [True] * 5 + [False]


@pytest.mark.parametrize("ohem", [True, False])
def test_nothing_but_ignored_voxels(ohem):
    logits = torch.randn(2, 4, 3, 3, 3, requires_grad=True)
    loss = mre_loss(ohem=ohem, dice_weight=1.0)(logits, torch.full((2, 3, 3, 3), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_ignored_voxels_never_count():
    torch.manual_seed(0)
    logits, target = torch.randn(1, 4, 4, 4), torch.randint(0, 4, (1, 4, 4))
    target[0, 0] = IGNORE
    loss = mre_loss(dice_weight=1.0)
    before = loss(logits, target)
    logits[:, :, 0] = 100 * torch.randn(1, 4, 4)
    assert torch.equal(loss(logits, target), before)


def test_extreme_logits_stay_finite_and_half_precision_is_computed_in_single():
    target = torch.tensor([[[0, 1, 2, 3]]])
    logits = torch.full((1, 4, 1, 4), -3e4).half()
    logits[:, 0] = 3e4
    logits.requires_grad_()
    loss = mre_loss(dice_weight=1.0)(logits, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert loss.item() > 1e5  # 6e4 for each of three classes: half precision would overflow
