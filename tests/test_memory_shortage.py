"""A scan for which memory is short while others are in work is done again alone: the kind of the error must survive."""

import logging
import threading
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mre_lowshot.atlas import alignment
from mre_lowshot.atlas.registration.affine import affine
from mre_lowshot.atlas.registration.images import to_image
from mre_lowshot.data import readers
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.volume import Volume, write_volume
from mre_lowshot.errors import MemoryLimitError, UserError, is_out_of_memory
from mre_lowshot.inference.overlap import in_order
from mre_lowshot.inference.sliding_window import SlidingWindow
from mre_lowshot.inference.tiles import overlap_tiles
from mre_lowshot.quiet import without_warnings

SHORT = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


def test_of_a_registration_on_the_cpu(monkeypatch):
    def short(*_given, **_options):
        raise RuntimeError(SHORT)

    monkeypatch.setattr(alignment, "_register", short)
    plan = SimpleNamespace(recipe=SimpleNamespace(atlas=SimpleNamespace(registration="deformable")))
    with pytest.raises(RuntimeError, match="allocate") as found:
        alignment.align((None,), np.zeros((1, 9, 9, 9), np.float32), (1.0, 1.0, 1.0), plan=plan)
    assert is_out_of_memory(found.value)


def test_of_a_registration_on_another_device_which_the_cpu_does_instead(monkeypatch):
    devices = []

    def register(*_given, device=None, **_options):
        devices.append(device)
        if device is not None:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        return np.ones((3, 9, 9, 9), np.float32)

    monkeypatch.setattr(alignment, "_register", register)
    plan = SimpleNamespace(recipe=SimpleNamespace(atlas=SimpleNamespace(registration="deformable")))
    meta = torch.device("meta")
    found = alignment.align((None,), np.zeros((1, 9, 9, 9), np.float32), (1.0, 1.0, 1.0), plan=plan, device=meta)
    assert devices == [meta, None]
    assert found.shape == (3, 9, 9, 9)


def test_of_a_single_tile_is_decided_by_the_tiles_that_were_tried():
    """Another thread has halved the number of tiles in a batch meanwhile."""
    tried = []
    state = {"compiler": None, "has_state": False, "balanced": False}
    window = SimpleNamespace(tile_batch=8, device=torch.device("cpu"), log=lambda _: None, **state)

    def tiles(_image, _frame, group, _box):
        tried.append(len(group))
        window.tile_batch = 1
        raise RuntimeError(SHORT)

    window._tiles = tiles
    with pytest.raises(MemoryLimitError, match="single tile"):
        list(SlidingWindow._batches(window, None, None, list(overlap_tiles((16, 16, 16), (8, 8, 8), 0.5))))
    assert tried[-1] == 1
    assert set(tried[:-1]) == {8}  # several, where torch has several threads


@pytest.mark.parametrize("raised", [MemoryError("x"), MemoryLimitError("a_0000.nii.gz: needs 3 GB")])
def test_of_a_file_that_is_read(tmp_path, monkeypatch, raised):
    path = tmp_path / "a_0000.nii.gz"
    write_volume(path, np.ones((9, 9, 9), np.float32), Geometry((9, 9, 9), (1.0, 1.0, 1.0)))

    def read(_path: Path):
        raise raised

    monkeypatch.setattr("mre_lowshot.data.readers.nifti.read", read)
    assert ".nii.gz" in readers.READERS
    with pytest.raises(MemoryLimitError, match=r"a_0000\.nii\.gz"):
        Volume.read(path)


def test_a_result_that_was_taken_is_not_held_while_the_next_large_item_is_worked_on():
    class Result:
        """Can be referred to weakly."""

    alive: weakref.WeakValueDictionary[int, Result] = weakref.WeakValueDictionary()
    seen = {}

    def work(number: int) -> Result:
        seen[number] = set(alive)
        alive[number] = made = Result()
        return made

    for one in in_order([0, 1, 2, 3], work, threads=2, admit=lambda items: 2 not in items, short=lambda _: False):
        del one
    assert 0 not in seen[3]


def test_blocks_without_warnings_of_several_threads_leave_the_settings_as_they_were():
    from mre_lowshot.data.dicom.files import quiet

    before = list(warnings.filters), logging.getLogger("pydicom").level
    for context in (without_warnings, quiet):
        inside, leave = threading.Event(), threading.Event()

        def other(context=context, inside=inside, leave=leave) -> None:
            with context():
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=other)
        with context():
            thread.start()
            inside.wait(10)
        leave.set()
        thread.join()
        assert (list(warnings.filters), logging.getLogger("pydicom").level) == before


def test_images_that_no_start_lays_on_each_other_are_refused(monkeypatch):
    from mre_lowshot.atlas.registration import affine as module

    random = np.random.default_rng(0)
    images = [to_image(random.random((1, 12, 12, 12), np.float32), (1.0, 1.0, 1.0)) for _ in range(2)]
    far = np.tile(np.eye(3, 4), (1, 1, 1))
    far[0, :, 3] = 1000
    assert np.isneginf(module._correlations(torch.rand(8, 8, 8), torch.rand(8, 8, 8), torch.from_numpy(far))).all()
    monkeypatch.setattr(module, "_correlations", lambda *_given: np.array([-np.inf]))
    with pytest.raises((RuntimeError, UserError), match="overlap"):
        affine(*images)
