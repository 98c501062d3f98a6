"""The benchmarks: the plain and our network are equal, the counts are correct, and the commands run."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from references import single_thread
from torch import nn
from torch.nn import functional as F

from benchmarks import against_nnunet, fusion, held_out, tiling, warnings
from benchmarks.__main__ import main
from benchmarks.flops import multiply_adds, peak_memory, saved_bytes
from benchmarks.plain import PlainMRENet, plain_prediction
from benchmarks.sizes import cpu_size, paper_size, synthetic_case, tiny_size
from benchmarks.timing import Spread, interleaved, ratio
from benchmarks.training import gradient_difference
from mre_lowshot.config import InferenceConfig
from mre_lowshot.grid import coordinate_maps, voxel_positions
from mre_lowshot.inference.sliding_window import SlidingWindow
from mre_lowshot.network.build import build

__all__ = ["single_thread"]
CPU = torch.device("cpu")
TINY = tiny_size().network


def pair(config):
    """Our network and the plain one with the same weights, in float64; running statistics differ from the initial
    ones."""
    torch.manual_seed(0)
    ours, plain = build(config).double(), PlainMRENet(config).double()
    for name, buffer in ours.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("changes", [{}, {"image_level_norm": False, "atlas_prior": True, "prototypes_per_class": 3}])
def test_plain_and_our_network_are_equal(mode, changes):
    config = replace(TINY, **changes)
    ours, plain = pair(config)
    image = torch.randn(2, config.in_channels, 4, 12, 12, dtype=torch.float64)
    location = torch.randn(2, config.location_channels, 4, 12, 12, dtype=torch.float64)
    for network in (ours, plain):
        getattr(network, mode)()
    outputs = [network(image, location) for network in (ours, plain)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weight).sum().backward()
    assert gradient_difference(plain, ours) < 1e-9
    with torch.no_grad():
        next(ours.parameters()).grad.mul_(1.1)
    assert gradient_difference(plain, ours) > 1e-9


@pytest.mark.parametrize("changes", [{"mixing": "average"}, {"norm": "instance", "image_level_norm": False},
                                     {"se": False}, {"coordinates": "patch"}, {"prototypes_per_class": 1}])  # fmt: skip
def test_plain_rejects_variants_that_it_does_not_implement(changes):
    with pytest.raises(ValueError, match="default variant"):
        PlainMRENet(replace(TINY, **changes))


def test_the_plain_tile_loop_equals_the_sliding_window():
    size = tiny_size()
    ours, plain = (network.float() for network in pair(size.network))
    image = synthetic_case((7, 20, 15), 2, 3, (1.0, 1.0, 1.0)).image
    window = SlidingWindow(
        [ours], size.network, patch=size.patch, inference=InferenceConfig(), device=CPU, tile_batch=4
    )
    maps = coordinate_maps(voxel_positions((0, 0, 0), image.shape[1:]), image.shape[1:])
    tensors = torch.from_numpy(image), torch.from_numpy(maps)
    found = plain_prediction(plain.eval(), *tensors, size.patch, 3, batch=3)
    np.testing.assert_allclose(found, window.posterior(image), atol=1e-5)


def test_the_sizes_are_those_of_the_paper_and_of_the_cpu_plan():
    paper, small = paper_size(), cpu_size()
    assert (paper.network.embedding_dim, paper.network.classes, paper.network.prototypes_per_class) == (2048, 9, 3)
    assert (paper.patch.size, paper.patch.centre) == ((12, 36, 36), (8, 28, 28))
    assert (small.patch.size, small.batch, small.network.atlas_prior) == ((24, 24, 24), 4, True)
    for size in (paper, small):
        size.plan()  # valid


@pytest.mark.parametrize("inference", [False, True])
def test_multiply_adds_of_operations_counted_by_hand(inference):
    x = torch.randn(2, 3, 4, 5, 6)
    voxels = 2 * 4 * 5 * 6
    cases = {
        27 * 3 * 7 * voxels: nn.Conv3d(3, 7, 3, padding=2, dilation=2),
        2 * 2 * 3 * 8 * voxels: nn.ConvTranspose3d(3, 8, (1, 2, 2), (1, 2, 2)),
        2 * 3 * 4 * 5 * 6 * 9: lambda t: F.linear(t, torch.randn(9, 6)),
        2 * 3 * 4 * 5 * 6 * 5: lambda t: t @ t.transpose(-1, -2),
        2 * 3 * 4 * (5 * 5 * (6 - 5 / 3)): lambda t: torch.linalg.qr(t, mode="r"),
        0: nn.BatchNorm3d(3),
    }
    for wanted, call in cases.items():
        with torch.inference_mode(inference):
            assert multiply_adds(lambda call=call: call(x)) == wanted


def test_a_backward_pass_counts_twice_or_once_without_an_input_gradient():
    conv = nn.Conv3d(3, 7, 3, padding=1)
    forward = 27 * 3 * 7 * 60
    for needs, times in ((True, 3), (False, 2)):
        x = torch.randn(1, 3, 3, 4, 5, requires_grad=needs)
        assert multiply_adds(lambda x=x: conv(x).sum().backward()) == times * forward


def test_multiply_adds_of_the_papers_network():
    """142 GMAC a patch, 20 of them in the backbone, as calculated by hand. A smaller patch suffices, because the cost
    of each voxel is the same."""
    config, size = paper_size().network, (4, 12, 12)
    with torch.device("meta"):
        network, image, location = PlainMRENet(config).eval(), torch.empty(1, 2, *size), torch.empty(1, 3, *size)
    share = 15552 / np.prod(size)
    assert multiply_adds(lambda: network(image, location)) * share == pytest.approx(142e9, rel=0.01)
    assert multiply_adds(lambda: network.backbone(image)) * share == pytest.approx(20e9, rel=0.03)


def test_bytes_kept_for_the_backward_pass():
    layer = nn.Linear(10, 20, bias=False)
    x = torch.randn(5, 10)

    def step():
        kept = layer(x).exp()  # keeps x, and the result
        (kept * kept).sum().backward()  # keeps the same result again, which is counted once

    assert saved_bytes(step, layer.parameters()) == 4 * (5 * 10 + 5 * 20)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is measured on Linux only")
def test_peak_memory_does_not_depend_on_memory_freed_before():
    torch.ones(50_000_000)
    with peak_memory(CPU) as peak:
        torch.ones(25_000_000)
    assert peak["gb"] == pytest.approx(0.1, rel=0.1)


def test_calls_alternate_and_ratios_are_computed_for_each_turn():
    order = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 3, CPU)
    assert "".join(order) == "ababab"
    assert all(len(spread.values) == 3 for spread in times.values())
    gain = ratio({"plain": Spread((4.0, 9.0, 8.0)), "ours": Spread((2.0, 3.0, 1.0))})
    assert (gain.values, gain.median, str(gain)) == ((2.0, 3.0, 8.0), 3.0, "3 (2 to 8)")


@pytest.mark.slow
def test_the_command_writes_what_it_prints(tmp_path, capsys):
    path = tmp_path / "out.json"
    sections = ["training", "prediction", "loader"]
    assert main(["--quick", "--device", "cpu", "--repeats", "2", "--json", str(path), "--only", *sections]) == 0
    printed, written = capsys.readouterr().out, json.loads(path.read_text())
    found = written["results"]["tiny cpu"]
    assert set(found) == {"ceiling", *sections}
    assert found["ceiling"] > 0
    ours = found["training"]["ours"]
    assert f"plain / ours: {found['training']['ratio']['median']:.4g}" in printed
    assert len(ours["seconds"]["values"]) == 2
    assert found["training"]["agreement"]["gradient_difference"] < 1e-3
    assert ours["multiply_adds"] > 0
    assert ours["saved_bytes"] > 0
    assert found["prediction"]["ours"]["equal_labels"] > 0.999
    assert found["prediction"]["ours"]["largest_difference"] < 1e-4
    assert found["loader"]["workers_0"]["patches_per_second"] > 0


def test_compiled_networks_are_timed_or_the_reason_against_is_reported(tmp_path, capsys, monkeypatch):
    path = tmp_path / "out.json"
    arguments = ["--quick", "--device", "cpu", "--repeats", "2", "--json", str(path), "--only", "compile"]
    for stand_in, words in ((lambda network, **_: network, "ours / compiled: "), (lambda network, **_: 1 / 0, "zero")):
        monkeypatch.setattr(torch, "compile", stand_in)
        assert main(arguments) == 0
        assert words in capsys.readouterr().out
        found = json.loads(path.read_text())["results"]["tiny cpu"]["compile"]
        assert ("problem" in found) == (words == "zero")
        assert ("ratio" in found) == (words != "zero")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--repeats", "0"], "--repeats 0: must be at least 1"),
    (["--checkpoint", "x.pth", "--quick"], "give one --size (for batch and scan)"),
    (["--checkpoint", "x.pth", "--size", "cpu"], "checkpoint is missing"),
    (["--case", "x.npz"], "--case needs trained weights: give their --checkpoint too"),
    (["--quick", "--json", "nowhere/x.json"], "its folder does not exist; create it first"),
    (["--quick", "--device", "nonsense"], "not a device of mre_lowshot"),
])  # fmt: skip
def test_wrong_use_is_reported_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_checkpoint_and_a_case_can_be_given(trained, capsys):
    """The plain network with the checkpoint's weights agrees with ours on the case."""
    model = trained.model() / "fold_0/checkpoint_final.pth"
    case = next((trained.prepared / "Tiny").glob("*.npz"))
    arguments = ["--checkpoint", str(model), "--case", str(case), "--size", "cpu", "--only", "prediction"]
    assert main([*arguments, "--repeats", "1", "--device", "cpu"]) == 0
    assert "weights of the checkpoint" in (printed := capsys.readouterr().out)
    assert "labels equal on 100" in printed or "labels equal on 99.9" in printed


