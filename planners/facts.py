"""What a plan is made from besides the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

N4 = Literal["auto", "on", "off"]  # correction of the bias field: by the rule, always, never


@dataclass(frozen=True)
class DatasetFacts:
    """What the plan takes from dataset.json, and whether a crops.json lies beside it.

    ``bias_field_corrected``: whether the scans were corrected before planning; None: not stated.
    """

    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    ignore_label: int | None
    file_ending: str
    has_crops: bool = False
    bias_field_corrected: bool | None = None
