"""The frozen records that everything reads: network, recipe, preprocessing, plan.

They are plain data: JSON in and out (`mre_lowshot.codec`), checked when built, changed with `dataclasses.replace`.
A variant of the method is a field here, never a subclass. Axes are (z, y, x) throughout; a 2D network has two (y, x).
"""

from mre_lowshot.specs.network import NetworkSpec
from mre_lowshot.specs.plan import (
    FORMAT_VERSION,
    ChannelNormalization,
    FoldDecisions,
    HuFloor,
    PatchSpec,
    Plan,
    PreprocessingSpec,
)
from mre_lowshot.specs.recipe import AugmentationSpec, InferenceSpec, Recipe

__all__ = [
    "FORMAT_VERSION",
    "AugmentationSpec",
    "ChannelNormalization",
    "FoldDecisions",
    "HuFloor",
    "InferenceSpec",
    "NetworkSpec",
    "PatchSpec",
    "Plan",
    "PreprocessingSpec",
    "Recipe",
]