class TestAgainstNnunet:
    """The comparison without nnU-Net: the real one takes a quarter of an hour."""

    def job(self, trained, out, scan="synthetic_000", **changes):
        made = against_nnunet.Comparison(trained.raw, scan, sys.executable, out, 500, 60, 2)
        return replace(made, **changes)

    def cases(self, trained):
        return sorted(p.name[:-7] for p in (trained.raw / "labelsTr").glob("*.nii.gz"))

    def test_the_training_set_contains_only_the_given_scan(self, trained, tmp_path):
        scan, *rest = self.cases(trained)
        job = self.job(trained, tmp_path, scan)
        assert against_nnunet.prepare(job) == rest
        assert [p.name for p in (job.raw / "labelsTr").iterdir()] == [f"{scan}.nii.gz"]
        assert sorted(p.name for p in (tmp_path / "references").iterdir()) == [f"{name}.nii.gz" for name in rest]
        assert not [p for p in (tmp_path / "others").iterdir() if p.name.startswith(scan)]
        assert json.loads((job.raw / "dataset.json").read_text())["numTraining"] == 1

    @pytest.mark.slow
    def test_steps_are_timed_once_and_summarised(self, trained, tmp_path, monkeypatch):
        scan, *rest = self.cases(trained)
        job, ran, real = self.job(trained, tmp_path, scan), [], against_nnunet.steps

        def stand_ins(job):
            """Evaluation is real; prediction copies the references, and for nnU-Net empties one of them."""
            made = {name: [sys.executable, "-c", "pass"] for name in real(job)}
            empty = (
                f"import SimpleITK as s; n = 'predicted_nnunet/{rest[0]}.nii.gz'; s.WriteImage(s.ReadImage(n) * 0, n)"
            )
            for side, wrong in (("ours", ""), ("nnunet", empty)):
                copy = f"import shutil; shutil.copytree('references', 'predicted_{side}'); "
                made[f"{side}: predict"] = [sys.executable, "-c", copy + wrong]
                made[f"{side}: evaluate"] = real(job)[f"{side}: evaluate"]
            ran.append(list(made))
            return made

        monkeypatch.setattr(against_nnunet, "steps", stand_ins)
        lines = []
        first = against_nnunet.compare(job, lines.append)
        assert first["dice"]["ours"] == 1 > first["dice"]["nnunet"]
        assert set(first["seconds"]) == set(ran[0])
        assert "ours reaches nnU-Net's Dice: yes" in lines[-1]
        again = against_nnunet.compare(job, lines.append)
        assert again["seconds"] == first["seconds"]
        with pytest.raises(against_nnunet.UserError, match="is of another comparison"):
            against_nnunet.compare(replace(job, iterations=61), lines.append)

    def test_a_failed_step_is_reported_with_its_last_line(self, trained, tmp_path, monkeypatch):
        job = self.job(trained, tmp_path, self.cases(trained)[0])
        code = "raise SystemExit('no such file')"
        monkeypatch.setattr(against_nnunet, "steps", lambda job: {"ours: plan": [sys.executable, "-c", code]})
        with pytest.raises(against_nnunet.UserError, match=r"ours: plan: failed \(no such file\); see .*ours_plan.log"):
            against_nnunet.compare(job, print)

    def test_wrong_use(self, trained, tmp_path, capsys):
        common = [str(trained.raw), "nobody", "--out", str(tmp_path), "--nnunet_python"]
        assert against_nnunet.main([*common, sys.executable]) == 2
        assert against_nnunet.main([*common, "missing"]) == 2
        assert against_nnunet.main([*common, sys.executable, "--iterations", "0"]) == 2
        errors = capsys.readouterr().err.splitlines()
        assert "has no nobody.nii.gz; its cases are" in errors[0]
        assert "--nnunet_python missing: is not a file" in errors[1]
        assert "--iterations 0: must be at least 1" in errors[2]


