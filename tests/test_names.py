"""Modalities, sides and lesions, read from the names of channels and labels."""

import pytest

from mre_lowshot.atlas.mirrored import swap_sides
from mre_lowshot.data.vocabulary import contralateral, is_mri
from mre_lowshot.planners.rules import image_mirror_rule, mirror_rule


@pytest.mark.parametrize(
    "name", ["MRI", "T1", "T1-IR", "T1 IR", "T1w_post", "T2SPIR", "T1DUAL", "T2*", "mr-flair", "MPRAGE", "T1C+", "DWI"]
)
def test_names_of_sequences_are_mri(name):
    assert is_mri(name)


@pytest.mark.parametrize("name", ["CT", "US", "PET", "PET_MR", "R", "image", "contrast", "postir"])
def test_other_names_are_not_mri(name):
    assert not is_mri(name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("left_kidney", "right_kidney"),
        ("LeftKidney", "right_kidney"),
        ("kidneyL", "kidney_r"),
        ("lh-insula", "rh-insula"),
        ("Parotid Lt", "parotid rt"),
        ("HippocampusRight", "hippocampus_left"),
        ("Kidney (left)", "kidney (right)"),
    ],
)
def test_sides_are_read_in_any_spelling(one, other):
    assert contralateral(one) == other
    labels = {"background": 0, one: 1, other: 2, "liver": 3}
    assert swap_sides(labels) == [0, 2, 1, 3]
    assert not mirror_rule(["T1"], list(labels))[0]


@pytest.mark.parametrize("name", ["liver", "inferior_vena_cava", "aorta", "ltr", "upright"])
def test_other_labels_have_no_side(name):
    assert contralateral(name) is None


def test_images_of_lesions_are_mirrored_unless_their_names_have_a_side():
    assert image_mirror_rule(["background", "benign tumour", "malignant tumour"])[0] == (1,)
    assert image_mirror_rule(["background", "left nodule", "right nodule"])[0] == ()
