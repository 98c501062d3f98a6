"""A scan registered again, guided by its prediction: when, with what result, and in which weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared_scans import prepared_scan, registered_scan
from references import TINY, tiny_case, tiny_plan
from scipy import ndimage

from mre_lowshot.atlas.alignment import PreviousPass, align, atlas_coordinates, atlas_positions
from mre_lowshot.atlas.atlas import Atlas
from mre_lowshot.atlas.label_fusion import AtlasPrior, class_shares
from mre_lowshot.config import PatchConfig, RefinementConfig
from mre_lowshot.errors import UserError
from mre_lowshot.grid import coordinate_maps, voxel_positions
from mre_lowshot.inference.models import Model
from mre_lowshot.inference.predictor import Predictor, RegisteredScan

CPU = torch.device("cpu")


def two_organs(border: int) -> tuple[np.ndarray, np.ndarray]:
    """A textured block in which two organs meet at row ``border``, invisibly: image (1, *size), labels."""
    size = (28, 40, 32)
    label = np.zeros(size, np.int16)
    label[6:22, 6:border, 6:26] = 1
    label[6:22, border:34, 6:26] = 2
    noise = ndimage.gaussian_filter(np.random.default_rng(border).normal(size=size), 1)
    return ((label > 0) + 0.3 * noise / noise.std())[None].astype(np.float32), label


def test_the_predicted_classes_are_matched_to_the_atlas_labels():
    """The border between two organs of the same intensity: only the prediction shows where it is."""
    (image, label), (other, truth) = two_organs(18), two_organs(23)
    atlas, plan = Atlas(image, label, (1.0, 1.0, 1.0)), tiny_plan(registration="deformable")
    prior = AtlasPrior((label,), 3)
    inside = truth > 0
    right = []
    field = None
    for guided in (False, True):
        previous = PreviousPass.each([field], class_shares(truth, 3), atlas.spacing)[0] if guided else None
        field = align((atlas,), other, atlas.spacing, plan=plan, previous=previous)
        right.append((prior.fuse_labels(field).numpy().argmax(axis=0) == truth)[inside].mean())
    assert right[0] < 0.9
    assert right[1] > right[0] + 0.05


@pytest.mark.slow
def test_each_fold_is_registered_again_from_its_own_previous_registration():
    image, label = (array[..., 4:20, 8:28, 4:24] for array in two_organs(18))
    plan, spacing = tiny_plan(registration="deformable"), (1.0, 1.0, 1.0)
    atlases = [(Atlas(image, label, spacing),), (Atlas(np.roll(image, 3, 2), np.roll(label, 3, 1), spacing),)]
    predictor = Predictor(Model(Path(), (0, 1), (plan, plan), (Repeats(), Repeats()), tuple(atlases)), device=CPU)
    prepared, shares = prepared_scan(image, spacing), class_shares(label, 3)
    own = coordinate_maps(voxel_positions((0, 0, 0), label.shape), label.shape)
    previous = [own, np.clip(own + 0.2, -1, 1)]
    found = predictor.register(prepared, previous=(previous, shares))
    assert found.prepared is prepared
    passes = PreviousPass.each(previous, shares, spacing)
    assert passes[0].shares.shape == (3, *label.shape)
    for of_fold, its, coordinates in zip(atlases, passes, found.coordinates, strict=True):
        assert np.array_equal(coordinates, align(of_fold, image, spacing, plan=plan, previous=its))
    swapped = align(atlases[1], image, spacing, plan=plan, previous=passes[0])
    assert not np.array_equal(found.coordinates[1], swapped)


@pytest.mark.slow
def test_each_atlas_is_registered_again_from_its_own_previous_registration(monkeypatch):
    from mre_lowshot.atlas import alignment

    image, label = two_organs(18)
    atlases = tuple(Atlas(np.roll(image, n, 2), np.roll(label, n, 1), (1.0, 1.0, 1.0)) for n in (0, 3))
    plan, shares = tiny_plan(registration="deformable"), class_shares(label, 3)
    first = align(atlases, image, (1.0, 1.0, 1.0), plan=plan)
    starts, real = [], alignment.deformable
    monkeypatch.setattr(alignment, "deformable", lambda *given: starts.append(given) or real(*given))
    again = align(atlases, image, (1.0, 1.0, 1.0), plan=plan, previous=PreviousPass(first, shares))
    positions = (again.reshape(2, 3, *label.shape) + 1) / 2 * (np.reshape(label.shape, (3, 1, 1, 1)) - 1)
    moved = (positions - np.indices(label.shape))[:, :, label > 0].mean(axis=-1)
    np.testing.assert_allclose(moved, [[0, 0, 0], [0, 3, 0]], atol=0.5)
    middle = [float(n) / 2 for n in reversed(label.shape)]
    shifts = [np.subtract(start.TransformPoint(middle), middle)[1] for _, _, start, *_ in starts]
    np.testing.assert_allclose(shifts, [0, 3], atol=0.5)  # not from the other's
    assert all(classes.fixed is shares for *_, classes, _ in starts)


def test_positions_are_those_that_the_coordinates_were_computed_from():
    import SimpleITK as sitk

    from mre_lowshot.atlas.registration.affine import nearest_affine
    from mre_lowshot.atlas.registration.images import to_image, transformed_positions

    image, label = two_organs(18)
    atlas = Atlas(image, label, (3.0, 1.5, 2.0))
    fixed = to_image(np.zeros((1, 20, 30, 25), np.float32), (2.0, 1.0, 1.2))
    wanted = sitk.AffineTransform(3)
    wanted.SetMatrix([1.1, 0.05, 0, -0.02, 0.9, 0.1, 0, 0.03, 1.05])
    wanted.SetTranslation((3.0, -2.0, 5.0))
    positions = atlas_positions(atlas, atlas_coordinates(atlas, wanted, fixed, (20, 30, 25)), fixed)
    np.testing.assert_allclose(positions, transformed_positions(wanted, fixed), atol=1e-3)
    found = nearest_affine(positions, fixed)
    np.testing.assert_allclose(found.GetMatrix(), wanted.GetMatrix(), atol=1e-4)
    np.testing.assert_allclose(found.GetTranslation(), wanted.GetTranslation(), atol=1e-2)


class Repeats(torch.nn.Module):
    """Predicts the atlas's label at each voxel, unless the image is bright there."""

    def forward(self, image: torch.Tensor, location: torch.Tensor) -> torch.Tensor:
        return torch.cat([1 + image[:, :1], 2 * location[:, 3:]], dim=1)


