"""Python callers who give something of the wrong type get one sentence with the fix."""

import numpy as np
import pytest

import mre_lowshot
from mre_lowshot import Dataset, Volume
from mre_lowshot.errors import UserError

ARRAY = np.arange(60.0).reshape(3, 4, 5)
ONE = (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("array", "spacing", "message"),
    [
        (ARRAY * 1j, ONE, "array has values of type complex128; give the magnitude"),
        (np.ma.masked_array(ARRAY, ARRAY > 9), ONE, "array is masked, and masks are not used; give array.filled"),
        (np.full((2, 2, 2), "x"), ONE, "array has values of type <U1; give integers or real numbers"),
        (np.full((2, 2, 2), {}), ONE, "array does not hold numbers only"),
        ([[1, 2], [3]], ONE, "array does not hold numbers only"),
        (np.zeros((2, 0, 2)), ONE, r"array of shape \(2, 0, 2\) holds no voxel"),
        (ARRAY * 1e300, ONE, r"array has values beyond 3.4e\+38; divide them, or clip them"),
        (ARRAY, (1, 1, 1e-9), "give three numbers from 1e-06 to 500"),
        (ARRAY, (1e5, 1, 1), "give three numbers from 1e-06 to 500"),
    ],
)
def test_an_array_that_is_no_image(array, spacing, message):
    with pytest.raises(UserError, match=message):
        Volume.from_array(array, spacing)


def test_an_array_of_objects_that_are_numbers_is_an_image():
    assert (Volume.from_array(ARRAY.astype(object), ONE).array[0] == ARRAY).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Volume.read(), "give the path of each channel's file"),
        (lambda: Volume.read(None), "path None: must be the path of an image file"),
        (lambda: Volume.from_array(ARRAY, ONE).save(None), "path None: must be the path of an image file"),
        (lambda: Dataset.load(None), "dataset None: must be the path of its folder"),
        (lambda: mre_lowshot.plan("X", changes=["a"]), "give a dict"),
    ],
)
def test_arguments_of_the_wrong_type(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_the_folds_to_predict_with(trained, tmp_path):
    with pytest.raises(UserError, match="give at least one, or None for all"):
        mre_lowshot.predict(trained.raw / "imagesTr", tmp_path, model=trained.model(), folds=[], device="cpu")
    with pytest.raises(UserError, match=r"fold \[7\] is not trained"):
        mre_lowshot.predict(trained.raw / "imagesTr", tmp_path, model=trained.model(), folds=7, device="cpu")
