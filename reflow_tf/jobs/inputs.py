"""What a job calibrates and what it scores with, and what the network's outputs are taken for there."""

from collections.abc import Mapping
from typing import Protocol

from reflow_tf.data.as_stored import Preparation
from reflow_tf.data.batches import CalibrationSet, EvaluationSet
from reflow_tf.data.loading import load_sets
from reflow_tf.data.sources import Labels
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.evaluation import foresee_outputs, require_classifier, require_label_maps
from reflow_tf.models.loading import LoadedModel
from reflow_tf.models.packing import count_outputs
from reflow_tf.task import Task

_READ: Mapping[Task | None, Labels] = {
    Task.CLASSIFICATION: Labels.CLASSES,
    Task.MULTI_LABEL: Labels.CLASSES,
    Task.FIDELITY: Labels.NONE,
    None: Labels.PERHAPS,
}


def foresee_task(job: JobConfig, loaded: LoadedModel) -> tuple[LoadedModel, Task | None]:
    """What the job and the network say of its outputs; None where labels, if there are any, decide.

    Returns:
        The model, with the classes and positions of that, and the task.

    Raises:
        InputError: they are classes or labels, and not at least two; or those are to be in several outputs.
    """
    said = loaded.find_task, loaded.count_sigmoids
    task = foresee_outputs(job.prune.task, job.model, count_outputs(loaded.model), loaded.num_classes, *said)
    return loaded.read_as(task), task


def open_sets(job: JobConfig, loaded: LoadedModel, foreseen: Task | None) -> tuple[CalibrationSet, EvaluationSet, Task]:
    """The two sets that the job names, or that the weights know, and the task; no input is in both.

    Where neither the job nor the network says what outputs are, they are classes if inputs have them for labels, and
    numbers if not.

    Raises:
        InputError: there are none, or they cannot be used with the model.
    """
    data = job.data or loaded.default_data
    if data is None:
        raise InputError("--data is needed: only the embedded weights come with data of their own. Received: none")
    calibration, evaluation, task = read_sets(job, data, loaded, foreseen)
    if task.names_classes:
        require_classifier(loaded.num_classes, job.model)
        require_label_maps(loaded.model, loaded.positions, evaluation, task)
    return calibration, evaluation, task


class Network(Protocol):
    """What reading data needs to know of whatever the data is for.

    Attributes:
        preprocessing: stored input -> what it takes.
        num_classes: length of the output's last axis; None where it is not known.
        positions: the output's axes between the first and the last.
    """

    @property
    def preprocessing(self) -> Preparation: ...

    @property
    def num_classes(self) -> int | None: ...

    @property
    def positions(self) -> tuple[int | None, ...]: ...


def read_sets(
    job: JobConfig, data: str, network: Network, foreseen: Task | None
) -> tuple[CalibrationSet, EvaluationSet, Task]:
    """The two sets that the job names, of a network in Keras or in a file, and the task; no input is in both.

    Raises:
        InputError: they cannot be used with the network.
    """
    calibration, evaluation = load_sets(
        data,
        job.eval_data,
        preprocessing=network.preprocessing,
        num_classes=None if foreseen is None and network.num_classes == 1 else network.num_classes,
        positions=network.positions,
        class_names_path=job.class_names,
        calibration_samples=job.calibration_samples,
        batch_size=job.batch_size,
        seed=job.seed,
        labels=_READ[foreseen],
    )
    return calibration, evaluation, foreseen or (Task.FIDELITY if evaluation.labels is None else Task.CLASSIFICATION)
