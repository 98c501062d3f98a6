"""Checkpoints from strangers: ``BAD_CHECKPOINTS`` maps a name to (the change, pattern of the message).

Each change is made to a trained checkpoint file; prediction must refuse it, quickly, without running code of it.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {}
MARK = "pickle_was_run"


def bad(pattern: str):
    """Register a change of a checkpoint file."""

    def register(change):
        BAD_CHECKPOINTS[change.__name__] = (change, pattern)
        return change

    return register


def content_changed(name: str, pattern: str):
    """Register a change of a checkpoint's content."""

    def register(change: Callable[[dict[str, Any]], None]):
        def whole(path: Path) -> None:
            content = torch.load(path, weights_only=True)
            change(content)
            torch.save(content, path)

        BAD_CHECKPOINTS[name] = (whole, pattern)
        return change

    return register


class _Hostile:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, (MARK, "w"))


@bad("not a checkpoint|damaged")
def a_pickle_that_runs_code(path):
    path.write_bytes(pickle.dumps(_Hostile()))


@bad("not a checkpoint|damaged|weights_only")
def a_torch_file_that_runs_code(path):
    torch.save({"format_version": 2, "plan": _Hostile()}, path)


@bad("not a checkpoint|damaged|empty")
def an_empty_file(path):
    path.write_bytes(b"")


@bad("not a checkpoint|damaged|checksum")
def a_checkpoint_cut_off(path):
    path.write_bytes(path.read_bytes()[:-2000])


@bad("damaged|checksum|CRC")
def a_flipped_byte_in_a_weight(path):
    with zipfile.ZipFile(path) as archive:
        biggest = max(archive.infolist(), key=lambda member: member.file_size)
    content = bytearray(path.read_bytes())
    content[biggest.header_offset + 200] ^= 8
    path.write_bytes(bytes(content))


@bad("not a checkpoint|damaged|compress")
def a_zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
        archive.writestr("archive/version", "3")


@content_changed("another_format_version", "format_version is 1")
def _(content):
    content["format_version"] = 1


@content_changed("no_atlases", "lacks atlases")
def _(content):
    del content["atlases"]


@content_changed("weights_of_another_network", "weight|shape|network")
def _(content):
    name = next(n for n, t in content["weights"].items() if t.ndim > 1)
    content["weights"][name] = torch.zeros(3, 3)


@content_changed("a_weight_missing", "weight|missing|lacks")
def _(content):
    del content["weights"][next(iter(content["weights"]))]


@content_changed("a_weight_that_is_not_a_number", "NaN|finite")
def _(content):
    next(t for t in content["weights"].values() if t.is_floating_point()).fill_(float("nan"))


@content_changed("a_weight_that_is_text", "weight|tensor")
def _(content):
    content["weights"][next(iter(content["weights"]))] = "text"


@content_changed("a_plan_for_a_network_of_terabytes", "widths|memory|parameters")
def _(content):
    content["plan"]["network"]["widths"] = [10**6] * 3


@content_changed("a_plan_for_a_network_of_a_million_layers", "convs")
def _(content):
    content["plan"]["network"]["convs"] = [10**6] * 3


@content_changed("a_plan_of_another_key", "unknown key")
def _(content):
    content["plan"]["colour"] = "blue"


@content_changed("an_atlas_of_the_wrong_shape", "atlas")
def _(content):
    atlas = content["atlases"][0]
    name = next(n for n, t in atlas.items() if isinstance(t, torch.Tensor) and t.ndim > 1)
    atlas[name] = atlas[name].flatten()[:7]


@content_changed("a_plan_whose_dataset_name_leaves_the_folder", "dataset_name|name")
def _(content):
    content["plan"]["dataset_name"] = "../../outside"


@content_changed("a_plan_that_resamples_to_terabytes", "memory|spacing")
def _(content):
    content["plan"]["preprocessing"]["spacing"] = [1e-4, 1e-4, 1e-4]
