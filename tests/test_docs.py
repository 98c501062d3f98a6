"""The documents: Python examples run, links lead somewhere, commands and options exist."""

import re
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

import mre_lowshot
from docs_tools import GENERATED
from mre_lowshot.config import presets
from mre_lowshot.planners import hardware

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
GENERATED_PAGES = {ROOT / "docs" / name for name in GENERATED}  # by docs_tools, when the site is built
EXAMPLES = [
    (path.name, number, code)
    for path in DOCUMENTS
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S))
]
# The examples run on tiny scans, with a shorter training.
SHORTER = {
    '"1shot", fold=0, workspace': '"1shot", fold=0, iterations=1, score=False, workspace',
    '"more", subjects=1, seed=1': '"more", subjects=1, seed=1, shape=(20, 36, 44), spacing=(8.0, 8.0, 8.0)',
}
EXTRAS = {'dicom-seg"]': "highdicom", "show_case": "ipyniivue"}  # text -> package of an extra that may be missing


def anchor(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture
def demo_folder(trained, tmp_path, no_settings, monkeypatch):
    """The present folder, with what ``make demo`` leaves: scans, references, a trained model. Networks are tiny, and
    scans are registered once, by an affine transform."""
    small = replace(hardware.SMALL_SIZE, widths=(4, 4, 4), aspp_channels=4, embedding_dim=8, mixing_dim=4, batch_size=2)
    monkeypatch.setattr(hardware, "SMALL_SIZE", replace(small, patch_voxels=1024))
    default = presets.DEFAULT
    quick = replace(
        default,
        atlas=replace(default.atlas, registration="affine"),
        refinement=replace(default.refinement, reregister_below=0.0),
    )
    monkeypatch.setitem(presets.PRESETS, "default", quick)
    root = tmp_path / "mre_demo"
    shutil.copytree(trained.raw, root / "raw/Dataset900_Synthetic")
    shutil.copytree(trained.model(), root / "results/Dataset900_Synthetic/MRETrainer__MREPlans__1shot")
    for folder, source, ending in (("new_scans", "imagesTr", "_0000"), ("new_scans_reference", "labelsTr", "")):
        (root / folder).mkdir()
        shutil.copy(trained.raw / source / f"phantom_002{ending}.nii.gz", root / folder)
    return tmp_path


def test_readme_has_examples():
    assert sum(name == "README.md" for name, _, _ in EXAMPLES) >= 2


def make_inputs(code, trained):
    """What an example needs beside the models and scans of the demo."""
    if '"study"' in code:
        from tests.dicom_scans import phantom, write_scan

        write_scan(Path("study"), phantom(trained), "axial")
    if "mre_demo/predictions" in code:
        mre_lowshot.predict("mre_demo/new_scans", "mre_demo/predictions", workspace="mre_demo", device="cpu")


def test_examples_in_python_are_marked_as_such():
    """So that they run below."""
    blocks = [
        (path.name, language, code)
        for path in DOCUMENTS
        for language, code in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", path.read_text(), re.M | re.S)
    ]
    assert {language for _, language, _ in blocks} >= {"", "python"}
    assert [name for name, language, code in blocks if not language and re.search(r"^(from|import) ", code, re.M)] == []


@pytest.mark.parametrize(("document", "number", "code"), EXAMPLES, ids=[f"{n}-{i}" for n, i, _ in EXAMPLES])
def test_python_examples_run(document, number, code, trained, demo_folder, capsys):
    for text, package in EXTRAS.items():
        if text in code:
            pytest.importorskip(package)
    make_inputs(code, trained)
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    made = {"__name__": "example"}
    exec(compile(code, f"{document} example {number}", "exec"), made)
    if "mre_lowshot.add_case(" in code:
        assert made["result"].cases == ("phantom_008",)
        assert "phantom_008" in [case.name for case in mre_lowshot.Dataset.load(made["dataset"]).labelled]
    if "write_report(" in code:
        assert made["page"].cases == 1
        assert "phantom_002" in made["page"].path.read_text()
    if '"study"' in code:
        assert [path.name for path in demo_folder.glob("*.seg.dcm")] == ["P1_3_Abdomen.seg.dcm"]
    if "print(prediction.quality.score)" in code:
        score, shape = capsys.readouterr().out.split("\n")[:2]
        assert 0 <= float(score) <= 1
        assert shape.startswith("(7, ")
        assert (demo_folder / "phantom_002.nii.gz").is_file()
    if "result.dice" in code:
        assert 0 <= float(re.search(r"mean Dice ([\d.]+)", capsys.readouterr().out)[1]) <= 1


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if file in GENERATED_PAGES:
            continue
        if not file.exists():
            broken.append(target)
        elif heading:
            headings = {anchor(h) for h in re.findall(r"^#+ (.*)$", file.read_text(), re.M)}
            if heading not in headings:
                broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_options_and_commands_in_documents_exist(path):
    """Every ``mre_command -option`` in a document is an option of that command."""
    wrong = []
    for line in path.read_text().splitlines():
        for command, rest in re.findall(r"\b(mre_\w+)((?: [^`|#;)]+)?)", line):
            names = re.findall(rf'^{command} = "([\w.]+):main"', (ROOT / "pyproject.toml").read_text(), re.M)
            if not names:
                continue
            parser = import_module(names[0])._parser()
            known = set(parser._option_string_actions)
            options = re.findall(r"(?<=\s)(--?[A-Za-z_][\w]*)", f" {rest}")
            wrong += [f"{command} {option}" for option in options if option not in known]
    assert wrong == []


def test_extras_are_installed_from_the_checkout():
    """The package is on no index: pip does not find it by its name."""
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("optional-dep")[1], re.M))
    sources = [path for name in ("mre_lowshot", "trainers", "planners", "preprocessing")
               for path in (ROOT / name).rglob("*.py")]  # fmt: skip
    texts = [path.read_text() for path in (*DOCUMENTS, *sources, *(ROOT / "docs").rglob("*.ipynb"))]
    assert [text for text in texts if "mre-lowshot[" in text] == []
    named = {
        name for text in texts for names in re.findall(r'-e \\?"\.\[([\w,]+)\]', text) for name in names.split(",")
    }
    assert {"dicom", "ants", "view"} <= named <= extras


def test_fields_in_documents_exist():
    """Every ``--set`` key and every dotted recipe or network field in a document is a field of the configuration."""
    from dataclasses import fields, is_dataclass
    from typing import get_type_hints

    from mre_lowshot.config import NetworkConfig, PreprocessingConfig, Recipe

    def dotted(kind, prefix):
        for item in fields(kind):
            name = f"{prefix}.{item.name}"
            yield name
            inner = get_type_hints(kind)[item.name]
            if is_dataclass(inner):
                yield from dotted(inner, name)

    known = {
        *dotted(Recipe, "recipe"),
        *dotted(NetworkConfig, "network"),
        *dotted(PreprocessingConfig, "preprocessing"),
    }

    def is_module(name):
        return (ROOT / "mre_lowshot" / name.replace(".", "/")).with_suffix(".py").is_file()

    unknown = {
        f"{path.name}: {name}"
        for path in DOCUMENTS
        if path.name not in ("CHANGELOG.md", "LOG.md")  # both name fields that are gone
        for name in re.findall(r"(?<![\w/.])(?:recipe|network|preprocessing)(?:\.[a-z_]+)+(?![\w(*])", path.read_text())
        if name not in known and not is_module(name) and name != "preprocessing.json"
    }
    assert unknown == set()
