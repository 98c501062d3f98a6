"""A trained model in one zip file: written the same for the same content, and opened without believing what it claims.

Members are stored, not compressed, one after the other, so that nothing can be larger than the file. ``model.json``
comes first and lists size and SHA-256 of all others. Only the names below occur, so none leads to another folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mre_lowshot.errors import UserError
from mre_lowshot.files import MAX_JSON, json_line
from mre_lowshot.plain import parse_json, shown

ENDING = ".zip"
CARD, CARD_TEXT, DATASET, PLANS = "model.json", "MODEL_CARD.md", "dataset.json", "plans.json"
CHECKPOINT = "checkpoint_final.pth"
FORMAT, VERSION = "mre_lowshot model", 1
MAX_FOLDS = 1000
MAX_MEMBERS = 4 + 2 * MAX_FOLDS
MAX_DIRECTORY = 1 << 20  # bytes of the zip's list of members: 500 for each of them
MAX_TEXT = MAX_JSON  # bytes of a member that is no checkpoint
_MEMBER = re.compile(rf"{CARD}|{CARD_TEXT}|{DATASET}|{PLANS}|fold_(0|[1-9][0-9]{{0,8}})/({CHECKPOINT}|{PLANS})")
_FOLD = re.compile(rf"fold_([0-9]+)/{CHECKPOINT}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 20
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest of zip files


class _Refused(Exception):
    """The reason why a file is refused."""


@dataclass(frozen=True)
class Member:
    """A member: its bytes lie in the zip file from ``start`` on."""

    name: str
    start: int
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class ModelArchive:
    """A model's zip file, verified.

    Attributes:
        path: of the file.
        card: content of model.json.
        members: by name, with model.json.
    """

    path: Path
    card: Mapping[str, Any]
    members: Mapping[str, Member] = field(repr=False)

    @property
    def folds(self) -> tuple[int, ...]:
        """The numbers of the folds, in ascending order."""
        return tuple(sorted(int(match[1]) for name in self.members if (match := _FOLD.fullmatch(name))))

    def section(self, name: str) -> BinaryIO:
        """The bytes of a member as a file of their own. Close it."""
        member = self.members[name]
        return io.BufferedReader(_Section(self.path.open("rb"), member.start, member.size), _BLOCK)

    def read_json(self, name: str) -> Any:
        """The content of a JSON member, parsed strictly."""
        with self.section(name) as file:
            return _parsed(file.read(), f"{self.path}: {name}")


class _Section(io.RawIOBase):
    """A part of a file, for reading."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(22, "a place before the beginning")
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._place))
        self._file.seek(self._start + self._place)
        data = self._file.read(count)
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def is_archive(path: Path) -> bool:
    """Whether a file is meant to be a model's zip file: by its ending, or because it begins with model.json."""
    if path.suffix.lower() == ENDING:
        return path.is_file()
    try:
        with path.open("rb") as file:
            start = file.read(30 + len(CARD))
    except OSError:
        return False
    return start[:4] == b"PK\3\4" and start[30:] == CARD.encode()


def write_archive(path: Path, card: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Write a zip file to ``path``.

    Args:
        path: of the file; it is not written atomically (give a temporary one).
        card: content of model.json, without the members' list.
        files: member name to file, without model.json.
    """
    listed = []
    for name, source in sorted(files.items()):
        with source.open("rb") as file:
            listed.append({"file": name, "size": source.stat().st_size, "sha256": _digest(_blocks(file))})
    content = {**card, "format": FORMAT, "format_version": VERSION, "members": listed}
    content["digest"] = _card_digest(content)
    text = (json.dumps(json.loads(json_line(content)), indent=2) + "\n").encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_info(CARD, len(text)), text)
        for name, source in sorted(files.items()):
            info = _info(name, source.stat().st_size)
            with source.open("rb") as file, archive.open(info, "w") as out:
                for block in _blocks(file):
                    out.write(block)


def _info(name: str, size: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system, info.external_attr, info.file_size = 3, (stat.S_IFREG | 0o644) << 16, size
    return info


def read_archive(path: Path) -> ModelArchive:
    """Open a model's zip file: members, sizes and hashes are verified; nothing is written or run.

    Raises:
        UserError: it cannot be read, is another zip file, is damaged, or holds more than `write_archive` writes.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; give a zip file made by mre_export_model")
        with path.open("rb") as file:
            found = _members(file, path.stat().st_size)
            first = found[CARD]
            file.seek(first.start)
            text = file.read(first.size)
            card = _parsed(text, f"{path}: {CARD}")
            return ModelArchive(path, card, _verified(file, found, _listed(card), hashlib.sha256(text).hexdigest()))
    except PermissionError:
        raise UserError(f"{path}: may not be read (permission denied); change its permissions") from None
    except (
        _Refused,
        OSError,
        ValueError,
        struct.error,
        zipfile.BadZipFile,
        NotImplementedError,
        MemoryError,
    ) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0][:300]
        raise UserError(
            f"{path}: is no model made by mre_export_model, or is damaged ({reason}); nothing of it is used; export "
            "or download it again"
        ) from None