class Reregistering(Predictor):
    """Re-registration always gives ``field``, or fails without one. ``previous`` holds what each was guided by."""

    field: np.ndarray | None = None

    def register(self, prepared, *, previous=None):
        coordinates, probabilities = previous
        self.previous.append((coordinates[0], probabilities.clone()))
        if self.field is None:
            raise UserError("cannot be registered")
        return RegisteredScan(prepared, [self.field])


def refined(field, below=1.0, weight=0.4, coordinates=True, size=(9, 13, 12), registration="deformable"):
    """The probabilities and quality of a tiny scan whose own labels are the atlas's, and what guided each
    re-registration."""
    case = tiny_case(size)
    own = coordinate_maps(voxel_positions((0, 0, 0), size), size)
    plan = tiny_plan(
        replace(TINY, atlas_prior=True), registration=registration, atlas_weight=weight, reregister_below=below
    )
    plan = replace(plan, patch=PatchConfig((4, 8, 8), (2, 4, 6)))
    model = Model.of_fold(plan, Repeats(), (Atlas(case.image, case.label, case.spacing),))
    predictor = Reregistering(model, device=CPU)
    predictor.field, predictor.previous = field, []
    scan = predictor.refine(predictor.run_network(registered_scan(case.image, [own if coordinates else None])))
    return scan.array, scan.quality, predictor.previous


def once(**settings):
    """`refined` without re-registration."""
    probabilities, quality, previous = refined(field_of(), below=0.0, **settings)
    assert not previous
    return probabilities, quality


def field_of(size=(9, 13, 12)) -> np.ndarray:
    return 0.5 * coordinate_maps(voxel_positions((0, 0, 0), size), size)


def test_labels_warped_by_the_new_registration_are_fused_with_the_posterior():
    field = field_of()
    again, quality, previous = refined(field)
    first, its_quality = once()
    alone, _ = once(weight=0.0)
    assert len(previous) == 2
    np.testing.assert_array_equal(previous[0][1], first)
    np.testing.assert_array_equal(previous[1][1], again)  # the field is always the same
    assert previous[1][0] is field
    warped = AtlasPrior((tiny_case((9, 13, 12)).label,), TINY.classes).fuse_labels(field_of()).numpy()
    fused = alone**0.6 * (warped + 0.01) ** 0.4
    np.testing.assert_allclose(again, fused / fused.sum(axis=0), atol=1e-5)
    assert quality == its_quality  # of the first registration, which was independent of the prediction


def test_a_scan_is_registered_again_only_where_network_and_registration_agree_less_than_the_limit():
    _, quality = once()
    assert 0 < quality.score < 1
    for below, times in ((quality.score - 1e-6, 0), (quality.score + 1e-6, 2), (0.0, 0)):
        assert len(refined(field_of(), below)[2]) == times


def test_only_a_deformable_registration_is_repeated():
    assert refined(field_of(), registration="affine")[2] == []


def test_a_scan_is_not_registered_again_where_nothing_would_be_fused():
    assert refined(field_of(), weight=0.0)[2] == []
    assert refined(field_of(), coordinates=False)[2] == []


def test_a_scan_smaller_than_a_patch_is_registered_again_on_its_own_grid():
    again, _, previous = refined(field_of((3, 13, 6)), size=(3, 13, 6))
    field, probabilities = previous[0]
    assert field.shape == (3, 3, 13, 6)
    assert again.shape == probabilities.shape == (TINY.classes, 3, 13, 6)
    assert not np.array_equal(again, probabilities)


def test_a_registration_that_fails_keeps_the_previous_one(capsys):
    again, _, previous = refined(None)
    assert len(previous) == 1
    assert np.array_equal(again, once()[0])
    message = "prediction-guided registration failed: cannot be registered; keeping the previous registration"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_limit_that_is_no_agreement_is_refused(value):
    with pytest.raises(UserError, match=r"reregister_below is .*must lie in \[0, 1\]"):
        RefinementConfig(reregister_below=value)
