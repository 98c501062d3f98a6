"""Volumes of DICOM series: the voxels and world coordinates that other readers find, and refusals by file name."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("pydicom")

import highdicom
import pydicom
from pydicom.pixels import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from mre_lowshot.data.dicom.pixels import stored_frames, stream_size
from mre_lowshot.data.dicom.series import Series, find_series
from mre_lowshot.data.dicom.volume import read_series
from mre_lowshot.data.volume import Volume
from mre_lowshot.errors import UserError
from tests.dicom_series import ORIENTATIONS, write_enhanced, write_series

STORED = np.random.default_rng(1).integers(-1000, 3000, (6, 5, 7)).astype(np.int16)
SLOPES = (1.0, 0.5, 2.25, 0.75, 1.5, 3.0)


def only(folder: Path) -> Series:
    (series,) = find_series(folder)
    return series


def points_of(array: np.ndarray, affine: np.ndarray) -> dict[tuple[float, ...], float]:
    """The value at each world position (mm in LPS, rounded); the affine is of indices in the order of the array."""
    index = np.indices(array.shape).reshape(3, -1)
    world = affine @ np.vstack([index, np.ones(index.shape[1])])
    keys = (tuple(v) for v in (np.round(world[:3].T, 3) + 0.0).tolist())
    return dict(zip(keys, array.ravel().tolist(), strict=True))


def points(volume: Volume) -> dict[tuple[float, ...], float]:
    return points_of(volume.array[0], volume.geometry.affine() @ np.eye(4)[[2, 1, 0, 3]])


def expected(paths, stored, slopes=None, intercept=-1000.0) -> dict[tuple[float, ...], float]:
    """The same from the headers: position + column * row direction + row * column direction (C.7.6.2.1.1)."""
    found = {}
    for number, (path, values) in enumerate(zip(paths, stored, strict=True)):
        header = pydicom.dcmread(path)
        start, cosines = np.array(header.ImagePositionPatient, float), np.array(header.ImageOrientationPatient, float)
        down, across = (float(v) for v in header.PixelSpacing)
        for (row, column), value in np.ndenumerate(values):
            at = start + column * across * cosines[:3] + row * down * cosines[3:]
            found[tuple((np.round(at, 3) + 0.0).tolist())] = float(value) * (slopes or SLOPES)[number] + intercept
    return found


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_voxels_lie_where_the_headers_and_other_readers_place_them(tmp_path, orientation):
    paths = write_series(tmp_path, STORED, orientation, slopes=SLOPES, modality="PT")
    series = only(tmp_path)
    volume = read_series(series)
    assert volume.array.dtype == np.float32
    assert volume.array.flags["C_CONTIGUOUS"]
    assert points(volume) == expected(paths, STORED)

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in series.files])
    other = Volume.from_sitk(reader.Execute())
    assert volume.geometry.differences(other.geometry) == []
    difference = np.abs(other.on_axes_of(volume.geometry).array - volume.array)
    assert difference.max() < 1  # ITK rounds to the type of the first slice, whose slope is a whole number here
    assert difference[volume.array % 1 == 0].max() == 0

    theirs = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in paths])
    assert points_of(theirs.array, theirs.affine) == points(volume)


def volume_in_file_order(volume: Volume) -> np.ndarray:
    from mre_lowshot.data.axes import inverse, turn_array

    return turn_array(volume.array[0], inverse(volume.geometry.axes))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_multi_frame_files_are_read_as_highdicom_reads_them(tmp_path, orientation, modality):
    path = write_enhanced(tmp_path / "scan", STORED, orientation, slopes=SLOPES, modality=modality)
    volume = read_series(only(tmp_path))
    single = write_series(tmp_path / "single", STORED, orientation, slopes=SLOPES)
    assert points(volume) == expected(single, STORED)
    theirs = highdicom.imread(path).get_volume()
    assert points_of(theirs.array, theirs.affine) == points(volume)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, DeflatedExplicitVRLittleEndian])
def test_compressed_files_hold_the_same_voxels(tmp_path, syntax):
    write_series(tmp_path / "plain", STORED, slopes=SLOPES)
    if syntax == DeflatedExplicitVRLittleEndian:
        for path in write_series(tmp_path / "small", STORED, slopes=SLOPES):
            data = pydicom.dcmread(path)
            data.file_meta.TransferSyntaxUID = syntax
            data.save_as(path)
    else:
        write_series(tmp_path / "small", STORED, slopes=SLOPES, syntax=syntax)
    assert pydicom.dcmread(only(tmp_path / "small").files[0]).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(read_series(only(tmp_path / "plain")).array, read_series(only(tmp_path / "small")).array)


@pytest.mark.parametrize("kind", ["unsigned", "12 bits with an overlay above", "12 bits signed", "big endian"])
def test_stored_types(tmp_path, kind):
    values = np.abs(STORED).astype(np.uint16) if kind.split()[-1] != "signed" else STORED
    if kind == "12 bits with an overlay above":
        paths = write_series(tmp_path, values + 0x4000, BitsStored=12, HighBit=11)
    elif kind == "12 bits signed":
        values = np.clip(STORED, -2048, 2047)
        paths = write_series(tmp_path, values & 0x0FFF, BitsStored=12, HighBit=11, PixelRepresentation=1)
    else:
        paths = write_series(tmp_path, values)
    if kind == "big endian":
        for path, value in zip(paths, values, strict=True):
            data, other = pydicom.dcmread(path), pydicom.Dataset()
            other.update(data)
            other.file_meta = data.file_meta
            other.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
            other.PixelData = value.astype(">u2").tobytes()
            other.save_as(path, implicit_vr=False, little_endian=False, enforce_file_format=True)
    assert np.array_equal(read_series(only(tmp_path)).array[0], values - 1000.0)


def test_files_without_preamble_and_meta_information(tmp_path):
    """As old systems write them: no DICM after 128 bytes, implicit VR."""
    for path in write_series(tmp_path, STORED):
        data = pydicom.dcmread(path)
        del data.preamble
        del data.file_meta
        data.save_as(path, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(read_series(only(tmp_path)).array[0], STORED - 1000.0)


def test_what_is_taken_as_stored_is_noted(tmp_path):
    write_series(tmp_path / "a", STORED, PhotometricInterpretation="MONOCHROME1", modality="MR")
    volume = read_series(only(tmp_path / "a"))
    assert np.array_equal(volume.array[0], STORED - 1000.0)
    assert "MONOCHROME1" in volume.notes[0]
    write_series(tmp_path / "b", STORED, RescaleSlope=None, RescaleIntercept=None)
    volume = read_series(only(tmp_path / "b"))
    assert np.array_equal(volume.array[0], STORED)
    assert "CT without Rescale Slope and Intercept" in volume.notes[0]
    write_series(tmp_path / "d", STORED, RescaleType="Z_EFF")
    assert read_series(only(tmp_path / "d")).notes == ("it is a CT whose values are Z_EFF, not HU",)
    write_series(tmp_path / "c", STORED, PixelPaddingValue=int(STORED.min()))
    assert read_series(only(tmp_path / "c")).array.min() == STORED.min() - 1000.0


def test_the_series_names_the_volume(tmp_path):
    write_series(tmp_path / "a", STORED)
    assert read_series(only(tmp_path / "a")).path == tmp_path / "a" / "P1_3_Abdomen"
    write_enhanced(tmp_path / "b", STORED)
    assert read_series(only(tmp_path / "b")).path == tmp_path / "P1_3_Enhanced"


def test_more_than_the_memory_is_refused_before_it_is_allocated(tmp_path, monkeypatch):
    write_series(tmp_path, STORED)
    series = only(tmp_path)
    monkeypatch.setenv("MRE_MEMORY_GB", "1e-7")
    with pytest.raises(UserError, match=r"series P1_3_Abdomen \(6 x 5 x 7 voxels\) needs"):
        read_series(series)


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless])
def test_truncated_pixels_are_refused_by_file(tmp_path, syntax):
    paths = write_series(tmp_path, STORED, **({"syntax": syntax} if syntax else {}))
    content = paths[2].read_bytes()
    paths[2].write_bytes(content[:-30])
    with pytest.raises(UserError, match=rf"{paths[2].name}: .*export it again"):
        read_series(only(tmp_path))


def test_missing_pixels_are_refused_by_file(tmp_path):
    paths = write_series(tmp_path, STORED)
    data = pydicom.dcmread(paths[1])
    del data.PixelData
    data.save_as(paths[1])
    with pytest.raises(UserError, match=rf"{paths[1].name}: its pixels cannot be read"):
        read_series(only(tmp_path))


@pytest.mark.parametrize("marker", [b"\xff\xf7", "rle"])
def test_a_stream_larger_than_its_header_states_is_not_decoded(tmp_path, marker, monkeypatch):
    """Such a file would allocate what the stream states: 65535 x 65535 pixels."""
    paths = write_series(tmp_path, STORED, syntax=RLELossless if marker == "rle" else JPEGLSLossless)
    if marker == "rle":
        data = pydicom.dcmread(paths[0])
        frame = b"\x01\0\0\0\x40\0\0\0".ljust(64, b"\0") + b"\x81\0" * 5000
        data.PixelData = pydicom.encaps.encapsulate([frame])
        data["PixelData"].is_undefined_length = True
        data.save_as(paths[0])
    else:
        content = bytearray(paths[0].read_bytes())
        at = content.index(marker)
        content[at + 5 : at + 9] = b"\xff\xff\xff\xff"
        paths[0].write_bytes(content)
    monkeypatch.setattr("pydicom.pixels.utils.iter_pixels", lambda *a, **k: pytest.fail("was decoded"))
    with pytest.raises(UserError, match=rf"{paths[0].name}: frame 1 holds .*, its header states 5 x 7 pixels"):
        read_series(only(tmp_path))


def test_a_deflated_file_that_would_fill_the_memory_is_not_inflated(tmp_path, monkeypatch):
    (path,) = write_series(tmp_path, STORED[:1])
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path)
    content = path.read_bytes()
    meta = pydicom.filereader.read_file_meta_info(path)
    start = 132 + 12 + int(meta.FileMetaInformationGroupLength)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = zlib.decompress(content[start:], -15)
    packed = b"".join(packer.compress(part) for part in (body, *[bytes(1 << 20)] * 40)) + packer.flush()
    path.write_bytes(content[:start] + packed)
    assert path.stat().st_size < 100_000
    monkeypatch.setenv("MRE_MEMORY_GB", "0.1")
    assert "a deflated file of over" in only(tmp_path).problem


def test_sizes_that_streams_state():
    jpeg = b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xc3\0\x0b\x10\x01\x02\x03\x04"
    assert stream_size(jpeg) == (0x0102, 0x0304)
    sizes = b"".join(n.to_bytes(4, "big") for n in (300, 200, 10, 20))
    assert stream_size(b"\xff\x4f\xff\x51\0\x29\0\0" + sizes) == (180, 290)
    for text in (b"", b"\xff\xd8", b"\xff\xd8\xff\xda\0\x02", b"\xff\x4f\xff\x51", b"abc"):
        assert stream_size(text) is None


ROOT = Path(pydicom.__file__).parent / "data/test_files"


# Damaged files: cut off, of a size other than their header's, or with values that are no numbers.
REFUSED = {"MR_truncated", "JPEG-lossy", "JPGExtended", "JPEG2000-embedded-sequence-delimiter", "badVR"}


def test_pixels_of_packaged_files():
    """Each grey image decodes as pydicom decodes it, or is refused by name."""
    read, refused = 0, set()
    for path in sorted(ROOT.glob("*.dcm")):
        header = pydicom.dcmread(path, force=True)
        if not str(header.get("PhotometricInterpretation")).startswith("MONO") or "PixelData" not in header:
            continue
        try:
            (mine,) = stored_frames(path, [0], (header.Rows, header.Columns))
        except UserError as problem:
            refused.add(path.stem if path.name in str(problem) else str(problem))
            continue
        read += 1
        if "TransferSyntaxUID" in header.file_meta and header.BitsStored == header.BitsAllocated:
            theirs = pixel_array(header if header.file_meta.TransferSyntaxUID.is_deflated else path, index=0)
            assert np.array_equal(mine, theirs), path.name
    assert refused == REFUSED
    assert read > 20


@pytest.mark.parametrize(("dataset", "modality"), [("Dataset017_BTCV", "CT"), ("Dataset004_Hippocampus", "MR")])
@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique"])
def test_real_scans_as_series(tmp_path, dataset, modality, orientation):
    folder = Path(__file__).resolve().parents[2] / "shared/data" / dataset / "imagesTr"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    scan = sitk.GetArrayFromImage(sitk.ReadImage(str(sorted(folder.iterdir())[0])))
    scan = np.clip(scan, -1024, 30000).astype(np.int16)[:40, ::4, ::4]
    write_series(tmp_path, scan, orientation, modality=modality, spacing=(2.5, 3.1, 2.9))
    volume = read_series(only(tmp_path))
    assert np.array_equal(volume_in_file_order(volume), scan - 1000.0)


def test_damaged_files_raise_nothing_but_the_refusal(tmp_path):
    """Changed, missing and cut-off bytes in classic, compressed and multi-frame files."""
    write_series(tmp_path / "plain", STORED[:3])
    write_series(tmp_path / "rle", STORED[:3], syntax=RLELossless)
    write_series(tmp_path / "jpegls", STORED[:3], syntax=JPEGLSLossless)
    write_enhanced(tmp_path / "enhanced/scan", STORED[:3])
    random, outcomes = np.random.default_rng(0), {"read": 0, "refused": 0}
    for number in range(120):
        folder = tmp_path / ("plain", "rle", "jpegls", "enhanced")[number % 4]
        path = sorted(folder.iterdir())[0]
        content = path.read_bytes()
        damaged, at = bytearray(content), int(random.integers(132, len(content) - 1))
        if number % 3 == 0:
            damaged[at] = int(random.integers(256))
        elif number % 3 == 1:
            del damaged[at:]
        else:
            del damaged[at : at + int(random.integers(1, 40))]
        path.write_bytes(damaged)
        for series in find_series(folder):
            try:
                read_series(series)
                outcomes["read"] += 1
            except UserError:
                outcomes["refused"] += 1
        path.write_bytes(content)
    assert outcomes["refused"] > 60
    assert outcomes["read"] > 10
