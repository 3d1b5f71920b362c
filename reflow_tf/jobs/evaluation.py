"""Running a finished model over held-out images, whatever form it has."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np

from reflow_tf.choices import AUTO
from reflow_tf.cluster.opening import open_crew
from reflow_tf.crew import ALONE, Crew
from reflow_tf.data.batches import EvaluationSet
from reflow_tf.data.classes import are_one_each, describe_labels
from reflow_tf.data.loading import load_evaluation
from reflow_tf.data.sources import Labels
from reflow_tf.errors import InputError
from reflow_tf.job_config import EvaluateConfig
from reflow_tf.jobs.finished import Finished, open_finished
from reflow_tf.jobs.metric import choose_inputs, measure_metric
from reflow_tf.jobs.scoring import Runner, compare, compare_files, rank_files
from reflow_tf.models.predictions import read_outputs, require_labels, require_numbers, run_predictions
from reflow_tf.repair.contract import Progress, show_nothing
from reflow_tf.report.scores import (
    Fidelity,
    MetricScore,
    Parity,
    Score,
    score_accuracy,
    score_agreement,
    score_fidelity,
    score_iou,
)
from reflow_tf.task import Task

COMPARED_IMAGES = 256


def require_classifier(num_outputs: int | None, model: str) -> int:
    """Returns the number of classes: the length of the output's last axis, and 2 for a single sigmoid.

    Args:
        num_outputs: that number, as loading gives it.
        model: its name, for the message.

    Raises:
        InputError: it is below two, so that every image would be of the one class there is, or not fixed.
    """
    if num_outputs is None or num_outputs < 2:
        raise InputError(
            f"--model must be a classifier with one output a class, at least two of them, or a single sigmoid (a "
            f"single output that is a logit: append a sigmoid; one that is a number: --task=fidelity). "
            f"Received: {model} with {'no fixed number' if num_outputs is None else num_outputs} of them"
        )
    return num_outputs


def foresee_outputs(
    asked: str,
    model: str,
    num_outputs: int,
    num_classes: int | None,
    find: Callable[[], Task | None],
    count_sigmoids: Callable[[], int],
) -> Task | None:
    """What outputs are taken for, before any data is seen; None where labels, if there are any, decide.

    Args:
        asked: one of TASKS.
        model: its name, for the message.
        num_outputs: how many there are; several are numbers.
        num_classes: that the only one names, as loading gives it.
        find: what the network says of it itself, see `predictions.find_task`; called where nobody else knows.
        count_sigmoids: see `predictions.count_sigmoids`; called where they are to be labels.

    Raises:
        InputError: they are to be classes or labels, and there are several outputs, or not at least two of them.
    """
    require_numbers(asked, model, num_outputs)
    if num_outputs > 1:
        return Task.FIDELITY
    found = find() if asked == AUTO else Task(asked)
    if found is Task.CLASSIFICATION:
        require_classifier(num_classes, model)
    elif found is Task.MULTI_LABEL:
        require_labels(count_sigmoids(), model)
    return found


def require_label_maps(
    model: keras.Model, positions: tuple[int | None, ...], images: EvaluationSet, task: Task
) -> None:
    """Where a network leaves the size of its map open: that the labels have the size which it takes for these images.

    Raises:
        InputError: they have another.
    """
    if images.labels is None or None not in positions:
        return
    (outputs,) = run_predictions(model, images.select(np.array([0])), task)
    if not are_one_each(images.labels.shape[1:], outputs.shape[1:-1]):
        raise InputError(
            f"y must hold {describe_labels(outputs.shape[1:-1])} for each {images.unit}. "
            f"Received: shape {images.labels.shape[1:]}"
        )


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What a finished model does on held-out inputs; None: not asked for, or not to be said of such outputs.

    Attributes:
        accuracy: how often it is right, where there are labels.
        iou: mean intersection over union, of maps of classes.
        agreement: how often it names the class that the reference names.
        fidelity: how far its numbers are from the reference's.
        metric: what the user's function makes of its outputs.
    """

    accuracy: Score | None = None
    iou: MetricScore | None = None
    agreement: Score | None = None
    fidelity: Fidelity | None = None
    metric: MetricScore | None = None


def run(config: EvaluateConfig, *, progress: Progress = show_nothing) -> Evaluated:
    """`evaluate` by whoever `config.workers` says.

    Raises:
        InputError: as `evaluate` and `open_crew` do.
    """
    with open_crew(config.workers, config.threads_per_worker) as crew:
        return evaluate(config, progress=progress, crew=crew)


def evaluate(config: EvaluateConfig, *, progress: Progress = show_nothing, crew: Crew = ALONE) -> Evaluated:
    """Scores a `.keras`, `.h5` or `.tflite` file, or a zoo model, on held-out inputs by all that there is.

    That is labels, a reference to be compared with, and a metric of the user's own.

    With preprocess 'auto', the images are prepared as the config.json beside the file says, which the pruning tool
    wrote; without one the network gets the pixels as they are. A reference gets what the model gets.

    Raises:
        InputError: a model or the data cannot be used, or nothing says what is right.
    """
    own = open_finished(config)
    other = None if config.reference is None else _open_reference(config, config.reference)
    said = own.find_task, own.count_sigmoids
    foreseen = foresee_outputs(config.task, config.model, own.num_outputs, own.num_classes, *said)
    own = own.read_as(foreseen)
    task, images = _open_images(config, own, foreseen)
    if task.names_classes:
        evaluated = _score_classes(config, own, other, images, task, progress, crew)
    else:
        evaluated = _score_numbers(config, own, other, images, progress, crew)
    if config.metric is None:
        return evaluated
    (first,) = images.select(np.array([0]))
    shapes = own.name_outputs(first)
    few = choose_inputs(images, [math.prod(shape) for shape in shapes.values()])
    runners = {config.model: own.run_as(Task.FIDELITY)}
    metric = measure_metric(config.metric, runners, few, shapes, progress, crew=crew)[config.model]
    return dataclasses.replace(evaluated, metric=metric)