@pytest.mark.slow
def test_the_prediction_of_a_large_ct_reports_its_peak_memory():
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-m", "benchmarks.large_ct", "--quick"], cwd=root, capture_output=True,
                          text=True, check=True)  # fmt: skip
    peaks = [float(found) for found in re.findall(r"peak ([\d.]+) GB", done.stdout)]
    assert len(peaks) == 8  # one after each stage
    assert peaks == sorted(peaks)
    assert peaks[0] > 0.05


def test_warnings_are_counted_for_each_scan_that_gives_the_ranges(trained, tmp_path, capsys):
    folder = shutil.copytree(trained.raw, tmp_path / "Dataset900_Synthetic")
    before = warnings.warning_share(folder)
    assert before.compared == 6
    assert before.names["spacing_z"] == 0
    path = folder / "imagesTr/phantom_002_0000.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(image.get_fdata(), image.affine @ np.diag([1, 1, 9, 1])), path)
    assert warnings.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"Dataset900_Synthetic: [456] of 6 held-out scans get a warning", shown)
    assert "spacing_z: 4, for example phantom_00" in shown  # with the others, and they with it


@pytest.mark.usefixtures("single_thread")
def test_tilings_are_compared_on_scans_that_were_not_trained_on(trained, tmp_path, capsys):
    cohorts = tmp_path / "cohorts.json"
    cohorts.write_text(json.dumps({"develop": [f"phantom_00{n}" for n in range(1, 4)]}))
    arguments = [str(trained.model()), str(trained.raw), "--cohorts", str(cohorts), "--threads", "1", "--most", "1"]
    assert tiling.main([*arguments, "--tilings", "0.75", "centre"]) == 0
    first, tilings, case, step, centre, difference = capsys.readouterr().out.splitlines()
    assert first.startswith("1 scans, trained on phantom_001, 1 thread(s)")
    assert tilings == "tilings 0.75, centre"
    assert case.startswith("  phantom_002: Dice 0.")
    assert step.startswith("tiling 0.75: Dice 0.")
    assert centre.startswith("tiling centre: Dice 0.")
    assert "Dice minus that of the first" in difference


