"""Tables that the paper does not have: recipes and baselines, other readings, the parts of the recipe `default`."""

from __future__ import annotations

from dataclasses import replace

from mre_lowshot.experiments.records import Row, Table
from mre_lowshot.experiments.table_rows.common import FULL, NO_AMS, NO_DML, NO_OHEM, UNET, WITH_AMS, WITH_DML, WITH_OHEM
from mre_lowshot.experiments.table_rows.common import ct as _ct
from mre_lowshot.experiments.table_rows.common import mr as _mr

BASELINES = Table(
    "baselines", "MRE-Net, U-Net and the recipe default", "Tables VII and VIII", "mre",
    (
        Row("mre", "MRE-Net, the paper's recipe",
            paper=(*FULL, _mr(80.55, 1.31, 5.61, 1.06, "2shot"), _mr(81.98, 1.11, 5.26, 1.69, "3shot"))),
        Row("mre_aug", "Aug. + MRE-Net", recipe="paper_aug",
            paper=(_mr(78.32, 0.93, 6.34, 1.87), _mr(80.43, 1.78, 5.58, 1.62, "2shot"),
                   _mr(81.84, 1.28, 5.20, 1.72, "3shot"))),
        Row("unet", "U-Net, trained as long as MRE-Net", UNET, paper=(_mr(14.86, 19.11, 59.30, 18.21),)),
        Row("unet_aug", "Aug. + U-Net, trained as long", UNET, recipe="paper_aug",
            paper=(_mr(49.15, 11.91, 30.74, 12.71), _ct(30.84, 5.22, 43.77, 13.18))),
        Row("unet_literal", "U-Net, the paper's schedule", recipe="unet", base="paper",
            paper=(_mr(14.86, 19.11, 59.30, 18.21),)),
        Row("unet_spread", "U-Net, drops spread out", recipe="unet_spread", base="paper"),
        Row("default", "recipe default", recipe="default"),
        Row("unet_default", "recipe default with the U-Net", recipe="unet_default"),
    ),
)  # fmt: skip

READINGS = Table(
    "readings", "other readings of points that the paper leaves open", "", "read",
    (
        Row("read", "our reading (docs/METHOD.md)"),
        Row("patch_coordinates", "coordinates over the patch", {"network.coordinates": "patch"}),
        Row("bottleneck", "bottleneck level in the embedding", {"network.bottleneck_level": "true"}),
        Row("no_se", "without SE", {"network.se": "false"}),
        Row("no_aspp", "without ASPP", {"network.aspp": "false"}),
        Row("no_image_level", "without the image-level branch", {"network.image_level": "false"}),
        Row("instance_norm", "instance norm", {"network.norm": "instance", "network.image_level_norm": "false"}),
        Row("paper_dilations", "dilations 6, 12, 18 on every axis", {"network.dilations": "paper"}, base="small"),
        Row("patch_dilations", "dilations proportional to the patch size", {"network.dilations": "patch"},
            base="paper"),
        Row("no_sigmoid", "no sigmoid before the mixing softmax", {"network.mixing_sigmoid": "false"}),
        Row("fixed_scale", "scale xi fixed at 10", {"network.logit_scale_learned": "false"}),
    ),
)  # fmt: skip

