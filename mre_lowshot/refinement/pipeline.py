"""Beyond the paper: from the network's posterior to the label map, all steps in order.

On the plan's grid (`refine`):

1. `fusion`: the posterior is fused with the labels warped from the atlases.
2. `hu_limits`: in CT, a class is removed from voxels that are too dark for it.
3. `em`: class likelihoods of the scan's own intensities, one EM step.
4. `crf`: neighbouring voxels of similar intensity get the same class.

On the scan's own grid (`inference.export`):

5. Argmax of the probabilities, resampled class by class.
6. `components`: small components are removed of classes that are a single component in the training labels.
7. `calibration`: saved probabilities are scaled by a temperature. Labels do not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mre_lowshot.config import MinHu, RefinementConfig
from mre_lowshot.refinement.crf import crf_mean_field
from mre_lowshot.refinement.em import em_step
from mre_lowshot.refinement.fusion import fuse_posteriors
from mre_lowshot.refinement.hu_limits import apply_min_hu
from mre_lowshot.transfers import Array, as_tensor


@dataclass(frozen=True)
class RefinementSettings:
    """The recipe's weights, and what the folds add to them."""

    config: RefinementConfig
    min_hu: tuple[MinHu, ...] = ()  # in units of the preprocessed image
    single_component: tuple[int, ...] = ()  # classes of which only the largest component is kept
    registrations: float = 1.0  # per labelled scan (`fusion.registrations_per_scan`)
    lesions: tuple[int, ...] = ()  # classes of lesions among organs (`Plan.lesions`)


def refine(posterior: Array, warped: Array | None, image: Array, settings: RefinementSettings) -> Tensor:
    """Steps 1 to 4, in torch on the device that all three lie on.

    Args:
        posterior: the network's class probabilities (K, *size).
        warped: class probabilities (K, *size) of the labels warped from the atlases; None: nothing was registered.
        image: the preprocessed scan (C, *size).
        settings: weights and limits.

    Returns:
        Class probabilities (K, *size).
    """
    config, own = settings.config, as_tensor(posterior)
    probabilities = fuse_posteriors(
        own,
        warped,
        config.atlas_weight,
        settings.registrations,
        share=config.atlas_share,
        lesions=settings.lesions,
    )
    if probabilities is own:  # nothing to fuse; the next steps change their argument
        probabilities = own.clone()
    apply_min_hu(probabilities, image, settings.min_hu)
    em_step(probabilities, image, config.em_weight)
    crf_mean_field(probabilities, image, config.crf_weight)
    return probabilities
