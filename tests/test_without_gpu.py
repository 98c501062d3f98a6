"""What a GPU does, tested without one: on torch's ``meta`` device a training step and a prediction keep every tensor on
the device, and wait for it a limited number of times."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_device import META, OneDevice, Reads
from references import TINY, TINY_2D, single_thread, tiny_case, tiny_plan  # noqa: F401
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks import gpu_check
from mre_lowshot import devices, losses
from mre_lowshot.config import InferenceConfig, NetworkConfig, OptimizerConfig, PatchConfig
from mre_lowshot.config.presets import UNET_NETWORK
from mre_lowshot.errors import UserError
from mre_lowshot.inference import sliding_window
from mre_lowshot.inference.sliding_window import SlidingWindow
from mre_lowshot.network.build import MRENet, build
from mre_lowshot.network.optimized import fused_head
from mre_lowshot.planners.hardware import PATCH_GB
from mre_lowshot.trainers import trainer as trainers
from mre_lowshot.trainers.optimizer import MovingAverage, adam, load_adam
from mre_lowshot.trainers.trainer import MRETrainer
from mre_lowshot.trainers.training_log import TrainingLog
from mre_lowshot.transfers import counts_of, positions

MOST_WAITS = 4  # of a training step
FUSED, UNET = replace(TINY, embedding_dim=48), {"multiscale": False, "coordinates": "none", "prototype_head": False}
STEPS = {
    "paper, fused head": (FUSED, {}),
    "default, plain head": (TINY, {"dice_weight": 1.0, "ema": 0.9, "schedule": "cosine", "class_balance": 0.0}),
    "2D, recomputed, without OHEM": (replace(TINY_2D, embedding_dim=48), {"ohem": False, "recompute": True}),
    "U-Net": (replace(TINY, **UNET, embedding_dim=0), {"ohem": False}),
    "prior, instance norm": (replace(TINY, atlas_prior=True, norm="instance", image_level_norm=False), {}),
}
PAPER = NetworkConfig(2, 14)


@pytest.fixture
def reads(monkeypatch) -> Reads:
    counted = Reads()
    for module in (losses, fused_head, trainers):
        monkeypatch.setattr(module, "to_host", counted)
    monkeypatch.setattr(TrainingLog, "draw", lambda self: None)
    return counted


def batch(network, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    size = (4, 8, 8)[-network.axes :]
    random = torch.Generator().manual_seed(0)
    images = torch.randn((count, network.in_channels, *size), generator=random)
    maps = torch.randn((count, network.location_channels, *size), generator=random)
    return images, maps, torch.randint(-1, network.classes, (count, *size), generator=random)


def flat_case(network):
    case = tiny_case()
    if network.axes == 3:
        return case
    return replace(case, image=case.image[:, 3].copy(), label=case.label[3], spacing=(1.0, 1.0))


@pytest.mark.parametrize(("network", "recipe"), STEPS.values(), ids=STEPS)
def test_a_training_step_keeps_to_the_device_and_waits_for_it_at_most_four_times(tmp_path, reads, network, recipe):
    trainer = MRETrainer(tiny_plan(network, **recipe), [flat_case(network)], folder=tmp_path, device=META)
    trainer.network.train()
    assert trainer.network.fused == (network.embedding_dim == 48)
    for step in range(1, 3 if "ema" in recipe else 2):
        before = reads.count
        with OneDevice() as mode:
            trainer.step(*batch(network))
        # the result of the step, and in the fused head the voxels with a gradient
        assert reads.count - before == 1 + trainer.network.fused <= MOST_WAITS
        assert mode.operations > 100
        assert trainer.iteration == step
    assert {p.grad.device for p in trainer.network.parameters() if p.grad is not None} == {META}


@pytest.mark.parametrize("network", [FUSED, replace(TINY_2D, embedding_dim=8)], ids=["3D", "2D"])
def test_prediction_keeps_to_the_device_and_reads_the_posterior_once(monkeypatch, network):
    read, checked = [], Reads()

    def to_cpu(tensor: Tensor) -> Tensor:
        read.append(tensor)
        return torch.full(tensor.shape, 1 / network.classes)

    monkeypatch.setattr(Tensor, "cpu", to_cpu)
    monkeypatch.setattr(sliding_window, "to_host", checked)
    patch = PatchConfig((4, 8, 8)[-network.axes :], (2, 4, 4)[-network.axes :])
    inference = InferenceConfig(tiling="overlap", mirror_axes=(0,))
    window = SlidingWindow([build(network)], network, patch=patch, inference=inference, device=META)
    with OneDevice() as mode:
        posterior = window.posterior(np.zeros((1, *(5, 16, 16)[-network.axes :]), dtype=np.float32))
    np.testing.assert_allclose(posterior, 1 / network.classes, rtol=1e-6)
    assert (len(read), checked.count) == (1, 1)  # the posterior, and whether it is finite
    assert mode.operations > 100


def test_what_a_gpu_refuses_is_refused():
    """In the backward pass too."""

    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad[(grad > 0).nonzero()[:, 0]]

    x, ours = torch.ones(3, 3, device=META, requires_grad=True), torch.ones(3, 3)
    with OneDevice():
        assert (x * torch.tensor(2.0)).device == META  # single numbers may be the CPU's
        for mixed in (lambda: x @ ours, lambda: torch.cat([x, ours]), lambda: torch.where(x > 0, x, ours)):
            with pytest.raises((AssertionError, RuntimeError), match="device"):
                mixed()
        values = x.detach()
        for waits in (
            lambda: x[x > 0],
            lambda: float(values.sum()),
            lambda: x.long().flatten().bincount(),
            lambda: Waits.apply(x).sum().backward(),
        ):
            with pytest.raises(AssertionError, match="waits for the device"):
                waits()
        with pytest.raises(NotImplementedError, match="meta"):
            x.cpu()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_a_training_step_waits_at_most_four_times(tmp_path):
    cuda = torch.device("cuda")
    plan = tiny_plan(FUSED, dice_weight=1.0, ema=0.9)
    trainer = MRETrainer(plan, [tiny_case()], folder=tmp_path, device=cuda)
    trainer.network.train()
    for pinned in (False, True):
        tensors = [tensor.pin_memory() if pinned else tensor for tensor in batch(FUSED)]
        with gpu_check.counted_waits(cuda) as counted:
            trainer.step(*tensors)
    assert counted["waits"] <= MOST_WAITS


@settings(max_examples=30, derandomize=True)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=9), st.integers(1, 5))
def test_positions_and_counts_are_those_of_the_operations_that_wait(rows, classes):
    mask = torch.tensor(rows)
    assert torch.equal(positions(mask, int(mask.sum())), mask.flatten().nonzero()[:, 0])
    labels = torch.arange(mask.numel()).view_as(mask) % (classes + 2) - 1  # -1 and ``classes`` are not counted
    valid = labels[(labels >= 0) & (labels < classes)]
    assert torch.equal(counts_of(labels, classes), torch.bincount(valid, minlength=classes))


def kept_gb(network: NetworkConfig, recompute: bool, size: tuple[int, ...] = (12, 36, 36)) -> float:
    """GB of a patch that the forward pass keeps for the gradients, parameters apart."""
    with torch.device(META):
        made = MRENet(network)
    made.train()
    made.recompute(recompute)
    own = {p.untyped_storage()._cdata for p in made.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    image, maps = (torch.zeros((2, n, *size), device=META) for n in (network.in_channels, network.location_channels))
    with saved_tensors_hooks(note, lambda tensor: tensor):
        made(image, maps)
    return sum(storage.nbytes() for storage in kept.values()) / 2e9


def test_the_planned_memory_of_a_patch_is_above_what_the_network_keeps():
    for name, network in (("mre_net", PAPER), ("unet", replace(PAPER, **UNET_NETWORK))):
        for planned, recompute in zip(PATCH_GB[name], (False, True), strict=True):
            assert 1.3 < planned / kept_gb(network, recompute) < 2.4
        assert 1.3 < PATCH_GB[name][0] / kept_gb(network, recompute=False) < 1.5


def test_a_training_goes_on_with_adam_of_another_device():
    """Fused, it counts its steps on the device; otherwise on the CPU. The numbers are the same to rounding."""
    config = OptimizerConfig(learning_rate=1e-2)
    results = []
    for first, second in ((None, None), (None, True), (True, None)):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(5))
        saved = None
        for fused in (first, second):
            optimizer = adam([weight], config, torch.device("cpu"))
            optimizer.param_groups[0]["fused"] = fused
            if saved:
                load_adam(optimizer, saved)
                assert optimizer.param_groups[0]["fused"] is fused
            for n in range(3):
                weight.grad = torch.sin(torch.arange(5.0) + n)
                optimizer.step()
            saved = optimizer.state_dict()
        assert float(saved["state"][0]["step"]) == 6
        results.append(weight.detach())
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_adam_counts_where_a_new_training_does(monkeypatch):
    weight = torch.nn.Parameter(torch.randn(3, device=META))
    optimizer = adam([weight], OptimizerConfig(), META)
    moments = {name: torch.zeros(3, device=META) for name in ("exp_avg", "exp_avg_sq")}
    saved = optimizer.state_dict() | {"state": {0: {"step": torch.tensor(4.0, device=META), **moments}}}
    moved = partial(torch.full, fill_value=4.0)
    monkeypatch.setattr(Tensor, "to", lambda t, *a, **k: moved(t.shape, device=k.get("device", *a)))
    load_adam(optimizer, saved)
    assert optimizer.state[weight]["step"].device.type == "cpu"


def test_the_average_is_torchs(tmp_path):
    torch.manual_seed(0)
    network = build(TINY)
    ours = MovingAverage(network, 0.9)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        with torch.no_grad():
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.add_(1) if tensor.dtype == torch.long else tensor.add_(torch.randn_like(tensor))
        ours.update_parameters(network)
        theirs.update_parameters(network)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_tf32_is_off_in_products_and_convolutions_unless_a_training_asks_for_it(tmp_path):
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    try:
        devices.resolve("cpu")
        assert [flag.allow_tf32 for flag in flags] == [False, False]
        with devices.fixed_shapes(tf32=True):
            assert [flag.allow_tf32 for flag in flags] == [True, True]
            assert torch.backends.cudnn.benchmark
        assert [flag.allow_tf32 for flag in flags] == [False, False]
        assert not torch.backends.cudnn.benchmark
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value
    with pytest.raises(UserError, match="precision tf32: only for cuda devices"):
        MRETrainer(tiny_plan(precision="tf32"), [tiny_case()], folder=tmp_path, device=torch.device("cpu"))


def test_a_gpu_gets_loader_processes_and_leaves_a_core(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16), raising=False)
    cuda = torch.device("cuda")
    assert [devices.loader_processes(cuda, count) for count in (1, 4, 8, 16)] == [4, 3, 1, 0]
    assert devices.loader_processes(torch.device("cpu")) == 0


def test_the_check_on_a_gpu_says_that_there_is_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--json", str(tmp_path / "found.json")]) == 2
    assert "no CUDA device was found" in capsys.readouterr().err
    assert gpu_check.main(["--quick", "--json", str(tmp_path / "no folder/found.json")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err


def test_the_check_on_a_gpu_runs_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingLog, "draw", lambda self: None)
    monkeypatch.setattr(gpu_check, "STEPS", 9)
    path = tmp_path / "found.json"
    assert gpu_check.main(["--quick", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    training = found["training float32"]
    assert (training["patches"], training["precision"], training["waits_in_a_step"]) == (2, "float32", None)
    assert training["iteration_seconds"]["median"] > 0
    assert len(training["iteration_seconds"]["values"]) == 2
    assert found["prediction float32"]["seconds"] > 0
    assert found["refinement"]["seconds"] > 0
    assert "tests" not in found


def test_a_part_of_the_check_that_fails_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "train", lambda *_: 1 / 0)
    monkeypatch.setattr(gpu_check, "predict", lambda *_: {"seconds": 1.0})
    path = tmp_path / "found.json"
    assert gpu_check.main(["--quick", "--json", str(path)]) == 1
    found = json.loads(path.read_text())
    assert found["training float32"] == {"problem": "ZeroDivisionError: division by zero"}
    assert found["prediction float32"] == {"seconds": 1.0}
