"""What a checkpoint file claims to hold, read without believing it: before torch allocates anything.

A checkpoint is a zip archive: ``data.pkl`` describes the content, and refers to tensors whose bytes are other members.
torch (with ``weights_only=True``) runs no code of it, but neither verifies the members' checksums nor compares the
sizes that the description states with the bytes there. Both are done here. The description is read by an interpreter
that knows two functions, and replaces each of them by a record of its arguments.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mre_lowshot.errors import UserError
from mre_lowshot.limits import require_memory

MAX_DESCRIPTION = 64 << 20  # bytes of data.pkl: a million iterations of history take half of it
MAX_MEMBERS = 20_000  # tensors and others; the paper's network and its optimizer have 800
MAX_DEPTH = 32
COPIES = 3  # of the file's size that are in memory while it is loaded: atlases become float32
_BYTES = {
    "FloatStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
_BLOCK = 1 << 20


class _Refused(Exception):
    """The reason why a file is refused."""


@dataclass(frozen=True)
class _Storage:
    kind: str  # for example FloatStorage
    member: str
    numel: int


@dataclass(frozen=True)
class TensorClaim:
    """A tensor of the archive: its element type as torch's storages are called, and its shape."""

    kind: str
    shape: tuple[int, ...]


class _Ordered(dict[Any, Any]):
    """Stands for the OrderedDict of a state dict, which has attributes too."""


def not_a_checkpoint(path: Path, reason: str) -> UserError:
    """The error for a file that is no checkpoint, or a damaged one."""
    return UserError(
        f"{path}: is not a checkpoint of mre_lowshot, or is damaged ({reason}); give a model folder, a zip file of "
        "mre_export_model or a checkpoint of mre_train, or train again"
    )


def read_claims(path: Path, source: BinaryIO | None = None) -> dict[str, Any]:
    """The content of a checkpoint with a `TensorClaim` in place of each tensor. ``path`` names it in messages; where
    ``source`` is given, its bytes are read from there (a part of another file).

    Verified: nothing but plain values and dense tensors; every tensor lies within its member, whose size and checksum
    are right; members are not compressed, and all of them are in the file.

    Raises:
        UserError: something else is found, the file cannot be read, or loading it needs more memory than there is.
    """
    try:
        if source is None and not path.is_file():
            raise UserError(f"{path}: the checkpoint is missing; train the fold first")
        with path.open("rb") if source is None else nullcontext(source) as file:
            size = file.seek(0, os.SEEK_END)
            require_memory(COPIES * size, f"{path}: the checkpoint", "use a machine with more memory")
            _check_ends(file, size)
            with zipfile.ZipFile(file) as archive:
                description, sizes = _members(archive, size)
                content = _interpreted(archive.read(description), description.rpartition("/")[0], sizes)
                _check_sums(archive)
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{path}: may not be read (permission denied); change its permissions") from None
    except FileNotFoundError:  # it was there a moment ago
        raise UserError(
            f"{path}: was moved or deleted while it was read, as by mre_train --overwrite; repeat"
        ) from None
    except MemoryError:
        raise UserError(f"{path}: needs more memory than there is; use a machine with more memory") from None
    except Exception as problem:  # the description can fail in as many ways as there are operations
        reason = str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
        raise not_a_checkpoint(path, reason) from None
    if not isinstance(content, dict):
        raise not_a_checkpoint(path, "no dictionary")
    return content


def _check_ends(file: BinaryIO, size: int) -> None:
    """Refuse a file in which other readers might find another archive: with something before or after it."""
    file.seek(0)
    begin = file.read(4)
    file.seek(max(0, size - 22))
    if begin != b"PK\3\4" or file.read(4) != b"PK\5\6":
        raise _Refused("no zip archive, or something before or after it")


def _members(archive: zipfile.ZipFile, size: int) -> tuple[str, dict[str, int]]:
    """The member with the description, and the size of each."""
    found = archive.infolist()
    names = [member.filename for member in found]
    if len(found) > MAX_MEMBERS or len(set(names)) < len(names):
        raise _Refused(f"{len(found)} members, {len(set(names))} of them different")
    if min(m.header_offset for m in found) or sum(member.file_size for member in found) > size:
        raise _Refused("the archive holds more than the file")
    for member in found:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise _Refused(f"member {member.filename[:60]!r} is compressed")
        if member.flag_bits & 0x1:
            raise _Refused(f"member {member.filename[:60]!r} is encrypted")
        if member.filename.startswith("/") or ".." in member.filename.split("/") or "\\" in member.filename:
            raise _Refused(f"member {member.filename[:60]!r} is named as a file elsewhere")
    descriptions = [name for name in names if name.rpartition("/")[2] == "data.pkl" and name.count("/") <= 1]
    if len(descriptions) != 1 or any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise _Refused("no single data.pkl")
    if archive.getinfo(descriptions[0]).file_size > MAX_DESCRIPTION:
        raise _Refused(f"data.pkl is larger than {MAX_DESCRIPTION >> 20} MB")
    return descriptions[0], {member.filename: member.file_size for member in found}