@pytest.mark.parametrize(("arguments", "message"), [
    (["--most", "0"], "--most 0: must be 1 or more"),
    (["--tilings", "1.5"], "-step_size 1.5"),
])  # fmt: skip
def test_wrong_arguments_of_the_comparison_of_tilings(arguments, message, capsys):
    assert tiling.main(["model", "raw", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("single_thread")
def test_ways_of_fusing_are_compared_on_scans_that_were_not_trained_on(trained, tmp_path, capsys):
    """The model is planned with the mean."""
    cohorts = tmp_path / "cohorts.json"
    cohorts.write_text(json.dumps({"develop": [f"phantom_00{n}" for n in range(1, 4)]}))
    arguments = [str(trained.model()), str(trained.raw), "--cohorts", str(cohorts), "--threads", "1", "--most", "1"]
    assert fusion.main([*arguments, "--ways", "plan", "0,0.5", "0,0", "0.4,0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    plan, mean, network, product = (float(value) for value in lines[2].split("Dice ")[1].split(", "))
    assert plan == mean
    assert len({mean, network, product}) == 3
    assert lines[4] == f"0,0.5: Dice {mean:.4f}; minus that of the first: +0.0000 (0 of 1 better)"


@pytest.mark.parametrize("way", ["1,0", "0.4,1.5"])
def test_a_way_of_fusing_outside_its_range_is_refused(way, capsys):
    assert fusion.main(["model", "raw", "--ways", way]) == 2
    assert "must lie in [0, 1)" in capsys.readouterr().err


def test_the_interval_of_paired_differences():
    text = held_out.difference_text([0.01, 0.02, 0.03])  # t of 2 degrees of freedom: 4.303
    assert text == "+0.0200, standard error 0.0058, 95 % interval -0.0048 to +0.0448 (3 of 3 better)"


def test_the_steps_after_the_network_equal_their_plain_reference():
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-m", "benchmarks.refinement", "--quick", "--repeats", "1"], cwd=root,
                          capture_output=True, text=True, check=True)  # fmt: skip
    lines = re.findall(r"^([\w ]+): plain .*largest difference (\S+)$", done.stdout, re.MULTILINE)
    differences = {name: float(found) for name, found in lines}
    # the CRF changes only the box of the foreground, outside which the reference changes next to nothing
    assert differences.pop("CRF") < 0.03
    assert differences.pop("native labels") == differences.pop("components") == 0
    assert set(differences) == {"warped labels", "fusion", "EM", "shares for registration"}
    assert max(differences.values()) < 1e-5
