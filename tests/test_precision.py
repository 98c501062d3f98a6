"""Mixed precision and determinism: refusals, what the steps compute, repeatability."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from conftest import SETTINGS
from hypothesis import given, settings
from hypothesis import strategies as st
from references import TINY, TINY_2D, single_thread, tiny_case, tiny_plan, with_settings  # noqa: F401
from torch import nn
from torch.nn import functional as F

from mre_lowshot import devices
from mre_lowshot.errors import NumericalError, UserError
from mre_lowshot.network.build import build
from mre_lowshot.network.head import PrototypeHead
from mre_lowshot.network.optimized.fused_head import fused_logits
from mre_lowshot.network.resize import block_mean, separable_upsample
from mre_lowshot.trainers.precision import TOLERANCE, chosen, gradient_gap
from mre_lowshot.trainers.trainer import MRETrainer
from mre_lowshot.trainers.training_log import TrainingLog

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setattr(TrainingLog, "draw", lambda self: None)


@pytest.fixture
def restored():
    """Undo `make_deterministic`, which sets the whole process, after the test."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    variable = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if variable is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = variable


class WrongWhenLow(nn.Conv3d):
    """A convolution whose weight gradient is twice too large outside float32."""

    def forward(self, x):
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            weight = 2 * weight - weight.detach()
        return F.conv3d(x, weight, self.bias, padding=1)


def test_auto_is_single_precision_on_the_cpu(tmp_path):
    assert chosen("auto", CPU) == "float32"
    trainer = MRETrainer(tiny_plan(), [tiny_case()], folder=tmp_path, device=CPU)
    assert trainer.precision.name == "float32"
    with trainer.precision.autocast():
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_network_with_correct_gradients_can_be_trained_in_low_precision(tmp_path, precision):
    """On the CPU the layers' gradients are compared first. The weights stay in single precision, and it learns."""
    losses = {}
    for name in ("float32", precision):
        plan = tiny_plan(precision=name, iterations=20, batch_size=4, learning_rate=1e-2)
        try:
            trainer = MRETrainer(plan, [tiny_case()], folder=tmp_path / name, device=CPU)
        except UserError as refused:  # this machine's kernels are wrong, and the check reports it
            pytest.skip(str(refused))
        dtypes = set()
        trainer.network.backbone.encoder[1][0].register_forward_hook(lambda m, x, y: dtypes.add(y.dtype))  # noqa: B023
        trainer.fit()
        losses[name] = trainer.training_log.history["loss"]
        assert dtypes == {torch.float32 if name == "float32" else {"bf16": torch.bfloat16, "fp16": torch.float16}[name]}
        assert {p.dtype for p in trainer.network.parameters()} == {torch.float32}
    assert losses[precision][0] == pytest.approx(losses["float32"][0], rel=0.02)
    assert losses[precision][0] != losses["float32"][0]
    for loss in losses.values():
        assert sum(loss[-5:]) < 0.8 * sum(loss[:5])


def test_wrong_gradients_in_low_precision_are_refused(tmp_path, monkeypatch):
    network = build(TINY)
    layer = network.backbone.encoder[1][0]
    layer.__class__ = WrongWhenLow
    gap, where = gradient_gap(network, tiny_plan(), torch.float16)
    assert where == "backbone.encoder.1.0"
    assert gap == pytest.approx(1, abs=0.05)  # twice as large: off by its whole length
    monkeypatch.setattr("mre_lowshot.trainers.trainer.build", lambda spec: network)
    with pytest.raises(UserError, match=r"recipe.optimizer.precision fp16: .*backbone.encoder.1.0.* set it to float32"):
        MRETrainer(tiny_plan(precision="fp16"), [tiny_case()], folder=tmp_path, device=CPU)
    assert MRETrainer(tiny_plan(), [tiny_case()], folder=tmp_path, device=CPU).precision.name == "float32"


FUSED = replace(TINY, embedding_dim=48)


