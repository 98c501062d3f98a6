"""The tables in the paper's layout: figures as printed, rows shared between tables, the forms of a table."""

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mre_lowshot.evaluation.bus import BUS_METRICS
from mre_lowshot.experiments import grid
from mre_lowshot.experiments.figures import FIGURES
from mre_lowshot.experiments.grid import Grid, Line
from mre_lowshot.experiments.layouts import Content, layout, plain_grid
from mre_lowshot.experiments.records import MEAN, MEAN_EXCL, printed
from mre_lowshot.experiments.resources import Resources, peak_memory
from mre_lowshot.experiments.results import RowResult, Run
from mre_lowshot.experiments.runner import Setting, quick_split
from mre_lowshot.experiments.table_rows.comparisons import BRAIN, ORGANS
from mre_lowshot.experiments.tables import TABLES, plan_name
from mre_lowshot.experiments.text import format_rows
from mre_lowshot.files import write_json

PAPER = Path(__file__).resolve().parents[2] / "shared/paper/mre_net.txt"


@pytest.fixture(scope="module")
def paper():
    if not PAPER.is_file():
        pytest.skip("the paper's text is not here")
    return re.sub(r"[\s*]", "", PAPER.read_text())


def test_figures_by_label_are_those_of_the_paper(paper):
    """Each line of Tables VII, VIII and XI is in the paper as a whole, which also shows the order of its values."""
    lines = 0
    for table, columns in (("table7", BRAIN), ("table8", ORGANS), ("table11", ORGANS)):
        for row in TABLES[table].rows:
            for figure in row.paper:
                for by, mean in ((figure.dice_by, (figure.dice, figure.dice_sd)),
                                 (figure.hd95_by, (figure.hd95, figure.hd95_sd))):  # fmt: skip
                    values = [({**by, MEAN: mean})[name] for name in columns]
                    line = "".join(f"{value:.2f}({sd:.2f})" for value, sd in values)
                    assert line in paper, (table, row.name)
                    lines += 1
    assert lines > 50


def test_means_memory_and_time_are_those_of_the_paper(paper):
    for name in ("table2", "table6", "table10"):
        for row in TABLES[name].rows:
            for figure in row.paper:
                for value, sd in ((figure.dice, figure.dice_sd), (figure.hd95, figure.hd95_sd)):
                    assert f"{value:.2f}({sd:.2f})" in paper
                for text in (figure.memory, figure.time):
                    assert re.sub(r"[~x ]", "", text) in re.sub("[\u223c\u00d7]", "", paper)
    sse = TABLES["table10"].row("sse_all_aug").paper
    assert "k=max.)" + "".join(f"{f.dice:.2f}({f.dice_sd:.2f}){f.hd95:.2f}({f.hd95_sd:.2f})" for f in sse) in paper
    for row in TABLES["table12"].rows:
        values = row.paper[0].dice_by.values()
        assert "".join(f"{value:.2f}({sd:.2f})" for value, sd in values) in paper


def test_a_printed_line_must_have_a_value_for_each_column():
    assert printed(("a", "b", "c"), "1.50 (0.20) - *92 (-)") == {
        "a": (1.5, 0.2),
        "c": (92.0, pytest.approx(np.nan, nan_ok=True)),
    }
    with pytest.raises(ValueError, match="2 values for 3 columns"):
        printed(("a", "b", "c"), "1.50 (0.20) -")


def test_rows_of_parts_share_their_trainings_with_the_candidates():
    parts, candidates = (TABLES[name] for name in ("parts", "candidates"))
    shared = {name: plan_name(parts.row(name), "small", None) for name in ("default", "not_registered", "no_ohem")}
    assert shared == {name: plan_name(candidates.row(name), "small", None) for name in shared}
    assert plan_name(parts.row("registration"), "small", None) == "baseline_registration"
    assert plan_name(TABLES["table7"].row("ants_1"), "small", 7) == plan_name(
        TABLES["table9"].row("ants_1"), "small", 7
    )
    names = [plan_name(row, "small", None) for row in parts.rows]
    assert len(set(names)) == len(names)


