"""The baseline FCN: its equations against plain references, and training on toy images."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from references import TINY, single_thread, tiny_plan  # noqa: F401
from toy_folds import image_plan, lesion_case, mean_dice, toy_fold

from mre_lowshot.errors import UserError
from mre_lowshot.experiments.baselines import fcn
from mre_lowshot.experiments.baselines.fcn import FCN
from mre_lowshot.experiments.baselines.fcn_network import FCN8s
from mre_lowshot.experiments.baselines.requirements import require_data
from mre_lowshot.grid import IGNORE


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(fcn, "SMALL_WIDTH", 1 / 16)
    monkeypatch.setattr(fcn, "LEARNING_RATE", 0.1)  # fewer iterations


def network(classes=3, width=1 / 32):
    torch.manual_seed(0)
    return FCN8s(1, classes, width).eval()


def bilinear(plane, factor):
    """Bilinear enlargement with zeros outside: the centre of pixel r lies at (r + 0.5) / factor - 0.5 of the plane."""
    lines = []
    for n in plane.shape:
        positions = (np.arange(n * factor) + 0.5) / factor - 0.5
        lines.append(np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(n))))
    return lines[0] @ plane @ lines[1].T


def test_the_learned_upsampling_begins_as_bilinear_interpolation():
    scores = torch.randn(1, 3, 3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = network().up32(scores)[0].numpy()
    for k in range(3):
        np.testing.assert_allclose(found[k], bilinear(scores[0, k].numpy(), 2), atol=1e-6)


def test_scores_of_three_levels_are_added_from_coarse_to_fine():
    """The equations of the module's docstring, from the features of the blocks."""
    made = network()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for score in (made.score32, made.score16, made.score8):
            score.weight.normal_(generator=generator)
            score.bias.normal_(generator=generator)
        image = torch.randn(1, 1, 64, 96, generator=generator)
        levels, features = [], image
        for block in made.blocks:
            features = block(features)
            levels.append(features)

        def score(layer, features):
            weight = layer.weight[:, :, 0, 0].numpy()
            plain = np.einsum("kc,chw->khw", weight, features[0].numpy())
            return plain + layer.bias.numpy()[:, None, None]

        coarse = score(made.score32, made.fully_connected(levels[4]))
        middle = np.stack([bilinear(plane, 2) for plane in coarse]) + score(made.score16, levels[3])
        fine = np.stack([bilinear(plane, 2) for plane in middle]) + score(made.score8, levels[2])
        found = made(image)[0].numpy()
    assert found.shape == (3, 64, 96)
    inner = np.s_[:, 4:-4, 4:-4]  # nearer to the border, interpolation repeats the border
    np.testing.assert_allclose(found[inner], np.stack([bilinear(p, 8) for p in fine])[inner], atol=1e-4)


def test_the_encoder_is_that_of_vgg_16_with_fewer_channels():
    made = FCN8s(3, 21, 1 / 8)
    shapes = [tuple(m.weight.shape) for m in made.modules() if isinstance(m, torch.nn.Conv2d)]
    sides = [3, 8, 8, 16, 16, 32, 32, 32, *[64] * 6]
    assert shapes[:13] == [(after, before, 3, 3) for before, after in pairwise(sides)]
    assert shapes[13:15] == [(512, 64, 7, 7), (512, 512, 1, 1)]
    assert sorted(shapes[15:]) == [(21, 32, 1, 1), (21, 64, 1, 1), (21, 512, 1, 1)]
    assert all((score.weight == 0).all() for score in (made.score32, made.score16, made.score8))


def test_images_of_different_sizes_are_padded_and_the_padding_is_not_learned():
    images, labels = fcn.batch([lesion_case(0, (40, 56)), lesion_case(1, (48, 70))])
    assert images.shape == (2, 1, 64, 96)
    assert labels.shape == (2, 64, 96)
    assert (labels[0, 40:] == IGNORE).all()
    assert (labels[0, :, 56:] == IGNORE).all()
    assert (labels[1, :48, :70] >= 0).all()
    assert (images[0, 0, 40:, :56] == images[0, 0, 39, :56]).all()


def test_toy_images_are_learned(tiny, tmp_path):
    size = (32, 32)
    fold = toy_fold(tmp_path, [lesion_case(seed, size) for seed in range(4)], image_plan(), iterations=40)
    test = lesion_case(9, size)
    found = FCN.fit(fold)(replace(test, label=None))
    assert found.shape == (2, 1, *size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    assert mean_dice(found, test) > 0.5  # 0.3 by chance
    assert "iteration 40 of 40: loss" in fold.log.__self__[-1]


def test_two_runs_are_alike(tiny, tmp_path):
    case = lesion_case(0, (32, 32))
    fold = toy_fold(tmp_path, [case], image_plan(), iterations=3)
    one, other = (FCN.fit(fold)(replace(case, label=None)) for _ in range(2))
    assert (one == other).all()


def test_images_without_annotation_change_no_weight(tiny, tmp_path):
    case = lesion_case(0, (32, 32))
    fold = toy_fold(tmp_path, [replace(case, label=np.full_like(case.label, IGNORE))], image_plan(), iterations=2)
    assert np.isfinite(FCN.fit(fold)(replace(case, label=None))).all()


def test_volumes_are_refused():
    with pytest.raises(UserError, match="baseline fcn: works on 2D images only, Dataset001_Tiny holds volumes"):
        require_data(FCN, tiny_plan(TINY))
