"""What the stages of a prediction pass on, and the outcome of a case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mre_lowshot.data.dataset import Case
from mre_lowshot.inference.export import Prediction
from mre_lowshot.inference.quality import Quality
from mre_lowshot.inference.sliding_window import AtlasCoordinates
from mre_lowshot.preprocessing.store import PreparedCase
from mre_lowshot.transfers import Array


@dataclass(frozen=True)
class RegisteredScan:
    """Output of the register stage.

    Attributes:
        prepared: the preprocessed scan.
        coordinates: for each fold the voxels' coordinates in its atlases, or None.
    """

    prepared: PreparedCase
    coordinates: AtlasCoordinates


class PreviousPrediction(NamedTuple):
    """What guides another registration: coordinates for each fold, and class probabilities (K, *size)."""

    coordinates: AtlasCoordinates
    probabilities: Array


@dataclass(frozen=True)
class NetworkOutput:
    """Output of the network stage.

    Attributes:
        scan: the registered scan.
        image: the preprocessed image as the network takes it, (C, *size); it and the next two are on the device that
            the refinement is computed on.
        posterior: class probabilities (K, *size).
        warped: class probabilities (K, *size) of the labels warped from the atlases, or None.
        quality: estimate from both.
    """

    scan: RegisteredScan
    image: Tensor
    posterior: Tensor
    warped: Tensor | None
    quality: Quality

    def to(self, device: torch.device) -> NetworkOutput:
        """The same with its tensors on ``device``."""
        warped = None if self.warped is None else self.warped.to(device)
        return replace(self, image=self.image.to(device), posterior=self.posterior.to(device), warped=warped)


@dataclass(frozen=True)
class Outcome:
    """One case of `Predictor.predict_cases`: its prediction, or the reason why there is none.

    Attributes:
        case: the case.
        prediction: None where it failed.
        problem: why it failed, one line that begins with the case's name.
        seconds: that each stage took, by its name.
        memory_short: it failed because memory was short.
    """

    case: Case
    prediction: Prediction | None = None
    problem: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory_short: bool = False
