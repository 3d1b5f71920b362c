"""Makes candidates one after the other; what they share is computed once: images, dense files, predictions, channels.

It knows nothing of devices' costs and chooses nothing: that is the search's.
"""

import dataclasses

from reflow_tf.config import PruneConfig
from reflow_tf.crew import Crew
from reflow_tf.data.batches import CalibrationSet, EvaluationSet
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import pipeline
from reflow_tf.jobs.finished import OpenedFile
from reflow_tf.jobs.frontier.flagfile import spell
from reflow_tf.jobs.frontier.losses import Loss, open_loss, split
from reflow_tf.jobs.record.run import Dense, Given, Run
from reflow_tf.jobs.scoring import rank_files
from reflow_tf.pruning import Known, PruneResult
from reflow_tf.report.progress import show_progress, stage
from reflow_tf.stopwatch import Stopwatch

HELD_OUT_EVERY = 4
LEAST_IMAGES = 16


class Workshop:
    """One network and its images.

    Args:
        job: whose they are.
        crew: who leads images through networks.

    Attributes:
        given: the model and the images, of which calibration has those that candidates are fitted to.
        calibration: all calibration images.
        num_judged: calibration images that judge.
        num_copies: others that neither judge nor are fitted to, as copies of those.

    Raises:
        InputError: the model or the images cannot be used; there are too few to judge by.
    """

    def __init__(self, job: JobConfig, crew: Crew):
        loaded = pipeline.open_given(job, Stopwatch())
        self.calibration: CalibrationSet = loaded.calibration
        if len(self.calibration) < LEAST_IMAGES:
            raise InputError(
                f"A search needs at least {LEAST_IMAGES} calibration {loaded.evaluation.unit}s, of which it judges by "
                f"one in {HELD_OUT_EVERY}. Received: {len(self.calibration)}"
            )
        digests = [self.calibration.source.digest(int(index)) for index in self.calibration.indices]
        fitted, judged = split(digests, HELD_OUT_EVERY)
        self.num_copies = len(digests) - len(fitted) - len(judged)
        self.given: Given = dataclasses.replace(loaded, calibration=self.calibration.select(fitted))
        self.num_judged = len(judged)
        self._held = EvaluationSet(
            *(self.calibration.source, self.calibration.indices[judged]),
            *(self.calibration.preprocessing, self.calibration.batch_size),
        )
        self._crew = crew
        self._denses: dict[tuple[str, str], Dense] = {}
        self._known = Known()
        self._last: tuple[PruneConfig, PruneResult] | None = None
        self._loss: Loss | None = None

    def dense(self, job: JobConfig) -> Dense:
        """The dense network's file in the job's number format; what it predicts is found once for all."""
        key = job.prune.target, job.requested_quantize
        if key not in self._denses:
            known = next(iter(self._denses.values()), None)
            dense = pipeline.foresee(job, self.given, Stopwatch(), known)
            if dense.ranked is None and self.given.task.names_classes:
                runners = {"dense": OpenedFile(dense.float_content, "litert")}
                given = self.given.evaluation, self.given.loaded.num_classes or 0, show_progress
                ranked = rank_files(runners, {}, *given, task=self.given.task, crew=self._crew)["dense"]
                dense = dataclasses.replace(dense, ranked=ranked)
            self._denses[key] = dense
        return self._denses[key]

    def make(self, job: JobConfig) -> Run:
        """What the pruning tool makes of the job; nothing is written."""
        stopwatch, dense = Stopwatch(), self.dense(job)
        result = self._prune(job, dense)
        return pipeline.finish(job, self.given, dense, result, stopwatch, spell(job), self._crew)

    def _prune(self, job: JobConfig, dense: Dense) -> PruneResult:
        """The last one is kept: the next candidate may differ in its number format or its device alone."""
        key = job.prune.without_hardware
        if self._last is None or self._last[0] != key:
            self._last = None  # its outputs may take gigabytes
            self._last = key, pipeline.prune_given(job, self.given, dense, self._crew, self._known)
        return self._last[1]

    def judge(self, made: Run) -> tuple[float, float]:
        """Percentage points that a file is expected to lose by held-out calibration images, and their error."""
        if self._loss is None:
            with stage("Judging by held-out calibration images"):
                runner = OpenedFile(made.dense.float_content, "litert")
                self._loss = open_loss(runner, self._held, self.given.loaded.num_classes, self.given.task)
        return self._loss.measure(OpenedFile(made.exported.content, made.job.target.runtime))
