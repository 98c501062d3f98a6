"""Correction of faults leaves what a scan shows: objects of any brightness stay, damage among them goes."""

from dataclasses import replace

import numpy as np
import pytest
from references import tiny_plan
from scipy.ndimage import gaussian_filter
from test_not_tissue import cut_out, head, stripped

from mre_lowshot.config import ChannelNormalization, PreprocessingConfig
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import Volume
from mre_lowshot.inference import input_checks
from mre_lowshot.preprocessing.faults import correct_faults, faulty_planes
from mre_lowshot.preprocessing.pipeline import forward


def grid(*shape):
    return np.indices(shape).astype(np.float32)


def noisy(signal, sigma=10.0, seed=0):
    """A magnitude image: Rician noise."""
    rng = np.random.default_rng(seed)
    real = signal + rng.normal(0, sigma, signal.shape)
    return np.hypot(real, rng.normal(0, sigma, signal.shape)).astype(np.float32)[None]


def ball_in_air(snr, radius=16):
    z, y, x = grid(64, 64, 64) - 32
    distance = np.sqrt(z**2 + y**2 + x**2)
    return noisy(np.where(distance < 9, 1.3, np.where(distance < radius, 1.0, 0.0)) * 10 * snr)


def flat_object(snr, thickness=11):
    z, y, x = grid(100, 64, 100)
    return noisy(np.where((abs(y - 32) < thickness / 2) & (abs(x - 50) < 22) & (z > 10), 10.0 * snr, 0.0))


def pet_lesion(core, rim):
    rng = np.random.default_rng(0)
    z, y, x = grid(80, 80, 80) - 40
    body, distance = (y / 14) ** 2 + (x / 20) ** 2 < 1, np.sqrt(z**2 + y**2 + (x - 5) ** 2)
    image = np.where(distance < core, 80, np.where(distance < rim, 30, np.where(body, 0.6, 0)))
    return (image + rng.gamma(1, 0.02, body.shape))[None].astype(np.float32)


def pet_with_brain(planes, noise=30):
    z, y, x = grid(96, 96, 96) - 48
    neck = (y / 30) ** 2 + (x / 30) ** 2 < 1
    brain = (z >= 48 - planes) & ((y / 38) ** 2 + (x / 34) ** 2 < 1)
    signal = np.where(brain, 9, np.where(neck, 1.0, 0.02))
    return (signal * np.random.default_rng(0).gamma(noise, 1 / noise, neck.shape))[None].astype(np.float32)


def angiogram(snr):
    """Vessels of one to three voxels, oblique, in subtracted tissue, with the blur of a scanner."""
    z, y, x = grid(50, 60, 70)
    thin = (abs(y - z) < 1) & (abs(x - 30 - 8 * np.sin(z / 8)) < 1)
    thick = (abs(y - 30) < 2) & (abs(x - 50) < 2)
    return noisy(gaussian_filter(np.where(thin | thick, 10.0 * snr, 0.0), 0.6))


OBJECTS = {
    **{f"ball, SNR {snr}": (ball_in_air, snr) for snr in (20, 50, 63, 80, 100, 150, 1000)},
    **{f"small ball, SNR {snr}": (ball_in_air, snr, 3) for snr in (80, 1000)},
    **{f"flat object, SNR {snr}": (flat_object, snr) for snr in (8, 20, 100)},
    **{f"flat object of {n} planes": (flat_object, 20, n) for n in (1, 2, 3)},
    **{f"lesion {core}, {rim}": (pet_lesion, core, rim) for core, rim in ((3, 6), (1.5, 6), (1.5, 2.5), (2, 2))},
    **{f"brain in the last {n} planes": (pet_with_brain, n) for n in (1, 2, 8, 20)},
    "brain of a noisy PET": (pet_with_brain, 8, 6),
    **{f"vessels, SNR {snr}": (angiogram, snr) for snr in (20, 80, 200, 1000)},
}


@pytest.mark.parametrize("name", OBJECTS)
def test_bright_objects_keep_every_bit(name):
    make, *given = OBJECTS[name]
    image = make(*given)
    assert correct_faults(image) is image
    assert correct_faults(turned := np.ascontiguousarray(image.transpose(0, 3, 1, 2))) is turned
    assert correct_faults(negative := -image) is negative


