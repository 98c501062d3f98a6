"""Preprocessed cases are compared with the plan, with the files that they were made from, and with themselves."""

import io
import json
import os
import random
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from conftest import edit
from test_prepare import dataset, plan_for, stored  # noqa: F401
from test_preprocessing import config

from mre_lowshot.data.dataset import Dataset
from mre_lowshot.data.volume import read_labels, write_volume
from mre_lowshot.errors import UserError
from mre_lowshot.preprocessing.prepare import check_prepared, prepare_dataset
from mre_lowshot.preprocessing.record import read_record, reference_of
from mre_lowshot.preprocessing.store import load_case

FIX = r"run mre_plan_and_preprocess -d Dataset001_X -p P --keep_plan"


@pytest.fixture
def prepared(dataset, tmp_path):  # noqa: F811
    """The dataset, its plan, and the folder of its preprocessed cases."""
    plan = plan_for(config("nonzero"))
    prepare_dataset(dataset, plan, tmp_path / "out")
    return dataset, plan, tmp_path / "out"


def relabel(path, old=1, new=2):
    """Change one class of a label map into another."""
    volume = read_labels(path)
    write_volume(path, np.where(volume.array == old, new, volume.array), volume.geometry)


OTHERS = {
    "channel_names": {"channel_names": ("T2",)},
    "labels": {"labels": {"background": 0, "y": 1, "x": 2}},
    "ignore_label": {"ignore_label": 4},
    "file_ending": {"file_ending": ".nii"},
    "dataset_name": {"dataset_name": "Dataset001_X2"},
    "preprocessing": {"preprocessing": config("nonzero", crop_margin_mm=1.0)},
}


@pytest.mark.parametrize("field", OTHERS)
def test_cases_made_with_another_value_of_any_field_that_matters_are_refused(prepared, field):
    _, plan, out = prepared
    other = replace(plan, **OTHERS[field])
    with pytest.raises(UserError, match=rf"other settings than the plan's; run mre_plan_and.*\({field}: the cases'"):
        check_prepared(other, out)
    with pytest.raises(UserError, match=r"case c0: .*c0\.npz was preprocessed with other settings than the plan's"):
        load_case(out / "P", "c0", other)


def test_fields_that_do_not_matter_may_differ(prepared):
    _, plan, out = prepared
    other = replace(plan, reasons={"a": "b"}, recipe=replace(plan.recipe, size="small"))
    assert check_prepared(other, out) == ["c0", "c1"]
    assert load_case(out / "P", "c0", other).settings == load_case(out / "P", "c0").settings
    whole = replace(plan.preprocessing, crop_margin_mm=0)  # 0 and 0.0 are one value
    assert load_case(out / "P", "c0", replace(plan, preprocessing=whole)).name == "c0"


def test_a_case_copied_from_another_plan_is_refused(prepared, tmp_path):
    """The record is right, one case is not."""
    dataset, plan, out = prepared  # noqa: F811
    other = plan_for(config("none"), name="Q")
    prepare_dataset(dataset, other, out)
    shutil.copy(out / "Q/c1.npz", out / "P/c1.npz")
    assert load_case(out / "P", "c0", plan).label is not None
    with pytest.raises(UserError, match=rf"case c1: .*other settings than the plan's; {FIX}"):
        load_case(out / "P", "c1", plan)


def test_a_missing_case_is_named_at_the_start(prepared):
    _, plan, out = prepared
    (out / "P/c1.npz").unlink()
    with pytest.raises(UserError, match=rf"case c1: .*c1\.npz is missing; {FIX}"):
        check_prepared(plan, out)


def test_a_file_that_only_got_another_date_is_the_same(prepared):
    dataset, plan, out = prepared  # noqa: F811
    for path in (*dataset.folder.rglob("*.nii.gz"), *out.rglob("*.nii.gz")):
        os.utime(path, (1, 1))
    assert check_prepared(plan, out) == ["c0", "c1"]


