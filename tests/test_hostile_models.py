"""Models from strangers: refused with one sentence before anything is written, and nothing is run or unpacked."""

import hashlib
import io
import json
import struct
import time
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch

import mre_lowshot
from mre_lowshot.errors import UserError
from mre_lowshot.files import json_line
from mre_lowshot.inference.model_archive import read_archive
from mre_lowshot.inference.predictor import Predictor
from tests.conftest import command

pytestmark = pytest.mark.usefixtures("one_thread_only")
CHECKPOINT = "fold_0/checkpoint_final.pth"


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.zip"
    mre_lowshot.export_model(path, model=trained.model())
    return path


def signed(card):
    """``card`` with the digest that a careful stranger would write."""
    card = {key: value for key, value in card.items() if key != "digest"}
    return {**card, "digest": hashlib.sha256(json_line(card).encode()).hexdigest()}


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def pack(out, content, *, card=None, infos=None, compress=zipfile.ZIP_STORED):
    """Write ``content`` as a zip file whose model.json lists it, unless a ``card`` is given."""
    content = dict(content)
    listed = [
        {"file": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(content.items())
        if name != "model.json"
    ]
    card = card or signed({**json.loads(content["model.json"]), "members": listed})
    content["model.json"] = json.dumps(card).encode()
    with zipfile.ZipFile(out, "w", compress) as archive:
        for name, data in content.items():
            info = (infos or {}).get(name) or zipfile.ZipInfo(name)
            info.compress_type = compress
            archive.writestr(info, data)
    return out


def refused(path, tmp_path, *parts):
    """Neither loaded nor installed: one sentence that names the file, soon, and nothing is written."""
    place = tmp_path / "place"
    for action in (
        lambda: Predictor.load(path, device="cpu"),
        lambda: mre_lowshot.install_model(path, workspace=place, overwrite=True),
    ):
        begun = time.process_time()
        with pytest.raises(UserError) as problem:
            action()
        assert time.process_time() - begun < 10
        message = str(problem.value)
        assert path.name in message
        assert "\n" not in message
        assert len(message) < 900
        for part in parts:
            assert part in message, message
    assert not place.exists()
    assert {p.name for p in tmp_path.iterdir()} <= {path.name}


def test_a_packed_model_like_the_exported_one_is_taken(exported, tmp_path):
    """The tools of these tests make good files too, so that what they change is what is refused."""
    path = pack(tmp_path / "m.zip", members(exported))
    assert mre_lowshot.install_model(path, workspace=tmp_path / "place").folds == (0,)


@pytest.mark.parametrize("seed", range(24))
def test_a_flipped_byte_is_noticed_or_changes_nothing(exported, tmp_path, seed):
    data = bytearray(exported.read_bytes())
    place = int(np.random.default_rng(seed).integers(len(data)))
    data[place] ^= 1 << seed % 8
    path = tmp_path / "m.zip"
    path.write_bytes(data)
    try:
        archive = read_archive(path)
    except UserError:
        return
    for name, content in members(exported).items():
        with archive.section(name) as file:
            assert file.read() == content


@pytest.mark.parametrize("name", ["model.json", "MODEL_CARD.md", "dataset.json", "plans.json", CHECKPOINT])
def test_a_flipped_byte_in_each_member_is_noticed(exported, tmp_path, name):
    member = read_archive(exported).members[name]
    data = bytearray(exported.read_bytes())
    data[member.start + member.size // 2] ^= 4
    path = tmp_path / "m.zip"
    path.write_bytes(data)
    refused(path, tmp_path)


def test_files_cut_off_and_foreign_zip_files(exported, trained, tmp_path):
    whole = exported.read_bytes()
    checkpoint = (trained.model() / CHECKPOINT).read_bytes()
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("Dataset017/nnUNetTrainer__nnUNetPlans__3d_fullres/plans.json", "{}")
    for content in (
        b"", b"hello", b"PK\5\6" + bytes(18), whole[: len(whole) // 2], whole[:-1], whole + b"x", b"x" + whole,
        whole + whole, whole[:-2] + b"\1\0x", checkpoint, other.getvalue(),
    ):  # fmt: skip
        path = tmp_path / "m.zip"
        path.write_bytes(content)
        refused(path, tmp_path, "is no model made by mre_export_model")


@pytest.mark.parametrize(
    "name",
    [
        "../evil", "/etc/evil", "C:\\evil", "..\\evil", "fold_0/../../evil", "fold_0/", "fold_00/plans.json",
        "FOLD_0/plans.json", "fold_0/code.py", "fold_0/CON", "plans.json ", "Plans.json", "setup.py",
        "fold_0/checkpoint_latest.pth",
        "a" * 5000, "fold_0//plans.json", "./plans.json", "fold_1/plans.json\0.txt", "",
    ],
)  # fmt: skip
def test_other_names_are_refused(exported, tmp_path, name):
    with suppress(ValueError):
        path = pack(tmp_path / "m.zip", {**members(exported), name: b"x"})
        refused(path, tmp_path)


def test_missing_unlisted_repeated_and_disordered_members(exported, tmp_path):
    good = members(exported)
    path = tmp_path / "m.zip"
    for name in good:
        if name != "model.json":
            less = {key: value for key, value in good.items() if key != name}
            refused(pack(path, less, card=json.loads(good["model.json"])), tmp_path, name)
            refused(pack(path, less), tmp_path, "lacks")
    more = {**good, "fold_1/plans.json": good["fold_0/plans.json"]}
    refused(pack(path, more, card=json.loads(good["model.json"])), tmp_path, "not listed")
    refused(pack(path, more), tmp_path, "lacks fold_1/checkpoint_final.pth")
    refused(pack(path, dict(reversed(good.items()))), tmp_path, "first member")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in good.items():
            archive.writestr(name, content)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("plans.json", b"{}")
    refused(path, tmp_path, "plans.json occurs twice")


def linked(name):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def commented(name):
    info = zipfile.ZipInfo(name)
    info.comment = b"hidden"
    return info


def test_links_comments_and_compression_are_refused(exported, tmp_path):
    good, path = members(exported), tmp_path / "m.zip"
    refused(
        pack(path, {**good, "plans.json": b"/etc/passwd"}, infos={"plans.json": linked("plans.json")}), tmp_path, "link"
    )
    refused(pack(path, good, infos={"plans.json": commented("plans.json")}), tmp_path, "comment")
    refused(pack(path, good, compress=zipfile.ZIP_DEFLATED), tmp_path, "compressed")
    pack(path, good)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"hidden"
    refused(path, tmp_path)


def test_bombs_are_refused_before_they_grow(exported, tmp_path):
    good, path = members(exported), tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.json", good["model.json"])
        with archive.open("plans.json", "w", force_zip64=True) as out:
            for _ in range(200):
                out.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    refused(path, tmp_path, "compressed")
    with zipfile.ZipFile(path, "w") as archive:  # a list of members longer than any model's
        for number in range(3000):
            archive.writestr(f"fold_{number}/plans.json", b"")
    refused(path, tmp_path, "3000 members")
    refused(pack(path, {**good, "MODEL_CARD.md": bytes(33 << 20)}), tmp_path, "bytes")


def test_members_that_overlap_or_lie_elsewhere_are_refused(exported, tmp_path):
    """The list of members is changed: sizes and places that its members do not have."""
    data = exported.read_bytes()
    start = struct.unpack("<I", data[-6:-2])[0]
    path = tmp_path / "m.zip"
    for field, length in ((20, 4), (24, 4), (42, 4), (8, 2), (10, 2)):  # sizes, place, flags, method
        changed = bytearray(data)
        changed[start + field : start + field + length] = b"\x11\x01\x00\x00"[:length]
        path.write_bytes(changed)
        refused(path, tmp_path)
    for field, value in ((-12, 5), (-10, 7), (-6, start - 1), (-6, start + 1), (-10, 0)):  # of the record at the end
        changed = bytearray(data)
        width = 2 if field == -12 else 4
        changed[field : field + width or None] = value.to_bytes(width, "little")
        path.write_bytes(changed)
        refused(path, tmp_path)
    gap = bytearray(data)
    gap[start:start] = b"hidden"
    gap[-6:-2] = struct.pack("<I", start + 6)
    path.write_bytes(gap)
    refused(path, tmp_path, "between its last member and the list")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"format": "other"}, "not one of mre_export_model"),
        ({"format_version": 2}, "format_version is 2, this mre_lowshot reads 1"),
        ({"format_version": [1]}, "format_version is [1]"),
        ({"members": None}, "not listed"),
        ({"members": [{"file": 3}]}, "does not list its members"),
        ({"members": [[]]}, "does not list its members"),
        ({"members": [{"file": "plans.json", "size": 3, "sha256": "0"}]}, "is none"),
        ({"level": "2shot"}, "another plan, level or fold"),
        ({"level": "../x"}, "level"),
        ({"level": 3}, "level"),
    ],
)
def test_a_changed_card_is_refused(exported, tmp_path, change, part):
    """With a right digest; without one, any change is refused."""
    good, path = members(exported), tmp_path / "m.zip"
    card = json.loads(good["model.json"])
    pack(path, good, card={**card, **change})
    with pytest.raises(UserError, match=r"not one of mre_export_model|format_version|was changed"):
        read_archive(path)
    pack(path, good, card=signed({**card, **change}))
    with pytest.raises(UserError) as problem:
        mre_lowshot.install_model(path, workspace=tmp_path / "place")
    assert part in str(problem.value)
    assert not (tmp_path / "place").exists()


