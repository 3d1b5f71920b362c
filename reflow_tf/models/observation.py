"""Running a model at inference while something else happens at chosen layers."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.foreign import say_why
from reflow_tf.models.channel_order import check_channel_order
from reflow_tf.models.inference import infer, input_sizes

Found = TypeVar("Found")
LayerCall = Callable[..., tf.Tensor]
ModelCall = Callable[[keras.Model, tf.Tensor], tf.Tensor]

_ACTIVATED = (
    *(layers.Dense, layers.EinsumDense, layers.Conv1D, layers.Conv2D, layers.Conv3D),
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D, layers.SeparableConv1D, layers.SeparableConv2D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
)


@contextlib.contextmanager
def replaced_calls(calls: Mapping[keras.Layer, LayerCall]) -> Iterator[None]:
    """For the time of the block, each layer computes `calls[layer](inputs, ...)` in place of its own `call`.

    Every other layer, and `training`, stay as they are; the layers' own `call` is back afterwards, whatever happens.
    """
    before = {layer: layer.__dict__["call"] for layer in calls if "call" in layer.__dict__}  # somebody's own
    try:
        for layer, call in calls.items():
            layer.call = call
        yield
    finally:
        for layer in calls:
            layer.__dict__.pop("call", None)
        for layer, call in before.items():
            layer.call = call


def find_activation(layer: keras.Operation) -> Callable[[tf.Tensor], tf.Tensor] | None:
    """The activation that a layer applies to kernel * inputs + bias, last of all; None for linear and other layers."""
    activation = layer.activation if isinstance(layer, _ACTIVATED) else None
    return None if activation is keras.activations.linear else activation


@contextlib.contextmanager
def without_activation(layer: keras.Layer) -> Iterator[None]:
    """For the time of the block the layer gives what its activation takes (see `find_activation`)."""
    activation = find_activation(layer)
    if activation is None:
        yield
        return
    # Around Keras's `__setattr__`, which would track what comes and goes.
    layer.__dict__["activation"] = None
    try:
        yield
    finally:
        layer.__dict__["activation"] = activation


def run(model: keras.Model, batches: Iterable[np.ndarray], call: ModelCall = infer) -> Iterator[tf.Tensor]:
    """Yields the model's inference output, float32, for each batch; traced anew, so that replaced calls take effect.

    Args:
        model: a built model with one input and one output.
        batches: float arrays (n, ...).
        call: what is yielded for the model and a batch, in place of the model's output.

    Raises:
        InputError: a batch does not fit the model or is nothing that it computes, or the model has several outputs.
    """
    check_channel_order(model)
    # No XLA: compiling MobileNetV2 for CPUs takes longer than a whole calibration pass.
    traces = Traces(compile_inference(model, call))
    for batch in batches:
        check_batch(model, batch)
        inputs = tf.convert_to_tensor(batch)
        with graphs_as_they_are():
            infer_batch = traces.find(inputs)
            try:
                outputs = infer_batch(inputs)
            except tf.errors.InvalidArgumentError as error:
                raise InputError(
                    f"Inputs must be such as {model.name} can compute, indices within what an embedding has. "
                    f"Received: {say_why(error)}"
                ) from error
        yield outputs


class Traces:
    """A function of batches as graphs: one for all batch sizes, while the other dimensions stay static, which layers
    that loop over time need.

    Args:
        function: of a batch, (n, ...), and of `others`.
        others: what else it takes.
    """

    def __init__(self, function: tf.types.experimental.PolymorphicFunction, *others: tf.TensorSpec):
        self._function, self._others = function, others
        self._by_shape: dict[tuple[int, ...], Callable[..., Any]] = {}

    def find(self, inputs: tf.Tensor) -> Callable[..., Any]:
        """The graph for such a batch, traced where there was none like it yet."""
        shape = tuple(inputs.shape[1:])
        if shape not in self._by_shape:
            batch = tf.TensorSpec((None, *shape), inputs.dtype)
            self._by_shape[shape] = self._function.get_concrete_function(batch, *self._others)
        return self._by_shape[shape]


class OneByOne(Generic[Found]):
    """A pass for batches that come one at a time; it is traced once for all of them.

    Args:
        passing: goes over batches, as `run` does.
    """

    def __init__(self, passing: Callable[[Iterable[np.ndarray]], Iterator[Found]]):
        self._waiting: list[np.ndarray] = []
        self._found = passing(self._feed())

    def _feed(self) -> Iterator[np.ndarray]:
        while True:
            yield self._waiting.pop()

    def __call__(self, batch: np.ndarray) -> Found:
        """What the pass gives for the next batch."""
        self._waiting.append(batch)
        return next(self._found)


def compile_inference(model: keras.Model, call: ModelCall = infer) -> tf.types.experimental.PolymorphicFunction:
    """The model's inference in float32 as one graph, which reads the weights that the model has when it is called."""
    return tf.function(lambda inputs: call(model, inputs), autograph=False)


@contextlib.contextmanager
def graphs_as_they_are() -> Iterator[None]:
    """Leaves out TensorFlow's graph optimizer: for one pass over some images it takes longer than it ever saves."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False} | before)


def fits(expected: Sequence[int | None], shape: Sequence[int]) -> bool:
    """Whether a shape is the one that is expected, in which None stands for any length."""
    lengths = zip(expected, shape, strict=False)
    return len(expected) == len(shape) and all(want in (None, got) for want, got in lengths)


def check_batch(model: keras.Model, batch: np.ndarray) -> None:
    """Raises InputError unless the model takes such a batch."""
    sizes = input_sizes(model)
    expected = getattr(model, "input_shape", None)  # of the only input, in whatever it is wrapped
    if len(sizes) > 1:
        expected = None, sum(size or 0 for size in sizes)
    if not len(batch):
        raise InputError(f"Batches for {model.name} must hold at least one input. Received: {tuple(batch.shape)}")
    if isinstance(expected, tuple) and not fits(expected[1:], batch.shape[1:]):
        raise InputError(f"Batches for {model.name} must have the shape {expected}. Received: {tuple(batch.shape)}")
