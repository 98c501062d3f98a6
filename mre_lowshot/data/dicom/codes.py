"""Coded terms (SNOMED CT) for labels, by their names or as dataset.json gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mre_lowshot.data.vocabulary import lesions_of, normalize_name
from mre_lowshot.errors import UserError

Code = tuple[str, str, str]  # value, scheme, meaning

_ANATOMY: Code = ("91723000", "SCT", "Anatomical Structure")
_ABNORMAL: Code = ("49755003", "SCT", "Morphologically Abnormal Structure")
_TISSUE: Code = ("85756007", "SCT", "Tissue")
_SIDES: dict[str, Code] = {
    "left": ("7771000", "SCT", "Left"), "right": ("24028007", "SCT", "Right"),
}  # fmt: skip
# Meaning, code value, other names. Names are compared in lower case, without spaces, hyphens and underscores.
_STRUCTURES = (
    ("Adrenal gland", "23451007", "adrenal"), ("Amygdala", "4958002", ""), ("Aorta", "15825003", ""),
    ("Bladder", "89837001", "urinarybladder"), ("Bone", "272673000", ""), ("Brain", "12738006", ""),
    ("Breast", "76752008", ""), ("Caudate Nucleus", "11000004", "caudate"), ("Cerebellum", "113305005", ""),
    ("Cerebrospinal Fluid", "65216001", "csf"), ("Clavicle", "51299004", ""), ("Colon", "71854001", ""),
    ("Duodenum", "38848004", ""), ("Esophagus", "32849002", "oesophagus"), ("Eye", "81745001", ""),
    ("Femur", "71341001", ""), ("Gallbladder", "28231008", ""), ("Globus Pallidus", "14738005", "pallidum"),
    ("Heart", "80891009", ""), ("Hip", "29836001", ""), ("Hippocampus", "5366008", "hippocampi"),
    ("Humerus", "85050009", ""), ("Inferior vena cava", "64131007", "ivc postcava"), ("Kidney", "64033007", "kidneys"),
    ("Lateral Ventricle", "66720007", ""), ("Left atrium", "82471001", ""), ("Left ventricle", "87878005", ""),
    ("Liver", "10200004", ""), ("Lung", "39607008", "lungs"), ("Mandible", "91609006", ""),
    ("Nucleus Accumbens", "427667007", "accumbens"), ("Optic chiasm", "244453006", ""), ("Pancreas", "15776009", ""),
    ("Parotid gland", "45289007", "parotid"), ("Portal vein", "32764006", ""), ("Prostate", "41216001", ""),
    ("Pulmonary artery", "81040000", ""), ("Putamen", "89278009", ""), ("Rectum", "34402009", ""),
    ("Rib", "113197003", ""), ("Right atrium", "73829009", ""), ("Right ventricle", "53085002", ""),
    ("Sacrum", "54735007", ""), ("Scapula", "79601000", ""), ("Skin", "39937001", ""),
    ("Small intestine", "30315005", "smallbowel"), ("Spinal cord", "2748008", ""), ("Spleen", "78961009", ""),
    ("Splenic vein", "35819009", ""), ("Sternum", "56873002", ""), ("Stomach", "69695003", ""),
    ("Submandibular gland", "54019009", ""), ("Thalamus", "42695009", ""), ("Thyroid", "69748006", "thyroidgland"),
    ("Trachea", "44567001", ""), ("Uterus", "35039007", ""), ("Vertebra", "51282000", ""),
    ("White Matter", "389080008", "wm"),
)  # fmt: skip
_LESIONS = (
    ("Cyst", "367643001", ""), ("Edema", "79654002", "oedema"), ("Hemorrhage", "50960005", "haemorrhage"),
    ("Necrosis", "6574001", "necrotic"), ("Neoplasm", "108369006", "tumor tumour cancer carcinoma"),
    ("Nodule", "27925004", ""), ("Lesion", "52988006", ""),
)  # fmt: skip


@dataclass(frozen=True)
class Terms:
    """The coded terms of a segment: category, type, and side (None: without)."""

    category: Code
    type: Code
    side: Code | None = None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_BY_NAME: dict[str, Code] = {
    word: (value, "SCT", meaning) for meaning, value, more in _STRUCTURES for word in (_plain(meaning), *more.split())
}


def terms_of(name: str, given: Code | None = None) -> Terms:
    """The terms of a label by its name: of a structure with its side, of a lesion, or of any tissue where the name is
    not listed; ``given`` replaces the type."""
    words = re.findall(r"[a-z0-9]+", normalize_name(name))
    side = next((_SIDES[s] for w, s in (("left", "left"), ("l", "left"), ("right", "right"), ("r", "right"))
                 if w in words), None)  # fmt: skip
    plain = _plain(name)
    if lesions_of([name]):
        found = next(
            ((value, "SCT", meaning) for meaning, value, more in _LESIONS
             if any(word in plain for word in (meaning.lower(), *more.split()))), ("52988006", "SCT", "Lesion"),
        )  # fmt: skip
        return Terms(_ABNORMAL, given or found, side)
    if plain in _BY_NAME:  # a heart's left ventricle is not a ventricle on the left
        return Terms(_ANATOMY, given or _BY_NAME[plain])
    structure = _BY_NAME.get("".join(word for word in words if word not in ("left", "right", "l", "r")))
    if structure is None and given is None:
        return Terms(_TISSUE, _TISSUE, side)
    return Terms(_ANATOMY, given or structure or _TISSUE, side)


def label_codes(labels: Mapping[str, int], given: Any, where: str = "dataset.json") -> dict[str, Code]:
    """The codes that ``label_codes`` of a dataset.json gives: name to (value, scheme, meaning).

    Raises:
        UserError: a name is not a label, or a code is not three texts that a coded term can hold.
    """
    example = '{"liver": ["10200004", "SCT", "Liver"]}'
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: label_codes is {given!r}; must map names to codes, as in {example}")
    for name, code in given.items():
        if name not in labels:
            raise UserError(f"{where}: label_codes names {name!r}, which is not in labels {sorted(labels)}; remove it")
        texts = code if isinstance(code, (list, tuple)) else ()
        fits = len(texts) == 3 and all(
            isinstance(text, str) and len(text.strip()) > 0 and len(text) <= longest and "\\" not in text
            for text, longest in zip(texts, (64, 16, 64), strict=True)
        )
        if not fits:
            raise UserError(
                f"{where}: label_codes gives {name!r} the code {code!r}; write value, scheme (at most 16 letters) and "
                f"meaning, as in {example}"
            )
    return {name: (code[0], code[1], code[2]) for name, code in given.items()}