def test_the_fused_head_makes_its_scores_in_float32_under_autocast():
    """Features that are exact in bfloat16: the scores, and the gradients that come through them, are float32's. What is
    left is |e|, the mean of many roundings."""
    torch.manual_seed(0)
    spec = replace(TINY, embedding_dim=300, mixing_dim=24, prototypes_per_class=3)
    head, fusion = PrototypeHead(spec, 300), nn.Conv3d(96, 300, 1)
    features, weights = torch.randn(2, 64, 4, 8, 8).bfloat16(), torch.randn(2, 3, 4, 8, 8)
    pooled = torch.randn(2, 32).bfloat16().float()
    found = []
    for low in (False, True):
        given = features if low else features.float()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = fused_logits(given, pooled, fusion, head)
        gradients = torch.autograd.grad((logits * weights).sum(), head.mixer.parameters())
        found.append((logits.detach(), *gradients))
    for exact, ours in zip(*found, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() < 2e-3 * exact.norm()


def test_the_check_of_gradients_covers_the_fused_head(monkeypatch):
    network = build(FUSED)
    assert network.fused
    assert gradient_gap(network, tiny_plan(FUSED), None)[0] == 0
    assert gradient_gap(network, tiny_plan(FUSED), torch.bfloat16)[0] < TOLERANCE

    def wrong(features, pooled, fusion, head):
        logits = fused_logits(features, pooled, fusion, head)
        return 2 * logits - logits.detach() if torch.is_autocast_enabled("cpu") else logits

    monkeypatch.setattr("mre_lowshot.trainers.precision.fused_logits", wrong)
    gap, where = gradient_gap(network, tiny_plan(FUSED), torch.bfloat16)
    assert where == "head"
    assert gap > 0.9


def test_auto_takes_float32_where_the_check_finds_wrong_gradients(tmp_path, monkeypatch):
    def refuse(*_):
        raise UserError("layer x is wrong")

    monkeypatch.setattr("mre_lowshot.trainers.precision.chosen", lambda name, device: "bf16")
    monkeypatch.setattr("mre_lowshot.trainers.precision.check_gradients", refuse)
    trainer = MRETrainer(tiny_plan(precision="auto"), [tiny_case()], folder=tmp_path, device=CPU)
    assert trainer.precision.name == "float32"
    assert "trained in float32: layer x is wrong" in trainer.training_log.path.read_text()
    with pytest.raises(UserError, match="layer x is wrong"):
        MRETrainer(tiny_plan(precision="bf16"), [tiny_case()], folder=tmp_path, device=CPU)


@pytest.mark.parametrize("spec", [TINY, TINY_2D, replace(TINY, norm="instance", image_level_norm=False)])
def test_the_check_of_gradients_finds_no_difference_where_there_is_none(spec):
    """In float32 against itself; and it leaves the network as it was."""
    network = build(spec)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert gradient_gap(network, tiny_plan(spec), None)[0] == 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert 0 < TOLERANCE < 1


def test_an_overflow_in_half_precision_skips_a_step_and_halves_the_scale(tmp_path):
    trainer = MRETrainer(tiny_plan(iterations=20), [tiny_case()], folder=tmp_path, device=CPU)
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    weight = trainer.network.backbone.encoder[0][0].weight
    weight.register_hook(lambda g: g * float("inf") if trainer.iteration == 1 else g)
    values = []

    def record(trainer):
        values.append(weight.detach().clone())

    trainer.plan = replace(trainer.plan, recipe=with_settings(trainer.plan.recipe, iterations=3))
    trainer.fit(on_step=record)
    assert torch.equal(values[0], values[1])  # the second step was skipped
    assert not torch.equal(values[1], values[2])
    assert trainer.precision.scaler.get_scale() == 2.0**15
    again = MRETrainer(trainer.plan, [tiny_case()], folder=tmp_path, device=CPU)
    again.precision.scaler = torch.amp.GradScaler("cpu")
    again.resume()
    assert again.precision.scaler.state_dict() == trainer.precision.scaler.state_dict()
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-11)
    with pytest.raises(NumericalError, match="fp16 overflows"):
        trainer.precision.may_skip()


