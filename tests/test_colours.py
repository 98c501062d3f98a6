"""Colours of labels: distinct also for colour-blind readers, constant, and as dataset.json gives them."""

import json

import numpy as np
import pytest

from mre_lowshot.data.colours import PALETTE, colours_of, label_colours, palette_colour, rgb
from mre_lowshot.data.dataset import Dataset
from mre_lowshot.errors import UserError

# Machado et al. 2009, complete loss of red, green, blue cones, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colours, matrix):
    """CIELAB (D65) of sRGB colours as a viewer with this vision sees them."""
    values = np.array([rgb(c) for c in colours]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.transpose(matrix), 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    x, y, z = np.cbrt(linear @ np.transpose(to_xyz) / [0.95047, 1, 1.08883]).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(("count", "least"), [(16, 11), (32, 7)])
def test_colours_are_distinct_for_every_vision(vision, count, least):
    seen = lab(PALETTE[:count], VISION[vision])
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1e9 * np.eye(count)
    assert distance.min() > least


def test_many_labels_have_many_colours():
    made = [palette_colour(i) for i in range(255)]
    assert len(set(made)) == 255
    assert made[0] == "#e69f00"
    assert all(len(c) == 7 for c in made)


def test_each_label_has_the_colour_of_its_value_whatever_the_order():
    labels = {"background": 0, "liver": 1, "spleen": 2}
    assert label_colours(labels) == {1: "#e69f00", 2: "#56b4e9"}
    assert label_colours(dict(reversed(labels.items()))) == label_colours(labels)


def test_given_colours_are_used_and_no_other_label_gets_one_like_them():
    labels = {"background": 0, "liver": 1, "spleen": 2, "tumor": 3}
    found = colours_of({"labels": labels, "label_colours": {"tumor": [230, 159, 5], "spleen": "#56B4E9"}})
    assert found[3] == "#e69f05"
    assert found[2] == "#56b4e9"
    assert found[1] == "#f0e442"  # neither orange nor light blue


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"liver": "orange"}, r"label_colours gives 'liver' the colour 'orange'; write"),
        ({"liver": [1, 2]}, r"the colour \[1, 2\]"),
        ({"liver": [1, 2, 256]}, r"256"),
        ({"liver": [True, 2, 3]}, r"True"),
        ({"lever": "#000000"}, r"names 'lever', which is not in labels \['background', 'liver'\]"),
        (["#000000"], r"must map names to colours"),
    ],
)
def test_what_is_no_colour_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        label_colours({"background": 0, "liver": 1}, given, "Dataset001/dataset.json")


def test_a_dataset_with_wrong_colours_or_codes_is_refused_when_it_is_loaded(tmp_path):
    data = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "ignore": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    folder = tmp_path / "Dataset001_Toy"
    for part in ("imagesTr/a_0000", "labelsTr/a"):
        (folder / part).parent.mkdir(parents=True)
        (folder / f"{part}.nii.gz").touch()

    def load(**more):
        (folder / "dataset.json").write_text(json.dumps({**data, **more}))
        return Dataset.load(folder)

    assert load(label_colours={"liver": "#000000"}, label_codes={"liver": ["10200004", "SCT", "Liver"]}).name
    with pytest.raises(UserError, match=r"Dataset001_Toy/dataset\.json: label_colours gives 'liver' the colour 'red'"):
        load(label_colours={"liver": "red"})
    with pytest.raises(UserError, match=r"Dataset001_Toy/dataset\.json: label_codes names 'spleen'"):
        load(label_codes={"spleen": ["78961009", "SCT", "Spleen"]})
