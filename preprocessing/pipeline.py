"""Crop, normalise, resample, and the inverse to the scan's own grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mre_lowshot.config import PreprocessingConfig
from mre_lowshot.errors import UserError
from mre_lowshot.grid import Box, argmax_resized, as_slices, full_box, resize_labels, resize_linear
from mre_lowshot.preprocessing.bias_field import correct_bias_field
from mre_lowshot.preprocessing.cropping import body_box, body_mask, centre_box, nonzero_box
from mre_lowshot.preprocessing.faults import correct_faults
from mre_lowshot.preprocessing.grid_limits import check_grid
from mre_lowshot.preprocessing.normalization import normalize
from mre_lowshot.preprocessing.padding import box_mask, content_box, own_contents, without_padding
from mre_lowshot.resampling import resize_image

if TYPE_CHECKING:
    from mre_lowshot.transfers import Array


@dataclass(frozen=True)
class GridTransform:
    """From a native (D, H, W) LPS grid to the network's: cropped to ``box``, resized to ``size``; spacings in mm."""

    native_shape: tuple[int, ...]
    native_spacing: tuple[float, ...]
    box: Box
    size: tuple[int, ...]

    @property
    def box_shape(self) -> tuple[int, ...]:
        """Size of the box, voxels."""
        return tuple(high - low for low, high in self.box)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Spacing of the network's grid, (z, y, x) mm."""
        return tuple(s * old / new for s, old, new in zip(self.native_spacing, self.box_shape, self.size, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {name: [list(v) if isinstance(v, tuple) else v for v in value] for name, value in self.__dict__.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GridTransform:
        return cls(
            tuple(data["native_shape"]),
            tuple(data["native_spacing"]),
            tuple((int(low), int(high)) for low, high in data["box"]),
            tuple(data["size"]),
        )


def find_box(
    image: np.ndarray, spacing: tuple[float, ...], config: PreprocessingConfig, given: Box | None = None
) -> Box:
    """The box of the plan's crop rule for one image (C, D, H, W), applied to the image without constant padding.

    Raises:
        UserError: the rule is ``given`` and no box was given, or the box does not lie inside the image.
    """
    content = full_box(image.shape[1:])
    if not config.keep_padding:
        content = content_box(image, crop=config.crop, ct=config.is_ct)
    found = _rule_box(image[(slice(None), *as_slices(content))], spacing, config, given)
    return tuple((low + start, high + start) for (low, high), (start, _) in zip(found, content, strict=True))


def _rule_box(image: np.ndarray, spacing: tuple[float, ...], config: PreprocessingConfig, given: Box | None) -> Box:
    shape = image.shape[1:]
    if config.crop == "nonzero":
        return nonzero_box(image, spacing, config.crop_margin_mm)
    if config.crop == "body":
        return body_box(image, spacing, config.crop_margin_mm)
    if config.crop == "centre":
        return centre_box(shape, config.centre_fraction)
    if config.crop == "given":
        if given is None:
            raise UserError("the plan's crop rule is 'given' and crops.json has no box for this case; add it")
        if len(given) != 3 or not all(0 <= low < high <= n for (low, high), n in zip(given, shape, strict=True)):
            raise UserError(f"the box {given} of crops.json does not lie inside the image of size {shape} (z, y, x)")
        return given
    return full_box(shape)


def grid_size(shape: tuple[int, ...], spacing: tuple[float, ...], config: PreprocessingConfig) -> tuple[int, ...]:
    """Size of the network's grid for a cropped image of ``shape`` voxels of ``spacing`` mm."""
    if config.grid == "native":
        return tuple(shape)
    if config.grid == "size":
        return config.size
    return tuple(
        max(1, round(n * s / t)) if n > 1 else 1 for n, s, t in zip(shape, spacing, config.spacing, strict=True)
    )


def forward(
    image: np.ndarray,
    spacing: tuple[float, ...],
    config: PreprocessingConfig,
    given: Box | None = None,
    *,
    inspect: Callable[[np.ndarray], None] | None = None,
) -> tuple[np.ndarray, GridTransform]:
    """Preprocess an LPS image (C, D, H, W): float32 (C, *size), and the transform for the inverse. ``inspect`` is
    called with the result of `correct_faults`, or with the image where the configuration has no correction.

    Raises:
        UserError: non-finite voxels, a constant channel, a wrong channel count, a bad given box.
    """
    bad = int(np.count_nonzero(~np.isfinite(image)))
    if bad:
        raise UserError(f"{bad} voxels are NaN or infinite; replace them (by the background value) and try again")
    if config.correct_faults:
        image = correct_faults(image, config.is_ct)
    if inspect is not None:
        inspect(image)
    box = find_box(image, spacing, config, given)
    check_grid(box, grid_size(tuple(high - low for low, high in box), spacing, config), config)
    cropped, inside = image[(slice(None), *as_slices(box))], None
    # before the bias field, which makes padding other than 0 vary
    contents = [] if config.keep_padding else own_contents(cropped, stripped=config.crop == "nonzero")
    if config.bias_field and len(cropped) == len(config.normalization):
        inside = body_mask(without_padding(cropped, contents), spacing)
        measured = [inside & box_mask(box, inside.shape) for box in contents] or [inside] * len(cropped)
        cropped = np.stack(
            [correct_bias_field(channel, own, spacing) for channel, own in zip(cropped, measured, strict=True)]
        )
    cropped = normalize(cropped, config.normalization, inside, contents=contents)
    transform = GridTransform(
        tuple(image.shape[1:]), tuple(spacing), box, grid_size(cropped.shape[1:], spacing, config)
    )
    return resize_image(cropped, transform.size), transform


def forward_labels(labels: np.ndarray, transform: GridTransform) -> np.ndarray:
    """A native (D, H, W) label map on the network's grid."""
    return resize_labels(labels[as_slices(transform.box)], transform.size)


def inverse_labels(probabilities: Array, transform: GridTransform) -> np.ndarray:
    """Class probabilities (K, *size) to a native (D, H, W) label map; background outside the crop. Computed on the
    device of the probabilities.

    Resized class by class, so that memory beyond the input does not grow with K.
    """
    labels = np.zeros(transform.native_shape, dtype=np.int16)
    labels[as_slices(transform.box)] = argmax_resized(
        iter(probabilities), transform.box_shape, floor=0.5 / len(probabilities)
    )
    return labels


def inverse_probabilities(
    probabilities: np.ndarray, transform: GridTransform, resized: Iterable[np.ndarray] | None = None
) -> np.ndarray:
    """Class probabilities (K, *size) on the native grid, (K, D, H, W) float32; certain background outside the crop.
    ``resized`` are the classes' maps on the crop's grid, by default `resize_linear` of each."""
    native = np.zeros((len(probabilities), *transform.native_shape), dtype=np.float32)
    native[0] = 1
    maps = (resize_linear(channel, transform.box_shape) for channel in probabilities) if resized is None else resized
    for label, channel in enumerate(maps):
        native[label][as_slices(transform.box)] = channel
    return native
