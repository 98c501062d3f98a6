"""The paper's figures by name, through the command, on three tiny phantoms."""

import json
import shutil

import pytest
from conftest import Space, command

from mre_lowshot.data.synthetic import write_dataset
from mre_lowshot.experiments.results import collect
from mre_lowshot.experiments.runner import Setting
from mre_lowshot.experiments.tables import TABLES
from mre_lowshot.workflows import experiment_figures

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")
TITLES: list[str] = []


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A workspace for the rows of figures 3 and 5; the tests train them for an iteration, on fold 0."""
    pytest.importorskip("sklearn")
    space = Space(tmp_path_factory.mktemp("figures"))
    write_dataset(space.root / "raw", subjects=3, shape=(20, 36, 44), spacing=(8.0, 8.0, 8.0))
    return space


def run(space, figure, *arguments):
    return command("experiment", figure, "-d", 900, "--iterations", 1, "--workspace", space.root, *arguments)


def test_figure_5_and_figure_3_are_drawn_and_name_what_they_lack(drawn, capsys, monkeypatch):
    for name in ("draw_panels", "draw_embeddings"):
        real = getattr(experiment_figures, name)
        monkeypatch.setattr(experiment_figures, name, lambda *a, r=real, **k: TITLES.append(k["title"]) or r(*a, **k))
    assert run(drawn, "figure5") == 0
    folder = drawn.root / "results/Dataset900_Synthetic/experiments/table7__1shot_small_1"
    assert (folder / "figure5.png").read_bytes().startswith(b"\x89PNG")
    made = drawn.model("table2_e_1") / "fold_0"
    before = (made / "checkpoint_final.pth").stat().st_mtime_ns
    capsys.readouterr()
    assert run(drawn, "figure3") == 1  # rows with three and six training scans have no test scan here
    printed = "".join(capsys.readouterr())
    assert "row mre_3 is left out" in printed
    assert (folder / "figure3.png").read_bytes().startswith(b"\x89PNG")
    assert (made / "checkpoint_final.pth").stat().st_mtime_ns == before  # trained for figure 5 already
    assert run(drawn, "figure5", "--rows", "mre_1", "--set", "network.widths=[4,8,8]") == 0
    assert all(
        title.startswith(start) for title, start in zip(TITLES, ("t-SNE", "segmentations", "t-SNE"), strict=True)
    )
    assert "network.widths=[4,8,8]" in TITLES[-1]
    assert "network.widths" not in TITLES[0]


def test_a_row_that_tested_other_scans_is_named(drawn, capsys):
    """Both rows tested phantoms 2 and 3; then the U-Net lists phantom 1 instead."""
    rows = ("--rows", "unet_1_aug", "mre_1")
    assert run(drawn, "figure3", *rows) == 0
    assert "lacks" not in "".join(capsys.readouterr())
    (found,) = collect([TABLES["table7"].row("unet_1_aug")], [Setting(iterations=1)], drawn.root / "results",
                       "Dataset900_Synthetic", None)  # fmt: skip
    folder = found.runs[(0, 0)].folder / "validation"
    summary = json.loads((folder / "summary.json").read_text())
    shutil.copy(drawn.root / "raw/Dataset900_Synthetic/labelsTr/phantom_001.nii.gz", folder)
    case = {**summary["metric_per_case"][0], "case": "phantom_001", "prediction_file": "phantom_001.nii.gz"}
    (folder / "summary.json").write_text(json.dumps({**summary, "metric_per_case": [case]}))
    assert run(drawn, "figure3", *rows, "--print") == 0
    printed = "".join(capsys.readouterr())
    assert "figure3.png lacks MRE-Net-1: the other rows tested other scans" in printed
    assert "(--folds 0 1 2)" in printed