def _members(file: BinaryIO, size: int) -> dict[str, Member]:
    """The members by name, with their places; refused where anything but known members lies in the file."""
    directory, count = _check_end(file, size)
    with closing(zipfile.ZipFile(file)) as archive:
        infos = archive.infolist()
        start_of_list = archive.start_dir
    if archive.comment or start_of_list != directory or len(infos) != count:
        raise _Refused("something before its first member, a comment, or another number of members")
    found: dict[str, Member] = {}
    place = 0
    for info in infos:
        name = info.orig_filename
        _check_member(info, name, found)
        if info.header_offset != place:
            raise _Refused(f"member {shown(name)} does not follow the one before it")
        start = place + _header_size(file, place, name)
        place = start + info.file_size
        if place > start_of_list:
            raise _Refused(f"member {shown(name)} is longer than the file")
        found[name] = Member(name, start, info.file_size)
    if place != start_of_list:
        raise _Refused("something between its last member and the list of members")
    if not infos or infos[0].orig_filename != CARD:
        raise _Refused(f"its first member is {shown(infos[0].orig_filename) if infos else 'missing'}, not {CARD}")
    return found


def _check_end(file: BinaryIO, size: int) -> tuple[int, int]:
    """Check the record at the end of the file, and how long the list of members is before it is read. Place and number
    of the members listed."""
    if size < 22:
        raise _Refused("too short for a zip file")
    file.seek(size - 22)
    end = file.read(22)
    count, length, place = struct.unpack("<HII", end[10:20])
    if end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        raise _Refused("no zip file, or something after its end")
    behind = size - 22
    if size >= 98:
        file.seek(size - 42)
        locator = file.read(20)
        if locator[:4] == b"PK\6\7":  # a file of more than 2 GB
            file.seek(size - 98)
            wide = file.read(56)
            if wide[:4] != b"PK\6\6" or struct.unpack("<Q", locator[8:16])[0] != size - 98:
                raise _Refused("no record of its size")
            count, length, place = struct.unpack("<QQQ", wide[32:56])
            behind = size - 98
    if count > MAX_MEMBERS or length > MAX_DIRECTORY:
        raise _Refused(f"{count} members in a list of {length} bytes; at most {MAX_MEMBERS} and {MAX_DIRECTORY}")
    if place + length != behind:
        raise _Refused("its list of members is not where the end says")
    return int(place), int(count)


def _check_member(info: zipfile.ZipInfo, name: str, before: Mapping[str, Member]) -> None:
    if not _MEMBER.fullmatch(name) or info.filename != name:
        raise _Refused(f"member {shown(name)}, which no model has")
    if name in before:
        raise _Refused(f"member {name} occurs twice")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise _Refused(f"member {name} is compressed")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits or info.is_dir() or kind not in (0, stat.S_IFREG) or info.comment:
        raise _Refused(f"member {name} is encrypted, a link, a folder, or has a comment")
    if not name.endswith(CHECKPOINT) and info.file_size > MAX_TEXT:
        raise _Refused(f"member {name} has {info.file_size} bytes, at most {MAX_TEXT} are allowed")


def _header_size(file: BinaryIO, place: int, name: str) -> int:
    """The bytes before a member's content; its header must give the same name as the list of members."""
    file.seek(place)
    head = file.read(30)
    if head[:4] != b"PK\3\4":
        raise _Refused(f"member {name} has no header")
    length, extra = struct.unpack("<HH", head[26:30])
    if file.read(length) != name.encode() or extra not in (0, 20):
        raise _Refused(f"the header of member {name} gives another name")
    return 30 + int(length) + int(extra)


