"""Names and colours of labels, in the forms that viewers read: inside a NIfTI file, and as files beside label maps."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from mre_lowshot.data.colours import label_colours, rgb
from mre_lowshot.files import printable

DESCRIPTIONS = "label_descriptions.txt"
DSEG = "dseg.tsv"
# The codes of the extension, which is written twice. 0: as TotalSegmentator writes it; nibabel cannot give the content
# of the other as bytes. 30: NIFTI_ECODE_CARET, registered for this XML; Connectome Workbench reads no other.
_CODES = (0, 30)
_HEADING = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Fields:
#    IDX:   Zero-based index
#    -R-:   Red color component (0..255)
#    -G-:   Green color component (0..255)
#    -B-:   Blue color component (0..255)
#    -A-:   Label transparency (0.00 .. 1.00)
#    VIS:   Label visibility (0 or 1)
#    IDX:   Label mesh visibility (0 or 1)
#  LABEL:   Label description
################################################
"""


@dataclass(frozen=True)
class LabelTable:
    """Names and colours of the labels above 0, in the order of their values.

    Attributes:
        names: value to name.
        colours: value to colour ``#rrggbb``.
    """

    names: Mapping[int, str]
    colours: Mapping[int, str]

    @classmethod
    def of(cls, labels: Mapping[str, int], colours: Mapping[int, str] | None = None) -> LabelTable:
        """The table of ``labels`` (name to value); ``colours`` None: those of a dataset.json that gives none."""
        names = {value: name for name, value in sorted(labels.items(), key=lambda item: item[1]) if value > 0}
        found = label_colours(labels) if colours is None else colours
        return cls(names, {value: found[value] for value in names})

    def itksnap(self) -> str:
        """The content of a label description file of ITK-SNAP."""
        lines = [_line(0, (0, 0, 0), 0, "Clear Label")]
        lines += [_line(value, rgb(self.colours[value]), 1, name) for value, name in self.names.items()]
        return _HEADING + "".join(lines)

    def dseg(self) -> str:
        """The content of a BIDS ``dseg.tsv``."""
        rows = [f"{value}\t{_flat(name)}\t{self.colours[value]}\n" for value, name in self.names.items()]
        return "index\tname\tcolor\n" + "".join(rows)

    def nifti_extensions(self) -> bytes:
        """The extensions of a NIfTI header with this table, after the four bytes that announce them."""
        labels = "".join(
            f'<Label Key="{value}" {_fractions(self.colours[value])} Alpha="1">'
            f"<![CDATA[{_flat(name).replace(']]>', ']] >')}]]></Label>\n"
            for value, name in self.names.items()
        )
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n<CaretExtension>\n<VolumeInformation Index="0">\n<LabelTable>\n'
            f"{labels}</LabelTable>\n<StudyMetaDataLinkSet></StudyMetaDataLinkSet>\n"
            "<VolumeType><![CDATA[Label]]></VolumeType>\n</VolumeInformation>\n</CaretExtension>\n"
        )
        content = text.encode()
        size = -(-(len(content) + 8) // 16) * 16
        # filled with spaces: some readers give the bytes to an XML parser as they are, which refuses zeros
        content = content.ljust(size - 8)
        return b"\1\0\0\0" + b"".join(struct.pack("<ii", size, code) + content for code in _CODES)


def _line(value: int, colour: tuple[int, int, int], shown: int, name: str) -> str:
    red, green, blue = colour
    text = _flat(name).replace('"', "'")
    return f'{value:5d} {red:5d} {green:4d} {blue:4d} {shown:8d} {shown:2d} {shown:2d}    "{text}"\n'


def _fractions(colour: str) -> str:
    return " ".join(
        f'{name}="{value / 255:.6g}"' for name, value in zip(("Red", "Green", "Blue"), rgb(colour), strict=True)
    )


def _flat(name: str) -> str:
    """A name on one line, without what XML and tables cannot hold."""
    return "".join(letter if letter.isprintable() else " " for letter in printable(name))
