"""Recomputation changes no number; a step that does not fit is repeated with it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from references import TINY, single_thread  # noqa: F401
from torch.autograd.graph import saved_tensors_hooks

from mre_lowshot.errors import UserError
from mre_lowshot.network.build import build
from mre_lowshot.trainers.memory import within_memory


def batch():
    torch.manual_seed(1)
    return torch.randn(3, 1, 4, 8, 8), torch.rand(3, 3, 4, 8, 8)


def stepped(network, image, maps):
    network.zero_grad()
    loss = network(image, maps).square().sum()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in network.parameters()), *(b.clone() for b in network.buffers())]


def kept_bytes(network, image, maps) -> int:
    """What one forward pass keeps for the gradients, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def note(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with saved_tensors_hooks(note, lambda t: t):
        network(image, maps)
    return sum(kept.values())


@pytest.mark.parametrize("embedding", [8, 48])
def test_recomputation_changes_no_number_and_keeps_less(embedding):
    torch.manual_seed(0)
    network = build(replace(TINY, embedding=embedding, convs=(2, 2, 2)))
    other = copy.deepcopy(network)
    other.recompute()
    image, maps = batch()
    for _ in range(2):  # the second with the statistics that the first left
        for a, b in zip(stepped(network, image, maps), stepped(other, image, maps), strict=True):
            torch.testing.assert_close(a, b)
    assert kept_bytes(other, image, maps) < 0.7 * kept_bytes(network, image, maps)


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_a_step_that_does_not_fit_is_repeated_with_recomputation(fails):
    torch.manual_seed(0)
    network = build(TINY)
    wanted = stepped(copy.deepcopy(network), *batch())
    calls, said = [], []

    def step():
        calls.append(network.recomputes)
        result = stepped(network, *batch())
        if len(calls) <= fails:
            raise torch.OutOfMemoryError("no room")
        return result

    if fails == 2:
        with pytest.raises(UserError, match=r"recipe\.batch_size"):
            within_memory(network, step, said.append)
        return
    for a, b in zip(within_memory(network, step, said.append), wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert calls == [False, True][: fails + 1]
    assert len(said) == fails
