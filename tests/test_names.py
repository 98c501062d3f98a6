"""What the names of channels and labels tell."""

import pytest

from mre_lowshot.mirroring import partners
from mre_lowshot.planners.rules import flat_mirror_rule, is_mri, mirror_rule, other_side


@pytest.mark.parametrize(
    "name", ["MRI", "T1", "T1-IR", "T1 IR", "T1w_post", "T2SPIR", "T1DUAL", "T2*", "mr-flair", "MPRAGE", "T1C+", "DWI"]
)
def test_names_of_sequences_are_mri(name):
    assert is_mri(name)


@pytest.mark.parametrize("name", ["CT", "US", "PET", "PET_MR", "R", "image", "contrast", "postir"])
def test_other_names_are_not(name):
    assert not is_mri(name)


@pytest.mark.parametrize(
    ("one", "other"),
    [("left_kidney", "right_kidney"), ("LeftKidney", "right_kidney"), ("kidneyL", "kidney_r"),
     ("lh-insula", "rh-insula"), ("Parotid Lt", "parotid rt"), ("HippocampusRight", "hippocampus_left"),
     ("Kidney (left)", "kidney (right)")],
)  # fmt: skip
def test_sides_are_read_in_any_spelling(one, other):
    assert other_side(one) == other
    labels = {"background": 0, one: 1, other: 2, "liver": 3}
    assert partners(labels) == [0, 2, 1, 3]
    assert not mirror_rule(["T1"], list(labels))[0]


@pytest.mark.parametrize("name", ["liver", "inferior_vena_cava", "aorta", "ltr", "upright"])
def test_other_labels_have_no_side(name):
    assert other_side(name) is None


def test_images_of_lesions_are_mirrored_unless_their_names_tell_a_side():
    assert flat_mirror_rule(["background", "benign tumour", "malignant tumour"])[0] == (1,)
    assert flat_mirror_rule(["background", "left nodule", "right nodule"])[0] == ()