def test_levels_of_rows_and_quick_folds():
    table, plain, cohort = TABLES["table8"], Setting("small"), Setting("small", "1shot_seven")
    rows = [table.row(name) for name in ("mre_1", "unet_6_aug", "unet_20_aug")]
    assert [plain.level_of(row) for row in rows] == ["1shot", "6shot", "20shot"]
    assert [cohort.level_of(row) for row in rows] == ["1shot_seven", "6shot_seven", "rest_seven"]
    assert cohort.level_of(TABLES["table2"].row("e")) == "1shot_seven"
    many = {"train": ["a"], "val": [f"{n:02}" for n in range(10)]}
    assert quick_split(many) == {"train": ["a"], "val": ["00", "03", "06"]}
    assert quick_split({"train": ["a"], "val": ["b"]})["val"] == ["b"]
    assert Setting("small", quick=True).name == "1shot_small_quick"


def test_figures_show_rows_that_exist_at_each_size():
    assert FIGURES["figure5"].rows_at("small") == ["mre_1", "unet_1_aug"]
    assert FIGURES["figure5"].rows_at("paper") == ["mre_1", "unet_1_aug_literal"]
    assert len(FIGURES["figure4"].rows_at("paper")) == 5


def made(table, values, labels=("liver", "spleen"), **more):
    """Results of the rows: for each one the Dice of two folds; HD95 is a hundredth of it, in mm."""
    rows = []
    for row in TABLES[table].rows_at("small"):
        runs = {}
        for fold, value in enumerate(values.get(row.name, ())):
            by_label = {name: value + 0.1 * n for n, name in enumerate(labels)}
            mean = float(np.mean(list(by_label.values())))
            runs[(0, fold)] = Run(
                fold, (f"train{fold}",), 0, {"Dice": mean, "HD95": mean * 10, "NSD": mean},
                {"x": {"Dice": mean, "HD95": mean * 10, "NSD": mean}}, 0, 5,
                labels={"Dice": by_label, "HD95": {k: v * 10 for k, v in by_label.items()}},
                resources=Resources("cpu", 90.0, 1.5, 1, {"x": 2.0, "y": 4.0}, 0.5),
            )  # fmt: skip
        rows.append(RowResult(row, row.name, runs))
    reference = more.get("reference", TABLES[table].reference)
    return Content(TABLES[table], rows, "Dataset001_X", "1shot", reference, labels)


def test_a_table_of_means_has_our_columns_beside_the_papers():
    found = layout(made("table6", {"cosine": (0.5, 0.6), "euclidean": (0.4,)}), quick="QUICK")
    assert "QUICK" in found.title
    assert found.groups == (("", 1), ("Dataset001_X", 4), ("paper: MRBrainS18", 4), ("paper: BTCV", 4))
    assert found.lines[0].cells == (
        "cosine", "60.00 (7.07)", "6.00 (0.71)", "1.50 GB", "1.50 min", "78.39 (1.07)", "6.30 (1.73)", "~4x10.18 GB",
        "~150 min", "69.13 (1.43)", "19.02 (8.63)", "~4x9.81 GB", "~140 min",
    )  # fmt: skip
    assert (found.lines[0].best, found.lines[1].best) == ((1,), (2,))  # highest Dice, lowest HD95
    marked = layout(made("table2", {"e": (0.5,)}))
    assert ["".join(line.cells[1:5]) for line in marked.lines] == [
        "----",
        "x---",
        "xx--",
        "xxx-",
        "xxxx",
        "-xxx",
        "x-xx",
    ]
    assert [line.cells[0] for line in marked.lines[:2]] == ["(a)", "(b)"]
    columns = layout(made("table4", {"m1": (0.5, 0.6)}))
    assert columns.head == ("", "M = 1", "M = 2", "M = 3", "M = 4", "M = 5")
    assert columns.lines[0].cells[:3] == ("Dice (%), Dataset001_X", "60.00 (7.07)", "-")
    assert [line.cells[1] for line in columns.lines[2:]] == [
        "74.91 (1.98)",
        "7.08 (1.81)",
        "79.21 (1.25)",
        "5.88 (1.83)",
    ]


