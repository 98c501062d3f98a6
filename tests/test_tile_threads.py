"""Batches of tiles in several threads: the same result as in one, in order; failures; torch's number of threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from mre_lowshot.errors import MemoryLimitError
from mre_lowshot.inference.sliding_window import in_batches
from mre_lowshot.inference.tile_threads import MOST, compute
from mre_lowshot.inference.tiles import overlap_tiles
from tests.test_inference import Crowded, Pointwise, network, picture, window


@contextmanager
def torch_threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_results_come_in_order_whatever_is_ready_first(threads):
    second = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            second.set()
        elif item == 0 and threads > 1:
            assert second.wait(5), "one item at a time"
        return item * item

    assert list(compute(range(20), work, threads=threads)) == [(n, n * n) for n in range(20)]


def test_at_most_so_many_items_are_ahead_of_the_caller():
    begun = []
    for item, _ in compute(range(50), begun.append, threads=2):
        assert len(begun) <= item + 4


@pytest.mark.parametrize(("threads", "each"), [(2, 1), (3, 1), (MOST, 1), (MOST + 1, 2), (2 * MOST, 2)])
def test_each_item_has_its_share_of_torchs_threads_and_the_caller_keeps_its_own(threads, each):
    with torch_threads(threads):
        found = {count for _, count in compute(range(8), lambda _: torch.get_num_threads(), threads=threads)}
        assert torch.get_num_threads() == threads
        fresh = []
        other = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert found == {each}
    assert fresh == [threads]


def test_a_failure_is_raised_and_no_further_item_is_begun():
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 3:
            raise KeyError(item)

    with pytest.raises(KeyError):
        list(compute(range(100), work, threads=2))
    assert 4 <= len(begun) <= 7


def test_of_an_iteration_that_is_ended_early_nothing_goes_on():
    begun = []
    iteration = compute(range(100), begun.append, threads=2)
    next(iteration)
    iteration.close()
    count = len(begun)
    assert count < 6
    list(compute(range(4), lambda _: None, threads=2))  # whatever was waiting would have been done by now
    assert len(begun) == count


def test_a_scan_gives_the_same_to_the_bit_with_any_number_of_threads():
    image, net, reported = picture(9, 15, 14), network(), []
    with torch_threads(1):
        wanted = window(net).posterior(image)
    for threads in (2, 3, 4):
        with torch_threads(threads):
            found = window(net).posterior(image, progress=lambda done, of: reported.append((done, of)))
        np.testing.assert_array_equal(found, wanted)
    assert reported[-1][0] == reported[-1][1]
    assert [done for done, _ in reported[: len(reported) // 3]] == sorted({done for done, _ in reported})


@pytest.mark.parametrize("count", [1, 3, 7, 8, 9, 12, 13, 17, 40])
def test_all_threads_have_work_and_few_tiles_are_computed_by_all_of_torchs_threads(count):
    sizes, seen = [], []

    def tiles(_image, _frame, group, _box):
        sizes.append(len(group))
        seen.append(torch.get_num_threads())
        return torch.zeros(len(group), 3, 8, 8, 8)

    found = window(network())
    found._tiles = tiles
    with torch_threads(2):
        chosen = list(overlap_tiles((8, 8, 8 + 4 * (count - 1)), (8, 8, 8), 0.5))
        assert sum(len(group) for group, _, _ in found._batches(None, None, chosen)) == count
    if count < 2 * MOST:
        assert set(seen) == {2}
        assert len(sizes) == -(-count // 4)
    else:
        assert set(seen) == {1}
        assert len(sizes) >= MOST - 1  # sizes are rounded up
        assert min(sizes) > 1
        assert max(sizes) <= 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_has_threads_of_its_own():
    assert len(list(compute(range(4), abs, threads=2))) == 4
    child = os.fork()
    if not child:
        os._exit(0 if [n for n, _ in compute(range(4), abs, threads=2)] == [0, 1, 2, 3] else 1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done
    assert os.waitstatus_to_exitcode(status) == 0


def test_where_memory_is_short_the_tiles_are_halved_and_none_is_lost():
    image, messages, crowded = picture(9, 15, 14), [], Crowded(3)
    wanted = window(Crowded(100)).posterior(image)
    with torch_threads(2):
        found = window(crowded, tile_batch=8, log=messages.append).posterior(image)
        with pytest.raises(MemoryLimitError, match="single tile"):
            window(Crowded(0), log=messages.append).posterior(image)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert max(crowded.seen) == 2
    assert "continuing with 2 tiles" in messages[1]


def test_single_tiles_are_tried_one_after_the_other_before_they_are_refused():
    image, at_once, most = picture(9, 15, 14), [], []

    class Narrow(Pointwise):
        def forward(self, image, coordinates):
            at_once.append(None)
            most.append(len(at_once))
            time.sleep(0.002)
            short = len(at_once) > 1
            at_once.pop()
            if short:
                raise torch.OutOfMemoryError("no room")
            return super().forward(image, coordinates)

    wanted = window(Pointwise()).posterior(image)
    with torch_threads(2):
        found = window(Narrow(), tile_batch=1, log=lambda _: None).posterior(image)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert max(most) > 1


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("side", [8, 12, 13, 16])
def test_batches_hold_every_tile_once_in_order_and_no_single_one_at_the_end(size, side):
    tiles = list(overlap_tiles((side, 8, 16), (8, 8, 8), 0.5))
    batches = in_batches(tiles, size)
    assert [tile for batch in batches for tile in batch] == tiles
    assert max(map(len, batches)) <= size
    if size > 2 and len(tiles) > 1:
        assert min(map(len, batches)) > 1
