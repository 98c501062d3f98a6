"""Case names for series: safe as file names on every system."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

MAX_LENGTH = 60
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)$")  # device names of Windows


def case_name(*parts: str) -> str:
    """The parts joined by ``_``, of letters, digits, ``-`` and ``_`` only, at most `MAX_LENGTH` characters.

    It never ends as a channel file does (``_0000``), and is never a device name of Windows.
    """
    plain = (unicodedata.normalize("NFKD", part).encode("ascii", "ignore").decode() for part in parts)
    words = [re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-") for part in plain]
    name = "_".join(word for word in words if word)[:MAX_LENGTH].rstrip("_-") or "scan"
    name = re.sub(r"_(\d{4})$", r"-\1", name)
    return f"{name}-scan" if _RESERVED.match(name) else name


def distinct(names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The names, with six digits derived from ``keys`` added to those that occur several times, in whatever case."""
    counts = Counter(name.lower() for name in names)
    made = [
        f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:6]}" if counts[name.lower()] > 1 else name
        for name, key in zip(names, keys, strict=True)
    ]
    seen: set[str] = set()
    for index, name in enumerate(made):  # a name may also equal another one with digits added
        number = 1
        while made[index].lower() in seen:
            number += 1
            made[index] = f"{name}-{number}"
        seen.add(made[index].lower())
    return made
