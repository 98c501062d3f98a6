"""The predictor: a trained model, loaded once, that segments scans in six stages.

read -> preprocess -> register -> network -> refine -> export. Each stage takes one record and returns one record. The
command line, the validation after training and the tuning of fusion weights all use this class.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from mre_lowshot import devices
from mre_lowshot.atlas.alignment import PreviousPass, align
from mre_lowshot.atlas.label_fusion import atlas_prior_of
from mre_lowshot.config import InferenceConfig, Plan
from mre_lowshot.config.check import require_path
from mre_lowshot.config.json import suggest
from mre_lowshot.data.dataset import Case
from mre_lowshot.data.geometry import Geometry
from mre_lowshot.data.readers import file_ending
from mre_lowshot.data.scan_input import ScanInput, read_case, read_scan
from mre_lowshot.data.verification import storage_problem
from mre_lowshot.data.volume import Volume
from mre_lowshot.devices import where_it_fits
from mre_lowshot.errors import NumericalError, UserError, describe_failure, is_out_of_memory, log_unexpected
from mre_lowshot.grid import Box
from mre_lowshot.inference.ensemble import ensemble_settings
from mre_lowshot.inference.export import Prediction, RefinedScan, export_scan
from mre_lowshot.inference.input_checks import Difference, differences_from_training, refuse_input
from mre_lowshot.inference.memory import MemoryOfCases, require_prediction_memory
from mre_lowshot.inference.models import Model, load_model
from mre_lowshot.inference.options import inference_with
from mre_lowshot.inference.overlap import Turns, in_order
from mre_lowshot.inference.quality import estimate_quality
from mre_lowshot.inference.sliding_window import (
    AtlasCoordinates,
    Precision,
    Progress,
    SlidingWindow,
    log_to_stderr,
    without_slice_axis,
)
from mre_lowshot.inference.stages import NetworkOutput, Outcome, PreviousPrediction, RegisteredScan
from mre_lowshot.inference.stopwatch import Stopwatch
from mre_lowshot.plain import shown
from mre_lowshot.preprocessing.prepare import prepare_case
from mre_lowshot.preprocessing.store import PreparedCase
from mre_lowshot.refinement.pipeline import refine
from mre_lowshot.transfers import Array, as_tensor

MAX_REREGISTRATIONS = 2


class Predictor:
    """Segments scans with a trained model (the average of its folds). Use it from one thread at a time.

    Args:
        model: from `inference.models.load_model`.
        device: to compute on.
        inference: tiling and test-time augmentation instead of the plan's.
        precision: ``float32``, ``bf16`` or ``auto`` (`SlidingWindow`).
        compile: use torch.compile if it works and the output agrees (`SlidingWindow`).
        log: receives messages; by default they go to stderr.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: torch.device,
        inference: InferenceConfig | None = None,
        precision: Precision = "float32",
        compile: bool = False,
        log: Callable[[str], None] = log_to_stderr,
    ) -> None:
        plan = model.plan
        self.model, self.log = model, log
        self.priors = [atlas_prior_of(atlases, plan) for atlases in model.atlases]
        self.settings = ensemble_settings(model.plans, self.priors)
        self.window = SlidingWindow(
            model.networks,
            plan.network,
            patch=plan.patch,
            inference=inference or plan.recipe.inference,
            device=device,
            priors=self.priors,
            precision=precision,
            compile=compile,
            log=log,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        folds: int | Sequence[int] | None = None,
        device: str = "auto",
        step_size: float | None = None,
        centre_tiles: bool = False,
        mirroring: bool = True,
        precision: Precision = "float32",
        compile: bool = False,
        checkpoint_name: str | None = None,
        log: Callable[[str], None] = log_to_stderr,
    ) -> Predictor:
        """Load a trained model once, to segment many scans.

        Args:
            path: a model's folder (``results/DatasetXXX_Name/MRETrainer__MREPlans__1shot``), one of its folds' folders,
                a checkpoint file, or a zip file of ``mre_export_model``, which need not be installed.
            folds: numbers of the folds to average; None: all that are trained.
            device: ``cuda``, ``cuda:1``, ``mps``, ``cpu`` or ``auto`` (CUDA where available, else
                MPS if it computes what the CPU computes, else the CPU).
            step_size: of overlapping tiles, a fraction of the patch side in [0.05, 1]; None: the plan's tiling.
            centre_tiles: the paper's tiling, which predicts each voxel once. Excludes ``step_size``.
            mirroring: test-time mirroring, if the plan has it.
            precision: ``float32``, ``bf16`` (used only if it agrees with float32), or ``auto``.
            compile: use torch.compile if it works and the output agrees.
            checkpoint_name: as in `load_model`.
            log: receives messages; by default they go to stderr.

        Raises:
            UserError: no such model, fold or device, or an option out of range.
        """
        inference_with(InferenceConfig(), step_size=step_size, centre_tiles=centre_tiles)  # refused before loading
        require_path("model", path)
        if precision not in get_args(Precision):
            raise UserError(f"--precision {shown(precision)}: {suggest(precision, get_args(Precision))}")
        chosen = devices.resolve(device)
        folds = [folds] if isinstance(folds, int) else folds
        model = load_model(Path(path), folds, chosen, checkpoint_name=checkpoint_name)
        inference = inference_with(
            model.plan.recipe.inference, step_size=step_size, centre_tiles=centre_tiles, mirroring=mirroring
        )
        return cls(model, device=chosen, inference=inference, precision=precision, compile=compile, log=log)

    @property
    def plan(self) -> Plan:
        """What the model's folds share (the first fold's plan)."""
        return self.model.plan

    @property
    def colours(self) -> Mapping[int, str]:
        """``#rrggbb`` of each label value above 0, the same in everything that is written or drawn."""
        return self.model.colours

    @property
    def device(self) -> torch.device:
        """The device that networks compute on."""
        return self.window.device

    def predict(
        self, scan: ScanInput, *, name: str | None = None, crop: Box | None = None, progress: Progress | None = None
    ) -> Prediction:
        """Segment one scan.

        Args:
            scan: any of `data.scan_input.ScanInput`; in ``(array, spacing)`` the array is (D, H, W) or (C, D, H, W) in
                LPS, the spacing (z, y, x) in mm.
            name: of the case; by default the file's or the series'.
            crop: box for models planned with given crops.
            progress: called with the tiles done and their number.

        Raises:
            UserError: the scan cannot be read, or does not fit the model.
            NumericalError: the network's output is not finite.
        """
        found, volume = read_scan(scan)
        prepared = self.preprocess(volume, name=name or found, crop=crop)
        del volume, scan  # the largest array, and no longer needed
        return self.predict_prepared(self.register(prepared), progress=progress)

    def predict_cases(
        self,
        cases: Iterable[Case],
        *,
        crops: Mapping[str, Box] | None = None,
        ahead: int = 1,
        read: Callable[[Case], Volume] = read_case,
    ) -> Generator[Outcome, None, None]:
        """Segment cases; outcomes come in their order. One that fails, for whatever reason, is named with it, and the
        others are predicted. Results do not depend on how many are worked on at the same time.

        Args:
            cases: to segment.
            crops: given boxes, by case.
            ahead: how many of the next scans are worked on meanwhile, as far as the memory allows (`inference.memory`)
                and the CPU has more than one thread; 0: nothing of a case is begun or kept while another is predicted.
            read: reads the image of a case.
        """
        cases = list(cases)
        gpu = torch.cuda.current_device() if self.device.type == "cuda" and self.device.index is None else None
        turns = Turns() if self.device.type != "cpu" or self.window.has_state else None

        def work(numbered: tuple[int, Case]) -> Outcome:
            number, case = numbered
            if gpu is not None:  # a new thread begins with the first GPU, whatever the caller has set
                torch.cuda.set_device(gpu)
            try:
                crop = (crops or {}).get(case.name)
                return self._outcome(case, crop, read, turns.turn(number) if turns else nullcontext())
            finally:
                if turns:
                    turns.end(number)

        def admit(numbered: Sequence[tuple[int, Case]]) -> bool:
            return memory.admit([case for _, case in numbered])

        memory = MemoryOfCases(self.model)
        alone = self.device.type == "cpu" and torch.get_num_threads() < 2
        return in_order(
            list(enumerate(cases)),
            work,
            threads=1 if alone else 1 + ahead,
            admit=admit,
            short=lambda outcome: outcome.memory_short,
        )

    def _outcome(
        self,
        case: Case,
        crop: Box | None,
        read: Callable[[Case], Volume],
        turn: AbstractContextManager[None],
    ) -> Outcome:
        """The stages of a case, the network within its ``turn``; any failure is its outcome."""
        try:
            watch = Stopwatch()
            volume = read(case)
            if problem := storage_problem(volume, file_ending(case.images[0])):
                raise UserError(f"case {case.name}: {problem}")
            watch.lap("read")
            prepared = self.preprocess(volume, name=case.name, crop=crop)
            del volume  # the largest array, and no longer needed
            watch.lap("preprocess")
            scan = self.register(prepared)
            watch.lap("register")
            with turn:
                watch.resume()
                output = self.run_network(scan)
            watch.lap("network")
            refined = self.refine(output)
            del prepared, scan, output
            watch.lap("refine")
            prediction = self.export(refined)
            watch.lap("export")
            return Outcome(case, prediction, seconds=watch.seconds)
        except Exception as problem:
            log_unexpected(problem, self.log)
            text, short = describe_failure(problem, case.name), is_out_of_memory(problem)
        if short:  # the arrays in the traceback are gone by now
            devices.free_memory()
        return Outcome(case, problem=text, memory_short=short)

    # The stages.

    def preprocess(self, volume: Volume, *, name: str, crop: Box | None = None) -> PreparedCase:
        """Crop, normalise and resample a scan according to the plan. Runs on the CPU.

        Raises:
            UserError: it does not fit the model.
        """
        channels = self.plan.channel_names
        if volume.array.ndim != 4 or len(volume.array) != len(channels):
            given = len(volume.array) if volume.array.ndim == 4 else "no"
            raise UserError(
                f"case {name}: the scan has {given} channel(s), the model takes {len(channels)} "
                f"({', '.join(channels)}); give an image with one file or one array entry per channel"
            )
        try:
            doubts = refuse_input(volume, self.plan)
        except UserError as problem:
            raise UserError(describe_failure(problem, name)) from None
        differences: list[Difference] = []

        def compare(corrected: np.ndarray) -> None:
            differences.extend(differences_from_training(volume, self.plan, corrected=corrected))

        prepared = prepare_case(name, volume, None, plan=self.plan, crop=crop, inspect=compare)
        classes, atlases = self.plan.network.classes, sum(map(len, self.model.atlases))
        require_prediction_memory(name, prepared.transform, channels=len(channels), classes=classes, atlases=atlases)
        notes = dict.fromkeys((*(doubt.for_prediction for doubt in doubts), *volume.notes))
        return replace(prepared, warnings=(*map(Difference, notes), *differences))

    def register(self, prepared: PreparedCase, *, previous: PreviousPrediction | None = None) -> RegisteredScan:
        """Register a preprocessed scan to each fold's atlases, guided by a ``previous`` prediction where there is one.

        Raises:
            UserError: it cannot be registered.
        """
        image, spacing = prepared.image, prepared.transform.spacing
        passes = PreviousPass.each(*previous, spacing) if previous else [None] * len(self.model.atlases)
        try:
            coordinates = [
                align(atlases, image, spacing, plan=self.plan, previous=of_fold, device=self.device)
                for atlases, of_fold in zip(self.model.atlases, passes, strict=True)
            ]
        except UserError as problem:
            raise UserError(describe_failure(problem, prepared.name)) from None
        return RegisteredScan(prepared, coordinates)

    def run_network(self, scan: RegisteredScan, *, progress: Progress | None = None) -> NetworkOutput:
        """The networks' posterior, and the labels warped from the atlases.

        Raises:
            NumericalError: a probability is not finite.
            UserError: several slices for a 2D network.
        """
        image = scan.prepared.image
        if self.plan.network.axes == 2:
            image = without_slice_axis(image)
        try:
            found = self.window.probabilities(image, scan.coordinates, progress)
        except NumericalError as problem:
            raise NumericalError(describe_failure(problem, scan.prepared.name)) from None

        def output(posterior: Tensor) -> NetworkOutput:
            here = as_tensor(image, posterior.device)
            warped = self.warp_labels(scan.coordinates, here)
            quality = estimate_quality(posterior, warped, self.settings.lesions)
            return NetworkOutput(scan, here, posterior, warped, quality)

        return where_it_fits(output, found, self.log)

    def refine(self, output: NetworkOutput) -> RefinedScan:
        """Refine the posterior. Where network and warped labels agree too little, register again, guided by the
        prediction, and refine with the labels warped by the new registration."""

        return where_it_fits(lambda p: self._refine(output.to(p.device)), output.posterior, self.log)

    def _refine(self, output: NetworkOutput) -> RefinedScan:
        scan, image = output.scan, output.image
        probabilities = refine(output.posterior, output.warped, image, self.settings)
        for _ in range(self._reregistrations(output)):
            try:
                scan = self.register(scan.prepared, previous=PreviousPrediction(scan.coordinates, probabilities))
            except UserError as problem:
                self.log(f"prediction-guided registration failed: {problem}; keeping the previous registration")
                break
            warped = self.warp_labels(scan.coordinates, image)
            probabilities = refine(output.posterior, warped, image, self.settings)
        prepared = scan.prepared
        return RefinedScan(
            name=prepared.name,
            probabilities=probabilities[:, None] if self.plan.network.axes == 2 else probabilities,
            quality=output.quality,
            transform=prepared.transform,
            geometry=Geometry.from_json(prepared.geometry),
            scales_temperature=self.settings.config.temperature_scaling,
            warnings=prepared.warnings,
        )

    def export(self, refined: RefinedScan) -> Prediction:
        """The label map on the scan's own grid."""
        single, lesions, model = self.settings.single_component, self.settings.lesions, self.model

        def work(p: Tensor) -> Prediction:
            moved, names = replace(refined, probabilities=p), self.plan.labels
            return export_scan(moved, names, single, lesions=lesions, colours=model.colours, codes=model.codes)

        return where_it_fits(work, as_tensor(refined.probabilities), self.log)

    def predict_prepared(self, scan: RegisteredScan, *, progress: Progress | None = None) -> Prediction:
        """The stages network, refine and export."""
        return self.export(self.refine(self.run_network(scan, progress=progress)))

    # Parts of stages.

    def raw_posteriors(
        self, image: np.ndarray, coordinates: AtlasCoordinates, *, progress: Progress | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The networks' posterior, and the warped labels, of a preprocessed image (C, *size): each (K, *size)."""
        posterior = self.window.probabilities(image, coordinates, progress)
        return posterior, self.warp_labels(coordinates, as_tensor(image, posterior.device))

    def warp_labels(self, coordinates: AtlasCoordinates, image: Array) -> Tensor | None:
        """The atlases' labels at ``coordinates``, averaged over folds: class probabilities (K, *size), on the device of
        ``image`` (C, *size), the scan, for the weights of several atlases; None where nothing was registered."""
        scan, total, count = as_tensor(image), None, 0
        for maps, prior in zip(coordinates, self.priors, strict=True):
            if maps is not None and prior is not None:
                warped = prior.fuse_labels(maps, scan, device=scan.device)
                total, count = warped if total is None else total.add_(warped), count + 1
        return None if total is None else total.div_(count)

    def _reregistrations(self, output: NetworkOutput) -> int:
        config = self.settings.config
        deformable = self.plan.recipe.atlas.registration == "deformable"
        if not deformable or output.warped is None or not (config.atlas_weight or config.atlas_share):
            return 0
        return MAX_REREGISTRATIONS if output.quality.score < config.reregister_below else 0