CHANGES = {
    "label": lambda raw: relabel(raw / "labelsTr/c1.nii.gz"),
    "image": lambda raw: shutil.copy(raw / "imagesTr/c0_0000.nii.gz", raw / "imagesTr/c1_0000.nii.gz"),
    "missing": lambda raw: (raw / "imagesTr/c1_0000.nii.gz").unlink(),
    "converted": lambda raw: (raw / "labelsTr/c1.nii.gz").rename(raw / "labelsTr/c1.nii"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_changed_after_planning_are_named(prepared, change):
    dataset, plan, out = prepared  # noqa: F811
    CHANGES[change](dataset.folder)
    name = r"imagesTr/c1_0000\.nii\.gz" if change in ("image", "missing") else r"labelsTr/c1\.nii\.gz"
    with pytest.raises(UserError) as refused:
        check_prepared(plan, out)
    text = str(refused.value)
    assert text.startswith("Dataset001_X: changed since the cases of plan P were preprocessed: ")
    assert text.endswith(f"; {FIX}, or restore the files")
    assert name.replace("\\", "") in text
    assert "c0" not in text
    assert ("(missing)" in text) == (change in ("missing", "converted"))


def test_a_change_that_keeps_size_and_date_is_found_by_the_copy_of_the_label_map(prepared):
    _, plan, out = prepared
    path = out / "gt_segmentations/c1.nii.gz"
    date = path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(date, date))
    assert reference_of(plan, out, "c0") == out / "gt_segmentations/c0.nii.gz"
    with pytest.raises(UserError, match=rf"case c1: .*c1\.nii\.gz is missing or changed since preprocessing; {FIX}"):
        reference_of(plan, out, "c1")


def test_classes_changed_in_the_dataset_are_named(prepared):
    dataset, plan, out = prepared  # noqa: F811
    edit(dataset.folder / "dataset.json", numTraining=3, description="more")  # of no importance to the cases
    assert check_prepared(plan, out) == ["c0", "c1"]
    edit(dataset.folder / "dataset.json", labels={"x": 2, "y": 1})
    with pytest.raises(UserError, match=r"dataset\.json \(labels .*'x': 1.*, now .*'x': 2"):
        check_prepared(plan, out)


@pytest.mark.parametrize("raw_is_there", [True, False])
def test_labels_edited_in_the_copy_of_dataset_json_are_named(prepared, raw_is_there):
    raw, plan, out = prepared
    if not raw_is_there:
        shutil.rmtree(raw.folder)
    about = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps({**about, "description": "of no effect"}))
    assert check_prepared(plan, out) == ["c0", "c1"]
    labels = {"background": 0, **{f"{name} 2": value for name, value in about["labels"].items() if value}}
    (out / "dataset.json").write_text(json.dumps({**about, "labels": labels}))
    with pytest.raises(UserError, match=rf"changed since .*out/dataset\.json \(labels .*now .* 2.*{FIX}, or restore"):
        check_prepared(plan, out)
    (out / "dataset.json").write_text(json.dumps({**about, "labels": {"background": 0, "x": "1"}}))
    with pytest.raises(UserError, match=rf"out/dataset\.json: label 'x' is '1'.*{FIX} copies it again"):
        check_prepared(plan, out)
    (out / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"dataset\.json is missing; .* copies it again"):
        check_prepared(plan, out)


def test_a_dataset_that_is_gone_or_was_moved_is_no_error(prepared, tmp_path):
    dataset, plan, out = prepared  # noqa: F811
    shutil.copytree(tmp_path, tmp_path.parent / "moved")
    relabel(dataset.folder / "labelsTr/c1.nii.gz")
    moved: list[str] = []
    assert check_prepared(plan, tmp_path.parent / "moved/out", moved.append) == ["c0", "c1"]  # compares its own raw
    assert moved == []
    shutil.rmtree(dataset.folder)
    notes: list[str] = []
    assert check_prepared(plan, out, notes.append) == ["c0", "c1"]
    assert notes == [f"note: the raw dataset {dataset.folder} is no longer there; its files are not compared"]
    shutil.rmtree(tmp_path.parent / "moved")


def test_a_case_added_after_planning_is_a_note(prepared):
    dataset, plan, out = prepared  # noqa: F811
    shutil.copy(dataset.folder / "labelsTr/c1.nii.gz", dataset.folder / "labelsTr/c2.nii.gz")
    notes: list[str] = []
    assert check_prepared(plan, out, notes.append) == ["c0", "c1"]
    assert notes == [f"note: labelled cases were added and are not preprocessed: c2; {FIX} adds them"]


