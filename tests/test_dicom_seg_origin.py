"""What a DICOM SEG states of its source: compression with loss, dates; equal results are equal files."""

import numpy as np
import pytest

pytest.importorskip("pydicom")

import highdicom
import pydicom

from tests.dicom_series import write_enhanced, write_series
from tests.test_dicom_seg import only, some_labels, write

STORED = np.random.default_rng(1).integers(-1000, 3000, (6, 5, 7)).astype(np.int16)


def test_the_same_result_is_the_same_file_and_its_date_is_that_of_the_series(tmp_path):
    write_series(tmp_path / "in", STORED, AcquisitionDate="20240103", AcquisitionTime="111213.5", ContentTime="x")
    series = only(tmp_path / "in")
    for name in ("first", "again"):  # at two times, of which highdicom writes the microseconds
        seg = write(tmp_path / name, some_labels(series), series)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    assert (seg.ContentDate, seg.ContentTime) == ("20240103", "111213.5")
    assert "InstanceCreationDate" not in seg


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        ({"ContentDate": "20240105", "ContentTime": "01"}, ("20240105", "01")),
        ({"SeriesDate": "20240104", "SeriesTime": "27xx"}, ("20240104", "000000")),
        ({"AcquisitionDate": "2024-1-3"}, ("20240102", "101010")),
        ({"StudyDate": "", "StudyTime": ""}, ("19000101", "000000")),
    ],
)
def test_dates_of_sources(tmp_path, dates, expected):
    write_series(tmp_path / "in", STORED, **dates)
    series = only(tmp_path / "in")
    seg = write(tmp_path / "seg.dcm", some_labels(series), series)
    assert (str(seg.ContentDate), str(seg.ContentTime)) == expected


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_loss_of_the_source_is_stated(tmp_path, kind):
    """The values are those of the image that was compressed most; the one of the lowest slice is not segmented."""
    write_series(
        tmp_path / "in",
        STORED,
        LossyImageCompression=lambda index: "00" if index == 3 else "01",
        LossyImageCompressionRatio=lambda index: [2, 15] if index == 0 else 12.5 + index,
        LossyImageCompressionMethod=lambda index: ["ISO_10918_1", "ISO_15444_1"] if index == 0 else "ISO_14495_1",
    )
    series = only(tmp_path / "in")
    seg = write(tmp_path / "seg.dcm", some_labels(series), series, kind=kind)
    assert seg.LossyImageCompression == "01"
    assert seg.LossyImageCompressionRatio == [2, 15]
    assert seg.LossyImageCompressionMethod == ["ISO_10918_1", "ISO_15444_1"]
    highdicom.seg.segread(tmp_path / "seg.dcm")
    write_series(tmp_path / "plain", STORED, series="plain")
    series = only(tmp_path / "plain")
    seg = write(tmp_path / "plain.dcm", some_labels(series), series, kind=kind)
    assert (seg.LossyImageCompression, "LossyImageCompressionRatio" in seg) == ("00", False)


def test_loss_that_is_stated_without_its_ratio(tmp_path):
    write_enhanced(tmp_path / "in/scan", STORED, modality="CT")
    data = pydicom.dcmread(tmp_path / "in/scan")
    data.LossyImageCompression = "01"
    data.save_as(tmp_path / "in/scan")
    series = only(tmp_path / "in")
    seg = write(tmp_path / "seg.dcm", some_labels(series), series)
    assert (seg.LossyImageCompression, "LossyImageCompressionRatio" in seg) == ("01", False)
