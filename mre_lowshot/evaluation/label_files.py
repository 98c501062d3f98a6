"""The label maps of a folder, and what else in it looks like an image."""

from __future__ import annotations

from pathlib import Path

from mre_lowshot.data.listing import PICTURE_FOLDERS, list_images, shown
from mre_lowshot.data.readers import file_ending
from mre_lowshot.errors import UserError


def label_files(folder: Path) -> dict[str, list[Path]]:
    """The image files of ``folder`` by case name (file name without ending), sorted, without hidden files. What has the
    name of one and cannot be read (a broken symbolic link, a folder) is listed too, so that it is named later.

    Raises:
        UserError: it is not a folder, or contains no file in a readable format.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give the folder with the label maps")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        ending = file_ending(path)
        if ending and not path.name.startswith("."):
            found.setdefault(path.name[: -len(ending)], []).append(path)
    if not found:
        unread = "".join(f"; {line}" for line in list_images(folder, None).problems)
        raise UserError(f"{folder}: holds no label maps (.nii.gz, .nrrd, .mha, .png, ...){unread}")
    return found


def unread_files(folder: Path) -> list[str]:
    """One line for each entry of a folder of label maps that looks like an image and is not read: another format, an
    ending inside the name, a subfolder with images, a broken symbolic link. The probabilities and pictures of a
    prediction are none."""
    read = label_files(folder)
    own = [folder / name for name in PICTURE_FOLDERS]
    own += [path for path in folder.glob("*.npz") if path.stem in read]
    names = [f"{folder.name}/{shown(path.name)}:" for paths in read.values() for path in paths]
    problems = list_images(folder, None, ignore=own).problems
    return [line for line in problems if not line.startswith(tuple(names))]
