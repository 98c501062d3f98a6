"""The plan's way of prediction with what is asked for at prediction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mre_lowshot.config import InferenceConfig
from mre_lowshot.config.check import require_number
from mre_lowshot.config.recipe import MIN_STEP
from mre_lowshot.errors import UserError


def inference_with(
    config: InferenceConfig, *, step_size: float | None = None, centre_tiles: bool = False, mirroring: bool = True
) -> InferenceConfig:
    """``config`` with the tiling and mirroring requested at prediction.

    Raises:
        UserError: both tilings, or a step out of range.
    """
    if centre_tiles and step_size is not None:
        raise UserError("centre tiling and a step size exclude each other; choose one tiling")
    if step_size is not None:
        require_number("-step_size", step_size, MIN_STEP, 1)
    changes: dict[str, Any] = {}
    if centre_tiles:
        changes["tiling"] = "centre"
    if step_size is not None:
        changes |= {"tiling": "overlap", "step": step_size}
    if not mirroring:
        changes["mirror_axes"] = ()
    return replace(config, **changes)