def test_given_crops_are_compared_and_must_contain_a_label(dataset, tmp_path):  # noqa: F811
    plan, path = plan_for(config("given")), dataset.folder / "crops.json"
    label = read_labels(dataset.folder / "labelsTr/c1.nii.gz")
    label.array[:6] = 0
    write_volume(dataset.folder / "labelsTr/c1.nii.gz", label.array, label.geometry)
    path.write_text('{"c0": [[0, 14], [0, 30], [0, 26]], "c1": [[0, 5], [0, 30], [0, 26]]}')
    with pytest.raises(
        UserError,
        match=r"case c1: the box \[\[0, 5\], \[0, 30\], \[0, 26\]\] \(z, y, x\) of crops\.json contains no labelled "
        r"voxel, \d+ lie outside; correct the box",
    ):
        prepare_dataset(dataset, plan, tmp_path / "out")
    path.write_text('{"c0": [[0, 14], [0, 30], [0, 26]], "c1": [[0, 9], [0, 30], [0, 26]]}')
    prepare_dataset(dataset, plan, tmp_path / "out")
    assert check_prepared(plan, tmp_path / "out") == ["c0", "c1"]
    path.write_text('{"c0": [[0, 14], [0, 30], [0, 26]], "c1": [[0, 8], [0, 30], [0, 26]]}')
    with pytest.raises(UserError, match=r"changed since .*: .*crops\.json; run"):
        check_prepared(plan, tmp_path / "out")
    before = read_record(plan, tmp_path / "out").contents(["c0", "c1", "absent"])
    prepare_dataset(dataset, plan, tmp_path / "out")
    record = read_record(plan, tmp_path / "out")
    assert record.changed(before) == ["c1"]
    assert record.changed({"gone": "0"}) == ["gone"]
    assert record.changed(record.contents(["c0", "c1"])) == record.changed(None) == []


def test_a_dataset_changed_while_it_is_read_is_refused(dataset, tmp_path):  # noqa: F811
    plan = plan_for(config("nonzero"))

    def changing(cases):
        for case in cases:
            yield case
            relabel(dataset.folder / f"labelsTr/{case.name}.nii.gz")

    with pytest.raises(UserError, match=r"case c0: .*c0\.nii\.gz was changed during preprocessing"):
        prepare_dataset(dataset, plan, tmp_path / "out", changing)
    with pytest.raises(UserError, match="holds no complete set"):
        check_prepared(plan, tmp_path / "out")


def test_copies_of_label_maps_under_an_earlier_ending_are_deleted(prepared):
    """Files converted to another format, and one label corrected: only the new copies are left."""
    dataset, plan, out = prepared  # noqa: F811
    (out / "gt_segmentations/another.nii.gz").write_bytes(b"of no case of this dataset")
    for path in list(dataset.folder.rglob("*.nii.gz")):
        volume = read_labels(path) if path.parent.name == "labelsTr" else None
        target = path.with_name(path.name.replace(".nii.gz", ".nrrd"))
        if volume:
            write_volume(target, np.where(volume.array == 1, 2, volume.array), volume.geometry)
        else:
            from mre_lowshot.data.volume import read_image

            image = read_image(path)
            write_volume(target, image.array[0], image.geometry)
        path.unlink()
    edit(dataset.folder / "dataset.json", file_ending=".nrrd")
    with pytest.raises(UserError, match="changed since the cases of plan P"):
        check_prepared(plan, out)
    new = replace(plan_for(config("nonzero"), name="New"), file_ending=".nrrd")
    prepare_dataset(Dataset.load(dataset.folder), new, out)
    assert sorted(p.name for p in (out / "gt_segmentations").iterdir()) == ["another.nii.gz", "c0.nrrd", "c1.nrrd"]
    with pytest.raises(UserError, match=r"changed since .*gt_segmentations/c0\.nii\.gz"):
        check_prepared(plan, out)


def test_cases_that_the_dataset_no_longer_has_are_deleted(prepared):
    dataset, plan, out = prepared  # noqa: F811
    (dataset.folder / "labelsTr/c1.nii.gz").unlink()
    (out / "P/features.npz").write_bytes(b"of the user")
    prepare_dataset(Dataset.load(dataset.folder), plan, out)
    assert sorted(p.name for p in (out / "P").iterdir()) == ["c0.npz", "features.npz", "preprocessing.json"]


