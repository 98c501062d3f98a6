"""Preprocessed scans that enter the predictor's stages without files."""

from __future__ import annotations

import numpy as np

from mre_lowshot.data.geometry import Geometry
from mre_lowshot.grid import full_box
from mre_lowshot.inference.predictor import RegisteredScan
from mre_lowshot.inference.sliding_window import AtlasCoordinates
from mre_lowshot.preprocessing.pipeline import GridTransform
from mre_lowshot.preprocessing.store import PreparedCase


def prepared_scan(image: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> PreparedCase:
    """A preprocessed image (C, D, H, W) whose own grid is the plan's."""
    size = tuple(image.shape[1:])
    transform = GridTransform(size, spacing, full_box(size), size)
    return PreparedCase("scan", image, None, transform, Geometry(size, spacing).to_json())


def registered_scan(image: np.ndarray, coordinates: AtlasCoordinates = (None,)) -> RegisteredScan:
    """A preprocessed image (C, D, H, W) with its coordinates in each fold's atlases."""
    return RegisteredScan(prepared_scan(image), coordinates)
