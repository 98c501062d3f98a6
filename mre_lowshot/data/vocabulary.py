"""Words in channel and label names: modalities, left and right, lesions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

CT_NAMES = ("ct",)
MRI_WORDS = ("mri", "mr", "flair", "adc", "dwi", "pd", "pdw", "ir", "swi", "bold", "cine", "mprage", "dixon", "gre",
             "tof", "stir", "bravo", "spgr")  # fmt: skip
MRI_PREFIXES = ("t1", "t2")  # t1w, T1-IR, T1DUAL, T2SPIR, T2*
OTHER_NAMES = ("us", "ultrasound", "pet", "r", "g", "b", "red", "green", "blue", "nonct", "zscore", "gray", "grey")
N4_WORDS = ("n4", "n4itk", "biascorrected", "bfc")  # of channels whose bias field was corrected already
QUANTITATIVE_WORDS = ("adc",)  # maps of a physical quantity: smooth variation in them is signal, not bias field


def is_ct(channel: str) -> bool:
    """Whether the channel is a CT, in HU."""
    return channel.strip().lower() in CT_NAMES


def is_mri(channel: str) -> bool:
    """Whether a word of the channel's name is an MRI sequence, and none another modality."""
    words = re.findall(r"[a-z0-9]+", channel.lower())
    if any(word in CT_NAMES + OTHER_NAMES for word in words):
        return False
    return any(word in MRI_WORDS or word.startswith(MRI_PREFIXES) for word in words)


def is_corrected(channel: str) -> bool:
    """Whether the channel's name states that its bias field was corrected."""
    return any(word in N4_WORDS for word in re.findall(r"[a-z0-9]+", channel.lower()))


def is_known_channel(channel: str) -> bool:
    """Whether the channel's name is a modality listed here."""
    return is_ct(channel) or channel.strip().lower() in OTHER_NAMES or is_mri(channel)


_SIDES = {"left": "right", "l": "r", "lh": "rh", "lt": "rt"}
_OPPOSITE = {**_SIDES, **{right: left for left, right in _SIDES.items()}}
_SIDE = re.compile(rf"(?<![a-z])({'|'.join(_OPPOSITE)})(?![a-z])")
# A letter that may be a side or not: L1 is a vertebra, R2 a level of lymph nodes on the right, lkidney a left kidney
# and lung none. The dataset decides: a side has its opposite there.
_NUMBERED = re.compile(r"(?<![a-z])[lr](?=\d)|^[lr](?=[ _-]*\d)")
_JOINED = re.compile(r"(?<![a-z])[lr](?=[a-z])")


def normalize_name(name: str) -> str:
    """A label's name in lower case, with words split at capitals: ``left_kidney`` for ``LeftKidney``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def contralateral(name: str, labels: Iterable[str] = ()) -> str | None:
    """The normalized name of the same structure on the other side: ``left_kidney`` for ``Right_Kidney``. None where
    the name has no side.

    Sides are left and right, l and r, lh and rh, lt and rt. A letter with a number (L1, R2) or without a gap (lkidney)
    is a side only where the opposite is among the dataset's ``labels``: L1 is a vertebra.
    """
    plain, known = normalize_name(name), {normalize_name(label) for label in labels}
    for doubtful in (_NUMBERED, _JOINED):
        swapped = doubtful.sub(lambda side: _OPPOSITE[side[0]], plain)
        if swapped != plain and swapped in known:
            return swapped
    doubted = {match.start() for match in _NUMBERED.finditer(plain)}
    swapped = _SIDE.sub(lambda side: side[0] if side.start() in doubted else _OPPOSITE[side[0]], plain)
    return swapped if swapped != plain else None


# A lesion's position in one scan does not predict its position in the next.
LESION_WORDS = (
    "tumor", "tumour", "lesion", "edema", "oedema", "necro", "cyst", "metasta", "cancer", "carcinoma", "infarct",
    "stroke", "ischem", "ischaem", "hemorrhage", "haemorrhage", "hematoma", "haematoma", "bleed", "plaque", "nodule",
    "polyp", "abscess", "aneurysm", "effusion", "calcification", "hyperintens", "wmh", "benign", "malignant",
)  # fmt: skip


def lesions_of(labels: Sequence[str]) -> list[str]:
    """The labels whose names contain a word for a lesion."""
    return [name for name in labels if any(word in name.lower() for word in LESION_WORDS)]


def lesions_among_organs(labels: Sequence[str]) -> list[str]:
    """The labels that are lesions by their names, where others are not; none where every label is one."""
    return [] if only_lesions(labels) else lesions_of(labels)


def only_lesions(labels: Sequence[str]) -> bool:
    """Whether every foreground label is a lesion by its name."""
    foreground = [name for name in labels if name != "background"]
    return bool(foreground) and lesions_of(foreground) == foreground
