"""NSD: figures worked out by hand, and the implementation of the authors of the definition (surface-distance)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mre_lowshot.errors import UserError
from mre_lowshot.evaluation.metrics import case_metrics
from mre_lowshot.evaluation.surfaces import default_tolerance, element_sizes, surface_dice
from mre_lowshot.workflows.evaluate import evaluate

pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # in surface-distance
UNIT = (1.0, 1.0, 1.0)
ANISOTROPIC = (3.0, 0.5, 0.75)
TOLERANCES = (0.0, 0.4, 0.6, 1.1, 2.6, 4.0)


def ball(shape, centre, radius, spacing=UNIT):
    places = np.indices(shape) * np.reshape(spacing, (3, 1, 1, 1))
    return ((places - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0) <= radius**2


def blobs(seed, shape=(7, 12, 11)):
    """Two overlapping, ragged masks; some voxels touch the image's edge."""
    rng = np.random.default_rng(seed)
    core = np.zeros(shape, bool)
    core[2:6, 3:9, 0:7] = True
    return core ^ (rng.random(shape) < 0.1), np.roll(core, 1, 2) ^ (rng.random(shape) < 0.05)


def theirs(a, b, spacing, tolerance):
    module = pytest.importorskip("surface_distance")
    found = module.compute_surface_distances(a, b, spacing)
    return module.compute_surface_dice_at_tolerance(found, tolerance)


def test_a_square_in_a_slice_by_hand():
    """4 x 4 pixels: 4 sides of 3 pixel lengths and 4 corners; the prediction is 3 pixels longer along x."""
    reference, prediction = np.zeros((1, 9, 12), bool), np.zeros((1, 9, 12), bool)
    reference[0, 2:6, 2:6] = prediction[0, 2:6, 2:9] = True
    y, x = 2.0, 0.5
    spacing, corner = (9.0, y, x), math.hypot(y, x) / 2
    one, other = 6 * y + 6 * x + 4 * corner, 6 * y + 12 * x + 4 * corner
    # the reference's right side (3 y; its corners lie on the predicted contour) is 1.5 mm away from the prediction's;
    # of the prediction's longer sides the last 2 lengths are .5 and 1 mm away, its right side and two corners 1.5 mm
    for tolerance, near_one, near_other in (
        (0.0, one - 3 * y, other - 3 * y - 2 * corner - 4 * x),
        (0.5, one - 3 * y, other - 3 * y - 2 * corner - 2 * x),
        (1.5, one, other),
    ):
        found = surface_dice(reference, prediction, spacing, tolerance)
        assert found == pytest.approx((near_one + near_other) / (one + other)), tolerance


def test_a_shift_is_within_the_tolerance_or_not():
    plate = np.zeros((12, 12, 12), bool)
    plate[5:6, 2:10, 2:10] = True
    moved = np.roll(plate, 1, 0)
    assert surface_dice(plate, moved, ANISOTROPIC, 3.0) == 1
    assert surface_dice(plate, moved, ANISOTROPIC, 2.9) < 0.6  # the plane between the two plates is common
    assert surface_dice(plate, np.roll(plate, 2, 2), ANISOTROPIC, 1.5) == 1


def test_empty_masks():
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    assert math.isnan(surface_dice(empty, empty, UNIT, 1))
    assert surface_dice(empty, full, UNIT, 1) == surface_dice(full, empty, UNIT, 1) == 0
    assert surface_dice(full, full, UNIT, 0) == 1  # its surface is the border of the image


def test_one_slice_and_one_voxel():
    disc = ball((1, 20, 20), (0, 9, 9), 6)
    assert surface_dice(disc, np.roll(disc, 1, 2), UNIT, 1) == 1
    assert surface_dice(disc, np.roll(disc, 3, 2), UNIT, 1) < 1
    line = np.zeros((1, 1, 9), bool)
    line[..., 2:5] = True
    assert surface_dice(line, np.roll(line, 1, 2), UNIT, 0.5) == 0
    assert surface_dice(line, line ^ (np.arange(9) == 5), UNIT, 0.5) == 0.5  # one of two ends moved
    assert surface_dice(np.ones((1, 1, 1), bool), np.ones((1, 1, 1), bool), UNIT, 0) == 1


