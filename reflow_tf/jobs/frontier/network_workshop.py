"""Candidates of a network; what they share is computed once: images, dense files, predictions, channels.

It chooses nothing: that is the search's.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from reflow_tf.config import PruneConfig
from reflow_tf.crew import Crew
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import pipeline
from reflow_tf.jobs.finished import OpenedFile
from reflow_tf.jobs.frontier.candidates import Candidate, list_candidates
from reflow_tf.jobs.frontier.contract import NETWORK, Made, Objecting
from reflow_tf.jobs.frontier.costs import Cost, Costs
from reflow_tf.jobs.frontier.devices import Device
from reflow_tf.jobs.frontier.flagfile import spell
from reflow_tf.jobs.frontier.losses import Loss, describe_data, hold, open_loss, require_enough, split
from reflow_tf.jobs.frontier.objections import Objections, Trial
from reflow_tf.jobs.frontier.request import Search
from reflow_tf.jobs.record.document import describe, render
from reflow_tf.jobs.record.notes import doubt_inputs
from reflow_tf.jobs.record.run import Dense, Given
from reflow_tf.jobs.resuming import describe_settings
from reflow_tf.jobs.scoring import rank_files
from reflow_tf.pruning import Known, PruneResult
from reflow_tf.repair.least_squares import Worths
from reflow_tf.report.measures import find_measure
from reflow_tf.report.progress import show_progress, stage
from reflow_tf.report.wording import SPACE, plural
from reflow_tf.stopwatch import Stopwatch

_TRIED_WITH = 4  # one in so many of the images that are fitted to
_LEAST_TRIED = 32


class NetworkWorkshop:
    """A `Workshop` of one network and its images.

    Args:
        search: whose they are.
        crew: who leads images through networks.

    Raises:
        InputError: the model or the images cannot be used; there are too few to judge by.
    """

    given, first_name = NETWORK, "float32"

    def __init__(self, search: Search, crew: Crew):
        self._search, self._crew = search, crew
        num_fitted = search.job.calibration_samples  # and as many again judge, if the source has them
        opened = pipeline.open_given(dataclasses.replace(search.job, calibration_samples=2 * num_fitted), Stopwatch())
        calibration, unit = opened.calibration, opened.evaluation.unit
        require_enough(min(num_fitted, len(calibration)), unit, "to fit to and to judge by")
        digests = [calibration.source.digest(int(index)) for index in calibration.indices]
        fitted, judged = split(digests, num_fitted)
        self._given: Given = dataclasses.replace(opened, calibration=calibration.select(fitted))
        self._held = hold(calibration, judged)
        drawn_from = search.job.data or opened.loaded.default_data
        assert drawn_from is not None  # the images came from somewhere
        self.drawn_from = drawn_from
        self.data = describe_data(len(fitted), self._held, opened.evaluation, opened.measure)
        self.settings = describe_settings(search.job, opened.loaded, search.version, calibration, opened.evaluation) | {
            "repair": search.repair,
            "task": str(opened.task),
        }
        copies = len(digests) - len(fitted) - len(judged)
        told = plural(copies, f"calibration {unit}").replace(SPACE, " ")
        self.notes: tuple[str, ...] = (f"Fitted to nothing, as copies of what judges: {told}.",) if copies else ()
        self.announced: tuple[str, ...] = () if opened.doubt is None else (opened.doubt,)
        self._denses: dict[tuple[str, str], Dense] = {}
        self._known = Known()
        self._worths: Worths = {}  # by the images that candidates are tried with
        self._losses: dict[PruneConfig, tuple[float, float]] = {}
        self._last: tuple[PruneConfig, PruneResult] | None = None
        self._loss: Loss | None = None

    def list_candidates(self, device: Device) -> tuple[Candidate, ...]:
        """Of `Workshop`."""
        job = self._search.job
        return list_candidates(device, self._search.repair, job.prune.memory_budget, has_budget=job.has_budget)

    def find_first(self, job: JobConfig) -> bytes:
        """Of `Workshop`: the dense network in float32."""
        return self._find_dense(job).float_content

    def object_to(
        self, candidates: Sequence[Candidate], device: Device, costs: Costs, tried: list[dict[str, Any]]
    ) -> Objecting:
        """Of `Workshop`."""
        foresee = functools.partial(self._foresee, device, costs)
        has_enough = self._num_tried >= _LEAST_TRIED
        unit, run = self._given.evaluation.unit, functools.partial(self._try, device)
        trial = Trial(self._num_tried, unit, run, tried) if has_enough else None
        return Objections(self._search, device, candidates, self._given.loaded.model, foresee, trial).find

    @property
    def _num_tried(self) -> int:
        """Images that are enough to tell what is hopeless."""
        return len(self._given.calibration.indices) // _TRIED_WITH

    def _try(self, device: Device, candidate: Candidate) -> tuple[float, float]:
        """What it is expected to lose in float32 when it is repaired with fewer images."""
        job = self._foresee_job(candidate, device)
        key = job.prune.without_hardware
        if key not in self._losses:
            known = dataclasses.replace(self._known, narrowed=dict(self._known.narrowed), worths=self._worths)
            with stage(f"Trying {candidate.name}, with {plural(self._num_tried, self._given.evaluation.unit)}"):
                content = pipeline.try_repair(job, self._given, self._num_tried, self._crew, known)
            self._losses[key] = self._find_loss().measure(OpenedFile(content, "litert"))
        return self._losses[key]

    def _foresee(self, device: Device, costs: Costs, candidate: Candidate) -> Cost:
        """What its zeros cost: known before a repair, which moves values and next to no zeros."""
        job = self._foresee_job(candidate, device)
        job = dataclasses.replace(job, prune=dataclasses.replace(job.prune, repair="none"))
        with stage(f"Foreseeing what {job.prune.sparsity:.0%} zeros cost".replace("%", " %")):
            content, footprint = pipeline.try_zeros(job, self._given, self._find_dense(job))
            return costs.measure(content, footprint)

    def _foresee_job(self, candidate: Candidate, device: Device) -> JobConfig:
        """The job of a candidate that nothing is written of."""
        return candidate.job(self._search.job, device, self._search.job.output_dir)

    def _find_dense(self, job: JobConfig) -> Dense:
        """The dense network's file in the job's number format; what it predicts is found once for all."""
        key = job.prune.target, job.requested_quantize
        if key not in self._denses:
            known = next(iter(self._denses.values()), None)
            dense = pipeline.foresee(job, self._given, Stopwatch(), known)
            if dense.ranked is None and self._given.task.names_classes:
                runners = {"dense": OpenedFile(dense.float_content, "litert")}
                given = self._given.evaluation, self._given.loaded.num_classes or 0, show_progress
                ranked = rank_files(runners, {}, *given, task=self._given.task, crew=self._crew)["dense"]
                dense = dataclasses.replace(dense, ranked=ranked)
            self._denses[key] = dense
        return self._denses[key]

    def make(self, candidate: Candidate, device: Device, job: JobConfig) -> Made:
        """Of `Workshop`: what the pruning tool makes of the job."""
        stopwatch, dense = Stopwatch(), self._find_dense(job)
        result = self._prune(job, dense)
        made = pipeline.finish(job, self._given, dense, result, stopwatch, spell(job), self._crew)
        described = describe(made)
        return Made(
            made.exported.content,
            job.target.runtime,
            made.measured.footprint,
            described[find_measure(described)]["file"],
            tuple(made.command),
            render(described, made),
            () if (doubt := doubt_inputs(made)) is None else (doubt,),
        )

    def _prune(self, job: JobConfig, dense: Dense) -> PruneResult:
        """The last one is kept: the next candidate may differ in its number format or its device alone."""
        key = job.prune.without_hardware
        if self._last is None or self._last[0] != key:
            self._last = None  # its outputs may take gigabytes
            self._last = key, pipeline.prune_given(job, self._given, dense, self._crew, self._known)
        return self._last[1]

    def judge(self, made: Made) -> tuple[float, float]:
        """Of `Workshop`."""
        return self._find_loss().measure(OpenedFile(made.content, made.runtime))

    def _find_loss(self) -> Loss:
        if self._loss is None:
            with stage("Judging by held-out calibration images"):
                dense = next(iter(self._denses.values()))
                runner = OpenedFile(dense.float_content, "litert")
                self._loss = open_loss(runner, self._held, self._given.loaded.num_classes, self._given.task)
        return self._loss