def _check_sums(archive: zipfile.ZipFile) -> None:
    """Read every member to its end: `zipfile` compares the checksum there."""
    for member in archive.infolist():
        with archive.open(member) as file:
            while file.read(_BLOCK):
                pass


def _interpreted(description: bytes, folder: str, sizes: dict[str, int]) -> Any:
    content = _Interpreter(io.BytesIO(description), folder, sizes).load()
    # Each value takes at least a byte: where there are more, lists occur several times (ten lists of ten lists of ...)
    _check_plain(content, limit=len(description) + 1000)
    return content


# Python's own interpreter: unlike that in C it keeps no table that the description could make arbitrarily long.
class _Interpreter(pickle._Unpickler):
    def __init__(self, file: io.BytesIO, folder: str, sizes: dict[str, int]) -> None:
        super().__init__(file)
        self.folder, self.sizes = f"{folder}/" if folder else "", sizes

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _BYTES:
            return name
        known = {
            ("collections", "OrderedDict"): _ordered,
            ("torch._utils", "_rebuild_tensor_v2"): _claim,
        }
        if (module, name) not in known:
            raise _Refused(f"holds {module[:60]}.{name[:60]}, which is neither a dense tensor nor a plain value")
        return known[module, name]

    def persistent_load(self, reference: Any) -> _Storage:
        if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
            raise _Refused("an unknown reference")
        _, kind, key, place, numel = reference
        if kind not in _BYTES or not isinstance(key, str) or not isinstance(place, str) or not _count(numel):
            raise _Refused("an unknown reference")
        member = f"{self.folder}data/{key}"
        if self.sizes.get(member) != numel * _BYTES[kind]:
            raise _Refused(f"{member}: {self.sizes.get(member)} bytes, {numel} numbers of {_BYTES[kind]} bytes stated")
        return _Storage(kind, member, numel)


def _ordered(*arguments: Any) -> _Ordered:
    if arguments:
        raise _Refused("an ordered dictionary with arguments")
    return _Ordered()


def _claim(storage: Any, offset: Any, shape: Any, stride: Any, *others: Any) -> TensorClaim:
    """Stands for torch's function that makes a tensor from a storage."""
    if not isinstance(storage, _Storage) or not _count(offset) or not _counts(shape) or not _counts(stride):
        raise _Refused("a tensor without storage, shape or strides")
    if len(others) > 3 or not all(other is False or other == {} for other in others[:2]):
        raise _Refused("a tensor with a gradient or hooks")
    # Dense: voxels are neither repeated (a stride of 0 makes terabytes of 4 bytes) nor left out.
    expected = 1
    for side, step in sorted(zip(shape, stride, strict=True), key=lambda pair: pair[1]):
        if side > 1 and step != expected:
            raise _Refused(f"a tensor of shape {shape} with strides {stride}, which is not dense")
        expected *= side
    if offset + math.prod(shape) > storage.numel:
        raise _Refused(f"a tensor of shape {shape} in {storage.numel} numbers")
    return TensorClaim(storage.kind, tuple(shape))


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _counts(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= 8 and all(map(_count, values))


def _check_plain(content: Any, limit: int) -> None:
    """Refuse what is nested deeper than `MAX_DEPTH` (a list may contain itself), more than ``limit`` values, and
    what is no plain value."""
    waiting, count = [(content, 1)], 0
    while waiting:
        item, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH or count > limit:
            raise _Refused(f"nested deeper than {MAX_DEPTH} levels, or the same lists many times")
        if isinstance(item, dict):
            waiting.extend((inner, depth + 1) for pair in item.items() for inner in pair)
        elif isinstance(item, list | tuple | set | frozenset):
            waiting.extend((inner, depth + 1) for inner in item)
        elif not (item is None or isinstance(item, str | bytes | int | float | TensorClaim)):
            raise _Refused(f"holds a {type(item).__name__}, which is neither a dense tensor nor a plain value")
