"""What is measured: the paper's network, that of the CPU plan, and a tiny one for a quick check; synthetic scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mre_lowshot.atlas.label_fusion import AtlasPrior
from mre_lowshot.config import (
    ChannelNormalization,
    FoldDecisions,
    NetworkConfig,
    PatchConfig,
    Plan,
    PreprocessingConfig,
    Recipe,
)
from mre_lowshot.config.presets import DEFAULT, PAPER
from mre_lowshot.planners.hardware import SMALL_SIZE
from mre_lowshot.planners.rules import dilation_rule, patch_rule
from mre_lowshot.sampling import TrainingCase

CHANNELS, CLASSES = 2, 9
ISOTROPIC = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Size:
    """One size of the network, and what of it is timed."""

    name: str
    network: NetworkConfig
    patch: PatchConfig
    recipe: Recipe
    spacing: tuple[float, ...]  # mm
    batch: int  # patches in a training step on the CPU
    batch_cuda: int  # the same on CUDA
    scan: tuple[int, ...]  # voxels; predicted as a whole on a GPU
    part: tuple[int, ...]  # voxels; timed on the CPU, from which the scan's time is extrapolated by number of tiles
    tile_batch: int  # tiles predicted at once
    weights: int  # training steps before prediction, where no checkpoint is given

    def plan(self, batch: int | None = None) -> Plan:
        """A fold's plan with the network, and ``batch`` patches in a step."""
        labels = {f"class_{k}" if k else "background": k for k in range(self.network.classes)}
        majority = tuple(range(self.network.classes - 2))
        recipe = self.recipe
        return Plan(
            dataset_name="Dataset999_Benchmark",
            plans_name="MREPlans",
            channel_names=("MRI",) * self.network.in_channels,
            labels=labels,
            file_ending=".nii.gz",
            preprocessing=PreprocessingConfig("none", (ChannelNormalization(),) * self.network.in_channels, "native"),
            patch=self.patch,
            network=self.network,
            recipe=replace(
                recipe,
                optimizer=replace(recipe.optimizer, precision="float32"),
                sampling=replace(recipe.sampling, batch_size=batch or self.batch),
            ),
            reasons={},
            training_ranges={},
            fold=FoldDecisions("1shot", 0, ("one",), (), majority, voxel_shares={}, reasons={}),
        )


def paper_size() -> Size:
    """The paper's network and recipe: patches of 12x36x36, two channels, nine classes, N_e 2048; one brain."""
    network = NetworkConfig(CHANNELS, CLASSES)
    spacing = (3.0, 0.958, 0.958)
    return Size("paper", network, PatchConfig(), PAPER, spacing, 2, 24, (48, 216, 216), (20, 64, 120), 4, weights=6)


def cpu_size() -> Size:
    """The network planned for a CPU by the planner's own rules, for isotropic voxels and the default recipe: patches of
    24x24x24, four in a step."""
    patch, _ = patch_rule(ISOTROPIC, (78, 78, 78), SMALL_SIZE.patch_voxels, (4, 4, 4))
    network = NetworkConfig(
        in_channels=CHANNELS,
        classes=CLASSES,
        widths=SMALL_SIZE.widths,
        strides=((2, 2, 2), (2, 2, 2)),
        aspp_channels=SMALL_SIZE.aspp_channels,
        dilations=dilation_rule(patch.size)[0],
        embedding_dim=SMALL_SIZE.embedding_dim,
        mixing_dim=SMALL_SIZE.mixing_dim,
        image_level_norm=False,
        atlas_prior=True,
    )
    batch, scan = SMALL_SIZE.batch_size, (78, 78, 78)
    return Size("cpu", network, patch, DEFAULT, ISOTROPIC, batch, batch, scan, scan, 8, weights=60)


def tiny_size() -> Size:
    """Small enough for a test; its figures have no meaning."""
    network = NetworkConfig(
        in_channels=CHANNELS,
        classes=3,
        widths=(8, 8, 16),
        convs=(1, 1, 1),
        se_reduction=4,
        aspp_channels=8,
        dilations=((1, 2, 2), (2, 4, 4), (3, 6, 6)),
        embedding_dim=32,
        prototypes_per_class=2,
        mixing_dim=8,
    )
    patch = PatchConfig((4, 12, 12), (2, 8, 8))
    return Size("tiny", network, patch, PAPER, (3.0, 1.0, 1.0), 2, 2, (8, 28, 28), (6, 20, 20), 4, weights=2)


SIZES = {"paper": paper_size, "cpu": cpu_size, "tiny": tiny_size}


def synthetic_case(size: Sequence[int], channels: int, classes: int, spacing: tuple[float, ...]) -> TrainingCase:
    """A scan of nested, lobed shells, one for each class, with its own brightness in each channel, and noise."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    radius = np.sqrt(z**2 + y**2 + x**2) + 0.08 * np.sin(5 * x) * np.cos(4 * y)
    label = np.clip((classes * (1.1 - radius)).astype(np.int16), 0, classes - 1)
    means = rng.normal(0, 1, (channels, classes))
    image = means[:, label] + rng.normal(0, 0.3, (channels, *size))
    return TrainingCase(image.astype(np.float32), label, spacing)


def own_prior(case: TrainingCase, network: NetworkConfig) -> AtlasPrior | None:
    """The scan's own labels as atlas prior, if the network has one."""
    return AtlasPrior((case.label,), network.classes) if network.atlas_prior else None
