"""The steps after the network in torch: against the plain reference, in parts of any size, and on torch's ``meta``
device, where mixed devices are refused and the waits for the device are counted."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_device import META, OneDevice, Reads
from prepared_scans import registered_scan
from references import TINY, tiny_case, tiny_plan
from skimage.transform import resize

from benchmarks import plain_refinement as plain
from mre_lowshot import devices, transfers
from mre_lowshot.atlas import lesions
from mre_lowshot.atlas.alignment import PreviousPass
from mre_lowshot.atlas.atlas import Atlas
from mre_lowshot.atlas.label_fusion import AtlasPrior
from mre_lowshot.config import InferenceConfig, MinHu, PatchConfig
from mre_lowshot.evaluation import agreement
from mre_lowshot.filters import resized_linear
from mre_lowshot.grid import argmax_resized, box_above, coordinate_maps, sample_shares, voxel_positions
from mre_lowshot.inference import export, quality, sliding_window
from mre_lowshot.inference.models import Model
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.inference.sliding_window import SlidingWindow
from mre_lowshot.network.build import build
from mre_lowshot.refinement import calibration, crf
from mre_lowshot.refinement.em import em_step
from mre_lowshot.refinement.fusion import fuse_posteriors
from mre_lowshot.refinement.pipeline import RefinementSettings, refine

SEEDS, SIZES = st.integers(0, 2**32 - 1), st.lists(st.integers(1, 7), min_size=2, max_size=3)


@pytest.fixture
def reads(monkeypatch) -> Reads:
    counted = Reads()
    for module in (transfers, agreement, calibration, crf, export, quality, sliding_window):
        monkeypatch.setattr(module, "to_host", counted)
    return counted


def shares(rng: np.random.Generator, classes: int, size: tuple[int, ...]) -> np.ndarray:
    """Class probabilities (K, *size), with some zeros and some voxels of certain background."""
    drawn = np.exp(rng.normal(0, 3, (classes, *size))) * (rng.random((classes, *size)) > 0.2)
    drawn[0] += 1e-3
    drawn[1:, rng.random(size) < 0.3] = 0
    return (drawn / drawn.sum(axis=0)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(SEEDS, SIZES, st.integers(2, 4), st.sampled_from([1, 7, 10**6]), st.integers(1, 2))
def test_each_step_equals_the_plain_reference_in_parts_of_any_size(seed, size, classes, chunk, channels):
    rng = np.random.default_rng(seed)
    p, q = shares(rng, classes, size), shares(rng, classes, size)
    q[:, 0] = 1 / classes  # no information
    image = rng.normal(0, 1, (channels, *size)).astype(np.float32)
    image[-1, 0] = 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(devices, "CHUNK", chunk)
        fused = fuse_posteriors(p, q, 0.3)
        np.testing.assert_allclose(fused, plain.fuse(p, q, 0.3), atol=1e-5)
        ours = p.copy()
        em_step(ours, image, 0.7)
        near = (1 - p[0] > 0.02).any()
        np.testing.assert_allclose(ours, plain.em_step(p, image, 0.7) if near else p, atol=2e-5)
        ours = p.copy()
        crf.crf_mean_field(ours, image, 1.5)
        box = box_above(torch.from_numpy(1 - p[0]), 0.02)
        if box is None:
            assert np.array_equal(ours, p)
        else:
            inside = (slice(None), *(slice(*side) for side in box))
            wanted = plain.mean_field(p[inside], plain.neighbour_similarity(image[inside]), 1.5)
            np.testing.assert_allclose(ours[inside], wanted, atol=2e-5)
            ours[inside] = p[inside]
            assert np.array_equal(ours, p)  # nothing else has changed
        if len(size) == 3:
            new = tuple(rng.integers(1, 12, 3).tolist())
            resized = np.stack([torch.from_numpy(plain.resize_linear(channel, new)) for channel in p])
            clear = np.ptp(np.partition(resized, -2, axis=0)[-2:], axis=0) > 1e-5
            assert np.array_equal(argmax_resized(p, new)[clear], plain.native_labels(p, new)[clear])
        label = rng.integers(0, classes, size).astype(np.int16)
        label[:1] = 0
        positions = rng.uniform(-2, 8, (len(size), 3, *size[1:]))
        np.testing.assert_allclose(
            sample_shares(label, positions, classes), plain.warped_shares(label, positions, classes), atol=1e-5
        )


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.tuples(*[st.integers(1, 14)] * 3), st.tuples(*[st.integers(1, 14)] * 3))
def test_images_resized_linearly_are_those_of_scikit_image(seed, old, new):
    image = np.random.default_rng(seed).normal(size=(2, *old)).astype(np.float32)
    shrinks = any(n < o for n, o in zip(new, old, strict=True))
    wanted = [resize(c, new, order=1, mode="edge", anti_aliasing=shrinks, preserve_range=True) for c in image]
    found = resized_linear(torch.from_numpy(image), new)
    np.testing.assert_allclose(found, np.stack(wanted), atol=1e-5)
    constant = resized_linear(torch.full((1, *old), 0.1), new)
    assert (constant == constant.flatten()[0]).all()  # rounding gives it no texture


def test_the_refinement_keeps_to_the_device_and_waits_for_it_a_few_times(reads):
    """Every step, with lesions, limits, two channels, and two atlases that are compared with the scan."""
    size, classes = (5, 9, 8), 4
    rng = np.random.default_rng(0)
    labels = [rng.integers(-1, classes, size).astype(np.int16) for _ in range(2)]
    images = tuple(rng.random(size).astype(np.float32) for _ in labels)
    prior = AtlasPrior(tuple(labels), classes, 1, images)
    at = coordinate_maps(voxel_positions([0] * 3, size), size)
    posterior, image = torch.empty((classes, *size), device=META), torch.empty((2, *size), device=META)
    config = replace(tiny_plan().recipe.refinement, atlas_weight=0.4, em_weight=1.0, crf_weight=2.0)
    limits = (MinHu(1, 0, 0.1), MinHu(2, 1, 0.2))
    wanted = RefinementSettings(config, limits, registrations=2.0, lesions=(3,))
    with OneDevice() as mode:
        warped = prior.fuse_labels(np.concatenate([at, at]), image, device=META)
        assert warped.device == META
        assert reads.count == 4  # of each atlas the voxels between labels, and those at its edge
        quality.estimate_quality(posterior, warped, wanted.lesions)
        assert reads.count == 6
        refined = refine(posterior, warped, image, wanted)
        assert (refined.device, reads.count) == (META, 9)  # near voxels; their box; differences of intensities
        passes = PreviousPass.each([at], refined, (3.0, 1.0, 1.0))
        assert lesions.organ_shares(passes[0].shares, (3,)).device == META
        calibration.find_temperature(refined, 0.5)
        before = reads.count
        assert argmax_resized(refined, (7, 9, 20), floor=0.1).shape == (7, 9, 20)
        assert reads.count == before + classes  # a box for each class but the first, and the label map
    assert mode.operations > 200


def test_a_prediction_on_a_device_is_refined_there(reads, monkeypatch):
    case = tiny_case()
    plan = tiny_plan(replace(TINY, atlas_prior=True), atlas_weight=0.4, em_weight=0.5, crf_weight=2.0)
    predictor = Predictor(Model.of_fold(plan, build(plan.network), (Atlas.of(case),)), device=META)
    at = coordinate_maps(voxel_positions([0] * 3, case.label.shape), case.label.shape)
    with OneDevice():
        output = predictor.run_network(registered_scan(case.image, (at,)))
        refined = predictor.refine(output)
        assert {t.device for t in (output.image, output.posterior, output.warped, refined.probabilities)} == {META}
        prediction = predictor.export(refined)
    assert isinstance(prediction.refined.probabilities, np.ndarray)  # the prediction holds nothing on the device
    assert prediction.labels.array.shape == case.label.shape


def test_a_scan_that_the_device_cannot_hold_is_added_up_on_the_cpu(monkeypatch):
    rule = InferenceConfig(tiling="overlap", mirror_axes=())
    window = SlidingWindow([build(TINY)], TINY, patch=PatchConfig((4, 8, 8), (2, 4, 4)), inference=rule, device=META)
    assert window._sum_device((5, 16, 16)) == META
    asked = []
    monkeypatch.setattr(sliding_window, "has_memory", lambda device, needed: asked.append((device, needed)))
    assert window._sum_device((5, 16, 16)) == torch.device("cpu")
    assert asked == [(META, 5 * 16 * 16 * 4 * (5 * TINY.classes + 12))]
    assert devices.volume_device(torch.device("mps")) == torch.device("cpu")


def test_a_step_that_runs_out_of_memory_is_repeated_on_the_cpu():
    """Tensors of a GPU are played by records, because there is none."""
    on_cpu, lines = torch.zeros(3), []
    on_gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"), cpu=lambda: on_cpu)

    def work(values):
        if values is on_gpu:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return values + 1

    assert torch.equal(devices.where_it_fits(work, on_gpu, lines.append), on_cpu + 1)
    assert ["out of memory" in line for line in lines] == [True]
    for values, problem in ((on_gpu, "a bug"), (on_cpu, "not enough memory: you tried to allocate")):
        with pytest.raises(RuntimeError, match=problem[:5]):
            devices.where_it_fits(lambda _, text=problem: (_ for _ in ()).throw(RuntimeError(text)), values, print)


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=9), SEEDS)
def test_ranked_values_are_those_of_the_sorted_ones(values, seed):
    rng, tensor = np.random.default_rng(seed), torch.tensor(values)
    ranks = rng.integers(0, len(values), 3).tolist()
    assert transfers.ranked(tensor, ranks).tolist() == [sorted(tensor.tolist())[rank] for rank in ranks]
    assert transfers.ranked(tensor.to(META), ranks).shape == (3,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_the_refinement_equals_that_on_the_cpu():
    rng = np.random.default_rng(0)
    p, q, image = shares(rng, 4, (9, 20, 17)), shares(rng, 4, (9, 20, 17)), rng.random((1, 9, 20, 17), np.float32)
    config = replace(tiny_plan().recipe.refinement, atlas_weight=0.4, em_weight=1.0, crf_weight=2.0)
    wanted = RefinementSettings(config, (MinHu(1, 0, 0.1),))
    cpu = refine(p, q, image, wanted)
    gpu = refine(*(torch.from_numpy(array).cuda() for array in (p, q, image)), wanted)
    torch.testing.assert_close(gpu.cpu(), cpu, atol=1e-5, rtol=0)
    assert np.array_equal(argmax_resized(gpu, (9, 40, 30)), argmax_resized(gpu.cpu(), (9, 40, 30)))