def test_scaling_the_loss_changes_nothing_else(tmp_path):
    """Powers of two: the same weights to the bit."""
    plain = MRETrainer(tiny_plan(), [tiny_case()], folder=tmp_path / "plain", device=CPU)
    scaled = MRETrainer(tiny_plan(), [tiny_case()], folder=tmp_path / "scaled", device=CPU)
    scaled.precision.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plain.fit()
    scaled.fit()
    assert all(torch.equal(a, b) for a, b in zip(plain.network.parameters(), scaled.network.parameters(), strict=True))


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=2, max_size=3), st.integers(0, 99))
def test_deterministic_pooling_and_upsampling_are_torchs(axes, seed):
    """Values and gradients, in double precision."""
    small, stride = [n for n, _ in axes], [s for _, s in axes]
    large = [n * s for n, s in axes]
    generator = torch.Generator().manual_seed(seed)
    mode, pool = ("trilinear", F.avg_pool3d) if len(axes) == 3 else ("bilinear", F.avg_pool2d)
    pairs = (
        (small, lambda x: separable_upsample(x, large), lambda x: F.interpolate(x, size=large, mode=mode)),
        (large, lambda x: block_mean(x, stride), lambda x: pool(x, stride, stride)),
    )
    for size, ours, theirs in pairs:
        x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
        found = []
        for function in (ours, theirs):
            leaf = x.clone().requires_grad_()
            y = function(leaf)
            weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
            found.append((y.detach(), *torch.autograd.grad((y * weights).sum(), leaf)))
        torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_upsampling_to_sides_that_are_no_multiple():
    x = torch.randn(1, 2, 3, 5, 4, dtype=torch.float64)
    for size in ((7, 5, 9), (3, 11, 4), (2, 3, 3)):
        wanted = F.interpolate(x, size=size, mode="trilinear")
        torch.testing.assert_close(separable_upsample(x, size), wanted, rtol=1e-10, atol=1e-12)


def test_the_deterministic_switch_is_set_recorded_and_harmless_on_the_cpu(space, restored):
    fold = space.model() / "fold_0"
    wanted = torch.load(fold / "checkpoint_final.pth", weights_only=True)["weights"]
    assert space.train("--overwrite", "--no_val", "--deterministic") == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert '"deterministic": true' in (fold / "debug.json").read_text()
    found = torch.load(fold / "checkpoint_final.pth", weights_only=True)["weights"]
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.slow
def test_any_number_of_loader_workers_gives_the_same_checkpoint(space):
    """Two scans, one registered to the other: the registration repeats too."""
    weights = []
    for workers in (0, 2):
        assert space.train("--overwrite", "--no_val", "--workers", workers, level="2shot") == 0
        final = space.model(level="2shot") / "fold_0/checkpoint_final.pth"
        weights.append(torch.load(final, weights_only=True))
    one, other = weights
    assert all(torch.equal(one["weights"][name], value) for name, value in other["weights"].items())
    assert one["training"]["history"] == other["training"]["history"]


def test_an_unknown_precision_is_refused_by_the_plan(space, capsys):
    assert space.plan(name="Wrong", settings=(*SETTINGS, "recipe.optimizer.precision=bf15")) == 2
    assert "'auto', 'float32', 'tf32', 'bf16', 'fp16'" in capsys.readouterr().err


@needs_cuda
@pytest.mark.parametrize("spec", [TINY, TINY_2D])
def test_on_cuda_the_deterministic_switch_repeats_to_the_bit(tmp_path, restored, spec):
    devices.make_deterministic()
    runs = []
    for n in (0, 1):
        case = tiny_case()
        if spec is TINY_2D:
            case = replace(case, image=case.image[:, 3].copy(), label=case.label[3], spacing=(1.0, 1.0))
        trainer = MRETrainer(
            tiny_plan(spec, dice_weight=1.0), [case], folder=tmp_path / str(n), device=torch.device("cuda")
        )
        trainer.fit()
        runs.append(trainer.network.state_dict())
    assert all(torch.equal(runs[0][name], value) for name, value in runs[1].items())


@needs_cuda
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_on_cuda_learns_as_single_does(tmp_path, precision):
    losses = []
    for name in ("float32", precision):
        plan = tiny_plan(precision=name, iterations=8, learning_rate=3e-3)
        trainer = MRETrainer(plan, [tiny_case()], folder=tmp_path / name, device=torch.device("cuda"))
        trainer.fit()
        losses.append(trainer.training_log.history["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