def test_wrong_sizes_and_hashes_are_refused(exported, tmp_path):
    good, path = members(exported), tmp_path / "m.zip"
    card = json.loads(good["model.json"])
    for index, member in enumerate(card["members"]):
        for key, value in (("size", member["size"] + 1), ("sha256", "0" * 64)):
            listed = [dict(m) for m in card["members"]]
            listed[index][key] = value
            refused(pack(path, good, card=signed({**card, "members": listed})), tmp_path, member["file"])


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"\xff\xfe{\0}\0", b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"a": NaN}']
)
def test_json_that_is_none_is_refused(exported, tmp_path, text):
    good, path = members(exported), tmp_path / "m.zip"
    for name in ("plans.json", "fold_0/plans.json", "dataset.json"):
        pack(path, {**good, name: text})
        with pytest.raises(UserError, match=r"m\.zip"):
            mre_lowshot.install_model(path, workspace=tmp_path / "place")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.json", text)
    refused(path, tmp_path)
    assert not (tmp_path / "place").exists()


def changed_checkpoint(content, change):
    data = torch.load(io.BytesIO(content[CHECKPOINT]), weights_only=True)
    change(data)
    out = io.BytesIO()
    torch.save(data, out)
    return {**content, CHECKPOINT: out.getvalue()}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda c: c.update(format_version=1), "format_version is 1"),
        (lambda c: next(iter(c["weights"].values())).fill_(torch.nan), "NaN"),
        (lambda c: c["plan"].update(dataset_name="../../x"), "dataset_name"),
        (lambda c: c["plan"].update(dataset_name="CON"), "dataset_name"),
        (lambda c: c["plan"].update(dataset_name="Dataset1_Other"), "another plan, level or fold"),
        (lambda c: c["plan"]["fold"].update(fold=1), "another plan, level or fold"),
        (lambda c: c["plan"].update(fold=None), "another plan, level or fold"),
        (lambda c: c["plan"]["fold"].update(level="a/b"), "level"),
        (lambda c: c["atlases"].clear(), "1 to 5 atlases"),
        (lambda c: c.update(more={1, 2}), "neither a dense tensor"),
    ],
)
def test_a_hostile_checkpoint_in_a_well_formed_zip_is_refused(exported, tmp_path, change, part):
    path = pack(tmp_path / "m.zip", changed_checkpoint(members(exported), change))
    with pytest.raises(UserError) as problem:
        mre_lowshot.install_model(path, workspace=tmp_path / "place")
    assert part in str(problem.value)
    assert not (tmp_path / "place").exists()


