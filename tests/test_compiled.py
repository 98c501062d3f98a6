"""Prediction through torch.compile: the same results for frequent shapes; any failure is reported once and aborts
nothing. Stand-ins replace the compiler, which takes seconds, where its own work is not tested."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from references import TINY, TINY_2D, single_thread  # noqa: F401
from test_fast_inference import KEEPS, batch
from test_fast_inference import trained as with_statistics

from mre_lowshot.config import InferenceConfig, PatchConfig
from mre_lowshot.data.volume import read_labels
from mre_lowshot.inference import compiled
from mre_lowshot.inference.compiled import Compiler, most_frequent_first
from mre_lowshot.inference.sliding_window import SlidingWindow
from mre_lowshot.inference.tiles import centre_tiles
from mre_lowshot.network.optimized.inference import InferenceNetwork

CPU = torch.device("cpu")
PATCH = PatchConfig((4, 8, 8), (2, 4, 6))
REAL = torch.compile


def window(networks, messages, **kwargs):
    inference = InferenceConfig(mirror_axes=(2,))
    return SlidingWindow(
        networks, TINY, patch=PATCH, inference=inference, device=CPU, tile_batch=2, log=messages.append, **kwargs
    )


def scan(seed=0):
    return np.random.default_rng(seed).normal(size=(1, 12, 20, 26)).astype(np.float32)


def folds():
    return [with_statistics(TINY, seed) for seed in range(2)]


@cache
def uncompiled(seed):
    return window(folds(), []).posterior(scan(seed))


def refuses(network, **_):
    raise RuntimeError("no compiler here\n\nand much more to read")


def fails_at_first(network, **_):
    def call(*_):
        raise RuntimeError("no compiler here\n\nand much more to read")

    return call


def fails_later(network, **_):
    calls = []

    def call(*arguments):
        calls.append(1)
        if len(calls) > 4:
            raise torch.OutOfMemoryError("no compiler here\nand much more to read")
        return network(*arguments)

    return call


def differs(network, **_):
    return lambda *arguments: -network(*arguments)


@pytest.mark.parametrize(
    ("stand_in", "words"),
    [(refuses, "no compiler here"), (fails_at_first, "no compiler here"), (fails_later, "no compiler here"),
     (differs, "of the labels agree with the uncompiled network, probabilities differ by")],
)  # fmt: skip
@pytest.mark.slow
def test_any_failure_is_reported_once_and_the_prediction_is_that_of_the_uncompiled_networks(
    monkeypatch, stand_in, words
):
    monkeypatch.setattr(torch, "compile", stand_in)
    networks, messages = folds(), []
    tried = window(networks, messages, compile=True)
    for seed in range(2):
        np.testing.assert_allclose(tried.posterior(scan(seed)), uncompiled(seed), atol=1e-5)
    (line,) = [line for line in messages if "not used" in line]
    assert line.startswith("torch.compile is not used: ")
    assert line.endswith(words) or words in line
    assert "\n" not in line
    assert "much more" not in line


@pytest.mark.slow
def test_the_most_frequent_shapes_run_compiled_and_the_others_uncompiled(monkeypatch):
    ran, networks, messages = Counter(), folds(), []

    def stand_in(network, **_):
        def call(image, coordinates, keep):
            ran[len(image), tuple(keep)] += 1
            return network(image, coordinates, keep)

        return call

    monkeypatch.setattr(torch, "compile", stand_in)
    tried = window(networks, messages, compile=True)
    image = scan()
    for _ in range(2):
        np.testing.assert_allclose(tried.posterior(image), uncompiled(0), atol=1e-5)
    tiles = most_frequent_first(list(centre_tiles(image.shape[1:], PATCH.size, PATCH.centre)))
    assert (2, tiles[0].keep) in ran
    assert len(ran) == 3 == len(tried.compiler.shapes) == len(messages)
    assert all("compiling the network for 2 tiles" in line for line in messages)
    assert tried.compiler.problem is None


def test_tiles_are_grouped_by_the_part_that_they_keep_the_largest_group_first():
    tiles = list(centre_tiles((12, 20, 26), PATCH.size, PATCH.centre))
    ordered = most_frequent_first(tiles)
    assert sorted(ordered, key=lambda tile: tile.start) == sorted(tiles, key=lambda tile: tile.start)
    count, runs = Counter(tile.keep for tile in tiles), list(dict.fromkeys(tile.keep for tile in ordered))
    assert [tile.keep for tile in ordered] == [keep for keep in runs for _ in range(count[keep])]
    assert [count[keep] for keep in runs] == sorted(count.values(), reverse=True)


def test_out_of_memory_is_raised_before_anything_is_compiled_and_ends_compilation_afterwards(monkeypatch):
    (network,), room = Compiler(CPU, (messages := []).append).wrap([InferenceNetwork(with_statistics(TINY))]), [0]
    image, maps = batch(TINY)
    inner = network.network.forward

    def forward(image, coordinates=None, keep=None):
        if len(image) > room[0]:
            room[0] += 3  # memory that was held is freed
            raise torch.OutOfMemoryError("no room")
        return inner(image, coordinates, keep)

    monkeypatch.setattr(network.network, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        network(image, maps)
    assert messages == []
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    wanted = network(image, maps)
    for _ in range(3):
        network(image, maps)
    room[0] = 0
    assert torch.equal(network(image, maps), wanted)
    assert messages[1:] == ["torch.compile is not used: no room"]


PLAIN = {"prototype_head": False, "multiscale": False, "coordinates": "none", "embedding_dim": 0}
VARIANTS = [
    (3, {"embedding_dim": 48, "dilations": ((1, 2, 2), (9, 9, 9))}),
    (3, {"norm": "instance", "image_level_norm": False, "coordinates": "patch"}),
    (3, PLAIN),
    (2, {}),
    (2, {"embedding_dim": 48, "dilations": ((2, 2), (9, 9)), "coordinates": "patch"}),
]


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty compile cache before and after."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "MIN_OCCURRENCES", 1)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("axes", "changes"), VARIANTS, ids=str)
def test_the_compiler_can_read_the_whole_network(monkeypatch, changes, axes):
    monkeypatch.setattr(torch, "compile", lambda n, mode, **others: REAL(n, backend="eager", **others))
    spec = replace(TINY if axes == 3 else TINY_2D, **changes)
    compiler = Compiler(CPU, (messages := []).append)
    (network,) = compiler.wrap([InferenceNetwork(with_statistics(spec))])
    arguments = (*batch(spec), KEEPS[axes][1])
    with torch.inference_mode():
        torch.testing.assert_close(network(*arguments), network.network(*arguments))
    assert compiler.problem is None
    assert len(messages) == 1


@pytest.mark.usefixtures("fresh")
@pytest.mark.slow
def test_without_a_compiler_the_network_runs_uncompiled():
    import torch._inductor.config as settings

    compiler = Compiler(CPU, (messages := []).append)
    (network,) = compiler.wrap([InferenceNetwork(with_statistics(replace(TINY, **PLAIN)))])
    arguments = (*batch(TINY), KEEPS[3][1])
    # torch's own patch: any other way of undoing it would remove the setting for the tests that follow
    with settings.patch({"cpp.cxx": ("no-such-compiler",)}), torch.inference_mode():
        assert torch.equal(network(*arguments), network.network(*arguments))
    assert "torch.compile is not used: " in messages[-1]
    assert "no-such-compiler" in messages[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
def test_compiled_networks_give_the_results_of_uncompiled_ones():
    """The second fold's network runs the first one's code with its own weights."""
    compiler = Compiler(CPU, (messages := []).append)
    spec = replace(TINY, embedding_dim=48, dilations=((1, 2, 2),))
    networks = compiler.wrap([InferenceNetwork(with_statistics(spec, seed)) for seed in range(2)])
    arguments = (*batch(spec), KEEPS[3][1])
    with torch.inference_mode():
        for network in networks:
            for _ in range(2):
                torch.testing.assert_close(network(*arguments), network.network(*arguments), rtol=1e-4, atol=1e-5)
    assert compiler.problem is None
    assert compiler.seconds > 0
    assert len(messages) == 1


@pytest.mark.usefixtures("one_thread_only", "no_settings")
def test_the_command_continues_without_a_compiler_with_a_note(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compiled, "MIN_OCCURRENCES", 1)
    monkeypatch.setattr(torch, "compile", refuses)
    scan = trained.raw / "imagesTr/phantom_002_0000.nii.gz"
    for out, arguments in (("wanted", ()), ("found", ("--compile",))):
        assert trained.predict(scan, tmp_path / out, *arguments) == 0
    errors = capsys.readouterr().err
    assert errors.count("note: torch.compile is not used: no compiler here\n") == 1
    wanted, found = (read_labels(tmp_path / out / "phantom_002.nii.gz").array for out in ("wanted", "found"))
    assert (wanted == found).mean() > 0.999
