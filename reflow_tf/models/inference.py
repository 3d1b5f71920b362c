"""One call of a model at inference, as TensorFlow can trace it: one tensor in, one tensor out.

What a model with several inputs takes is one row of numbers an input here, which is parted; integers are numbers like
any others, of which float32 holds those up to 2 ** 24.

Keras lets models take and give lists and dicts, also of one tensor, and lets layers have any name. TensorFlow uses the
names for its scopes, and inside a graph it refuses spaces, letters outside of ASCII, and leading underscores.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.precision import computed_in_float32, to_float32

_NOT_IN_SCOPES = re.compile(r"[^A-Za-z0-9_.\\/>-]")  # the two patterns of tensorflow/python/framework/ops.py
_NOT_FIRST = re.compile(r"^(?![A-Za-z0-9.])")


def infer(model: keras.Operation, inputs: tf.Tensor) -> tf.Tensor:
    """What the model, or a layer, gives for a batch at inference, computed in float32.

    Args:
        model: it takes one tensor, as it is or the only one in a list or dict; or it is functional and takes several.
        inputs: (n, ...); for several (n, numbers), one after the other in the order of `model.inputs`.

    Returns:
        Its only output; a floating one as float32.

    Raises:
        InputError: it gives several.
    """
    return take_only(infer_all(model, inputs))


def infer_all(model: keras.Operation, inputs: tf.Tensor) -> list[tf.Tensor]:
    """All that the model gives, in the order of `model.outputs`; else as `infer`."""
    return infer_parts(model, part_inputs(model, inputs))


def name_outputs(model: keras.Model, sample: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Name of each output of a network -> its shape for such an input, (1, *sample), without the batch."""
    outputs = infer_all(model, tf.convert_to_tensor(sample))
    return {name: tuple(output.shape[1:]) for name, output in zip(list_output_names(model), outputs, strict=True)}


def list_output_names(model: keras.Model) -> tuple[str, ...]:
    """Of each output, in their order, each once: the keys of a dict, else as Keras names them.

    A subclassed model knows none: 'output'.
    """
    names = list(getattr(model, "output_names", None) or ["output"])
    structure = getattr(model, "_outputs_struct", None)
    paths = [] if structure is None else [path for path, _ in keras.tree.flatten_with_path(structure)]
    if len(paths) == len(names) and all(any(isinstance(key, str) for key in path) for path in paths):
        names = ["/".join(map(str, path)) for path in paths]
    return tuple(unique(names))


def unique(names: Sequence[str]) -> list[str]:
    """The same names, where one occurs again with a number behind it: 'scores', 'scores_2'."""
    found: list[str] = []
    for name in names:
        numbered = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        found.append(next(each for each in numbered if each not in found))
    return found


def infer_parts(model: keras.Operation, parts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The same for the inputs themselves, in the order of `model.inputs`."""
    with tensorflow_names(model), computed_in_float32(model):
        outputs = model(give(model, list(parts)), training=False)
    return [to_float32(output) for output in keras.tree.flatten(outputs)]


def inputs_of(model: keras.Operation) -> list[keras.KerasTensor]:
    """What a functional or sequential model takes, in order; [] of anything else, which takes what it is given."""
    return list(getattr(model, "inputs", None) or []) if isinstance(model, keras.Model) else []


def input_sizes(model: keras.Operation) -> list[int | None]:
    """How many numbers a sample has of each of `inputs_of`; None where an axis is open."""
    return [tf.TensorShape(tensor.shape[1:]).num_elements() for tensor in inputs_of(model)]


def part_inputs(model: keras.Operation, inputs: tf.Tensor) -> list[tf.Tensor]:
    """A batch as the tensors that the model takes, of its types."""
    tensors = inputs_of(model)
    if not tensors:
        return [inputs]
    if len(tensors) == 1:
        return [_as_type(inputs, tensors[0].dtype)]
    parts = tf.split(inputs, input_sizes(model), axis=1)
    return [
        _as_type(tf.reshape(part, [-1, *tensor.shape[1:]]), tensor.dtype)
        for part, tensor in zip(parts, tensors, strict=True)
    ]


def give(model: keras.Operation, parts: list[tf.Tensor]) -> object:
    """The tensors in the list or dict in which the model takes them."""
    structure = getattr(model, "_inputs_struct", None)
    if len(parts) == 1 and not isinstance(structure, dict):
        return parts[0]
    return keras.tree.pack_sequence_as(structure, parts)


def _as_type(inputs: tf.Tensor, dtype: str) -> tf.Tensor:
    """Integers of what holds them as floats; floats stay as they are, whatever the model's policy."""
    kind = tf.as_dtype(dtype)
    return inputs if kind.is_floating or inputs.dtype == kind else tf.cast(inputs, kind)


def take_only(outputs: object) -> tf.Tensor:
    """The only tensor in a tensor, list or dict; InputError if there are several."""
    found = keras.tree.flatten(outputs)
    if len(found) != 1:
        raise InputError(f"The model must have one output tensor. Received: {len(found)} of them")
    return found[0]


@contextlib.contextmanager
def tensorflow_names(model: keras.Operation) -> Iterator[None]:
    """For the time of the block, the model and all layers in it have names that TensorFlow takes as scopes.

    Paths in plans and reports are read outside of it, with the names that the user gave.
    """
    changed = []
    try:
        for layer in _descend(model, set()):
            name = _NOT_IN_SCOPES.sub("_", layer.name)
            name = _NOT_FIRST.sub("x", name) if layer is model else name  # within another scope, all may come first
            if name != layer.name:
                changed.append((layer, layer.name))
                layer.__dict__["name"] = name  # around Keras's `__setattr__`, which would track it
        yield
    finally:
        for layer, name in changed:
            layer.__dict__["name"] = name


def _descend(layer: keras.Operation, seen: set[int]) -> Iterator[keras.Operation]:
    if id(layer) in seen:
        return
    seen.add(id(layer))
    yield layer
    for inner in getattr(layer, "_layers", ()):
        yield from _descend(inner, seen)