# Damage to the stored files


def npz(path, **members):
    """A zip file of .npy members, given as bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def array_bytes(array, shape=None):
    """An array as .npy, with the header of another shape."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    )
    return out.getvalue() + array.tobytes()


def test_every_flipped_byte_of_a_stored_case_is_refused_or_of_no_effect(stored, tmp_path):  # noqa: F811
    """Some bytes of a zip file mean nothing (dates, flags); no other value is ever read."""
    case, path = stored
    whole = path.read_bytes()
    generator, refused = random.Random(0), 0
    places = [*range(200), *range(len(whole) - 300, len(whole)), *generator.sample(range(len(whole)), 200)]
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << generator.randrange(8))]) + whole[at + 1 :])
        try:
            back = load_case(tmp_path, "a.b")
        except UserError:
            refused += 1
            continue
        assert np.array_equal(back.image, case.image), at
        assert np.array_equal(back.label, case.label), at
        assert (back.transform, back.geometry) == (case.transform, case.geometry), at
    print(f"flipped bytes tried: {len(places)}, refused {refused}, wrong values: 0")
    assert refused > 525


def test_claims_of_a_stored_case_are_checked_before_anything_is_allocated(stored, tmp_path):  # noqa: F811
    case, path = stored
    with np.load(path) as arrays:
        about = arrays["about"]
    image, label = case.image, case.label.astype(np.int16)
    good = {"about": array_bytes(about), "image": array_bytes(image), "label": array_bytes(label)}
    npz(path, **good)
    assert np.array_equal(load_case(tmp_path, "a.b").image, image)
    wrong = {
        "10^12 voxels": {"image": array_bytes(image, (10**4, 10**4, 10**4))},
        "overflow": {"image": array_bytes(image, (2**40, 2**40, 2**40, 1))},
        "fewer": {"image": array_bytes(image, (1, 2, 3, 4))},
        "negative": {"image": array_bytes(image, (-1, *image.shape[1:]))},
        "other type": {"image": array_bytes(image.astype(np.float64))},
        "objects": {"image": array_bytes(np.array([None], dtype=object))},
        "another size": {"label": array_bytes(np.ascontiguousarray(label[1:]))},
        "no text": {"about": array_bytes(np.zeros(4, np.uint8))},
        "more": {"extra": array_bytes(label)},
    }
    for name, members in wrong.items():
        npz(path, **{**good, **members})
        with pytest.raises(UserError, match=r"case a\.b: .*a\.b\.npz is damaged"):
            print(name, load_case(tmp_path, "a.b"))
    npz(path, **{name: good[name] for name in ("image", "label")})
    with pytest.raises(UserError, match="damaged"):
        load_case(tmp_path, "a.b")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in good:
            bomb.writestr(f"{name}.npy", bytes(10**7))
    with pytest.raises(UserError, match="damaged"):
        load_case(tmp_path, "a.b")


def test_channels_and_labels_must_be_the_plans(prepared):
    _, plan, out = prepared
    case = load_case(out / "P", "c0", plan)
    from mre_lowshot.preprocessing.store import save_case

    save_case(out / "P", replace(case, image=np.concatenate([case.image] * 2)))
    with pytest.raises(UserError, match=rf"case c0: .* has 2 channels, the plan 1 \(MRI\); {FIX}"):
        load_case(out / "P", "c0", plan)
    save_case(out / "P", replace(case, label=case.label + 1))
    with pytest.raises(UserError, match=rf"case c0: .* has labels 0 to 3, the plan 0 to 2; {FIX}"):
        load_case(out / "P", "c0", plan)


def test_a_damaged_record_is_refused(prepared):
    _, plan, out = prepared
    path = out / "P/preprocessing.json"
    text = path.read_text()
    for damaged in ("", "[]", "null", text[:-30], "{}", text.replace("sha256", "sha257", 1)):
        path.write_text(damaged)
        with pytest.raises(UserError, match=rf"preprocessing\.json.*{FIX}"):
            check_prepared(plan, out)
    data = json.loads(text)
    for wrong in ({**data, "raw": "/elsewhere"}, {**data, "cases": {}}, {**data, "cases": {"c0": data["cases"]["c0"]}}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=rf"preprocessing\.json: is damaged, its checksum differs; or {FIX}"):
            check_prepared(plan, out)
