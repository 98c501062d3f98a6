"""References of the tests: the paper's equations as plain loops, and records small enough to run in a moment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mre_lowshot.config import (
    AugmentationConfig,
    ChannelNormalization,
    FoldDecisions,
    NetworkConfig,
    PatchConfig,
    Plan,
    PreprocessingConfig,
    Recipe,
)
from mre_lowshot.grid import IGNORE
from mre_lowshot.sampling import BatchSampler, TrainingCase

PATCH = (4, 6, 6)
NONE = AugmentationConfig()
STILL = AugmentationConfig(spatial_probability=1.0, rotation=0.0, scaling=(1.0, 1.0))
EVERYTHING = AugmentationConfig(
    **{name: 1.0 for name in vars(NONE) if name.endswith("_probability")},
    elastic=0.1,
    shift=0.1,
    mirror_axes=(1, 2),
)
TINY = NetworkConfig(
    in_channels=1,
    classes=3,
    widths=(4, 8, 8),
    convs=(1, 1, 1),
    se_reduction=4,
    aspp_channels=4,
    dilations=((1, 2, 2), (2, 3, 3)),
    embedding_dim=8,
    prototypes_per_class=2,
    mixing_dim=6,
)
TINY_2D = replace(TINY, strides=((2, 2), (1, 2)), dilations=((2, 2), (3, 3)))


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> Iterator[None]:
    """For each module that imports it: networks this small only wait for a second thread, long where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def with_settings(recipe: Recipe, **settings: Any) -> Recipe:
    """``recipe`` with fields changed: a field of the recipe itself (``augmentation=...``), or by its own name the field
    of one of its sections (``iterations=6`` is recipe.optimizer.iterations). Of `mirror_axes`, which two sections have,
    the section must be given."""
    own = {name: value for name, value in settings.items() if hasattr(recipe, name)}
    recipe = replace(recipe, **own)
    sections = {f.name: getattr(recipe, f.name) for f in fields(recipe) if is_dataclass(getattr(recipe, f.name))}
    for name in settings.keys() - own.keys():
        (section,) = [s for s, record in sections.items() if hasattr(record, name)]
        sections[section] = replace(sections[section], **{name: settings[name]})
    return replace(recipe, **sections)