def test_the_default_tolerance_is_the_longest_side_of_a_voxel():
    assert default_tolerance((5, 6, 7), ANISOTROPIC) == 3
    assert default_tolerance((1, 6, 7), ANISOTROPIC) == 0.75
    a, b = blobs(0)
    row = case_metrics(a.astype(int), b.astype(int), {"a": 1, "b": 2}, ANISOTROPIC, tolerances={2: 0.1})
    assert (row[1]["NSD_tolerance"], row[2]["NSD_tolerance"]) == (3, 0.1)
    assert row[1]["NSD"] == surface_dice(a, b, ANISOTROPIC, 3.0)
    assert math.isnan(row[2]["NSD"])


@pytest.mark.parametrize("spacing", [UNIT, ANISOTROPIC])
def test_areas_of_all_neighbourhoods_are_those_of_the_authors(spacing):
    tables = pytest.importorskip("surface_distance.lookup_tables")
    area = tables.create_table_neighbour_code_to_surface_area(spacing)
    cubes = [np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2) for code in range(256)]
    expected = [area[int((cube * tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL).sum())] for cube in cubes]
    np.testing.assert_allclose(element_sizes(spacing), expected, rtol=1e-6)


@pytest.mark.parametrize("spacing", [UNIT, ANISOTROPIC, (0.7, 1.9, 1.1)])
def test_smooth_shapes_against_the_authors(spacing):
    extent = [24 * s for s in spacing]
    middle, radius = [e / 2 for e in extent], min(extent) / 3
    a = ball((24, 24, 24), middle, radius, spacing)
    b = ball((24, 24, 24), [m + 0.2 * radius for m in middle], 0.9 * radius, spacing)
    for tolerance in TOLERANCES:
        assert surface_dice(a, b, spacing, tolerance) == pytest.approx(theirs(a, b, spacing, tolerance), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spacing", [UNIT, ANISOTROPIC])
def test_ragged_shapes_against_the_authors(spacing, seed):
    a, b = blobs(seed)
    for tolerance in TOLERANCES:
        assert surface_dice(a, b, spacing, tolerance) == pytest.approx(theirs(a, b, spacing, tolerance), abs=1e-6)
        flat = surface_dice(a[3:4], b[3:4], spacing, tolerance)
        assert flat == pytest.approx(theirs(a[3], b[3], spacing[1:], tolerance))


def test_voxel_shape_does_not_matter():
    """Voxels divided along z: the same solid. A count of surface voxels would weigh its sides twice."""
    a, b = (ball((20, 20, 20), centre, 6) for centre in ((9, 9, 9), (10, 9, 9)))
    fine = [np.repeat(mask, 4, axis=0) for mask in (a, b)]
    for tolerance in (0.5, 1.1):
        found = surface_dice(*fine, (0.25, 1.0, 1.0), tolerance)
        assert found == pytest.approx(surface_dice(a, b, UNIT, tolerance), abs=0.1)


maps = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5))
spacings = st.tuples(*[st.floats(0.2, 5)] * 3)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), a=maps, spacing=spacings, tolerance=st.floats(0, 6))
def test_symmetric_monotonic_and_the_same_on_turned_axes(data, a, spacing, tolerance):
    b = data.draw(hnp.arrays(bool, a.shape))
    found = surface_dice(a, b, spacing, tolerance)
    assert surface_dice(b, a, spacing, tolerance) == pytest.approx(found, nan_ok=True)
    assert surface_dice(a, a, spacing, 0) == pytest.approx(1 if a.any() else math.nan, nan_ok=True)
    if not math.isnan(found):
        assert 0 <= found <= surface_dice(a, b, spacing, tolerance + 1) + 1e-12
    turned = surface_dice(a[::-1].transpose(2, 0, 1), b[::-1].transpose(2, 0, 1), np.roll(spacing, 1), tolerance)
    assert turned == pytest.approx(found, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (-1, r"--nsd_tolerance -1: must lie in \[0, 1e\+06\]"),
        (math.nan, "--nsd_tolerance nan"),
        ({"splen": 2.0}, "--nsd_tolerance 'splen': is no evaluated label; did you mean 'spleen'"),
        ({"spleen": -2.0}, "--nsd_tolerance spleen= -2.0: must lie in"),
    ],
)
def test_wrong_tolerances_are_refused(tmp_path, given, message):
    from test_evaluate_command import LABELS, describe, organs, save

    for name in ("gt", "pred"):
        save(tmp_path / name / "a.nii.gz", organs())
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path / "gt", tmp_path / "pred", dataset_json=describe(tmp_path, LABELS), nsd_tolerance=given)
    assert not (tmp_path / "pred/summary.json").exists()