# The recipe `default` with one part removed per row, and candidate extensions.
_NO_FUSION = {"recipe.refinement.atlas_weight": "0", "recipe.refinement.atlas_share": "0"}
_NO_ATLAS_LABELS = {**_NO_FUSION, "network.atlas_prior": "false"}
_NO_AUGMENTATION = {
    f"recipe.augmentation.{name}_probability": "0"
    for name in ("spatial", "brightness", "contrast", "gamma", "noise", "blur", "low_resolution")
}
# Where the atlas prior is an input of the network, it takes the coordinate maps that go with it.
_INPUT = {"network.atlas_prior_at": "input"}
_PRIOR_INPUT = {**_INPUT, **WITH_AMS}
CANDIDATES = Table(
    "candidates", "the recipe default, and candidates against it", "", "default",
    (
        Row("default", "recipe default", recipe="default"),
        Row("unet_default", "the same with the U-Net", recipe="unet_default"),
        Row("no_fusion", "warped labels as prior, not fused", _NO_FUSION,
            recipe="default"),
        Row("no_prior", "registered, labels neither prior nor fused", _NO_ATLAS_LABELS, recipe="default"),
        Row("not_registered", "not registered, coordinates over each scan", 
            {**_NO_ATLAS_LABELS, "recipe.atlas.registration": "none"}, recipe="default"),
        Row("no_augmentation", "neither spatial nor intensity augmentation", _NO_AUGMENTATION, recipe="default"),
        Row("no_ohem", "without OHEM", {"recipe.loss.ohem": "false"}, recipe="default"),
        Row("prior_input", "the atlas prior an input, with AMS (as planned for CT)", _PRIOR_INPUT,
            recipe="default"),
        Row("no_dice", "cross-entropy alone", {"recipe.loss.dice_weight": "0"}, recipe="default"),
        Row("no_average", "last weights, not their moving average", {"recipe.optimizer.ema": "0"}, recipe="default"),
        Row("uniform", "patches drawn uniformly", {"recipe.sampling.foreground_fraction": "0"}, recipe="default"),
        Row("all_components", "all components of a class kept", {"recipe.refinement.largest_component": "false"},
            recipe="default"),
        Row("no_min_hu", "no lower HU limits (CT)", {"recipe.refinement.min_hu": "false"}, recipe="default"),
        Row("no_em", "without EM step", {"recipe.refinement.em_weight": "0"},
            recipe="default"),
        Row("no_crf", "without CRF", {"recipe.refinement.crf_weight": "0"},
            recipe="default"),
        Row("twice_as_long", "twice as many iterations", scaled={"recipe.optimizer.iterations": 2.0}, recipe="default"),
    ),
)  # fmt: skip

# What registration, refinement, the network and each of its parts bring.
_UNET_NETWORK = {**NO_DML, **NO_AMS, **NO_OHEM, "network.embedding_dim": "0"}
_SAME = {row.name: row for row in CANDIDATES.rows}
PARTS = Table(
    "parts", "what each part of the recipe default contributes", "", "default",
    (
        Row("registration", "registration alone, no network", baseline="registration"),
        Row("registration_refined", "registration and refinement, no network", baseline="registration_refined"),
        replace(_SAME["not_registered"], label="default without registration"),
        _SAME["default"],
        Row("m1", "one prototype per class (M = 1)", {"network.prototypes_per_class": "1"}, recipe="default"),
        Row("average", "average mixing", {"network.mixing": "average"}, recipe="default"),
        Row("one_hot", "one-hot mixing", {"network.mixing": "one_hot"}, recipe="default"),
        Row("no_dml", "a linear classifier instead of prototypes (no DML)", NO_DML, recipe="default"),
        Row("with_ams", "with AMS (as planned for CT)", WITH_AMS, recipe="default"),
        Row("no_ams", "without AMS (as planned for MRI)", NO_AMS, recipe="default"),
        _SAME["no_ohem"],
        Row("with_dml", "with prototypes (lesions alone are planned without)", WITH_DML, recipe="default",
            base="small"),
        Row("with_ohem", "with OHEM (lesions alone are planned without)", WITH_OHEM, recipe="default"),
        Row("with_all", "with prototypes, AMS and OHEM", {**WITH_DML, **WITH_AMS, **WITH_OHEM}, recipe="default",
            base="small"),
        _SAME["prior_input"],
        Row("unet_prior", "U-Net (no DML, AMS, OHEM) with the same registration, prior and refinement", _UNET_NETWORK,
            recipe="default"),
        Row("unet_input", "the same, the prior an input", {**_UNET_NETWORK, **_INPUT}, recipe="default"),
        Row("unet_refined", "U-Net (no DML, AMS, OHEM) with the same registration and refinement, no prior",
            {**_UNET_NETWORK, "network.atlas_prior": "false"}, recipe="default"),
    ),
)  # fmt: skip
