"""What is measured: the paper's network, that of the CPU plan, and a tiny one for a quick look; synthetic scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mre_lowshot.planners.rules import SMALL_SIZE, dilation_rule, patch_rule
from mre_lowshot.recipes import DEFAULT, PAPER
from mre_lowshot.sampling import Prior, TrainingCase
from mre_lowshot.specs import (
    ChannelNormalization,
    FoldDecisions,
    NetworkSpec,
    PatchSpec,
    Plan,
    PreprocessingSpec,
    Recipe,
)

CHANNELS, CLASSES = 2, 9
ISOTROPIC = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Size:
    """One size of the network and what of it is timed. ``scan`` is predicted whole on a GPU; on the CPU the tiles of
    ``part`` are timed and the time of the scan is extrapolated by the number of tiles."""

    name: str
    network: NetworkSpec
    patch: PatchSpec
    recipe: Recipe
    spacing: tuple[float, ...]
    batch: int
    batch_cuda: int
    scan: tuple[int, ...]
    part: tuple[int, ...]
    tile_batch: int
    weights: int
    """Training steps that give the weights used in prediction, where no checkpoint is named."""

    def plan(self, batch: int | None = None) -> Plan:
        """The fold's plan around the network, ``batch`` patches a step."""
        labels = {f"class_{k}" if k else "background": k for k in range(self.network.classes)}
        groups = FoldDecisions("1shot", 0, ("one",), (), tuple(range(self.network.classes - 2)), {}, {})
        return Plan(
            dataset_name="Dataset999_Benchmark",
            plans_name="MREPlans",
            channel_names=("MRI",) * self.network.in_channels,
            labels=labels,
            file_ending=".nii.gz",
            preprocessing=PreprocessingSpec("none", (ChannelNormalization(),) * self.network.in_channels, "native"),
            patch=self.patch,
            network=self.network,
            recipe=replace(self.recipe, batch_size=batch or self.batch, precision="float32"),
            reasons={},
            seen={},
            fold=groups,
        )


def paper_size() -> Size:
    """The paper's network and recipe: patches of 12x36x36, two channels, nine classes, N_e 2048; one brain."""
    network = NetworkSpec(CHANNELS, CLASSES)
    spacing = (3.0, 0.958, 0.958)
    return Size("paper", network, PatchSpec(), PAPER, spacing, 2, 24, (48, 216, 216), (20, 64, 120), 4, weights=6)


def cpu_size() -> Size:
    """The network that is planned for a CPU, with the planner's own rules, for isotropic voxels and the default
    recipe: 24^3 patches, four a step."""
    patch, _ = patch_rule(ISOTROPIC, (78, 78, 78), SMALL_SIZE.budget, (4, 4, 4))
    network = NetworkSpec(
        in_channels=CHANNELS,
        classes=CLASSES,
        widths=SMALL_SIZE.widths,
        strides=((2, 2, 2), (2, 2, 2)),
        aspp_channels=SMALL_SIZE.aspp_channels,
        dilations=dilation_rule(patch.size)[0],
        embedding=SMALL_SIZE.embedding,
        mixer_width=SMALL_SIZE.mixer_width,
        image_level_norm=False,
        atlas_prior=True,
    )
    batch, scan = SMALL_SIZE.batch_size, (78, 78, 78)
    return Size("cpu", network, patch, DEFAULT, ISOTROPIC, batch, batch, scan, scan, 8, weights=60)


def tiny_size() -> Size:
    """Small enough for a test: the figures say nothing."""
    network = NetworkSpec(
        in_channels=CHANNELS,
        classes=3,
        widths=(8, 8, 16),
        convs=(1, 1, 1),
        se_reduction=4,
        aspp_channels=8,
        dilations=((1, 2, 2), (2, 4, 4), (3, 6, 6)),
        embedding=32,
        modes=2,
        mixer_width=8,
    )
    patch = PatchSpec((4, 12, 12), (2, 8, 8))
    return Size("tiny", network, patch, PAPER, (3.0, 1.0, 1.0), 2, 2, (8, 28, 28), (6, 20, 20), 4, weights=2)


SIZES = {"paper": paper_size, "cpu": cpu_size, "tiny": tiny_size}


def synthetic_case(size: Sequence[int], channels: int, classes: int, spacing: tuple[float, ...]) -> TrainingCase:
    """A scan of nested, lobed shells, one a class, each with its own brightness in each channel, and noise."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    radius = np.sqrt(z**2 + y**2 + x**2) + 0.08 * np.sin(5 * x) * np.cos(4 * y)
    label = np.clip((classes * (1.1 - radius)).astype(np.int16), 0, classes - 1)
    means = rng.normal(0, 1, (channels, classes))
    image = means[:, label] + rng.normal(0, 0.3, (channels, *size))
    return TrainingCase(image.astype(np.float32), label, spacing)


def prior_of(case: TrainingCase, network: NetworkSpec) -> Prior | None:
    """The labels told to the network, where it wants them: here the scan's own."""
    return Prior((case.label,), network.classes) if network.atlas_prior else None
