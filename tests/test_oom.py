"""Out of memory: recomputation changes no number; a step that does not fit is repeated with it, then in parts."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from references import TINY, single_thread, tiny_case, tiny_plan  # noqa: F401
from torch.autograd.graph import saved_tensors_hooks

from mre_lowshot.errors import UserError, describe_failure, is_out_of_memory
from mre_lowshot.network.build import build
from mre_lowshot.trainers.oom import OutOfMemoryPolicy, place_counters, step_distributed
from mre_lowshot.trainers.trainer import MRETrainer, batch_dice


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
    network = build(replace(TINY, embedding_dim=embedding, convs=(2, 2, 2)))
    other = copy.deepcopy(network)
    other.recompute()
    image, maps = batch()
    for _ in range(2):  # the second with the statistics that the first left
        for a, b in zip(stepped(network, image, maps), stepped(other, image, maps), strict=True):
            torch.testing.assert_close(a, b)
    assert kept_bytes(other, image, maps) < 0.7 * kept_bytes(network, image, maps)


@pytest.mark.parametrize("fails", [0, 1])
def test_a_step_that_does_not_fit_is_repeated_with_recomputation(fails):
    torch.manual_seed(0)
    network = build(TINY)
    wanted = stepped(copy.deepcopy(network), *batch())
    calls, lines = [], []

    def step(parts):
        calls.append((network.recomputes, parts))
        result = stepped(network, *batch())
        if len(calls) <= fails:
            raise torch.OutOfMemoryError("no room")
        return result

    memory = OutOfMemoryPolicy(network, 3, 1, lines.append)
    for a, b in zip(memory.fit(step), wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert calls == [(False, 1), (True, 1)][: fails + 1]
    assert len(lines) == fails


def test_micro_batches_come_last_with_a_warning_and_never_too_small():
    network, calls, lines = build(TINY), [], []

    def step(parts):
        calls.append(parts)
        if parts < 4:
            raise torch.OutOfMemoryError("no room")
        return "done"

    memory = OutOfMemoryPolicy(network, 12, 2, lines.append)
    assert memory.fit(step) == "done"
    assert calls == [1, 1, 2, 3, 4]  # the second with recomputation
    assert memory.fit(step) == "done"
    assert calls[5:] == [4]  # what fitted is kept
    assert ["WARNING" in line for line in lines] == [False, True, True, True]
    with pytest.raises(UserError, match="in 2 parts"):
        OutOfMemoryPolicy(build(TINY), 4, 2, lines.append).fit(lambda parts: step(1))


def test_a_mini_batch_in_parts_gives_the_mean_of_its_parts_gradients(tmp_path):
    plan = tiny_plan(replace(TINY, norm="instance", image_level_norm=False), ohem=False, batch_size=4)
    trainer = MRETrainer(plan, [tiny_case()], folder=tmp_path, device=torch.device("cpu"))
    images, maps, targets = trainer.sampler[0]
    wanted = [torch.zeros_like(p) for p in trainer.network.parameters()]
    total, logits = 0.0, []
    for part in range(2):
        own = slice(2 * part, 2 * part + 2)
        trainer.network.zero_grad()
        logits.append(trainer.network(images[own], maps[own]))
        loss = trainer.loss(logits[-1], targets[own])
        loss.backward()
        total += loss.item() / 2
        wanted = [w + p.grad / 2 for w, p in zip(wanted, trainer.network.parameters(), strict=True)]
    trainer.memory.parts = 2
    trainer.step(images, maps, targets)
    history = trainer.training_log.history
    assert history["loss"] == [pytest.approx(total, rel=1e-5)]
    assert history["dice"] == [pytest.approx(batch_dice(torch.cat(logits), targets))]  # over all four patches
    for p, w in zip(trainer.network.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, w)


def test_a_step_of_one_process_among_several_is_refused_and_not_repeated():
    calls = []

    def step(parts):
        calls.append(parts)
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(UserError, match="does not hold this process's part of a training step; start more processes"):
        step_distributed(step)
    assert calls == [1]


# As torch raises them, all as RuntimeError.
SHORT = (
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "MPS backend out of memory (MPS allocated: 8.91 GB, other allocations: 1.12 GB)",
    "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory",
)


@pytest.mark.parametrize("text", SHORT)
def test_what_a_library_cannot_allocate_is_out_of_memory(text):
    assert is_out_of_memory(RuntimeError(text))
    assert describe_failure(RuntimeError(text), "a").startswith("case a: out of memory (")
    calls = []

    def step(parts):
        calls.append(parts)
        if len(calls) == 1:
            raise RuntimeError(text)
        return parts

    assert OutOfMemoryPolicy(build(TINY), 2, 1, lambda line: None).fit(step) == 1
    calls.clear()
    with pytest.raises(UserError, match="does not hold this process's part"):
        step_distributed(step)


def test_other_errors_of_a_library_are_no_lack_of_memory():
    for text in ("cuDNN error: CUDNN_STATUS_BAD_PARAM", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", "shapes"):
        assert not is_out_of_memory(RuntimeError(text))
        with pytest.raises(RuntimeError, match="^" + text):
            step_distributed(lambda parts, text=text: (_ for _ in ()).throw(RuntimeError(text)))


def trainer_of(tmp_path, **options) -> MRETrainer:
    plan = tiny_plan(replace(TINY, norm="instance", image_level_norm=False), ohem=False, batch_size=2, **options)
    return MRETrainer(plan, [tiny_case()], folder=tmp_path, device=torch.device("cpu"))


def state_of(trainer) -> list[torch.Tensor]:
    moments = (v for state in trainer.optimizer.state_dict()["state"].values() for v in state.values())
    return [*(p.detach().clone() for p in trainer.network.parameters()), *(m.clone() for m in moments)]


def short_inside(monkeypatch, trainer, times: int, done: list[int]) -> None:
    """The first ``times`` steps of the optimizer change weights, moments and counters, and fail then."""
    real = trainer.precision.step

    def step(optimizer):
        done.append(len(done))
        real(optimizer)
        if len(done) <= times:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(trainer.precision, "step", step)


@pytest.mark.parametrize("before", [0, 2])
def test_a_step_of_the_optimizer_that_does_not_fit_is_repeated(before, tmp_path, monkeypatch):
    """At the first step the optimizer has no moments yet."""
    trainer, other = trainer_of(tmp_path / "a"), trainer_of(tmp_path / "b")
    for number in range(before):
        for one in (trainer, other):
            one.step(*one.sampler[number])
    done: list[int] = []
    short_inside(monkeypatch, trainer, 1, done)
    for number in range(before, before + 2):
        for one in (trainer, other):
            one.step(*one.sampler[number])
    assert len(done) == 3
    for ours, wanted in zip(state_of(trainer), state_of(other), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-7)
    (log,) = (tmp_path / "a").glob("training_log_*.txt")
    assert "tensor by tensor from now on" in log.read_text()


@pytest.mark.parametrize("before", [0, 1])
def test_weights_are_those_from_before_a_step_that_never_fits(before, tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    for number in range(before):
        trainer.step(*trainer.sampler[number])
    wanted, done = state_of(trainer), []
    short_inside(monkeypatch, trainer, 9, done)
    with pytest.raises(UserError, match="does not hold a step of the optimizer; the weights are those from before"):
        trainer.step(*trainer.sampler[before])
    assert len(done) == 2
    assert trainer.iteration == before
    for ours, kept in zip(state_of(trainer), wanted, strict=True):
        assert torch.equal(ours, kept)


@pytest.mark.parametrize(("options", "place"), [({}, "cpu"), ({"fused": True}, "meta"), ({"capturable": True}, "meta")])
def test_counters_of_steps_are_where_a_fresh_optimizer_has_them(options, place, monkeypatch):
    """`meta` stands for a GPU; a counter that was loaded there can be asked for its place only."""
    weight = torch.nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = torch.optim.Adam([weight])
    optimizer.param_groups[0].update(options)
    moves = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moves.append(str(device)) or self)
    for device in ("cpu", "meta"):
        optimizer.state[weight]["step"] = torch.zeros((), device=device)
        place_counters(optimizer)
    assert moves == [place, place]
