"""Damaged files are refused in every format: flipped bytes, truncation, sizes beyond the file, fuzzed headers."""

import bz2
import gzip
import itertools
import os
import struct
import time
import zlib

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mre_lowshot.data.readers import itk_process
from mre_lowshot.data.volume import Volume, read_image, read_labels, write_volume
from mre_lowshot.errors import UserError

COMPRESSED = (".nii.gz", ".nrrd", ".bz2.nrrd", ".mha", ".png", ".tif")
PLAIN = (".nii", ".raw.nrrd", ".raw.mha", ".raw.tif")


def make(folder, ending):
    """A small file, and the place in it from which flips are made (its voxels)."""
    array = np.random.default_rng(0).integers(0, 6, (7, 12, 11)).astype(np.uint8)
    path = folder / f"a{ending}"
    if ending in (".png", ".tif", ".raw.tif"):
        sitk.WriteImage(
            sitk.GetImageFromArray(array[0]), str(path), useCompression=ending == ".tif", compressor="Deflate"
        )
        return path, {".png": 33}.get(ending, 8)
    if ending.endswith(".nrrd"):
        encoding = {".nrrd": "gzip", ".bz2.nrrd": "bz2", ".raw.nrrd": "raw"}[ending]
        nrrd.write(str(path), array.T, {"encoding": encoding, "space": "LPS", "space directions": np.eye(3)})
        return path, path.read_bytes().index(b"\n\n") + 2
    if ending.endswith(".mha"):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=ending == ".mha")
        return path, path.read_bytes().index(b"LOCAL\n") + 6
    nib.save(nib.Nifti1Image(array.T, np.eye(4)), path)
    return path, 352 if ending == ".nii" else 10


def outcome(path):
    """The volume, or None where it is refused by name. Any other error fails the test."""
    try:
        return read_image(path)
    except UserError as problem:
        message = str(problem)
    assert str(path) in message
    assert "\n" not in message
    return None


@pytest.mark.parametrize("ending", COMPRESSED)
def test_a_flipped_byte_is_refused_or_changes_nothing(ending, tmp_path):
    path, start = make(tmp_path, ending)
    content, whole = path.read_bytes(), read_image(path)
    end = struct.unpack("<I", content[4:8])[0] if ending == ".tif" else len(content)  # its directory has no checksum
    rng, refused, unchanged = np.random.default_rng(1), 0, 0
    for place in rng.choice(np.arange(start, end), min(100, end - start), replace=False):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        volume = outcome(path)
        if volume is None:
            refused += 1
        else:
            assert np.array_equal(volume.array, whole.array)
            assert volume.geometry == whole.geometry
            unchanged += 1
    print(f"{ending}: {refused} flips refused, {unchanged} without effect, none read as other voxels")
    assert refused > 60


@pytest.mark.parametrize("ending", [*COMPRESSED, *PLAIN])
def test_a_file_cut_off_anywhere_is_refused(ending, tmp_path):
    path, _ = make(tmp_path, ending)
    content = path.read_bytes()
    places = np.unique(np.linspace(0, len(content) - 1, 60).astype(int))
    for place in places:
        path.write_bytes(content[:place])
        assert outcome(path) is None, place


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_bytes_after_the_compressed_data_are_refused_and_several_members_read(ending, tmp_path):
    path, start = make(tmp_path, ending)
    content = path.read_bytes()
    path.write_bytes(content + b"garbage")
    assert outcome(path) is None
    if ending != ".mha":
        start = 0 if ending == ".nii.gz" else start
        data = gzip.decompress(content[start:])
        path.write_bytes(content[:start] + gzip.compress(data[:400]) + gzip.compress(data[400:]) + bytes(64))
        assert np.array_equal(
            read_image(path).array, read_image(make(tmp_path, ".nii")[0]).array[:, ::-1, ::-1, ::-1]
        ) or (read_image(path).array.shape == (1, 7, 12, 11))


