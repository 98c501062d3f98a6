"""A scan registered again by what was predicted: when, with what outcome, and by which rule."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from references import TINY, tiny_case, tiny_plan
from scipy import ndimage

from mre_lowshot.alignment import Atlas, Former, align, coordinates_in, places_in
from mre_lowshot.errors import UserError
from mre_lowshot.inference.predictor import REALIGNED, Predictor
from mre_lowshot.sampling import Prior, class_shares, coordinate_maps, voxel_positions
from mre_lowshot.specs import InferenceSpec, PatchSpec

CPU = torch.device("cpu")


def two_organs(border: int) -> tuple[np.ndarray, np.ndarray]:
    """A textured block in which two organs meet, unseen in the image, at row ``border``: image (1, *size), labels."""
    size = (28, 40, 32)
    label = np.zeros(size, np.int16)
    label[6:22, 6:border, 6:26] = 1
    label[6:22, border:34, 6:26] = 2
    noise = ndimage.gaussian_filter(np.random.default_rng(border).normal(size=size), 1)
    return ((label > 0) + 0.3 * noise / noise.std())[None].astype(np.float32), label


def test_what_was_predicted_is_brought_to_the_atlas_labels():
    """The border between two organs that look alike: the image cannot tell where it is, the prediction does."""
    (image, label), (other, truth) = two_organs(18), two_organs(23)
    atlas, plan = Atlas(image, label, (1.0, 1.0, 1.0)), tiny_plan(alignment="deformable")
    prior = Prior((label,), 3)
    inside = truth > 0
    right = []
    field = None
    for told in (False, True):
        former = Former.each([field], class_shares(truth, 3), atlas.spacing)[0] if told else None
        field = align((atlas,), other, atlas.spacing, plan, former)
        right.append((prior.posterior(field).argmax(axis=0) == truth)[inside].mean())
    assert right[0] < 0.9
    assert right[1] > right[0] + 0.05


def test_only_a_deformable_alignment_is_found_anew_and_each_model_by_its_own_former_one(monkeypatch):
    from mre_lowshot.inference import export

    image, label = two_organs(18)
    prepared = SimpleNamespace(image=image, transform=SimpleNamespace(spacing=(1.0, 1.0, 1.0)))
    atlases = [(Atlas(image, label, (1.0, 1.0, 1.0)),), (Atlas(image, label + 1, (1.0, 1.0, 1.0)),)]
    asked = []
    monkeypatch.setattr(export, "align", lambda *given: asked.append(given) or np.full(3, float(len(asked))))
    fields, again = export.located(atlases, prepared, tiny_plan(alignment="deformable"))
    again(fields, class_shares(label, 3))
    first, second = asked[2:]
    assert [given[0] for given in asked[2:]] == atlases
    assert (first[4].coordinates[0], second[4].coordinates[0]) == (1.0, 2.0)
    assert first[4].shares.shape == (3, *label.shape)
    assert export.located(atlases, prepared, tiny_plan(alignment="affine"))[1] is None


def test_each_atlas_is_registered_again_from_its_own_former_registration(monkeypatch):
    from mre_lowshot import alignment

    image, label = two_organs(18)
    atlases = tuple(Atlas(np.roll(image, n, 2), np.roll(label, n, 1), (1.0, 1.0, 1.0)) for n in (0, 3))
    plan, shares = tiny_plan(alignment="deformable"), class_shares(label, 3)
    first = align(atlases, image, (1.0, 1.0, 1.0), plan)
    starts, real = [], alignment.deformable
    monkeypatch.setattr(alignment, "deformable", lambda *given: starts.append(given) or real(*given))
    again = align(atlases, image, (1.0, 1.0, 1.0), plan, Former(first, shares))
    places = (again.reshape(2, 3, *label.shape) + 1) / 2 * (np.reshape(label.shape, (3, 1, 1, 1)) - 1)
    moved = (places - np.indices(label.shape))[:, :, label > 0].mean(axis=-1)
    np.testing.assert_allclose(moved, [[0, 0, 0], [0, 3, 0]], atol=0.5)
    middle = [float(n) / 2 for n in reversed(label.shape)]
    shifts = [np.subtract(start.TransformPoint(middle), middle)[1] for _, _, start, _ in starts]
    np.testing.assert_allclose(shifts, [0, 3], atol=0.5)  # not from the other's
    assert all(classes.fixed is shares for *_, classes in starts)


def test_places_are_those_that_the_coordinates_came_from():
    import SimpleITK as sitk

    from mre_lowshot.registration.affine import nearest_affine
    from mre_lowshot.registration.images import mapped, to_image

    image, label = two_organs(18)
    atlas = Atlas(image, label, (3.0, 1.5, 2.0))
    fixed = to_image(np.zeros((1, 20, 30, 25), np.float32), (2.0, 1.0, 1.2))
    wanted = sitk.AffineTransform(3)
    wanted.SetMatrix([1.1, 0.05, 0, -0.02, 0.9, 0.1, 0, 0.03, 1.05])
    wanted.SetTranslation((3.0, -2.0, 5.0))
    places = places_in(atlas, coordinates_in(atlas, wanted, fixed, (20, 30, 25)), fixed)
    np.testing.assert_allclose(places, mapped(wanted, fixed), atol=1e-3)
    found = nearest_affine(places, fixed)
    np.testing.assert_allclose(found.GetMatrix(), wanted.GetMatrix(), atol=1e-4)
    np.testing.assert_allclose(found.GetTranslation(), wanted.GetTranslation(), atol=1e-2)


class Asked:
    """Gives coordinates and remembers the coordinates and probabilities it was asked with."""

    def __init__(self, field: np.ndarray) -> None:
        self.field, self.told = field, []

    def __call__(self, fields: list[np.ndarray], probabilities: np.ndarray) -> list[np.ndarray]:
        self.told.append((fields[0], probabilities.copy()))
        return [self.field]


class Repeats(torch.nn.Module):
    """Says what it is told of the place, unless the image is bright there."""

    def forward(self, image: torch.Tensor, location: torch.Tensor) -> torch.Tensor:
        return torch.cat([1 + image[:, :1], 2 * location[:, 3:]], dim=1)


def rated(asked, below=1.0, weight=0.4, coordinates=True, size=(9, 13, 12)):
    """The predictor's answer on a tiny scan whose own labels are the atlas's."""
    network = replace(TINY, atlas_prior=True)
    case = tiny_case(size)
    own = coordinate_maps(voxel_positions((0, 0, 0), size), size)
    rule = InferenceSpec(prior_weight=weight, realign_below=below)
    predictor = Predictor([Repeats()], network, PatchSpec((4, 8, 8), (2, 4, 6)), rule, CPU,
                          priors=[Prior((case.label,), network.classes)])  # fmt: skip
    return predictor.predict_and_rate(case.image, None, [own] if coordinates else None, asked)


def field_of(size=(9, 13, 12)) -> np.ndarray:
    return 0.5 * coordinate_maps(voxel_positions((0, 0, 0), size), size)


def test_the_labels_of_the_new_registration_are_pooled_with_what_the_network_said_before():
    asked = Asked(field_of())
    again, rating = rated(asked)
    once, first = rated(None)
    alone, _ = rated(None, weight=0.0)
    assert len(asked.told) == REALIGNED == 2
    np.testing.assert_array_equal(asked.told[0][1], once)
    np.testing.assert_array_equal(asked.told[1][1], again)  # the field it gives is always the same
    assert asked.told[1][0] is asked.field
    brought = Prior((tiny_case((9, 13, 12)).label,), TINY.classes).posterior(field_of())
    pooled = alone**0.6 * (brought + 0.01) ** 0.4
    np.testing.assert_allclose(again, pooled / pooled.sum(axis=0), atol=1e-5)
    assert rating == first  # of two that did not know of each other


def test_it_is_asked_only_where_network_and_registration_agree_less_than_the_rule_says():
    _, rating = rated(None)
    assert 0 < rating.score < 1
    for below, times in ((rating.score - 1e-6, 0), (rating.score + 1e-6, REALIGNED), (0.0, 0)):
        asked = Asked(field_of())
        rated(asked, below)
        assert len(asked.told) == times


def test_it_is_not_asked_where_nothing_would_be_pooled():
    asked = Asked(field_of())
    rated(asked, weight=0.0)
    rated(asked, coordinates=False)
    assert not asked.told


def test_a_scan_smaller_than_a_patch_is_registered_again_on_its_own_grid():
    asked = Asked(field_of((3, 13, 6)))
    again, _ = rated(asked, size=(3, 13, 6))
    field, probabilities = asked.told[0]
    assert field.shape == (3, 3, 13, 6)
    assert again.shape == probabilities.shape == (TINY.classes, 3, 13, 6)
    assert not np.array_equal(again, probabilities)


def test_a_registration_that_fails_leaves_what_there_was(capsys):
    def fails(fields, probabilities):
        raise UserError("cannot be registered")

    again, _ = rated(fails)
    assert np.array_equal(again, rated(None)[0])
    assert "does not help registration: the scan cannot be registered" in capsys.readouterr().err


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_limit_that_is_no_agreement_is_refused(value):
    with pytest.raises(UserError, match=r"realign_below is .*must lie in \[0, 1\]"):
        InferenceSpec(realign_below=value)
