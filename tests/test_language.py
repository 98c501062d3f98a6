"""Retired words stay out of code, plan fields, options, messages and documents (docs/GLOSSARY.md has today's)."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OWN = Path(__file__).name

# Names of format version 1 and of the code before it.
IDENTIFIERS = [
    "specs",
    "codec",
    "whole_file",
    "logbook",
    "Logbook",
    "weighing",
    "floors",
    "halves.json",
    "n_lg",
    "ohem_floor",
    "ams",
    "dml",
    "mixer_width",
    "scale_learned",
    "balanced_share",
    "prior_weight",
    "intensity_weight",
    "neighbour_weight",
    "realign_below",
    "hu_floors",
    "mirror_images",
    "inside_only",
    "NetworkSpec",
    "AugmentationSpec",
    "InferenceSpec",
    "PreprocessingSpec",
    "PatchSpec",
    "HuFloor",
    "RawDataset",
    "Former",
    "make_ready",
    "each_ready",
    "predict_ready",
    "hull",
    "_Cut",
    "opinions",
    "joint_rule",
    "joint_floors",
    "keep_above",
    "agree_with_neighbours",
    "soften",
    "HOTTEST",
    "pays",
    "image_of",
    "with_images",
    "partners",
    "found_weights",
    "to_weigh",
    "in_atlases",
    "best_network",
    "ALONE",
    "groups_rule",
    "plain_rule",
    "mending_rule",
    "other_side",
    "whole_labels",
    "take_image",
    "take_label",
    "spacing_with",
]
# Words of everyday speech that stood for a term of the field.
WORDS = [
    "told",
    "mend",
    "mends",
    "mended",
    "mending",
    "unmended",
    "brought",
    "thinned",
    "thins",
    "stray",
    "strays",
    "likeness",
    "surer",
    "aloud",
]
PHRASES = ["registered again by what", "what was predicted", "folded head", "neighbours agree", "registration weighs"]


def texts():
    """Every text file that belongs to the project, with its content."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\n")
    endings = (".py", ".md", ".toml", ".json", ".cff", ".yaml", ".txt", "Makefile")
    for name in listed:
        path = ROOT / name
        if name.endswith(endings) and path.is_file() and path.name not in (OWN, "constraints.txt"):
            yield name, path.read_text(encoding="utf-8")


TEXTS = dict(texts())


def found(pattern, names=TEXTS):
    """``file:line: text`` of every match."""
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name in names
        for number, line in enumerate(TEXTS[name].splitlines(), 1)
        if re.search(pattern, line)
    ]


def test_the_texts_are_there():
    assert len(TEXTS) > 150 or not (ROOT / ".git").exists()


def test_retired_names_are_gone():
    pattern = rf"(?<![\w.-])({'|'.join(map(re.escape, IDENTIFIERS))})(?![\w-])"
    assert found(pattern, [name for name in TEXTS if name != "CHANGELOG.md"]) == []


def test_retired_words_are_gone():
    assert found(rf"(?i)\b({'|'.join(WORDS)})\b") == []


@pytest.mark.parametrize("phrase", PHRASES)
def test_retired_phrases_are_gone(phrase):
    assert found(f"(?i){re.escape(phrase)}") == []


def test_a_retired_word_would_be_found():
    assert re.search(rf"(?i)\b({'|'.join(WORDS)})\b", "3 problems to mend")


def test_log_rows_can_be_read():
    """One idea a row, at most 400 characters."""
    rows = [line for line in TEXTS["docs/LOG.md"].splitlines() if line.startswith("|")]
    assert len(rows) > 50
    assert [row[:60] for row in rows if len(row) > 400] == []


def test_glossary_lists_the_terms_once():
    terms = re.findall(r"^\| \**([^|*]+?)\** \|", TEXTS["docs/GLOSSARY.md"], re.M)
    terms = [term for term in terms if term.lower() not in ("term",) and not set(term) <= set("-: ")]
    assert len(terms) >= 50
    assert len({term.lower() for term in terms}) == len(terms)
