"""The main job: a model in; kernels scored, planned, masked; the signal restored; a file out, run and measured."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from reflow_tf.choices import AUTO
from reflow_tf.cluster.opening import open_crew
from reflow_tf.config import PruneConfig
from reflow_tf.crew import ALONE, Crew
from reflow_tf.errors import InputError
from reflow_tf.export.half_precision import allows_float16
from reflow_tf.export.rewriting import rewrite_exact
from reflow_tf.export.tflite import ExportedFile, export_tflite
from reflow_tf.export.verification import check_masks
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs import microcontroller
from reflow_tf.jobs.benchmark import Benchmark, Candidate, measure_files, require_runtime
from reflow_tf.jobs.evaluation import first_images, measure_parity, require_classifier
from reflow_tf.jobs.explanation import explain
from reflow_tf.jobs.finished import KerasRunner, OpenedFile
from reflow_tf.jobs.float16_arithmetic import CHECKED_INPUTS, Float16Check, check_float16
from reflow_tf.jobs.inputs import foresee_task, open_sets
from reflow_tf.jobs.metric import choose_inputs, measure_metric
from reflow_tf.jobs.record.document import describe, render
from reflow_tf.jobs.record.notes import describe_emptied
from reflow_tf.jobs.record.run import Dense, Given, Measured, Run
from reflow_tf.jobs.scaling import warn_of_scaling
from reflow_tf.jobs.scoring import (
    MOST_IN_TFLM,
    SIGNAL_IMAGES,
    Distances,
    Ranked,
    Runner,
    compare_files,
    rank_files,
    spread,
)
from reflow_tf.models.carrying import Address, Carried
from reflow_tf.models.inference import name_outputs
from reflow_tf.models.loading import load_model
from reflow_tf.models.packing import undo_scales
from reflow_tf.models.surgery import without_zero_biases
from reflow_tf.pruning import Known, PruneResult, prune, select
from reflow_tf.repair.contract import show_nothing
from reflow_tf.report.document import Report
from reflow_tf.report.folder import OutputFolder
from reflow_tf.report.progress import announce, show_progress, stage
from reflow_tf.report.scores import MetricScore
from reflow_tf.stopwatch import Stopwatch
from reflow_tf.targets.target import Verdict
from reflow_tf.task import Task

_SIZED_WITH = 4  # inputs that int8 is calibrated with, for bytes that do not depend on them

FILES = frozenset(
    ("model.keras", "model.tflite", "plan.json", "config.json", "masks.npz", "report.json", "report.html")
)


def run(job: JobConfig, command: Sequence[str] = ()) -> Report:
    """Does the whole job and writes the output folder, or nothing of it; progress goes to standard error.

    Args:
        job: what to do.
        command: the command line, for the report.

    Returns:
        The report, as in report.json.

    Raises:
        InputError: something given cannot be used.
        OSError: the results cannot be written.
    """
    folder = _open_folder(job)
    for name in job.benchmark:
        require_runtime(name)
    microcontroller.require_measure(job.target.name)
    keras.utils.set_random_seed(job.seed)
    stopwatch = Stopwatch()
    address = Address.of(job.model, **job.model_options)
    with open_crew(job.workers, job.threads_per_worker, address) as crew:
        given = open_given(job, stopwatch)
        dense = foresee(job, given, stopwatch)
        if job.prune.sets_zeros:  # a narrower network gains without the target's help
            _warn(dense.expected)
        done = finish(job, given, dense, prune_given(job, given, dense, crew), stopwatch, command, crew)
    report = describe(done)
    with stage("Writing the results"):
        folder.write(render(report, done))
    return report


def prune_given(job: JobConfig, given: Given, dense: Dense, crew: Crew, known: Known | None = None) -> PruneResult:
    """The model pruned; the same for every number format of its file, but for a budget of bytes or speed."""
    return prune(
        given.loaded.model,
        _configure(job, given),
        given.calibration,
        evaluation=given.evaluation.select(given.looked_into),
        dense_file=_as_to_be(dense.file.content, job) if job.prune.budget else None,
        complain=functools.partial(_complain, job, given) if job.prune.max_macs == AUTO else None,
        progress=show_progress,
        crew=crew,
        known=known,
    )


def _configure(job: JobConfig, given: Given) -> PruneConfig:
    """What to prune, with the task that the images and the model settled."""
    return dataclasses.replace(job.prune, task=given.task)


def finish(
    job: JobConfig,
    given: Given,
    dense: Dense,
    result: PruneResult,
    stopwatch: Stopwatch,
    command: Sequence[str],
    crew: Crew,
) -> Run:
    """The pruned model as a file, measured."""
    stopwatch.seconds.update(result.report.seconds)
    if (emptied := describe_emptied(result)) is not None:
        announce(emptied)
    exported, in_float16 = _export_pruned(job, given, dense, result, stopwatch)
    measured = _measure(job, given, dense, result, exported, stopwatch, crew)
    files = exported, in_float16, measured
    return Run(job, given, dense, result, *files, stopwatch.seconds, command, crew.num_threads)


def try_zeros(job: JobConfig, given: Given, dense: Dense) -> tuple[bytes, microcontroller.Footprint | None]:
    """The file with the job's zeros and no repair, and what it takes where that is a microcontroller's to say."""
    masked = prune(given.loaded.model, _configure(job, given), progress=show_nothing).model
    few = [first_images(given.calibration, _SIZED_WITH)]  # costs do not depend on the ranges of int8
    file = _export(job, given, masked, rewrite=job.requested_rewrite, storage=job.target.storage, calibration=few)
    if not job.target.is_microcontroller:
        return file.content, None
    return file.content, microcontroller.measure(job, microcontroller.Files(file, dense.file, few[0]))


def try_repair(job: JobConfig, given: Given, num_fitted: int, crew: Crew, known: Known) -> bytes:
    """The file in float32 of the network pruned, and repaired with so few of its calibration images."""
    result = prune(
        given.loaded.model,
        _configure(job, given),
        given.calibration,
        fitting=given.calibration.select(np.arange(num_fitted)),
        progress=show_progress,
        crew=crew,
        known=known,
    )
    return _export(job, given, result.model, storage="dense", quantize="none").content


def open_given(job: JobConfig, stopwatch: Stopwatch) -> Given:
    """The model and the images."""
    with stage("Loading the model"), stopwatch.timed("load model"):
        loaded = load_model(job.model, preprocess=job.preprocess, **job.model_options)
        loaded, foreseen = foresee_task(job, loaded)
        select(loaded.model, job.prune)  # refused now rather than after the export
    with stage("Opening the data"), stopwatch.timed("open images"):
        calibration, evaluation, task = open_sets(job, loaded, foreseen)
        doubt = warn_of_scaling(loaded.model, calibration)
    given = Given(loaded, calibration, evaluation, spread(len(evaluation), SIGNAL_IMAGES), task, doubt)
    if job.max_metric_drop is not None and job.metric is None and not given.has_label_maps:
        raise InputError(
            f"--max_metric_drop needs --metric, or a map of classes with labels, whose mean IoU it limits. "
            f"Received: --max_metric_drop={job.max_metric_drop:g} alone"
        )
    return given


def foresee(job: JobConfig, given: Given, stopwatch: Stopwatch, known: Dense | None = None) -> Dense:
    """The dense file, and what the target makes of it.

    Args:
        job: whose file it is.
        given: the model and the images.
        stopwatch: is told how long it takes.
        known: of another job with the same model and images: what does not depend on the job is taken from it.
    """
    with stage("Exporting the dense model"), stopwatch.timed("export dense"):
        file = _export(job, given, given.loaded.model, storage="dense")
        foreseen = explain(microcontroller.require_runnable(job, file.content), job.target)
        if known is not None:
            floats = known.float_content
        elif job.requested_quantize == "none":
            floats = file.content
        else:
            floats = _export(job, given, given.loaded.model, storage="dense", quantize="none").content
    metric = None
    if job.metric is not None:  # now, for what is wrong with it is to be known before the long work
        with stopwatch.timed("evaluate files"):
            metric = _measure_metric(job, given, {"dense": OpenedFile(floats, "litert")})["dense"]
    expected = foreseen.rewritten if job.requested_rewrite == "exact" else foreseen.as_given
    return Dense(file, floats, foreseen.as_given, expected, known.ranked if known else None, metric)


def _export_pruned(
    job: JobConfig, given: Given, dense: Dense, result: PruneResult, stopwatch: Stopwatch
) -> tuple[ExportedFile, Float16Check | str | None]:
    """The file, and how it computes in float16 where it allows that; where it cannot, the file does not allow it."""
    export = functools.partial(
        _export, job, given, result.model, rewrite=job.requested_rewrite, storage=job.target.storage
    )
    is_dense = job.prune.is_plain and not result.report.unmerged
    if is_dense and job.requested_rewrite == "none" and job.target.storage == "dense":
        exported = dense.file
    else:
        with stage("Exporting the file"), stopwatch.timed("export"):
            exported = export()
    if not allows_float16(exported.content):
        return exported, None
    with stage("Computing the file in float16"), stopwatch.timed("float16"):
        inputs = first_images(given.calibration, CHECKED_INPUTS)
        found = check_float16(exported.content, inputs, given.loaded.num_classes, given.task)
        if isinstance(found, Float16Check) and found.difference is None:
            exported = export(float16_arithmetic=False)
    return exported, found


def _export(
    job: JobConfig,
    given: Given,
    model: keras.Model,
    *,
    storage: str,
    rewrite: str = "none",
    quantize: str | None = None,
    calibration: Sequence[np.ndarray] | None = None,
    float16_arithmetic: bool = True,
) -> ExportedFile:
    return export_tflite(
        model,
        quantize=quantize or job.requested_quantize,
        io=job.requested_io,
        float16_arithmetic=float16_arithmetic,
        calibration=calibration or given.calibration,
        batch_size=job.export_batch_size,
        storage=storage,
        rewrite=rewrite,
        ballast=job.prune.ballast,
        device=job.prune.device,
        input_shape=given.calibration.sample_shape,
    )


def _measure(
    job: JobConfig,
    given: Given,
    dense: Dense,
    result: PruneResult,
    exported: ExportedFile,
    stopwatch: Stopwatch,
    crew: Crew,
) -> Measured:
    """The very file: judged, held against the masks, run, and measured on what it is for."""
    verdict = explain(exported.content, job.target).as_given
    mask_checks = check_masks(exported.content, result.masks)
    runtime = OpenedFile(exported.content, job.target.runtime)
    with stopwatch.timed("evaluate files"):
        ranked, distance = _score(job, given, dense, runtime, crew)
        metrics = _score_by_metric(job, given, dense, result, runtime, crew)
    with stage("Comparing Keras and the file"), stopwatch.timed("parity"):
        looked_into = given.evaluation.select(given.looked_into)
        outputs = undo_scales(result.report.signals["repaired"].outputs, result.report.scales, runtime.output_sizes)
        parity = measure_parity(runtime, looked_into, outputs, given.task)
    with stage("Measuring the speed"), stopwatch.timed("benchmark"):
        benchmarks = {name: _time(job, name, exported.content, dense.file.content) for name in job.benchmark}
    footprint = None
    if job.target.is_microcontroller:
        with stage("Measuring flash and RAM"), stopwatch.timed("footprint"):
            files = microcontroller.Files(exported, dense.file, first_images(given.evaluation))
            footprint = microcontroller.measure(job, files)
    return Measured(verdict, mask_checks, ranked, distance, metrics, parity, benchmarks, footprint)


def _score(
    job: JobConfig, given: Given, dense: Dense, runtime: OpenedFile, crew: Crew
) -> tuple[dict[str, Ranked], Distances | None]:
    """What the file makes of the evaluation images, beside the dense one: the classes of both, or how far it is."""
    most = {"file": MOST_IN_TFLM} if job.target.runtime == "tflm" else {}
    if given.task is Task.FIDELITY:
        reference = OpenedFile(dense.float_content, "litert")
        files = {"file": runtime}, reference, reference.output_sizes, most, given.evaluation
        found = compare_files(*files, show_progress, crew=crew)
        return {}, found["file"]
    runtimes = {} if dense.ranked else {"dense": OpenedFile(dense.float_content, "litert")}
    num_classes = require_classifier(given.loaded.num_classes, job.model)
    runtimes |= {"file": runtime}
    ranked = rank_files(runtimes, most, given.evaluation, num_classes, show_progress, task=given.task, crew=crew)
    return ranked if dense.ranked is None else {"dense": dense.ranked} | ranked, None


def _score_by_metric(
    job: JobConfig, given: Given, dense: Dense, result: PruneResult, runtime: OpenedFile, crew: Crew
) -> dict[str, MetricScore]:
    """What --metric makes of the dense and the repaired model, in float32, and of the file; {} without one."""
    if dense.metric is None:
        return {}
    repaired = KerasRunner(Carried(result.model), Task.FIDELITY)  # which may be narrower than what others can load
    return {
        "dense": dense.metric,
        **_measure_metric(job, given, {"repaired": repaired}),
        **_measure_metric(job, given, {"file": runtime}, crew),
    }


def _measure_metric(
    job: JobConfig, given: Given, runners: Mapping[str, Runner], crew: Crew = ALONE
) -> dict[str, MetricScore]:
    assert job.metric is not None
    (first,) = given.evaluation.select(np.array([0]))
    shapes = name_outputs(given.loaded.model, first)
    most = MOST_IN_TFLM if job.target.runtime == "tflm" else None
    images = choose_inputs(given.evaluation, [math.prod(shape) for shape in shapes.values()], most)
    return measure_metric(job.metric, runners, images, shapes, show_progress, crew=crew)


def _open_folder(job: JobConfig) -> OutputFolder:
    folder = OutputFolder(job.output_dir, FILES, job.overwrite)
    folder.require_outside(job.brought)
    return folder


def _warn(expected: Verdict) -> None:
    """Says before the long work that the target will not gain, and why."""
    if not expected.fits:
        first = next((f" {blocker.operator or 'The file'}: {blocker.reason}." for blocker in expected.blockers), "")
        announce(f"{expected.statement}{first} The run goes on; reflow_tf.tools.explain tells what would help.")


def _complain(job: JobConfig, given: Given, model: keras.Model) -> str | None:
    """What a budget must be for a narrower model, in words; sizes do not depend on what it is calibrated with."""
    few = [first_images(given.calibration, _SIZED_WITH)]
    with contextlib.nullcontext() if job.prune.repair == "none" else without_zero_biases(model):
        file = _export(job, given, model, storage=job.target.storage, calibration=few)
    flag, most, size = job.prune.max_size_flag, job.prune.max_size_bytes, len(file.content)
    if most is not None and size > most:
        return f"--{flag} must be at least {size}. Received: --{flag}={most}"
    return microcontroller.complain_of(job, file) if job.has_budget else None


def _as_to_be(dense: bytes, job: JobConfig) -> bytes:
    """The dense file with the rewriting that the pruned one will have."""
    return rewrite_exact(dense).content if job.requested_rewrite == "exact" else dense


def _time(job: JobConfig, runtime: str, content: bytes, dense: bytes) -> Benchmark | str:
    """The two files side by side, or why the runtime cannot run them: by now that must not cost the results."""
    files = [Candidate("model.tflite", content)], Candidate("the dense file", dense)
    try:
        return measure_files(*files, runtime=runtime, cpu=job.cpu if runtime == "aarch64" else None)
    except InputError as error:
        return str(error)
