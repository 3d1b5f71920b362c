"""What a network's outputs say: of classes, one number a class or sigmoids, each of which speaks of two; or numbers.

A sigmoid p becomes the probabilities (1 - p, p): ranked, compared and differentiated as what it is, a Bernoulli
distribution. Taken as it stands, it would be a distribution over one class, of which nothing can be learned. Where each
of several labels has a sigmoid, an input has as many predictions, as a map of classes has.

Numbers are put into one row an input, whatever their shape: each counts as much as any other.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.inference import infer_all
from reflow_tf.models.observation import check_batch, compile_inference, graphs_as_they_are, run
from reflow_tf.task import Task

# What may stand between the last function and the output without changing a number.
_PASSING = frozenset({"Identity", "Reshape", "Squeeze", "ExpandDims", "Cast", "StopGradient", "PreventGradient"})


@dataclasses.dataclass(frozen=True)
class Reading:
    """Outputs (n, ..., outputs) -> the same, one a class; of several labels (n, ..., labels, 2); or (n, numbers).

    Attributes:
        task: what they are taken for.
        is_sigmoid: they are a single sigmoid.
    """

    task: Task = Task.CLASSIFICATION
    is_sigmoid: bool = False

    def __call__(self, outputs: tf.Tensor) -> tf.Tensor:
        outputs = tf.convert_to_tensor(outputs)
        if self.task is Task.FIDELITY:
            width = outputs.shape[1:].num_elements()
            return tf.reshape(outputs, [tf.shape(outputs)[0], tf.size(outputs[0]) if width is None else width])
        if self.task is Task.MULTI_LABEL:
            return tf.stack([1 - outputs, outputs], axis=-1)
        return tf.concat([1 - outputs, outputs], axis=-1) if self.is_sigmoid else outputs


def read_outputs(outputs: np.ndarray, num_classes: int, task: Task = Task.CLASSIFICATION) -> np.ndarray:
    """What `Reading` makes of outputs (n, ..., outputs), a file's as well, but for numbers, which stay as they are.

    Args:
        outputs: not read yet.
        num_classes: of the network; one output with two classes is a sigmoid.
        task: what they are taken for.
    """
    if task is Task.MULTI_LABEL:
        return np.stack([1 - outputs, outputs], axis=-1)
    if task is Task.CLASSIFICATION and outputs.shape[-1] < num_classes:
        return np.concatenate([1 - outputs, outputs], axis=-1)
    return outputs


def name_predictions(
    num_outputs: int | None, positions: tuple[int | None, ...], task: Task | None
) -> tuple[int | None, tuple[int | None, ...]]:
    """How many classes a prediction names, and the axes of an input's predictions.

    Args:
        num_outputs: length of the output's last axis, 2 for a single sigmoid.
        positions: the output's axes between the first and the last.
        task: what the outputs are taken for, as far as that is known.
    """
    return (2, (*positions, num_outputs)) if task is Task.MULTI_LABEL else (num_outputs, positions)


def find_reading(
    model: keras.Model,
    sample_shape: tuple[int | None, ...],
    outputs_shape: Sequence[int | None],
    task: Task = Task.CLASSIFICATION,
) -> Reading:
    """How the outputs of this model are read.

    Args:
        model: with one input and one output.
        sample_shape: of an input, without the batch axis.
        outputs_shape: of the outputs of some inputs, the batch axis included.
        task: what they are taken for.

    Raises:
        InputError: they are to be labels, and are no sigmoids; or classes, and there is one number an input.
    """
    if task is Task.MULTI_LABEL:
        require_labels(count_sigmoids(model, sample_shape), model.name)
    if task is not Task.CLASSIFICATION:
        return Reading(task)
    if len(outputs_shape) < 2:
        raise InputError(
            f"--task={Task.CLASSIFICATION} needs outputs with an axis of classes, (n, ..., classes). "
            f"Received: {model.name}, which gives (n,)"
        )
    return Reading(is_sigmoid=outputs_shape[-1] == 1 and count_sigmoids(model, sample_shape) == 1)


def require_labels(num_sigmoids: int, model: str) -> None:
    """Refuses what does not predict several labels.

    Args:
        num_sigmoids: of its last axis, see `count_sigmoids`.
        model: its name, for the message.

    Raises:
        InputError: there are no two sigmoids.
    """
    if num_sigmoids < 2:
        raise InputError(
            f"--task={Task.MULTI_LABEL} needs a network that ends in a sigmoid for each of at least two labels (append "
            f"one to logits; a single sigmoid is --task={Task.CLASSIFICATION}). Received: {model} with {num_sigmoids}"
        )


def require_numbers(asked: str, model: str, num_outputs: int) -> None:
    """Refuses to take several outputs for classes or labels.

    Args:
        asked: 'auto', or a task.
        model: its name, for the message.
        num_outputs: how many there are.

    Raises:
        InputError: there are several, and they are to be something else than numbers.
    """
    if num_outputs > 1 and asked not in ("auto", Task.FIDELITY):
        raise InputError(f"--task={asked} needs one output. Received: {model} with {num_outputs}")


def find_task(model: keras.Model, sample_shape: tuple[int | None, ...], loss: object = None) -> Task | None:
    """What the network says of its outputs; None where they may be anything: logits, or numbers of their own.

    Args:
        model: with one input and one output.
        sample_shape: of an input, without the batch axis.
        loss: that it was trained with, as `keras.Model.compile` takes it or as files spell it, where somebody knows.
    """
    graph = _trace(model, sample_shape)
    if len(graph.outputs[0].shape) < 2:  # no axis of classes
        return Task.FIDELITY
    last, num_outputs = _find_last_function(graph), graph.outputs[0].shape[-1]
    if last == "Softmax" or (last == "Sigmoid" and num_outputs == 1):
        return Task.CLASSIFICATION
    loss = loss or (model.loss if getattr(model, "compiled", False) else None)
    name = _name_loss(loss).lower().replace("_", "")
    if "crossentropy" in name and name.startswith("binary") and num_outputs != 1:  # labels of an input, or pixels
        return None
    return None if not name else Task.CLASSIFICATION if "crossentropy" in name else Task.FIDELITY


def _name_loss(loss: object) -> str:
    """Of its function or class, whatever it is called besides; '' where there is none, or one for each output."""
    if isinstance(loss, dict) and "class_name" in loss:  # as files spell it; of a function the name is beside
        return loss["config"] if isinstance(loss.get("config"), str) else str(loss["class_name"])
    if isinstance(loss, dict | list | tuple):
        each = list(loss.values() if isinstance(loss, dict) else loss)
        return _name_loss(each[0]) if len(each) == 1 else ""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)  # what abbreviations stand for
        except ValueError:  # somebody's own
            return str(loss)
    loss = getattr(loss, "fn", loss)  # that a loss of Keras wraps
    return "" if loss is None else getattr(loss, "__name__", type(loss).__name__)


def settle_task(model: keras.Model, asked: str, *inputs: Iterable[np.ndarray] | None) -> Task:
    """What the outputs of the model are taken for.

    Args:
        model: with one input and one output.
        asked: 'auto', or the answer.
        inputs: batches, if there are any: where there are none, nothing is compared, and any answer will do.

    Raises:
        InputError: a batch does not fit the model.
    """
    if asked != "auto":
        return Task(asked)
    first = next((next(iter(batches)) for batches in inputs if batches is not None), None)
    if first is None:
        return Task.CLASSIFICATION
    check_batch(model, first)
    return find_task(model, first.shape[1:]) or Task.FIDELITY


def count_sigmoids(model: keras.Model, sample_shape: tuple[int | None, ...]) -> int:
    """Length of the output's last axis where the last thing that the model computes is a sigmoid; else 0."""
    graph = _trace(model, sample_shape)
    return int(graph.outputs[0].shape[-1] or 0) if _find_last_function(graph) == "Sigmoid" else 0


