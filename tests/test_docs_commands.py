"""The commands of the first steps and of the how-tos run, line by line, on synthetic scans with a tiny network."""

import re
import shlex
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from loose_files import write_seg_nrrd
from test_docs_site import blocks

from docs_tools import commands
from mre_lowshot.config import presets
from mre_lowshot.data.synthetic import LABELS, make_subject
from mre_lowshot.planners import hardware

pytestmark = pytest.mark.slow
DOCS = Path(__file__).resolve().parents[1] / "docs"
SHAPE, SPACING = (20, 36, 44), (8.0, 8.0, 8.0)
NOT_RUN = ("mre_demo", "mre_doctor", "mre_view")  # tested elsewhere


@pytest.fixture
def tiny(monkeypatch, no_settings):
    """The recipe default with a tiny network and a short training, in an empty folder."""
    small = replace(hardware.SMALL_SIZE, widths=(4, 4, 4), aspp_channels=4, embedding_dim=8, mixing_dim=4, batch_size=2)
    monkeypatch.setattr(hardware, "SMALL_SIZE", replace(small, patch_voxels=1024))
    default = presets.DEFAULT
    short = replace(
        default,
        optimizer=replace(default.optimizer, iterations=2),
        atlas=replace(default.atlas, registration="affine"),
        refinement=replace(default.refinement, reregister_below=0.0),
    )
    monkeypatch.setitem(presets.PRESETS, "default", short)
    monkeypatch.setattr(presets, "IMAGE_ITERATIONS", 2)


def image(seed, part="image", only=None):
    """A synthetic scan or its label map; ``only``: the labels that it has, numbered 1, 2, ..."""
    scan, labels = make_subject(seed, SHAPE, SPACING)
    array = scan.astype(np.int16)
    if part == "labels":
        values = only or [value for value in LABELS.values() if value]
        array = np.zeros_like(labels)
        for number, value in enumerate(values, 1):
            array[labels == value] = number
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(SPACING[::-1])
    return made


def save(made, path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(made, str(path))


def run(page, *, skip=(), before=None):
    """Run the commands of a page in their order.

    Args:
        page: relative to docs/.
        skip: texts of lines that are left out.
        before: text -> what is prepared before the first line that contains it.
    """
    done, known, waiting = [], commands.commands(), dict(before or {})
    for line in (line.strip() for block in blocks(DOCS / page) for line in block):
        name, *words = shlex.split(line, comments=True) or [""]
        if name not in known or name in NOT_RUN or any(text in line for text in skip):
            continue
        for text in [text for text in waiting if text in line]:
            waiting.pop(text)()
        assert import_module(known[name]).main(words) == 0, line
        done.append(name)
    return done


def imported(number):
    """Run the import command of the first steps with that number, without --dry_run."""
    lines = [line.strip() for block in blocks(DOCS / "first_steps.md") for line in block]
    line = [line for line in lines if line.startswith("mre_import")][number]
    assert import_module("mre_lowshot.cli.importing").main(shlex.split(line.replace(" --dry_run", ""))[1:]) == 0


def labelled(folder, count, *, ending=".nii.gz", channels=("scan",)):
    """Scans with label maps, and one without, each in a folder of its own."""
    for number in range(1, count + 2):
        for name in channels:
            save(image(number), f"{folder}/p{number}/{name}{ending}")
        if number <= count:
            save(image(number, "labels", [1, 2]), f"{folder}/p{number}/{channels[0]}_seg{ending}")


def new_scans(folder, count=2, *, ending="_0000.nii.gz"):
    for number in range(1, count + 1):
        save(image(10 + number), f"{folder}/case_{number}{ending}")


def make_references():
    """The predicted label maps, as references."""
    shutil.copytree("segmentations", "references", ignore=shutil.ignore_patterns("*.csv", "*.json", "*.tsv", "*.txt"))
    shutil.rmtree("references/overlays", ignore_errors=True)


def correct(path):
    """Change a label map, as a person would."""
    read = sitk.ReadImage(path)
    array = sitk.GetArrayFromImage(read)
    array[5:9, 5:9, 5:9] = 1
    made = sitk.GetImageFromArray(array)
    made.CopyInformation(read)
    sitk.WriteImage(made, path)


def test_first_steps(tiny, capfd):
    labelled("my_scans", 2)
    new_scans("new_scans")
    imported(0)
    before = {"mre_add_case": lambda: correct("segmentations/case_1.nii.gz"), "mre_evaluate": make_references}
    done = run("first_steps.md", skip=("mre_import",), before=before)
    assert done == ["mre_plan_and_preprocess", *["mre_train"] * 3, "mre_predict", "mre_add_case", "mre_evaluate"]
    assert Path("mre_data/raw/Dataset017_Abdomen/labelsTr/case_1.nii.gz").is_file()
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("next: mre_train"))
    assert import_module("mre_lowshot.cli.train").main(shlex.split(line)[2:]) == 0  # the command as it is printed
    assert Path("segmentations/quality.csv").is_file()
    assert list(Path("segmentations/overlays").glob("*.png"))
    assert Path("segmentations/summary.csv").is_file()


