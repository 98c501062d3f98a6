"""The files of a case, as run.json lists them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mre_lowshot.data.dataset import Case
from mre_lowshot.data.readers import VOXEL_ENDINGS, voxel_files
from mre_lowshot.inference.record import FileState


def input_states(case: Case) -> list[dict[str, object]]:
    """Path, size, time and SHA-256 of a case's files."""
    return [
        {**FileState.of(path, str(path)).to_json(), "mtime": path.stat().st_mtime}
        for image in case.images
        for path in (image, *data_files(image))
    ]


def same_inputs(entry: Mapping[str, object], case: Case) -> bool:
    """Whether the entry of a case in run.json lists the present files of the scan."""
    listed = FileState.listed(entry, "inputs")
    paths = [path for image in case.images for path in (image, *data_files(image))]
    if len(listed) != len(paths):
        return False
    times = [item.get("mtime") for item in entry["inputs"]]  # type: ignore[attr-defined]
    return all(
        path.is_file() and path.stat().st_size == state.size and (path.stat().st_mtime == time or state.matches(path))
        for path, state, time in zip(paths, listed, times, strict=True)
    )


def data_files(image: Path) -> list[Path]:
    """The files of voxels beside a header; of a .mhd file that cannot be read, those that this package would write."""
    if found := voxel_files(image):
        return found
    if image.suffix.lower() != ".mhd":
        return []
    return [path for ending in VOXEL_ENDINGS if (path := image.with_suffix(ending)).is_file()]
