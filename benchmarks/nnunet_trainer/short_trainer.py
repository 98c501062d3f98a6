"""nnU-Net's trainer with a short schedule; nnU-Net finds it through ``nnUNet_extTrainer`` (this folder)."""

import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class ShortTrainer(nnUNetTrainer):  # type: ignore[misc,unused-ignore]
    """``SHORT_ITERATIONS`` iterations in ten epochs, so that the rate falls as nnU-Net's schedule lets it. Nothing is
    held out, so validation is cut to the one batch an epoch that nnU-Net needs, and the final one is left out: it
    would predict the training scan, and count as training time."""

    def __init__(  # spelt out, for nnU-Net reads these names from the signature
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        iterations = int(os.environ["SHORT_ITERATIONS"])
        self.num_epochs = min(10, iterations)
        self.num_iterations_per_epoch = iterations // self.num_epochs
        self.num_val_iterations_per_epoch = 1

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        pass
