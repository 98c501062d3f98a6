"""Random augmentation of training patches: spatial deformation of sampling positions, and intensity transforms.

Spatial augmentation moves the positions at which the volume is sampled, so that a rotated patch contains anatomy and
not padding. Intensity augmentation uses the transforms of batchgenerators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mre_lowshot.config import AugmentationConfig

CONTROL_POINTS = 4  # of the elastic field, per axis of a patch


def rotation_matrix(angles: np.ndarray, axes: int) -> np.ndarray:
    """Matrix (axes, axes) of successive rotations about each axis: one angle in 2D, three in 3D, in radians."""
    if axes == 2:
        c, s = np.cos(angles[0]), np.sin(angles[0])
        return np.array([[c, -s], [s, c]])
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        rotation = np.eye(3)
        rotation[i, i] = rotation[j, j] = np.cos(angle)
        rotation[i, j], rotation[j, i] = -np.sin(angle), np.sin(angle)
        matrix = rotation @ matrix
    return matrix


def deform(
    positions: np.ndarray,
    spacing: tuple[float, ...],
    volume: tuple[int, ...],
    spec: AugmentationConfig,
    rng: np.random.Generator,
) -> np.ndarray:
    """Randomly deform the sampling positions of a patch, with probability ``spec.spatial_probability``.

    Applies a rotation and an isotropic scaling about the centre of the patch, a smooth elastic field and a shift. All
    are computed in mm, so that they are correct for anisotropic voxels.

    Args:
        positions: voxel coordinates of the patch in the volume (axes, *patch).
        spacing: voxel size per axis in mm.
        volume: size of the volume in voxels, per axis.
        spec: ranges and probabilities.
        rng: random generator.

    Returns:
        Deformed voxel coordinates (axes, *patch).
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
        shift_mm = rng.uniform(-spec.shift, spec.shift, size=axes) * np.asarray(volume) * np.asarray(spacing)
        offsets = offsets + shift_mm.reshape(column)
    deformed: np.ndarray = offsets / scale + centre
    return deformed


def jitter(positions: np.ndarray, spec: AugmentationConfig, rng: np.random.Generator) -> np.ndarray:
    """Deform location maps (axes, *patch) by a smooth random field, in voxels.

    The strength is uniform in [0, ``spec.location_jitter``], as a fraction of the patch size.
    """
    if not spec.location_jitter:
        return positions
    patch = positions.shape[1:]
    strength = rng.uniform(0, spec.location_jitter) * np.asarray(patch).reshape(-1, *[1] * len(patch))
    return positions + elastic_field(patch, rng) * strength


def elastic_field(patch: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A smooth random field (axes, *patch): cubic splines through standard normal values at the control points."""
    from scipy.interpolate import make_interp_spline

    field = rng.standard_normal((len(patch), *[CONTROL_POINTS] * len(patch)))
    for axis, n in enumerate(patch, start=1):
        # the outermost control points lie outside the patch, so that the field varies as much at its border as inside
        at = np.linspace(0.5, CONTROL_POINTS - 1.5, n)
        basis = make_interp_spline(np.arange(CONTROL_POINTS), np.eye(CONTROL_POINTS), k=3)(at)  # (n, points)
        field = np.moveaxis(np.tensordot(basis, field, axes=(1, axis)), 0, axis)
    return field


def intensity_transform(spec: AugmentationConfig) -> Callable[[np.ndarray], np.ndarray]:
    """The recipe's intensity augmentation of a batch (B, C, *patch) float32, independent per patch and channel.

    Like batchgenerators it uses numpy's global random state: seed that before each call.
    """
    from batchgenerators.transforms import color_transforms as colour
    from batchgenerators.transforms import noise_transforms as noise
    from batchgenerators.transforms.abstract_transforms import Compose
    from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform

    steps: list[Any] = []
    if spec.noise_probability:  # batchgenerators' "variance" is the standard deviation of what it adds
        steps.append(noise.GaussianNoiseTransform((0, spec.noise_variance), p_per_sample=spec.noise_probability))
    if spec.blur_probability:  # a channel of a chosen patch with probability 0.5, as in nnU-Net
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
    """The composed transforms; a class, because spawned loader processes receive it pickled."""

    compose: Any  # batchgenerators' Compose, or None for no intensity augmentation

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Transform ``images`` (B, C, *patch)."""
        if self.compose is None:
            return images
        transformed: np.ndarray = self.compose(data=images)["data"]
        return transformed
