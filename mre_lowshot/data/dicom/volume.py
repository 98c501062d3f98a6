"""A series as a volume."""

from __future__ import annotations

from mre_lowshot.data.dicom.series import Series
from mre_lowshot.data.dicom.values import read_values
from mre_lowshot.data.volume import Volume


def read_series(series: Series) -> Volume:
    """The image (1, D, H, W) float32 of a series in LPS, its slices ordered by position.

    Each slice is rescaled by its own Rescale Slope and Intercept (CT: to HU). Values of Pixel Padding Value (outside a
    CT's field of view) stay as stored, and MONOCHROME1 is not inverted, as in the usual converters to NIfTI. The slices
    are decoded one at a time.

    Raises:
        UserError: the series has a problem, is too large for the memory, or a file cannot be decoded.
    """
    array, grid, notes = read_values(series)
    return Volume(array[None], grid, series.place, notes)
