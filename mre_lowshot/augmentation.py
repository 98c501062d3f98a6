"""Random changes of training patches: where the voxels are taken from, and what becomes of their intensities.

Spatial changes are sampling positions in the whole volume (so that a turned patch meets real anatomy, not padding);
intensity changes are batchgenerators' transforms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mre_lowshot.specs import AugmentationSpec

CONTROL_POINTS = 4  # of the elastic field, along each side of a patch


def rotation_matrix(angles: np.ndarray, axes: int) -> np.ndarray:
    """Rotation about each axis in turn (one angle in 2D, three in 3D; radians) as an (axes, axes) matrix."""
    if axes == 2:
        c, s = np.cos(angles[0]), np.sin(angles[0])
        return np.array([[c, -s], [s, c]])
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def deform(
    positions: np.ndarray,
    spacing: tuple[float, ...],
    volume: tuple[int, ...],
    spec: AugmentationSpec,
    rng: np.random.Generator,
) -> np.ndarray:
    """Where to sample the volume for a patch whose voxels lie at ``positions``, both (axes, *patch) in voxels.

    Affine (rotation, isotropic scaling) about the patch's centre and a smooth elastic field, in mm so that
    anisotropic voxels are turned rightly; then a shift. Gives the positions unchanged with 1 - spatial_probability.
    """
    axes, patch = len(spacing), positions.shape[1:]
    if rng.random() >= spec.spatial_probability:
        return positions
    column = (axes,) + (1,) * axes
    scale = np.asarray(spacing).reshape(column)
    centre = positions.reshape(axes, -1).mean(axis=1).reshape(column)
    offsets = (positions - centre) * scale
    angles = np.deg2rad(rng.uniform(-spec.rotation, spec.rotation, size=1 if axes == 2 else 3))
    zoom = np.exp(rng.uniform(*np.log(spec.scaling)))
    offsets = np.tensordot(rotation_matrix(angles, axes) / zoom, offsets, axes=1)
    if spec.elastic:
        side_mm = (np.asarray(patch) * np.asarray(spacing)).reshape(column)
        offsets = offsets + elastic_field(patch, rng) * spec.elastic * side_mm
    if spec.shift:
        moved = rng.uniform(-spec.shift, spec.shift, size=axes) * np.asarray(volume) * np.asarray(spacing)
        offsets = offsets + moved.reshape(column)
    return offsets / scale + centre


def jitter(positions: np.ndarray, spec: AugmentationSpec, rng: np.random.Generator) -> np.ndarray:
    """``positions`` (axes, *patch) bent by a smooth field whose strength is drawn up to ``spec.location_jitter``."""
    if not spec.location_jitter:
        return positions
    patch = positions.shape[1:]
    strength = rng.uniform(0, spec.location_jitter) * np.asarray(patch).reshape(-1, *[1] * len(patch))
    return positions + elastic_field(patch, rng) * strength


def elastic_field(patch: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A smooth random field (axes, *patch): unit normal displacements at a few control points, splined between."""
    from scipy.interpolate import make_interp_spline

    field = rng.standard_normal((len(patch), *[CONTROL_POINTS] * len(patch)))
    for axis, n in enumerate(patch, start=1):
        # the outermost points lie outside the patch, so that the field is as free at its border as inside
        where = np.linspace(0.5, CONTROL_POINTS - 1.5, n)
        basis = make_interp_spline(np.arange(CONTROL_POINTS), np.eye(CONTROL_POINTS), k=3)(where)  # (n, points)
        field = np.moveaxis(np.tensordot(basis, field, axes=(1, axis)), 0, axis)
    return field


def intensity_transform(spec: AugmentationSpec) -> Callable[[np.ndarray], np.ndarray]:
    """The recipe's intensity changes of a batch (B, C, *patch) float32, each patch and channel on its own.

    Uses numpy's global random state, as batchgenerators does: seed it before each call.
    """
    from batchgenerators.transforms import color_transforms as colour
    from batchgenerators.transforms import noise_transforms as noise
    from batchgenerators.transforms.abstract_transforms import Compose
    from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform

    steps: list = []
    if spec.noise_probability:
        steps.append(noise.GaussianNoiseTransform((0, spec.noise_variance), p_per_sample=spec.noise_probability))
    if spec.blur_probability:
        steps.append(noise.GaussianBlurTransform(spec.blur, p_per_sample=spec.blur_probability, p_per_channel=0.5))
    if spec.brightness_probability:
        steps.append(
            colour.BrightnessMultiplicativeTransform(spec.brightness, p_per_sample=spec.brightness_probability)
        )
    if spec.contrast_probability:
        steps.append(colour.ContrastAugmentationTransform(spec.contrast, p_per_sample=spec.contrast_probability))
    if spec.low_resolution_probability:
        steps.append(
            SimulateLowResolutionTransform(
                spec.low_resolution, p_per_channel=0.5, p_per_sample=spec.low_resolution_probability
            )
        )
    if spec.gamma_probability:
        steps.append(
            colour.GammaTransform(spec.gamma, per_channel=True, retain_stats=True, p_per_sample=spec.gamma_probability)
        )
    return Intensity(Compose(steps) if steps else None)


@dataclass(frozen=True)
class Intensity:
    """What `intensity_transform` gives: a class, for loader processes that are spawned get it pickled."""

    compose: Any

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return images if self.compose is None else self.compose(data=images)["data"]
