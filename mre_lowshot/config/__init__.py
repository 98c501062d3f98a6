"""The frozen records that configure everything: network, recipe, preprocessing, plan.

They are plain data: JSON in and out (`config.json`), checked when built, changed with `dataclasses.replace`. A variant
of the method is a field here, never a subclass. Axes are (z, y, x) throughout; a 2D network has two, (y, x).
"""

from mre_lowshot.config.network import NetworkConfig
from mre_lowshot.config.plan import (
    FORMAT_VERSION,
    ChannelNormalization,
    FoldDecisions,
    MinHu,
    PatchConfig,
    Plan,
    PreprocessingConfig,
)
from mre_lowshot.config.recipe import (
    AtlasConfig,
    AugmentationConfig,
    InferenceConfig,
    LossConfig,
    OptimizerConfig,
    Recipe,
    RefinementConfig,
    SamplingConfig,
)

__all__ = [
    "FORMAT_VERSION",
    "AtlasConfig",
    "AugmentationConfig",
    "ChannelNormalization",
    "FoldDecisions",
    "InferenceConfig",
    "LossConfig",
    "MinHu",
    "NetworkConfig",
    "OptimizerConfig",
    "PatchConfig",
    "Plan",
    "PreprocessingConfig",
    "Recipe",
    "RefinementConfig",
    "SamplingConfig",
]
