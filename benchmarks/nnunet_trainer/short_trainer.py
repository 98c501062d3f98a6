"""nnU-Net's trainer with a short schedule; nnU-Net finds it through ``nnUNet_extTrainer`` (this folder)."""

import os
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class ShortTrainer(nnUNetTrainer):  # type: ignore[misc,unused-ignore]
    """``SHORT_ITERATIONS`` iterations in ten epochs, over which the learning rate falls as in nnU-Net's schedule.

    There is no validation set. Validation during training uses one batch per epoch, the minimum that nnU-Net accepts.
    The final validation is skipped: it would predict the training scan and count as training time.
    """

    def __init__(  # written out because nnU-Net reads these names from the signature
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        iterations = int(os.environ["SHORT_ITERATIONS"])
        self.num_epochs = min(10, iterations)
        self.num_iterations_per_epoch = iterations // self.num_epochs
        self.num_val_iterations_per_epoch = 1

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing."""