def test_first_steps_with_dicom(tiny):
    pytest.importorskip("pydicom")
    from test_import_dicom import STORED, make_seg, write_series

    write_series(Path("my_scans/p1"), STORED)
    make_seg(Path("my_scans/p1/seg"))
    imported(1)
    text = Path("mre_data/raw/Dataset017_Abdomen/dataset.json").read_text()
    assert '"0": "CT"' in text
    assert '"liver": 1' in text


def test_first_steps_with_3d_slicer(tiny):
    save(image(1), "my_scans/p1/scan.nrrd")
    layer = sitk.GetArrayFromImage(image(1, "labels", [1, 2]))
    segments = [{"Name": name, "LabelValue": value, "Layer": 0} for value, name in ((1, "liver"), (2, "spleen"))]
    write_seg_nrrd(Path("my_scans/p1/scan.seg.nrrd"), [layer], segments, image(1))
    imported(2)
    text = Path("mre_data/raw/Dataset017_Abdomen/dataset.json").read_text()
    assert re.search(r'"liver": 1,\s+"spleen": 2', text)


def test_brain_mri(tiny):
    def two_sequences():
        shutil.rmtree("brains")
        labelled("brains", 1, channels=("FLAIR", "T1"))

    labelled("brains", 1)
    new_scans("new_brains")
    run("howto/brain_mri.md", before={"Dataset032": two_sequences})
    assert len(list(Path("segmentations").glob("*.nii.gz"))) == 2
    assert Path("mre_data/raw/Dataset032_BrainTwo/imagesTr/BrainTwo_001_0001.nii.gz").is_file()
    assert list(Path("mre_data/results").glob("Dataset032_BrainTwo/*/fold_0/checkpoint_final.pth"))


def test_abdominal_ct(tiny):
    labelled("cts", 2)
    new_scans("new_cts")
    done = run("howto/abdominal_ct.md", skip=("Fine",))  # a fine grid takes minutes
    assert done.count("mre_train") == 2
    assert Path("segmentations/statistics.csv").is_file()


def test_head_and_neck(tiny):
    for number in (1, 2):
        save(image(number), f"planning_cts/p{number}/ct.nrrd")
        layer = sitk.GetArrayFromImage(image(number, "labels"))
        names = ["brain_stem", "spinal_cord", "left_parotid", "right_parotid", "mandible", "chiasm"]
        segments = [{"Name": name, "LabelValue": value, "Layer": 0} for value, name in enumerate(names, 1)]
        write_seg_nrrd(Path(f"planning_cts/p{number}/ct.seg.nrrd"), [layer], segments, image(number))
    new_scans("new_cts")
    run("howto/head_neck_ct.md", before={"mre_evaluate": make_references})
    assert Path("segmentations/summary.json").is_file()


def test_ultrasound(tiny):
    for number in range(1, 25):
        frame, mask = (sitk.GetArrayFromImage(image(number, part, [1]))[10] for part in ("image", "labels"))
        for folder, array in (("frames", (frame + 1000) // 8), ("masks", mask), ("new_frames", (frame + 1000) // 8)):
            save(sitk.GetImageFromArray(np.clip(array, 0, 255).astype(np.uint8)), f"{folder}/us_{number:02d}.png")
    run("howto/ultrasound.md", before={"mre_evaluate": make_references})
    assert "ARE" in Path("segmentations/summary.csv").read_text()