def _open_reference(config: EvaluateConfig, reference: str) -> Finished:
    try:
        return open_finished(dataclasses.replace(config, model=reference))
    except InputError as error:
        raise InputError(f"--reference is opened as --model is: {error}") from error


def _open_images(config: EvaluateConfig, own: Finished, foreseen: Task | None) -> tuple[Task, EvaluationSet]:
    """The inputs, and what the outputs are taken for: where nothing says so, classes if there are labels of them."""
    is_compared = config.reference is not None or config.metric is not None
    if foreseen is None and not is_compared:
        require_classifier(own.num_classes, config.model)
    labels = Labels.PERHAPS if is_compared and foreseen is not Task.MULTI_LABEL else Labels.CLASSES
    images = load_evaluation(
        config.data,
        preprocessing=own.preprocessing,
        num_classes=None if foreseen is None and own.num_classes == 1 else own.num_classes,
        positions=own.positions,
        class_names_path=config.class_names,
        batch_size=config.batch_size,
        labels=Labels.NONE if foreseen is Task.FIDELITY else labels,
    )
    task = foreseen or (Task.FIDELITY if images.labels is None and is_compared else Task.CLASSIFICATION)
    if not is_compared and (images.labels is None or task is Task.FIDELITY):
        labels_or = "labels (a folder of class sub-folders, or y), " if task.names_classes else ""
        raise InputError(
            f"Evaluation needs {labels_or}a --reference to be compared with, or a --metric. Received: {config.data}, "
            f"and outputs that are {'classes' if task.names_classes else 'numbers'}"
        )
    return task, images


def _score_classes(
    config: EvaluateConfig,
    own: Finished,
    other: Finished | None,
    images: EvaluationSet,
    task: Task,
    progress: Progress,
    crew: Crew,
) -> Evaluated:
    num_classes = require_classifier(own.num_classes, config.model)
    runners = {"own": own.run_as(task)}
    if other is not None:
        _require_alike(config, own, other, images)
        runners["other"] = other.run_as(task)
    ranked = rank_files(runners, {}, images, num_classes, progress, task=task, crew=crew, description="Evaluating")
    classes = ranked["own"].classes
    accuracy, iou = None, None
    if images.labels is not None:
        accuracy = score_accuracy(classes, images.labels, num_classes)
        iou = score_iou(classes, images.labels, num_classes, task) if accuracy.positions > 1 else None
    agreement = None if other is None else score_agreement(classes, ranked["other"].classes)
    return Evaluated(accuracy, iou, agreement)


def _score_numbers(
    config: EvaluateConfig,
    own: Finished,
    other: Finished | None,
    images: EvaluationSet,
    progress: Progress,
    crew: Crew,
) -> Evaluated:
    if other is None:
        return Evaluated()
    sizes = _require_alike(config, own, other, images)
    runners = {"own": own.run_as(Task.FIDELITY)}, other.run_as(Task.FIDELITY)
    found = compare_files(*runners, sizes, {}, images, progress, crew=crew, description="Evaluating")
    return Evaluated(fidelity=score_fidelity(found["own"].sums))


def _require_alike(config: EvaluateConfig, own: Finished, other: Finished, images: EvaluationSet) -> list[int]:
    """The numbers of each output, which are those of the reference's.

    Raises:
        InputError: they are not.
    """
    (first,) = images.select(np.array([0]))
    shapes, reference = (list(each.name_outputs(first).values()) for each in (own, other))
    if shapes != reference:
        raise InputError(
            f"--reference must give what --model gives, {_spell_shapes(shapes)}. Received: {config.reference}, which "
            f"gives {_spell_shapes(reference)}"
        )
    return [math.prod(shape) for shape in shapes]


def _spell_shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(str(shape) for shape in shapes)


def measure_parity(
    runtime: Runner, images: Iterable[np.ndarray], in_keras: np.ndarray, task: Task = Task.CLASSIFICATION
) -> Parity:
    """Compares the file with Keras, whose outputs for the first of the images are given, as they are read."""
    found = read_outputs(runtime.run(first_images(images, len(in_keras))), in_keras.shape[-1], task)
    return compare(found, in_keras, task)


def first_images(images: Iterable[np.ndarray], most: int = COMPARED_IMAGES) -> np.ndarray:
    """The first images, in one array: those that files are compared on."""
    return np.concatenate(list(_first(images, most)))


def _first(batches: Iterable[np.ndarray], num_inputs: int) -> Iterator[np.ndarray]:
    for batch in batches:
        yield batch[:num_inputs]
        num_inputs -= len(batch)
        if num_inputs <= 0:
            return
