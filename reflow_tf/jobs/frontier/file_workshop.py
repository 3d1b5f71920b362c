"""Candidates of a finished file: as it is, with float16 arithmetic, and with its zeros left out.

A file has no layers that could be pruned or refitted: nothing is fitted, so that all calibration images judge.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from reflow_tf.choices import EXISTING, FORMATS
from reflow_tf.config import PruneConfig
from reflow_tf.crew import Crew
from reflow_tf.data.preprocessing import Preprocessing
from reflow_tf.errors import InputError
from reflow_tf.export import flatbuffer
from reflow_tf.export.constants import has_bitmaps
from reflow_tf.export.half_precision import allow_float16, allows_float16, stores_sparse
from reflow_tf.export.tflite import ExportedFile, rewrite_tflite
from reflow_tf.job_config import EvaluateConfig, JobConfig
from reflow_tf.jobs import microcontroller
from reflow_tf.jobs.evaluation import first_images, foresee_outputs, require_classifier
from reflow_tf.jobs.finished import OpenedFile, find_runtime, open_finished, require_preparation
from reflow_tf.jobs.float16_arithmetic import CHECKED_INPUTS, Float16Check, check_float16
from reflow_tf.jobs.frontier.candidates import CONVERTED, PLAIN, SPARSE, Candidate
from reflow_tf.jobs.frontier.contract import FILE, Made, Objecting
from reflow_tf.jobs.frontier.costs import Costs
from reflow_tf.jobs.frontier.devices import Device
from reflow_tf.jobs.frontier.losses import Loss, describe_data, hold, open_loss, require_enough
from reflow_tf.jobs.frontier.request import DEFAULT_REPAIR, Search
from reflow_tf.jobs.inputs import read_sets
from reflow_tf.jobs.record.document import describe_preparation
from reflow_tf.jobs.record.notes import describe_float16
from reflow_tf.jobs.record.outcome import describe_distance, score_classes
from reflow_tf.jobs.record.run import name_measure
from reflow_tf.jobs.resuming import describe_file_settings
from reflow_tf.jobs.rewriting import find_number_format, rewrite
from reflow_tf.jobs.scoring import MOST_IN_TFLM, Ranked, compare_files, rank_files
from reflow_tf.report.folder import Content
from reflow_tf.report.progress import show_progress, stage
from reflow_tf.runtimes.litert import read_tflite
from reflow_tf.task import Task

AS_IT_IS, IN_FLOAT16, WITHOUT_ZEROS = "as it is", "with float16 arithmetic", "without its zeros"


class FileWorkshop:
    """A `Workshop` of one .tflite file and images.

    Args:
        search: whose they are.
        crew: who runs files.

    Raises:
        InputError: the file or the images cannot be used; there are too few to judge by.
    """

    given, first_name = FILE, "the file as it is"

    def __init__(self, search: Search, crew: Crew):
        job = search.job
        _require_no_network(search)
        self._job, self._crew = job, crew
        self._given = read_tflite(pathlib.Path(job.model).expanduser())
        evaluated = _as_evaluated(job)
        finished = open_finished(evaluated)
        require_preparation(evaluated, are_images=isinstance(finished.preprocessing, Preprocessing))
        said = finished.find_task, finished.count_sigmoids
        foreseen = foresee_outputs(job.prune.task, job.model, finished.num_outputs, finished.num_classes, *said)
        finished = finished.read_as(foreseen)
        self._preparation, self._num_classes = finished.preprocessing, finished.num_classes
        assert job.data is not None
        self.drawn_from = job.data
        with stage("Opening the data"):
            calibration, self._evaluation, self._task = read_sets(job, job.data, finished, foreseen)
        if self._task.names_classes:
            require_classifier(self._num_classes, job.model)
        require_enough(len(calibration), self._evaluation.unit, "to judge by")
        self._held = hold(calibration, np.arange(len(calibration)))
        measure = name_measure(self._task, self._evaluation)
        self.data = describe_data(0, self._held, self._evaluation, measure)
        self.settings = describe_file_settings(job, self._given, search.version, calibration, self._evaluation)
        prepared = json.loads(json.dumps(describe_preparation(finished.preprocessing)))  # as a document has it
        self.settings |= {"task": str(self._task), "preprocessing": prepared}
        self.notes: tuple[str, ...] = ()
        self.announced: tuple[str, ...] = ()
        self._runtime = find_runtime(self._given)
        self._number_format = find_number_format(self._given)
        (first,) = self._evaluation.select(np.array([0]))
        self._output_names = tuple(finished.name_outputs(first))
        self._ranked: Ranked | None = None
        self._loss: Loss | None = None

    def list_candidates(self, device: Device) -> tuple[Candidate, ...]:
        """Of `Workshop`."""
        quantize = FORMATS[self._number_format]
        if device.runtime == "microcontroller" and quantize != "int8":
            raise InputError(f"It takes int8 files. Received: {self._job.model}, in {self._number_format}")
        as_it_is = PruneConfig(target=device.dense_target, sparsity=0.0, repair="none")
        found = [Candidate(AS_IT_IS, PLAIN, self._number_format, 0, device.dense_target, as_it_is)]
        if device.computes_in_float16 and quantize != "int8":
            found.append(Candidate(IN_FLOAT16, CONVERTED, "float16", 0, device.dense_target, as_it_is))
        sparse = PruneConfig(target=device.target, sparsity=EXISTING, repair="none", **device.prune)
        target = sparse.hardware
        if device.sparse_formats and target.storage != "dense" and target.obstacle(quantize) is None:
            found.append(Candidate(WITHOUT_ZEROS, SPARSE, self._number_format, 0, device.target, sparse))
        return tuple(found)

    def find_first(self, job: JobConfig) -> bytes:
        """Of `Workshop`: the file as it is."""
        if job.target.is_microcontroller:
            microcontroller.require_runnable(job, self._given)
        return self._given

    def object_to(
        self, candidates: Sequence[Candidate], device: Device, costs: Costs, tried: list[dict[str, Any]]
    ) -> Objecting:
        """Of `Workshop`: there are so few that all are made."""
        del candidates, device, costs, tried
        return lambda *_: None

    def make(self, candidate: Candidate, device: Device, job: JobConfig) -> Made:
        """Of `Workshop`."""
        file, notes, command = self._convert(candidate, device, job)
        runtime = find_runtime(file.content)
        footprint = None
        if job.target.is_microcontroller:
            with stage("Measuring flash and RAM"):
                files = microcontroller.Files(file, self._as_given(), first_images(self._evaluation))
                footprint = microcontroller.measure(job, files)
        config: dict[str, Any] = {"model": job.model, "command": command, "outputs": list(self._output_names)}
        config["preprocessing"] = describe_preparation(self._preparation)
        written: dict[str, Content] = {"model.tflite": file.content, "config.json": json.dumps(config, indent=2) + "\n"}
        score = self._score(OpenedFile(file.content, runtime), runtime)
        return Made(file.content, runtime, footprint, score, tuple(command), written, tuple(notes))

    def judge(self, made: Made) -> tuple[float, float]:
        """Of `Workshop`."""
        if self._loss is None:
            with stage("Judging by calibration images"):
                self._loss = open_loss(self._open_given(), self._held, self._num_classes, self._task)
        return self._loss.measure(OpenedFile(made.content, made.runtime))

    def _convert(
        self, candidate: Candidate, device: Device, job: JobConfig
    ) -> tuple[ExportedFile, list[str], list[str]]:
        """The file, what to say of it, and the flags of the rewriting tool that make it again."""
        flags = [f"--model={job.model}", f"--target={candidate.target}"]
        if candidate.kind == CONVERTED:
            if allows_float16(self._given):
                raise InputError("the file allows it as it is")
            content = allow_float16(self._given)
            note = self._check_float16(candidate, content)
            return dataclasses.replace(self._as_given(), content=content), [note], [flags[0], "--float16_arithmetic"]
        if candidate.kind == PLAIN:
            is_in_float16 = device.computes_in_float16 and allows_float16(self._given)
            return self._as_given(), [self._check_float16(candidate, self._given)] if is_in_float16 else [], []
        file, verdict = rewrite(self._given, job.target, job.prune.ballast, job.prune.device, job.model)
        if len(file.content) >= len(self._given) and not (file.rewrites and verdict.eligible):
            raise InputError(self._say_why_not(file))
        if job.prune.device is not None:
            flags.append(f"--device={job.prune.device}")
        return file, list(file.notes), flags

    def _say_why_not(self, file: ExportedFile) -> str:
        """Why the file has no smaller or faster form without its zeros, of which `file` is what became."""
        if file.notes:
            return file.notes[0].rstrip(".")
        if has_bitmaps(self._given) or stores_sparse(flatbuffer.parse(self._given)):
            return "its zeros are left out already"
        if file.refused:
            return f"{file.refused[0].operator}: {file.refused[0].reason.rstrip('.')}"
        return "it has too few zeros, or none where the device could gain by them"

    def _as_given(self) -> ExportedFile:
        """The file without a change, as what measures files takes one."""
        described = rewrite_tflite(self._given, storage="dense", rewrite="none", ballast="off")
        return dataclasses.replace(described, content=self._given, dense_content=self._given)

    def _check_float16(self, candidate: Candidate, content: bytes) -> str:
        """How a file that allows float16 arithmetic computes in it, in a sentence.

        Raises:
            InputError: to no finite numbers.
        """
        with stage("Computing the file in float16"):
            found = check_float16(content, first_images(self._held, CHECKED_INPUTS), self._num_classes, self._task)
        if isinstance(found, Float16Check) and found.difference is None:
            raise InputError("computed in float16 its outputs are not finite")
        return f"{candidate.name}: {describe_float16(found)[0]}"

    def _open_given(self) -> OpenedFile:
        return OpenedFile(self._given, self._runtime)

    def _score(self, file: OpenedFile, runtime: str) -> dict[str, Any]:
        """What it scores on the evaluation images, and loses against the file that was given."""
        most = {"file": MOST_IN_TFLM} if "tflm" in (runtime, self._runtime) else {}
        if self._task is Task.FIDELITY:
            given = self._open_given()
            limits = given.output_sizes, most, self._evaluation
            found = compare_files({"file": file}, given, *limits, show_progress, crew=self._crew)["file"]
            return describe_distance(found.sums, self._output_names)
        classes = self._evaluation, self._num_classes or 0, show_progress
        if self._ranked is None:
            few = {"given": MOST_IN_TFLM} if self._runtime == "tflm" else {}
            runners = {"given": self._open_given()}
            self._ranked = rank_files(runners, few, *classes, task=self._task, crew=self._crew)["given"]
        ranked = rank_files({"file": file}, most, *classes, task=self._task, crew=self._crew)["file"]
        return score_classes(self._evaluation.labels, self._num_classes or 0, self._ranked, ranked)


def _as_evaluated(job: JobConfig) -> EvaluateConfig:
    """The file as evaluation opens one.

    Raises:
        InputError: nothing says what its inputs are.
    """
    if job.data is None:
        raise InputError("--data is needed: a .tflite file comes with no data of its own. Received: none")
    return EvaluateConfig(
        job.model,
        job.data,
        job.class_names,
        job.preprocess,
        batch_size=job.batch_size,
        task=job.prune.task,
    )


def _require_no_network(search: Search) -> None:
    """Raises InputError where a flag is given that a file has no use for."""
    job = search.job
    given: dict[str, object] = {"repair": None if search.repair == DEFAULT_REPAIR else search.repair}
    given |= {name: getattr(job, name) for name in ("weights", "image_size", "custom_objects")}
    given |= {"memory_budget": job.prune.memory_budget}
    for flag, value in given.items():
        if value is not None:
            raise InputError(
                f"--{flag} is for networks. Received: --{flag}={value}, with the finished file {job.model}"
            )
