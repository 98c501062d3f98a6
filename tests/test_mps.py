"""MPS is taken where it computes what the CPU computes. There is no such device here: a fake one stands in for it."""

import os

import pytest
import torch
from torch.nn import functional as F

from mre_lowshot import devices
from mre_lowshot.errors import UserError


@pytest.fixture
def fake(monkeypatch):
    """An MPS device that is there and right; its tensors stay on the CPU, and are marked by a class of their own."""

    class OnMps(torch.Tensor):
        pass

    compare = devices.difference_from_cpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(devices, "difference_from_cpu", lambda _: compare(lambda t: t.clone().as_subclass(OnMps)))
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, device=None, **k: zeros(*a, **k))
    devices.mps_problem.cache_clear()
    yield OnMps
    devices.mps_problem.cache_clear()


def breaks(monkeypatch, kind, name, change):
    """The fake device's ``name`` of torch.nn.functional gives something else."""
    right = getattr(F, name)

    def wrong(x, *others, **more):
        return change(right(x, *others, **more)) if isinstance(x, kind) else right(x, *others, **more)

    monkeypatch.setattr(devices.F, name, wrong)


def test_a_right_device_is_taken_by_auto_and_by_name(fake):
    assert devices.resolve("auto") == torch.device("mps")
    assert devices.resolve("mps") == torch.device("mps")


def test_cuda_comes_first(fake, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.resolve("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("conv3d", "3D convolution"),
        ("avg_pool3d", "3D average pooling"),
        ("batch_norm", "batch norm"),
        ("interpolate", "trilinear interpolation"),
        ("cross_entropy", "cross-entropy"),
    ],
)
def test_a_wrong_operation_is_named_and_auto_takes_the_cpu(fake, monkeypatch, name, said):
    breaks(monkeypatch, fake, name, lambda y: y * 1.1)
    assert devices.resolve("auto") == torch.device("cpu")
    with pytest.raises(
        UserError, match=rf"-device mps: its {said} is wrong \(relative error 0\.\d+.*\); use cpu or auto"
    ):
        devices.resolve("mps")


def test_a_wrong_gradient_is_noticed_even_where_the_output_is_right(fake, monkeypatch):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(_, y):
            return y.clone()

        @staticmethod
        def backward(_, gradient):
            return gradient * 0.9

    breaks(monkeypatch, fake, "conv3d", Wrong.apply)
    assert devices.resolve("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="3D convolution is wrong"):
        devices.resolve("mps")


def test_nan_is_noticed(fake, monkeypatch):
    breaks(monkeypatch, fake, "conv3d", lambda y: y * torch.nan)
    assert devices.resolve("auto") == torch.device("cpu")


def test_a_missing_operation_is_named(fake, monkeypatch):
    def missing(y):
        raise NotImplementedError("The operator 'aten::x' is not implemented for MPS\nmore")

    breaks(monkeypatch, fake, "conv3d", missing)
    with pytest.raises(UserError, match=r"-device mps: it lacks 3D convolution \(The operator 'aten::x' is not impl"):
        devices.resolve("mps")
    assert devices.resolve("auto") == torch.device("cpu")


@pytest.mark.parametrize(("built", "part"), [(False, "built without it"), (True, "Apple silicon")])
def test_without_such_a_device_it_is_refused_with_the_reason(monkeypatch, built, part):
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    devices.mps_problem.cache_clear()
    with pytest.raises(UserError, match=f"-device mps: not available .*{part}.*; use cpu or auto"):
        devices.resolve("mps")
    devices.mps_problem.cache_clear()


def test_the_cpu_agrees_with_itself():
    assert devices.difference_from_cpu(lambda tensor: tensor.clone()) == ""


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="Windows has no sysconf")
def test_the_memory_of_the_machine_is_found_on_every_system():
    expected = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    assert devices.memory_gb(torch.device("cpu")) == expected