def test_a_plan_that_leads_elsewhere_is_refused(exported, tmp_path):
    """Checkpoint, both plans and card agree, but on a name that leaves the results folder."""
    good = changed_checkpoint(members(exported), lambda c: c["plan"].update(dataset_name="../../x"))
    for name in ("plans.json", "fold_0/plans.json"):
        good[name] = json.dumps({**json.loads(good[name]), "dataset_name": "../../x"}).encode()
    pack(tmp_path / "m.zip", good)
    with pytest.raises(UserError, match="dataset_name"):
        mre_lowshot.install_model(tmp_path / "m.zip", workspace=tmp_path / "place")
    assert [p.name for p in tmp_path.iterdir()] == ["m.zip"]


def test_the_commands_name_the_file_and_exit_with_2(exported, trained, tmp_path, capsys):
    path = tmp_path / "m.zip"
    path.write_bytes(exported.read_bytes()[:-7])
    scans = trained.raw / "imagesTr"
    assert command("install_model", path, "--workspace", tmp_path / "place") == 2
    assert command("predict", "-i", scans, "-o", tmp_path / "out", "-m", path, "-device", "cpu") == 2
    assert command("install_model", tmp_path / "none.zip", "--workspace", tmp_path / "place") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") and ".zip" in line for line in lines)
    assert [p.name for p in tmp_path.iterdir()] == ["m.zip"]