def tiny_plan(network: NetworkConfig = TINY, seed: int = 0, **settings: Any) -> Plan:
    """A fold's plan around ``network`` (3D: patch 4x8x8), with the paper's recipe but for the `settings` given."""
    size = (4, 8, 8)[-network.axes :]
    labels = {name: k for k, name in enumerate(["background", "large", "small"][: network.classes])}
    return Plan(
        dataset_name="Dataset001_Tiny",
        plans_name="MREPlans",
        channel_names=("MR",),
        labels=labels,
        file_ending=".nii.gz",
        preprocessing=PreprocessingConfig("none", (ChannelNormalization(),), grid="native"),
        patch=PatchConfig(size, tuple(n // 2 for n in size)),
        network=network,
        recipe=with_settings(Recipe(), **{"iterations": 6, "batch_size": 2, "ohem_min_kept": 16, **settings}),
        reasons={},
        training_ranges={},
        fold=FoldDecisions(
            level="1shot",
            fold=0,
            train=("one",),
            test=("two",),
            majority=(0, 1),
            voxel_shares={},
            reasons={},
            seed=seed,
        ),
    )


def tiny_case(size: tuple[int, ...] = (6, 12, 12), spacing: tuple[float, ...] = (3.0, 1.0, 1.0)) -> TrainingCase:
    """A scan with a bright ball (1) around a dark one (2) off the centre; intensity tells the classes apart."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij"))
    distance = np.sqrt(((grid - 0.2) ** 2).sum(axis=0))
    label = np.where(distance < 0.3, 2, np.where(distance < 0.7, 1, 0)).astype(np.int16)
    noise = np.random.default_rng(0).normal(0, 0.1, size)
    image = (np.array([0.0, 1.5, -1.5])[label] + noise).astype(np.float32)[None]
    return TrainingCase(image, label, spacing)


def numbered_case(size: tuple[int, ...], channels: int = 2, label: np.ndarray | None = None) -> TrainingCase:
    """A scan whose voxels are all different: channel c of voxel number n holds n + c / 2."""
    numbers = np.arange(np.prod(size), dtype=np.float32).reshape(size)
    image = np.stack([numbers + c / 2 for c in range(channels)])
    if label is None:
        label = np.random.default_rng(1).integers(0, 3, size).astype(np.int16)
    return TrainingCase(image, label, (1.0,) * len(size))


def whole_map(size: tuple[int, ...]) -> np.ndarray:
    """The Cartesian maps of a whole volume (axes, *size): from -1 to 1 along each axis."""
    return np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")).astype(np.float32)


def sampler(
    *cases: TrainingCase,
    patch: tuple[int, ...] = PATCH,
    seed: int = 0,
    batch: int = 8,
    spec=NONE,
    prior=None,
    **settings: Any,
) -> BatchSampler:
    """Mini-batches of ``batch`` patches out of ``cases``, with augmentation ``spec``."""
    recipe = with_settings(Recipe(), iterations=50, batch_size=batch, augmentation=spec, **settings)
    return BatchSampler(cases, patch, recipe, 3, seed, prior)


def corner_of(maps: np.ndarray, size: tuple[int, ...]) -> list[int]:
    """First voxel of the patch whose coordinates are ``maps`` (axes, *patch)."""
    first = [m.ravel()[0] for m in maps]
    return [round((c + 1) / 2 * (n - 1)) for c, n in zip(first, size, strict=True)]


def box(corner: list[int], patch: tuple[int, ...] = PATCH) -> tuple[slice, ...]:
    """The slices of the patch whose first voxel is ``corner``."""
    return tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))


def dot(a: Any, b: Any) -> Any:
    """Sum of the products, one after the other."""
    total = 0.0
    for x, y in zip(a, b, strict=True):
        total = total + x * y
    return total


def unit(vector: Any) -> list[Tensor]:
    """Divided by its length."""
    length = torch.sqrt(dot(vector, vector))
    return [x / length for x in vector]


def mixing_loop(e: Any, classes: int, count: int, mixer: nn.Sequential, sigmoid: bool = True) -> list[list[Tensor]]:
    """alpha[k][j] of one embedding and ``count`` prototypes per class: equation 4, two fully connected layers written
    out."""
    down, up = mixer[0], mixer[2]
    hidden = [torch.relu(dot(row, e) + b) for row, b in zip(down.weight, down.bias, strict=True)]
    beta = [dot(row, hidden) + b for row, b in zip(up.weight, up.bias, strict=True)]
    beta = [1 / (1 + torch.exp(-b)) for b in beta] if sigmoid else beta
    by_class = [beta[k * count : (k + 1) * count] for k in range(classes)]
    return [[torch.exp(b) / sum(torch.exp(other) for other in row) for b in row] for row in by_class]


def posterior_loop(head: nn.Module, voxels: Tensor) -> Tensor:
    """P(k) of each voxel's embedding, (V, N_e) -> (V, K): equations 1 to 4 as the paper writes them."""
    spec = head.spec
    xi = torch.exp(head.log_scale)
    centres = [unit(c.unbind()) for c in head.prototypes]
    rows = []
    for voxel in voxels:
        e, direction = voxel.unbind(), unit(voxel.unbind())
        mode: list[list[Tensor]] = [[] for _ in range(spec.classes)]
        for k, j in itertools.product(range(spec.classes), range(spec.prototypes_per_class)):
            centre = centres[k * spec.prototypes_per_class + j]
            if spec.distance == "cosine":
                p = torch.exp(xi * dot(direction, centre))
            else:
                gap = [x - y for x, y in zip(direction, centre, strict=True)]
                p = torch.exp(-xi * dot(gap, gap))
            mode[k].append(p)
        if spec.mixing == "one_hot":
            alpha: Any = [
                [float(j == int(np.argmax([p.item() for p in row]))) for j in range(len(row))] for row in mode
            ]
        elif spec.mixing == "average" or spec.prototypes_per_class == 1:
            alpha = [[1 / spec.prototypes_per_class] * spec.prototypes_per_class] * spec.classes
        else:
            alpha = mixing_loop(e, spec.classes, spec.prototypes_per_class, head.mixer, spec.mixing_sigmoid)
        of_class = [dot(a, p) for a, p in zip(alpha, mode, strict=True)]
        total = sum(of_class)
        rows.append(torch.stack([p / total for p in of_class]))
    return torch.stack(rows)


def cross_entropy_loop(logits: Tensor, target: Tensor, keep: list[bool] | None = None, balance: float = 1) -> Tensor:
    """Equation 5 for logits (V, K), target (V,): minus log P of each kept voxel over the number kept of its class.

    ``balance`` below 1 weights the classes' means by N_k^(1 - balance), 1 on average over those that occur.
    """
    kept = [i for i, t in enumerate(target.tolist()) if t != IGNORE and (keep is None or keep[i])]
    members = {k: [i for i in kept if target[i] == k] for k in range(logits.shape[1])}
    weight = {k: len(mine) ** (1 - balance) for k, mine in members.items() if mine}
    loss = logits.sum() * 0
    for k in weight:
        for i in members[k]:
            p = torch.exp(logits[i, k]) / sum(torch.exp(x) for x in logits[i])
            mean_weight = sum(weight.values()) / len(weight)
            loss = loss - torch.log(p) / len(members[k]) * weight[k] / mean_weight
    return loss


def kept_by_ohem(nll: list[float], target: list[int], majority: set[int], ohem_ratio: int, min_kept: int) -> list[bool]:
    """Section III-E: every minority voxel, and the hardest majority voxels, N_Lg for each of them."""
    minority = [i for i, t in enumerate(target) if t != IGNORE and t not in majority]
    large = sorted((i for i, t in enumerate(target) if t in majority), key=lambda i: -nll[i])
    chosen = {*minority, *large[: ohem_ratio * len(minority) if minority else min_kept]}
    return [i in chosen for i in range(len(target))]


def dice_loop(logits: Tensor, target: Tensor, smooth: float = 1e-5) -> Tensor:
    """1 - soft Dice, summed over the foreground classes that occur, for logits (V, K), target (V,)."""
    kept = [i for i, t in enumerate(target.tolist()) if t != IGNORE]
    probability = torch.softmax(logits, dim=1)
    loss = logits.sum() * 0
    for k in range(1, logits.shape[1]):
        truth = {i: float(target[i] == k) for i in kept}
        if sum(truth.values()):
            overlap = sum(probability[i, k] * truth[i] for i in kept)
            total = sum(probability[i, k] + truth[i] for i in kept)
            loss = loss + 1 - (2 * overlap + smooth) / (total + smooth)
    return loss
