"""Checkpoints from strangers: refused with one sentence and exit code 2, quickly, and nothing is run or allocated."""

import os
import shutil
import struct
import time
import zipfile
import zlib
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from mre_lowshot.errors import UserError
from mre_lowshot.inference import checkpoint
from mre_lowshot.inference.archive import read_claims
from mre_lowshot.inference.models import load_model
from mre_lowshot.inference.predictor import Predictor

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread_only")


@pytest.fixture
def good(trained):
    return trained.model() / "fold_0" / checkpoint.FINAL


def changed(good, out, change):
    """A copy of the checkpoint whose content was changed in Python and saved by torch."""
    content = torch.load(good, weights_only=True)
    change(content)
    torch.save(content, out)
    return out


def rewritten(good, out, change, *, compress=zipfile.ZIP_STORED):
    """A copy with another archive: ``change`` maps the name (without folder) and bytes of each member to new bytes."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(out, "w", compress) as made:
        for member in source.namelist():
            made.writestr(member, change(member.partition("/")[2], source.read(member)))
    return out


def refused(path, *parts):
    begun = time.process_time()
    with pytest.raises(UserError) as problem:
        load_model(path, None, CPU)
    assert time.process_time() - begun < 10
    message = str(problem.value)
    assert path.name in message
    assert "\n" not in message
    assert len(message) < 900
    for part in parts:
        assert part in message, message


def first_weight(content):
    return next(name for name, value in content["weights"].items() if value.is_floating_point() and value.dim())


def test_the_claims_of_a_good_checkpoint_are_its_content(good):
    claims, content = read_claims(good), torch.load(good, weights_only=True)
    assert claims["plan"] == content["plan"]
    assert {n: c.shape for n, c in claims["weights"].items()} == {n: t.shape for n, t in content["weights"].items()}
    assert claims["training"]["history"] == content["training"]["history"]
    assert isinstance(Predictor.load(good, device="cpu"), Predictor)


@pytest.mark.parametrize("seed", range(8))
def test_one_flipped_bit_anywhere_in_the_tensors_is_noticed(good, tmp_path, seed):
    with zipfile.ZipFile(good) as archive:
        stored = [m for m in archive.infolist() if "/data/" in m.filename and m.file_size]
    generator = np.random.default_rng(seed)
    member = stored[generator.integers(len(stored))]
    damaged = bytearray(good.read_bytes())
    name, extra = struct.unpack("<HH", damaged[member.header_offset + 26 : member.header_offset + 30])
    place = member.header_offset + 30 + name + extra + int(generator.integers(member.file_size))
    damaged[place] ^= 1 << int(generator.integers(8))
    path = tmp_path / "x.pth"
    path.write_bytes(damaged)
    torch.load(path, weights_only=True)  # torch alone does not notice
    refused(path, "damaged", "CRC")


@pytest.mark.parametrize("seed", range(12))
def test_any_flipped_byte_is_noticed_or_changes_nothing(good, tmp_path, seed):
    damaged = bytearray(good.read_bytes())
    place = int(np.random.default_rng(seed).integers(len(damaged)))
    damaged[place] ^= 0xFF
    (tmp_path / "x.pth").write_bytes(damaged)
    try:
        _, content = checkpoint.load(tmp_path / "x.pth", CPU)
    except UserError:
        return
    for name, weight in torch.load(good, weights_only=True)["weights"].items():
        assert torch.equal(content["weights"][name], weight)


def test_a_cut_off_or_foreign_file(good, tmp_path):
    whole = good.read_bytes()
    for name, content in {
        "half": whole[: len(whole) // 2], "empty": b"", "text": b"hello", "pickle": b"\x80\x02}q\x00.",
        "zip": b"PK\x05\x06" + 18 * b"\0", "after": whole + whole[:1000], "before": whole[:1000] + whole,
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "damaged")


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_checkpoint_is_run(good, tmp_path):
    path = changed(good, tmp_path / "x.pth", lambda c: c.update(extra=Runs(str(tmp_path / "made"))))
    refused(path, "mkdir", "neither a dense tensor nor a plain value")
    assert not (tmp_path / "made").exists()


def itself(content):
    content["more"] = loop = []
    loop.append(loop)


def laughs(content):
    level = ["x"] * 10
    for _ in range(12):
        level = [level] * 10
    content["more"] = level


def deep(content):
    level = []
    for _ in range(300):
        level = [level]
    content["plan"]["reasons"] = {"x": level}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (itself, "nested deeper"),
        (laughs, "the same lists many times"),
        (deep, "nested deeper"),
        (lambda c: c.update(more={1, 2}), "neither a dense tensor"),
        (lambda c: c.update(more=torch.zeros(2, dtype=torch.complex64)), "Complex"),
        (lambda c: c.update(more=torch.eye(3).to_sparse()), "sparse"),
        (lambda c: c.update(more=torch.nn.Parameter(torch.zeros(2))), "_rebuild_parameter"),
        (lambda c: c.update(more=torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)), "qtensor"),
        (lambda c: c.update(more=np.float64(3)), "numpy"),
        (lambda c: c.update(format_version=1), "format_version is 1"),
        (lambda c: c.update(format_version=[2]), "format_version is [2]"),
        (lambda c: c.pop("training"), "lacks training"),
        (lambda c: c.update(training=[]), "iteration"),
        (lambda c: c["training"].update(iteration=10**30), "iteration is a whole number beyond 64 bits"),
        (lambda c: c["training"].update(iteration=-1), "iteration is -1"),
        (lambda c: c["training"].update(iteration=True), "iteration is True"),
        (lambda c: c["training"].update(history={"loss": "abc"}), "history"),
        (lambda c: c["training"].update(history={"loss": ["abc"]}), "history"),
        (lambda c: c["training"].update(network={}), "training.network"),
        (lambda c: c.update(weights=[]), "weights"),
        (lambda c: c["weights"].pop(first_weight(c)), "is none"),
        (lambda c: c["weights"].update({"more": torch.zeros(3)}), "'more' is a float tensor of shape [3]"),
        (lambda c: c["weights"].update({first_weight(c): torch.zeros(7)}), "shape [7]"),
        (lambda c: c["weights"].update({first_weight(c): 3}), "is a int"),
        (lambda c: c["weights"].update({k: v.double() for k, v in c["weights"].items()}), "a double tensor"),
        (lambda c: c["weights"][first_weight(c)].fill_(torch.nan), "NaN or infinite"),
        (lambda c: c["weights"][first_weight(c)].view(-1)[0].fill_(-torch.inf), "NaN or infinite"),
        (lambda c: c["atlases"].clear(), "1 to 5 atlases"),
        (lambda c: c.update(atlases=c["atlases"] * 9), "1 to 5 atlases"),
        (lambda c: c.update(atlases={"a": 1}), "1 to 5 atlases"),
        (lambda c: c["atlases"][0].pop("label"), "lacks its image"),
        (lambda c: c["atlases"][0].update(label=c["atlases"][0]["label"][1:].clone()), "an atlas has a half tensor"),
        (lambda c: c["atlases"][0]["label"].fill_(99), "labels 99 to 99"),
        (lambda c: c["atlases"][0]["label"].fill_(-2), "labels -2"),
        (lambda c: c["atlases"][0]["image"].fill_(torch.inf), "NaN or infinite"),
        (lambda c: c["atlases"][0].update(spacing=[0.0, 1.0, 1.0]), "spacing"),
        (lambda c: c["atlases"][0].update(spacing=[1.0]), "spacing"),
        (lambda c: c["atlases"][0].update(image=torch.zeros(1).expand(1, 10**4, 10**4, 10**4)), "not dense"),
        (lambda c: c["plan"].update({3: 4}), "not a text"),
        (lambda c: c["plan"].update(dataset_name="../../x"), "dataset_name"),
        (lambda c: c["plan"].update(dataset_name=".."), "dataset_name"),
        (lambda c: c["plan"].update(dataset_name="a\nb"), "dataset_name"),
        (lambda c: c["plan"].update(dataset_name="n" * 300), "dataset_name"),
        (lambda c: c["plan"].update(plans_name="a/b"), "plans_name"),
        (lambda c: c["plan"].update(file_ending="/../x"), "file_ending"),
        (lambda c: c["plan"].update(file_ending=".nii.gz\n"), "file_ending"),
        (lambda c: c["plan"].update(labels={"background": 0, "a\x1b[2Jb": 1}), "labels"),
        (lambda c: c["plan"].update(training_ranges={"spacing": 3}), "training_ranges.spacing"),
        (lambda c: c["plan"]["fold"].update(single_component=[99]), "single_component"),
        (lambda c: c["plan"]["fold"].update(min_hu=[{"label": 1, "channel": 7, "value": 0.0}]), "min_hu"),
        (lambda c: c["plan"]["fold"].update(train=["../x"]), "train or test"),
        (lambda c: c["plan"]["network"].update(widths=[4096] * 3), "the plan's network has"),
        (lambda c: c["plan"]["network"].update(embedding_dim=10**12), "embedding_dim"),
        (lambda c: c["plan"]["network"].update(convs=[10**6, 1, 1]), "convs"),
        (lambda c: c["plan"]["network"].update(dilations=[[1, 1, 1] for _ in range(10**5)]), "at most"),
        (lambda c: c["plan"]["recipe"]["inference"].update(mirror_axes=[2] * 40), "mirror_axes"),
        (lambda c: c["plan"]["recipe"]["inference"].update(step=1e-9), "step is 1e-09"),
        (lambda c: c["plan"].update(channel_names="\ud800"), "surrogate"),
    ],
)  # fmt: skip
def test_a_changed_content_is_refused(good, tmp_path, change, part):
    refused(changed(good, tmp_path / "x.pth", change), part)


def test_a_network_that_needs_terabytes_is_refused_before_it_is_built(good, tmp_path, monkeypatch):
    monkeypatch.setenv("MRE_MEMORY_GB", "1")

    def change(content):
        content["plan"]["patch"] = {"size": [2048] * 3, "centre": [8] * 3}

    refused(changed(good, tmp_path / "x.pth", change), "of memory", "MRE_MEMORY_GB")


def test_more_numbers_than_bytes(good, tmp_path):
    """torch alone reads beyond the bytes there."""

    def change(name, data):
        return data[: len(data) // 2] if name == "data/0" else data

    refused(rewritten(good, tmp_path / "x.pth", change), "bytes", "stated")


def test_compressed_members_are_refused_before_they_grow(good, tmp_path):
    bomb = rewritten(good, tmp_path / "x.pth", lambda name, data: data + bytes(10**8) if name == "version" else data,
                     compress=zipfile.ZIP_DEFLATED)  # fmt: skip
    assert bomb.stat().st_size < 10**7
    refused(bomb, "damaged")


def test_a_member_that_states_terabytes(good, tmp_path):
    """Sizes in the directory beyond the file's."""
    data = bytearray(good.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 20 : place + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    (tmp_path / "x.pth").write_bytes(data)
    refused(tmp_path / "x.pth", "damaged")


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/../../evil", "archive\\evil"])
def test_member_names_that_lead_elsewhere(good, tmp_path, name):
    path = shutil.copy(good, tmp_path / "x.pth")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    refused(path, "named as a file elsewhere")


def pickled(good, out, description):
    """The checkpoint with another description, and a right checksum."""
    return rewritten(good, out, lambda name, data: description if name == "data.pkl" else data)


@pytest.mark.parametrize(
    "description",
    [
        b"\x80\x02r\xff\xff\xff\x7f.",  # LONG_BINPUT with a huge index
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of exabytes
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text of 2 GB
        b"\x80\x02" + b"(" * 10**5 + b".",
        b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.",
        b"\x80\x02c__builtin__\neval\n(X\x01\x00\x00\x001tR.",
        b"\x80\x02}(X\x01\x00\x00\x00aK\x01u.",  # a dict without what a checkpoint holds
        b"\x80\x02K\x01.",
        b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",  # a huge integer
        b"",
    ],
)
def test_hostile_descriptions(good, tmp_path, description):
    refused(pickled(good, tmp_path / "x.pth", description))


@pytest.mark.parametrize("seed", range(15))
def test_changed_bytes_of_the_description_with_a_right_checksum(good, tmp_path, seed):
    generator = np.random.default_rng(seed)

    def change(name, data):
        if name != "data.pkl":
            return data
        data = bytearray(data)
        for place in generator.integers(len(data), size=3):
            data[place] = generator.integers(256)
        return bytes(data)

    path = rewritten(good, tmp_path / "x.pth", change)
    with suppress(UserError):  # and nothing else
        Predictor.load(path, device="cpu")


def test_a_training_state_of_another_kind(space, capsys):
    path = space.model() / "fold_0" / checkpoint.LATEST
    changed(path, path, lambda c: c["training"].update(optimizer={"state": 3}))
    assert space.train("--c") == 2
    assert "training state is damaged" in capsys.readouterr().err


def test_a_stored_checksum_is_the_content_s(good):
    """The archive that torch writes has the checksums that are verified."""
    with zipfile.ZipFile(good) as archive:
        for member in archive.infolist():
            assert zlib.crc32(archive.read(member)) == member.CRC


def test_state_dicts_keep_their_order(good):
    assert isinstance(torch.load(good, weights_only=True)["weights"], OrderedDict)
    assert list(read_claims(good)["weights"]) == list(torch.load(good, weights_only=True)["weights"])


def test_a_checkpoint_that_is_moved_while_it_is_read_is_not_called_damaged(good, monkeypatch):
    """mre_train --overwrite sets a fold aside between the test for the file and its reading."""

    def moved(*_, **__):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "open", moved)
    with pytest.raises(UserError, match="moved or deleted while it was read"):
        read_claims(good)