def huge(folder, side=30_000):
    """Files of a few bytes whose headers specify terabytes or gigabytes."""
    small = bytes(100)
    for version, compressed in itertools.product((nib.Nifti1Header, nib.Nifti2Header), (False, True)):
        header = version()
        header.set_data_dtype(np.int16)
        header.set_data_shape((side, side, side))
        header["vox_offset"] = 352 if version is nib.Nifti1Header else 544
        path = folder / f"{version.__name__}.nii{'.gz' if compressed else ''}"
        content = header.binaryblock + bytes(4) + small
        path.write_bytes(gzip.compress(content) if compressed else content)
        yield path
    for encoding, data in (
        ("raw", small),
        ("gzip", gzip.compress(small)),
        ("bz2", bz2.compress(small)),
        ("txt", small),
    ):
        lines = ["NRRD0004", "type: short", "dimension: 3", f"sizes: {side} {side} {side}", "endian: little"]
        path = folder / f"{encoding}.nrrd"
        path.write_bytes("\n".join([*lines, f"encoding: {encoding}", "", ""]).encode() + data)
        yield path
    for compressed in (False, True):
        lines = ["ObjectType = Image", "NDims = 3", f"DimSize = {side} {side} {side}", f"CompressedData = {compressed}"]
        path = folder / f"{compressed}.mha"
        data = zlib.compress(small) if compressed else small
        path.write_bytes("\n".join([*lines, "ElementType = MET_SHORT", "ElementDataFile = LOCAL", ""]).encode() + data)
        yield path

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for size, data in ((50_000, bytes(900_000)), (50_000, zlib.compress(bytes(50_000 * 6251), 9)), (2**31 - 1, small)):
        path = folder / f"{size}_{len(data)}.png"
        header = struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
        yield path
    for compression in (1, 8, 5):
        tags = {256: side, 257: side, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: side, 279: 100}
        directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags.items())
        path = folder / f"{compression}.tif"
        path.write_bytes(b"II*\0" + struct.pack("<I", 108) + small + directory + bytes(4))
        yield path


def test_headers_of_huge_images_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MRE_MEMORY_GB", raising=False)
    count, started = 0, time.monotonic()
    for path in huge(tmp_path):
        assert outcome(path) is None, path
        count += 1
    print(f"{count} headers of huge images refused in {time.monotonic() - started:.1f} s")
    assert count == 16
    assert time.monotonic() - started < 30


def test_an_image_larger_than_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((200, 200, 200), np.int16), np.eye(4)), path)
    monkeypatch.setenv("MRE_MEMORY_GB", "0.01")
    with pytest.raises(UserError, match=r"a\.nii\.gz: 200 x 200 x 200 voxels needs 48 MB of memory, 10 MB are"):
        read_image(path)


def test_a_crash_of_the_decoder_is_an_error_of_that_file_only(tmp_path, monkeypatch):
    path, _ = make(tmp_path, ".png")
    whole = read_image(path).array
    original = itk_process._running

    def killed():
        process = original()
        process.kill()
        process.wait()
        return process

    with monkeypatch.context() as patch:
        patch.setattr(itk_process, "_running", killed)
        with pytest.raises(UserError, match=r"a\.png: cannot be read as an image \(the decoder crashed"):
            read_image(path)
    assert np.array_equal(read_image(path).array, whole)


def test_a_file_that_was_not_written_whole_never_gets_its_name(tmp_path, monkeypatch):
    """As on a full disk with a writer that reports nothing."""
    volume = read_image(make(tmp_path, ".nii")[0])
    labels = volume.array[0].astype(np.int32)
    fsync = os.fsync

    def cut_off(descriptor):
        fsync(descriptor)
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)

    for ending in (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".png", ".tif"):
        path, array, grid = tmp_path / f"out{ending}", labels, volume.geometry
        if ending in (".png", ".tif"):
            flat = read_image(make(tmp_path, ".png")[0])
            array, grid = flat.array[0].astype(np.int32), flat.geometry
        write_volume(path, array, grid)
        before = {p: p.read_bytes() for p in tmp_path.iterdir()}
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", cut_off)
            with pytest.raises(UserError, match=rf"out\{ending}|out\.zraw"):
                write_volume(path, array * 0, grid)
        assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
        assert np.array_equal(read_labels(path).array, array)


@pytest.mark.parametrize("ending", [*COMPRESSED, *PLAIN])
def test_any_header_ends_in_a_volume_or_an_error_by_name(ending, tmp_path, monkeypatch):
    """Random bytes in the header; the checksum of a PNG header is made to fit."""
    monkeypatch.setenv("MRE_MEMORY_GB", "0.5")
    path, start = make(tmp_path, ending)
    content = gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes()
    end = {".nii.gz": 352, ".png": 29, ".tif": len(content), ".raw.tif": len(content)}.get(ending, start)
    first = 16 if ending == ".png" else 0

    @settings(max_examples=60, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(st.tuples(st.integers(first, end - 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3))
    def fuzz(changes):
        made = bytearray(content)
        for place, data in changes:
            made[place : place + len(data)] = data
        if ending == ".png":
            made[29:33] = struct.pack(">I", zlib.crc32(bytes(made[12:29])))
        path.write_bytes(gzip.compress(bytes(made)) if ending == ".nii.gz" else bytes(made))
        volume = outcome(path)
        assert volume is None or isinstance(volume, Volume)
        assert volume is None or volume.array.nbytes < 5e8

    fuzz()