def _trace(model: keras.Model, sample_shape: tuple[int | None, ...]) -> tf.Graph:
    with graphs_as_they_are():
        return compile_inference(model).get_concrete_function(tf.TensorSpec((None, *sample_shape), tf.float32)).graph


def _find_last_function(graph: tf.Graph) -> str:
    """The type of the last operation that changes the output, such as 'Softmax', 'Sigmoid' or 'BiasAdd'.

    Read from the graph, whatever the model is built of.
    """
    operation = graph.outputs[0].op
    while operation.type in _PASSING:
        operation = operation.inputs[0].op
    return str(operation.type)


def run_rows(model: keras.Model, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """`observation.run`, all outputs of an input in one row, (n, numbers).

    Raises:
        InputError: as `observation.run` does.
    """

    def join(model: keras.Operation, inputs: tf.Tensor) -> tf.Tensor:
        rows = Reading(Task.FIDELITY)
        return tf.concat([rows(output) for output in infer_all(model, inputs)], axis=1)

    for outputs in run(model, batches, join):
        yield outputs.numpy()


def run_predictions(
    model: keras.Model, batches: Iterable[np.ndarray], task: Task = Task.CLASSIFICATION
) -> Iterator[np.ndarray]:
    """`observation.run`, outputs read.

    Raises:
        InputError: as `observation.run` does.
    """
    shapes: list[tuple[int, ...]] = []

    def remembered() -> Iterator[np.ndarray]:
        for batch in batches:
            shapes[:] = [batch.shape[1:]]
            yield batch

    reading: Reading | None = None
    for outputs in run(model, remembered()):
        reading = reading or find_reading(model, shapes[0], outputs.shape, task)
        yield reading(outputs).numpy()
