"""What the tables' rows have in common: changed fields, and the figures of the full method."""

from __future__ import annotations

from mre_lowshot.experiments.records import Figure

NO_COORDINATES, NO_AMS, NO_OHEM, NO_DML = (
    {"network.coordinates": "none"},
    {"network.multiscale": "false"},
    {"recipe.loss.ohem": "false"},
    {"network.prototype_head": "false"},
)  # fmt: skip
# Where the recipe is without them; the embedding has the size of the small network's.
WITH_AMS, WITH_OHEM = {"network.multiscale": "true"}, {"recipe.loss.ohem": "true"}
WITH_DML = {"network.prototype_head": "true", "network.embedding_dim": "64"}
# Without embedding, prototypes and coordinates the network is a U-Net. (A linear embedding followed by a linear
# classifier is the same function; the paper prints the figures of its U-Net-1 in this row.)
UNET = {**NO_DML, **NO_COORDINATES, **NO_AMS, **NO_OHEM, "network.embedding_dim": "0"}


def mr(
    dice: float, dice_sd: float, hd95: float, hd95_sd: float, level: str = "1shot", *, memory: str = "", time: str = ""
) -> Figure:
    """Figures on MRBrainS18."""
    return Figure("MRBrainS18", dice, dice_sd, hd95, hd95_sd, level, memory=memory, time=time)


def ct(dice: float, dice_sd: float, hd95: float, hd95_sd: float, *, memory: str = "", time: str = "") -> Figure:
    """Figures on BTCV, one-shot."""
    return Figure("BTCV", dice, dice_sd, hd95, hd95_sd, memory=memory, time=time)


BOTH = ("MRBrainS18", "BTCV")
FULL = (
    mr(78.39, 1.07, 6.30, 1.73, memory="~4x10.18 GB", time="~150 min"),
    ct(69.13, 1.43, 19.02, 8.63, memory="~4x9.81 GB", time="~140 min"),
)
UNET_AUG = (mr(49.15, 11.91, 30.74, 12.71), ct(30.84, 5.22, 43.77, 13.18))