def test_a_steep_small_lesion_and_a_saturated_organ_keep_every_bit():
    z, y, x = grid(40, 60, 60) - 20
    lesion = noisy(1000.0 * np.exp(-(z**2 + (y - 5) ** 2 + (x - 5) ** 2) / (2 * 0.85**2)), 0.5)
    assert correct_faults(lesion) is lesion
    bladder = np.minimum(noisy(1e5 * np.exp(-(z**2 + y**2 + x**2) / 40)), np.float32(32767))
    assert np.count_nonzero(bladder == 32767) > 100
    assert correct_faults(bladder) is bladder


DAMAGE = {
    "a constant block": lambda rng, shape: np.full(shape, 3e5),
    "random values": lambda rng, shape: rng.uniform(0, 3e5, shape),
    "random exponents": lambda rng, shape: 10 ** rng.uniform(4, 30, shape),
    "wrapped": lambda rng, shape: np.where(rng.random(shape) < 0.3, 3e5 - rng.integers(0, 50, shape), 500.0),
}


@pytest.mark.parametrize("block", [np.s_[0, 12:18, 14:20, 14:22], np.s_[0, 12:16, 14:18, 14:18]])
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("make", [cut_out, stripped, head])
def test_damaged_regions_are_limited(make, kind, block):
    image, rng = make(), np.random.default_rng(0)
    faulty = image.copy()
    faulty[block] = DAMAGE[kind](rng, image[block].shape)
    corrected = correct_faults(faulty)
    assert corrected.max() < 5e4  # what is left lies within the range that scans may have
    assert np.count_nonzero(corrected > 5 * image.max()) < 0.15 * image[block].size
    outside = np.ones(image.shape, bool)
    outside[0, 11:19, 13:21, 13:23] = False
    assert np.array_equal(corrected[outside], image[outside])


def test_salt_is_replaced_and_a_bright_object_beside_it_stays():
    image, rng = ball_in_air(150), np.random.default_rng(1)
    faulty = image.copy()
    places = rng.choice(image.size, 50, replace=False)
    faulty.flat[places] = 1e6
    corrected = correct_faults(faulty)
    assert corrected.max() < 2 * image.max()
    assert np.array_equal(np.delete(corrected, places), np.delete(image, places))


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_one_damaged_plane_is_interpolated_and_a_run_of_planes_stays(axis):
    for make in (cut_out, head):
        image, rng = np.ascontiguousarray(np.moveaxis(make(), 1, axis)), np.random.default_rng(0)
        scaled, garbage, run = (np.moveaxis(image.copy(), axis, 0) for _ in range(3))
        scaled[15] *= 8
        garbage[15] = rng.uniform(0, 30000, garbage[15].shape)
        run[14:16] *= 8  # an object may fill two planes
        between = (np.moveaxis(image, axis, 0)[14] + np.moveaxis(image, axis, 0)[16]) / 2
        for damaged in (scaled, garbage):
            found = np.moveaxis(correct_faults(np.moveaxis(damaged, 0, axis)), axis, 0)
            assert np.allclose(found[15], between, rtol=1e-4)
        assert faulty_planes(np.moveaxis(run, 0, axis)[0]) == []


def test_a_plan_can_leave_faults_as_they_are():
    image = cut_out()
    image[0, 15] *= 8
    config = PreprocessingConfig("none", (ChannelNormalization(),), "native")
    corrected, kept = (forward(image, (1, 1, 1), replace(config, correct_faults=on))[0] for on in (True, False))
    assert np.abs(corrected - forward(cut_out(), (1, 1, 1), config)[0])[0, :15].max() < 0.1
    assert np.allclose(kept, (image - image.mean()) / image.std(), atol=1e-4)
    plan = tiny_plan()
    plan = replace(plan, training_ranges={"outliers": [0, 0], "shape": [[30, 40, 34]] * 2, "channels": []})
    shape = image.shape[1:]
    volume = Volume(image, Geometry(shape, (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1), "LPS"))
    off = replace(plan, preprocessing=replace(plan.preprocessing, correct_faults=False))
    named = [any("were replaced" in w for w in input_checks.differences_from_training(volume, p)) for p in (plan, off)]
    assert named == [True, False]
