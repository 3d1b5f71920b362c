"""What a network's outputs say of classes: one number a class, or a single sigmoid, which speaks of two.

A single sigmoid p becomes the probabilities (1 - p, p): ranked, compared and differentiated as what it is, a Bernoulli
distribution. Taken as it stands, it would be a distribution over one class, of which nothing can be learned.
"""

from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.models.observation import compile_inference, graphs_as_they_are, run

Reading = Callable[[tf.Tensor], tf.Tensor]
"""Outputs (n, ..., outputs) -> the same, one a class."""

# What may stand between a sigmoid and the output without changing a number.
_PASSING = frozenset({"Identity", "Reshape", "Squeeze", "ExpandDims", "Cast", "StopGradient", "PreventGradient"})


def split_sigmoid(outputs: np.ndarray) -> np.ndarray:
    """P (..., 1) -> (1 - p, p), (..., 2)."""
    return np.concatenate([1 - outputs, outputs], axis=-1)


def read_outputs(outputs: np.ndarray, num_classes: int) -> np.ndarray:
    """Outputs (..., outputs) of a network of so many classes, a file's as well; those of a single sigmoid are split."""
    return split_sigmoid(outputs) if outputs.shape[-1] < num_classes else outputs


def as_they_are(outputs: tf.Tensor) -> tf.Tensor:
    """The reading of outputs that are one a class."""
    return outputs


def find_reading(model: keras.Model, sample_shape: tuple[int | None, ...], num_outputs: int | None) -> Reading:
    """How the outputs of this model are read.

    Args:
        model: with one input and one output.
        sample_shape: of an input, without the batch axis.
        num_outputs: length of the output's last axis.
    """
    if num_outputs == 1 and ends_in_sigmoid(model, sample_shape):
        return lambda outputs: tf.concat([1 - outputs, outputs], axis=-1)
    return as_they_are


def ends_in_sigmoid(model: keras.Model, sample_shape: tuple[int | None, ...]) -> bool:
    """Whether the last thing that the model computes is a sigmoid; read from its graph, whatever it is built of."""
    with graphs_as_they_are():
        graph = compile_inference(model).get_concrete_function(tf.TensorSpec((None, *sample_shape), tf.float32))
    operation = graph.graph.outputs[0].op
    while operation.type in _PASSING:
        operation = operation.inputs[0].op
    return operation.type == "Sigmoid"


def run_predictions(model: keras.Model, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
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
        reading = reading or find_reading(model, shapes[0], outputs.shape[-1])
        yield reading(outputs).numpy()