def test_a_table_of_labels_has_the_papers_order_and_means_without_one():
    labels = ("WMH", "CSF", "GM", "BG", "WM", "VT", "CB", "BS")
    found = layout(made("table7", {"mre_1": (0.1,)}, labels))
    assert found.head == ("", "", *BRAIN)
    here, paper = (next(i for i, line in enumerate(found.lines) if line.cells[0] == "MRE-Net-1") + n for n in (0, 1))
    assert found.lines[here].cells[1:6] == ("here", "30.00 (-)", "40.00 (-)", "50.00 (-)", "10.00 (-)")
    assert found.lines[here].cells[-2:] == ("45.00 (-)", "50.00 (-)")  # Mean, and without WMH
    assert found.lines[paper].cells[1:3] == ("paper", "80.84 (1.61)")
    assert found.lines[paper].printed
    assert "Non-low-shot [26]" in [line.cells[0] for line in found.lines]
    assert found.head[-1] == MEAN_EXCL
    other = layout(made("table7", {"mre_1": (0.1,)}))
    assert other.head == ("", "", "liver", "spleen", MEAN, MEAN_EXCL)
    assert next(line for line in other.lines if line.printed).cells == (
        "",
        "paper",
        "-",
        "-",
        "65.93 (1.39)",
        "71.58 (1.29)",
    )
    organs = ("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "pancreas")
    all_13 = layout(made("table8", {"mre_1": (0.01,)}, (*organs, "aorta", "vein", "ivc", "rag", "lag")))
    assert all_13.head[-2:] == ("Zhou et al. [41] (paper)", "DenseVNet [39] (paper)")
    assert {len(line.cells) for line in all_13.lines} == {1, len(all_13.head)}
    many = layout(made("table8", {"mre_1": (0.01,)}, tuple(f"organ{n:02}" for n in range(11))))
    assert many.head[:3] == ("", "ANTs-1", "ANTs-1 (paper)")
    assert [line.cells[0] for line in many.lines[:3]] == ["Dice (%)", "organ00", "organ01"]


def test_time_and_memory():
    found = layout(made("table9", {"mre_1": (0.5, 0.6)}))
    mre = {line.cells[0]: line.cells[-1] for line in found.lines}
    assert mre == {
        "training, Dataset001_X": "1.50 min", "inference per scan, Dataset001_X": "3.00 s",
        "memory in training, Dataset001_X": "1.50 GB", "memory in inference, Dataset001_X": "0.50 GB",
        "Training (one-shot), paper: MRBrainS18": "~150 min", "Inference (per sample), paper: MRBrainS18": "~4 s",
    }  # fmt: skip
    assert "cpu" in found.notes[0]


def test_ultrasound_is_averaged_over_all_test_images(tmp_path):
    content = made("table12", {"mre_1": (0.5, 0.6)})
    for fold, shares in enumerate(((0.9, 0.7), (0.8, None))):
        folder = tmp_path / f"fold_{fold}/validation"
        folder.mkdir(parents=True)
        bus = [{"1": dict.fromkeys(BUS_METRICS, share)} for share in shares]
        write_json(
            folder / "summary.json",
            {"metric_per_case": [{"case": f"i{n}", "bus": b} for n, b in enumerate(bus)] + [{"case": "x"}]},
        )
    runs = content.rows[0].runs
    for key, run in list(runs.items()):
        runs[key] = replace(run, folder=tmp_path / f"fold_{run.fold}")
    lines = layout(content).lines
    assert [line.cells for line in lines[:3]] == [
        ("1 %",), ("MRE-Net", "here", *["80.00 (10.00)"] * 4),
        ("", "paper", "89.69 (3.55)", "15.95 (14.32)", "87.52 (5.58)", "7.81 (9.49)"),
    ]  # fmt: skip
    assert lines[-1].cells[:2] == ("SCS rept. [46]", "paper")


def test_rows_can_be_sent_to_another_process():
    rows = [row for table in TABLES.values() for row in table.rows]
    assert all(copy.same_as(row) for copy, row in zip(pickle.loads(pickle.dumps(rows)), rows, strict=True))


def test_resources_of_an_interrupted_training_are_kept(tmp_path):
    import torch

    resources = Resources.load(tmp_path)
    with pytest.raises(KeyboardInterrupt), resources.training(tmp_path, torch.device("cpu")):
        raise KeyboardInterrupt
    again = Resources.load(tmp_path)
    assert again.runs == 1
    assert again.train_seconds > 0
    with again.training(tmp_path, torch.device("cpu")):
        pass
    assert Resources.load(tmp_path).train_seconds > resources.train_seconds
    (tmp_path / "resources.json").write_text('{"device": 3, "runs": "x"}')
    assert Resources.load(tmp_path) == Resources()
    with peak_memory(torch.device("cpu")) as peak:
        pass
    assert 0.01 < peak["gb"] < 1000


GRID = Grid(
    "fake_1: 100 % of x", (("", 1), ("A & B", 2)), ("", "Dice (%)", "HD95"),
    (Line(("one-shot",)), Line(("U-Net", "*1.00 (-)", "2.0"), best=(2,)), Line(("", "~3 GB", "-"), printed=True)),
    ("a note_",),
)  # fmt: skip


def test_the_forms_of_a_table():
    assert grid.text(GRID) == (
        "fake_1: 100 % of x\n            A & B\n        Dice (%)  HD95\none-shot\nU-Net  *1.00 (-)   2.0\n"
        "           ~3 GB     -\na note_\n"
    )
    assert (
        grid.markdown(GRID)
        == r"""**fake\_1: 100 % of x**

|  | A & B: Dice (%) | A & B: HD95 |
| --- | ---: | ---: |
| **one-shot** |  |  |
| U-Net | \*1.00 (-) | **2.0** |
|  | ~3 GB | - |

a note\_
"""
    )
    assert (
        grid.latex(GRID)
        == r"""\begin{table}
\centering
\caption{fake\_1: 100 \% of x}
\begin{tabular}{lrr}
\toprule
\multicolumn{1}{c}{} & \multicolumn{2}{c}{A \& B} \\
 & Dice (\%) & HD95 \\
\midrule
\multicolumn{3}{l}{\textit{one-shot}} \\
U-Net & *1.00 (-) & \textbf{2.0} \\
 & $\sim$3 GB & - \\
\bottomrule
\end{tabular}
\par\footnotesize a note\_
\end{table}
"""
    )
    assert grid.to_csv(GRID) == (
        "fake_1: 100 % of x\n,A & B,A & B\n,Dice (%),HD95\none-shot\nU-Net,*1.00 (-),2.0\n,~3 GB,-\n"
    )
    assert json.loads(grid.in_format(GRID, "json"))["lines"][1]["best"] == [2]


def test_a_table_of_our_own_has_differences_with_intervals():
    content = made("parts", {"default": (0.5, 0.6), "m1": (0.4, 0.6)})
    found = plain_grid(content.table, content.rows, Setting("small"), "Dataset001_X", "default")
    line = next(line for line in found.lines if line.cells[0].startswith("one prototype"))
    assert line.cells[1:3] == ("2", "55.00 (14.14)")
    assert line.cells[5] == "-5.00"
    assert line.cells[6].startswith("[-10.00")
    assert len(found.lines) == 2  # rows without a run are named, and have no line
    text = format_rows(content.table, content.rows, Setting("small"), "Dataset001_X", "default", "default")
    assert [word for word in ("default", "m1", "average") if f"\n{word} " in text] == ["default", "m1"]
    assert "average" in next(line for line in text.splitlines() if line.startswith("no run yet: "))
