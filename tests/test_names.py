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


VERTEBRAE = ["background", "L1", "L2", "L3", "vertebra_L4", "L5-S1", "VertebraL5", "L 6"]


def test_vertebrae_have_no_side():
    assert [contralateral(name, VERTEBRAE) for name in VERTEBRAE] == [None] * len(VERTEBRAE)
    assert mirror_rule(["T2"], VERTEBRAE)[0]
    assert swap_sides({name: number for number, name in enumerate(VERTEBRAE)}) == list(range(len(VERTEBRAE)))
    assert contralateral("left L1 nerve root") == "right l1 nerve root"
    assert contralateral("nerve_L1_l") == "nerve_l1_r"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("L2 lymph node level II", "R2 lymph node level II"),
        ("rib_L3", "rib_R3"),
        ("lkidney", "rkidney"),
        ("LV", "RV"),
        ("ctx_lparietal", "ctx_rparietal"),
    ],
)
def test_a_doubtful_letter_is_a_side_where_the_dataset_has_its_opposite(one, other):
    labels = {"background": 0, one: 1, other: 2, "liver": 3, "rectum": 4}
    assert [contralateral(name, labels) for name in labels] == [None, other.lower(), one.lower(), None, None]
    assert contralateral(one) is None
    assert swap_sides(labels) == [0, 2, 1, 3, 4]
    assert mirror_rule(["T1"], list(labels)) == (False, f"not mirrored: {one}, {other} would get the wrong side")


@pytest.mark.parametrize(
    "name", ["kidney_l", "L kidney", "left_lung", "L_lung", "Lung-L", "lung (R)", "rib_left_3", "kidney_l_1", "Rt lung"]
)
def test_a_side_needs_no_opposite_in_the_dataset(name):
    assert contralateral(name) is not None
    assert not mirror_rule(["T1"], ["background", name])[0]


def test_images_of_lesions_are_mirrored_unless_their_names_have_a_side():
    assert image_mirror_rule(["background", "benign tumour", "malignant tumour"])[0] == (1,)
    assert image_mirror_rule(["background", "left nodule", "right nodule"])[0] == ()
