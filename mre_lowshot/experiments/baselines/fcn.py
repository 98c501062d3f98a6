"""FCN (Long et al. 2015) trained from scratch on 2D images: the paper's baseline for ultrasound (Table XII).

Whole images, stochastic gradient descent with momentum, softmax cross-entropy over all annotated pixels, no
augmentation. docs/BASELINES.md lists what differs from the publication.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mre_lowshot.errors import NumericalError
from mre_lowshot.experiments.baselines.base import Baseline, BaselineFold, Segmenter
from mre_lowshot.experiments.baselines.fcn_network import STRIDE, FCN8s
from mre_lowshot.grid import IGNORE
from mre_lowshot.preprocessing.store import PreparedCase

SMALL_WIDTH = 0.25  # of VGG-16's channels, for a CPU
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4
LOG_EVERY = 100  # iterations


def fit(fold: BaselineFold) -> Segmenter:
    """Train on whole images. Batch size and, if the user gave none, iterations are those of the plan's recipe; the
    learning rate drops to a tenth after half of them.

    Raises:
        NumericalError: the loss is not finite.
    """
    recipe, device = fold.plan.recipe, fold.device
    iterations = fold.iterations or recipe.optimizer.iterations
    torch.manual_seed(fold.seed)
    network = FCN8s(len(fold.plan.channel_names), fold.classes, 1.0 if recipe.size == "paper" else SMALL_WIDTH)
    network.to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, iterations // 2), 0.1)
    for iteration in range(iterations):
        drawn = np.random.default_rng([fold.seed, iteration]).choice(len(fold.train), recipe.sampling.batch_size)
        images, labels = (part.to(device) for part in batch([fold.train[n] for n in drawn]))
        total = functional.cross_entropy(network(images), labels, ignore_index=IGNORE, reduction="sum")
        loss = total / (labels != IGNORE).sum().clamp(min=1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        fold.ask()
        if (iteration + 1) % LOG_EVERY == 0 or iteration + 1 == iterations:
            value = loss.item()
            if not np.isfinite(value):
                raise NumericalError(f"baseline fcn: iteration {iteration + 1}: loss {value:g} is not finite")
            fold.log(f"iteration {iteration + 1} of {iterations}: loss {value:.4f}")
    network.eval()

    def segment(case: PreparedCase) -> np.ndarray:
        height, width = case.image.shape[2:]
        with torch.inference_mode():
            scores = network(padded(case.image[:, 0], side(height), side(width))[None].to(device))
        probabilities: np.ndarray = scores[0, :, :height, :width].float().softmax(dim=0).cpu().numpy()
        return probabilities[:, None]

    return segment


def batch(cases: Sequence[PreparedCase]) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and labels (B, H, W) of cases with one slice each, padded at the end of each axis to the
    largest of them and a multiple of `STRIDE`; the labels by `IGNORE`."""
    height, width = (side(max(case.image.shape[axis] for case in cases)) for axis in (2, 3))
    images = torch.stack([padded(case.image[:, 0], height, width) for case in cases])
    labels = torch.full((len(cases), height, width), IGNORE, dtype=torch.int64)
    for number, case in enumerate(cases):
        label = torch.from_numpy(case.needed_label()[0].astype(np.int64))
        labels[number, : label.shape[0], : label.shape[1]] = label
    return images, labels


def padded(image: np.ndarray, height: int, width: int) -> Tensor:
    """An image (C, H, W) enlarged by repetition of its last row and column."""
    more = ((0, 0), (0, height - image.shape[1]), (0, width - image.shape[2]))
    return torch.from_numpy(np.ascontiguousarray(np.pad(image, more, mode="edge"), dtype=np.float32))


def side(length: int) -> int:
    """The least multiple of `STRIDE` that is not below ``length``."""
    return int(-(-length // STRIDE) * STRIDE)


FCN = Baseline(
    name="fcn",
    title="FCN-8s, from scratch",
    source="Long et al. 2015 (paper, reference 24, Table XII)",
    fit=fit,
    recipe="paper_small",
    axes=(2,),
)
