"""Mutation testing: small changes of the method's modules, one at a time, that the tests should notice.

``python -m tests.mutation`` (``make mutants``) takes hours; ``--share 0.1`` draws a tenth of the changes, ``--only em``
takes one module. Each change runs the tests of its module in its own process, which loads the changed source instead of
the file: no file is modified. Survivors are printed with the changed line. Exit code 1: fewer than 85 % of
the changes were noticed.

Changes come from cosmic-ray's operators. Those that alter annotations only are left out.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.util
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WANTED = 0.85  # share of the changes that the tests must notice
SLOWEST = 150  # seconds; a change that takes longer counts as noticed
WORKERS = 2

# Module -> its source and the tests that should notice a change in it, fastest first.
TARGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mre_lowshot.losses": ("mre_lowshot/losses.py", ("test_losses",)),
    "mre_lowshot.sampling": ("mre_lowshot/sampling.py", ("test_sampling",)),
    "mre_lowshot.evaluation.metrics": ("mre_lowshot/evaluation/metrics.py", ("test_metrics",)),
    "mre_lowshot.evaluation.agreement": ("mre_lowshot/evaluation/agreement.py", ("test_quality", "test_calibration")),
    "mre_lowshot.refinement.fusion": (
        "mre_lowshot/refinement/fusion.py",
        ("test_tune_fusion", "test_mirrored_atlases", "test_golden"),
    ),
    "mre_lowshot.refinement.hu_limits": ("mre_lowshot/refinement/hu_limits.py", ("test_hu_limits",)),
    "mre_lowshot.refinement.em": ("mre_lowshot/refinement/em.py", ("test_em_crf", "test_golden")),
    "mre_lowshot.refinement.crf": ("mre_lowshot/refinement/crf.py", ("test_em_crf", "test_golden")),
    "mre_lowshot.refinement.calibration": ("mre_lowshot/refinement/calibration.py", ("test_calibration",)),
    "mre_lowshot.refinement.components": ("mre_lowshot/refinement/components.py", ("test_inference",)),
    "mre_lowshot.refinement.pipeline": ("mre_lowshot/refinement/pipeline.py", ("test_golden",)),
    "mre_lowshot.planners.rules": (
        "planners/rules.py",
        ("test_planner_rules", "test_planners", "test_names", "test_bias_field"),
    ),
    "mre_lowshot.planners.hardware": ("planners/hardware.py", ("test_planners",)),
    "mre_lowshot.planners.fold": (
        "planners/fold.py",
        ("test_fold_decisions", "test_mirrored_atlases", "test_hu_limits", "test_ignore"),
    ),
}
OPERATORS = (
    *("NumberReplacer", "AddNot", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse"),
    *("ReplaceFalseWithTrue", "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Not"),
    *("ReplaceUnaryOperator_Delete_Invert", "ReplaceBreakWithContinue"),
    *(
        f"ReplaceBinaryOperator_{pair}"
        for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Pow_Mul", "FloorDiv_Mul", "Mod_Mul")
    ),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("BitAnd_BitOr", "BitOr_BitAnd")),
    *(
        f"ReplaceComparisonOperator_{pair}"
        for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")
    ),
)


@dataclass(frozen=True)
class Mutant:
    """One change: the module, the changed source, and the first line that differs."""

    module: str
    source: str
    line: int
    text: str


def without_annotations(source: str) -> str:
    """The syntax tree of a source, without annotations."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if hasattr(node, name):
                setattr(node, name, ast.Constant(0) if isinstance(node, ast.AnnAssign) else None)
    return ast.dump(tree)


def mutants_of(module: str) -> list[Mutant]:
    """Every change of a module."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    original = (ROOT / TARGETS[module][0]).read_text()
    plain, found = without_annotations(original), []
    for name in OPERATORS:
        operator, occurrence = plugins.get_operator(f"core/{name}")(), 0
        while (changed := mutate_code(original, operator, occurrence)) is not None:
            occurrence += 1
            try:
                if without_annotations(changed) == plain:
                    continue
            except SyntaxError:  # cosmic-ray changes a star in an argument list, too
                continue
            pairs = zip(original.splitlines(), changed.splitlines(), strict=False)
            line, text = next((n, new.strip()) for n, (old, new) in enumerate(pairs, 1) if old != new)
            found.append(Mutant(module, changed, line, text))
    return found


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Loads one module from a changed source."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant, self.file = mutant, str(ROOT / TARGETS[mutant.module][0])

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.mutant.module:
            return importlib.util.spec_from_file_location(fullname, self.file, loader=self)
        return None

    def get_filename(self, fullname):
        return self.file

    def get_data(self, path):
        if path == self.file:
            return self.mutant.source.encode()
        raise OSError(path)  # no compiled file


def _run_tests(mutant: Mutant | None, tests: tuple[str, ...]) -> None:
    """In its own process: exit with pytest's code."""
    import pytest

    sys.dont_write_bytecode = True
    if mutant is not None:
        sys.meta_path.insert(0, _Changed(mutant))
    files = [str(ROOT / "tests" / f"{name}.py") for name in tests]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files])
    os._exit(int(code))


def survives(mutant: Mutant | None, tests: tuple[str, ...]) -> bool:
    """Whether the tests pass with the change (None: without any)."""
    process = multiprocessing.get_context("fork").Process(target=_run_tests, args=(mutant, tests))
    process.start()
    process.join(SLOWEST)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    return process.exitcode == 0


def main() -> int:
    """Run the changes and print a table by module, and the survivors."""
    made = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    made.add_argument("--share", type=float, default=1.0, help="share of the changes, drawn at random")
    made.add_argument("--seed", type=int, default=0, help="of that draw")
    made.add_argument("--only", nargs="+", default=[], metavar="WORD", help="modules whose name ends in one of these")
    options = made.parse_args()
    # Loaded once, before the processes are forked. Of the package itself nothing is, so that the change is loaded.
    import acvl_utils.morphology.morphology_helper
    import hypothesis
    import pytest
    import scipy.ndimage
    import skimage.measure
    import skimage.transform
    import torch

    assert all((acvl_utils, hypothesis, pytest, scipy, skimage))
    assert "mre_lowshot.losses" not in sys.modules
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "tests"))
    os.chdir(ROOT)
    chosen = [m for m in TARGETS if not options.only or m.rpartition(".")[2] in options.only]
    begun, killed, total, survivors = time.monotonic(), defaultdict(int), defaultdict(int), []
    for module in chosen:
        tests = TARGETS[module][1]
        if not survives(None, tests):
            print(f"{module}: its tests fail without any change")
            return 2
        mutants = mutants_of(module)
        count = max(1, round(options.share * len(mutants)))
        drawn = random.Random(options.seed).sample(mutants, count) if count < len(mutants) else mutants
        with ThreadPoolExecutor(WORKERS) as pool:
            for mutant, alive in zip(drawn, pool.map(lambda m, t=tests: survives(m, t), drawn), strict=True):
                total[module] += 1
                killed[module] += not alive
                if alive:
                    survivors.append(mutant)
                    print(f"survived {TARGETS[module][0]}:{mutant.line}: {mutant.text}", flush=True)
        seconds = time.monotonic() - begun
        print(f"{module}: {killed[module]} of {total[module]} noticed ({seconds:.0f} s so far)", flush=True)
    share = sum(killed.values()) / max(1, sum(total.values()))
    print(f"{sum(killed.values())} of {sum(total.values())} changes noticed: {share:.1%} (wanted {WANTED:.0%})")
    return 0 if share >= WANTED else 1


if __name__ == "__main__":
    raise SystemExit(main())