def _parsed(text: bytes, where: str) -> Any:
    try:
        return parse_json(text.decode("utf-8"), where)
    except UnicodeDecodeError as problem:
        raise UserError(f"{where} is not valid JSON ({problem}); export or download the model again") from None


def _listed(card: Any) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each member, as model.json lists them."""
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise _Refused(f"{CARD} is not one of mre_export_model")
    if card.get("format_version") != VERSION:
        raise _Refused(
            f"{CARD}: format_version is {shown(card.get('format_version'))}, this mre_lowshot reads {VERSION}"
        )
    if card.get("digest") != _card_digest(card):
        raise _Refused(f"{CARD} was changed: its digest is another")
    listed = card.get("members")
    found: dict[str, tuple[int, str]] = {}
    for item in listed if isinstance(listed, list) else ():
        name, size, digest = (item.get(k) if isinstance(item, dict) else None for k in ("file", "size", "sha256"))
        if not (isinstance(name, str) and isinstance(size, int) and isinstance(digest, str)) or name in found:
            raise _Refused(f"{CARD} does not list its members")
        if not _DIGEST.fullmatch(digest):
            raise _Refused(f"{CARD}: the SHA-256 of {shown(name)} is none")
        found[name] = (size, digest)
    return found


def _verified(
    file: BinaryIO, found: Mapping[str, Member], listed: Mapping[str, tuple[int, str]], card: str
) -> dict[str, Member]:
    """The members with their SHA-256, compared with those that model.json lists; ``card`` is its own."""
    others = set(found) - {CARD}
    missing, more = sorted(set(listed) - others), sorted(others - set(listed))
    if missing or more:
        raise _Refused(f"members missing: {', '.join(map(shown, missing)) or 'none'}; not listed: {more or 'none'}")
    folds = {name.split("/")[0] for name in others if "/" in name}
    needed = {CARD_TEXT, DATASET, PLANS, *(f"{fold}/{name}" for fold in folds for name in (CHECKPOINT, PLANS))}
    if not folds or needed - others:
        raise _Refused(f"lacks {', '.join(sorted(needed - others)) or 'folds'}")
    verified = {CARD: Member(CARD, found[CARD].start, found[CARD].size, card)}
    for name in sorted(others):
        member, (size, wanted) = found[name], listed[name]
        if member.size != size:
            raise _Refused(f"member {name} has {member.size} bytes, {CARD} lists {size}")
        file.seek(member.start)
        if _digest(_blocks(file, member.size)) != wanted:
            raise _Refused(f"member {name}: its SHA-256 is not the one that {CARD} lists")
        verified[name] = Member(name, member.start, member.size, wanted)
    return verified


def copy_member(archive: ModelArchive, name: str, target: Path) -> None:
    """Write a member to ``target``, and compare its hash again: the file may have changed meanwhile.

    Raises:
        UserError: it has.
        OSError: it cannot be written.
    """
    found = hashlib.sha256()
    with archive.section(name) as file, target.open("wb") as out:
        for block in _blocks(file):
            found.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    if found.hexdigest() != archive.members[name].sha256:
        raise UserError(f"{archive.path}: changed while it was read; try again")


def _card_digest(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_line({k: v for k, v in card.items() if k != "digest"}).encode()).hexdigest()


def _digest(blocks: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for block in blocks:
        found.update(block)
    return found.hexdigest()


def _blocks(file: BinaryIO, size: int | None = None) -> Iterable[bytes]:
    left = size
    while block := file.read(_BLOCK if left is None else min(_BLOCK, left)):
        yield block
        left = None if left is None else left - len(block)
        if left == 0:
            return


def require_folds(archive: ModelArchive, folds: Sequence[int] | None) -> tuple[int, ...]:
    """The folds to use of a zip file: all, or ``folds``.

    Raises:
        UserError: it lacks one.
    """
    there = archive.folds
    missing = [fold for fold in folds or () if fold not in there]
    if missing or (folds is not None and not folds):
        raise UserError(f"{archive.path}: fold {missing or 'any'} is not in it (it has {list(there)}); see -f")
    return there if folds is None else tuple(sorted(set(folds)))
