"""One call of a model at inference, as TensorFlow can trace it: one tensor in, one tensor out.

Keras lets models take and give lists and dicts, also of one tensor, and lets layers have any name. TensorFlow uses the
names for its scopes, and inside a graph it refuses spaces, letters outside of ASCII, and leading underscores.
"""

import contextlib
import re
from collections.abc import Iterator

import keras
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.precision import computed_in_float32, to_float32

_NOT_IN_SCOPES = re.compile(r"[^A-Za-z0-9_.\\/>-]")  # the two patterns of tensorflow/python/framework/ops.py
_NOT_FIRST = re.compile(r"^(?![A-Za-z0-9.])")


def infer(model: keras.Operation, inputs: tf.Tensor) -> tf.Tensor:
    """What the model, or a layer, gives for a batch at inference, computed in float32.

    Args:
        model: it takes one tensor: as it is, or the only one in a list or dict.
        inputs: (n, ...).

    Returns:
        Its only output; a floating one as float32.

    Raises:
        InputError: it gives several.
    """
    return take_only(infer_all(model, inputs))


def infer_all(model: keras.Operation, inputs: tf.Tensor) -> list[tf.Tensor]:
    """All that the model gives, in the order of `model.outputs`; else as `infer`."""
    taken = getattr(model, "input", None) if isinstance(getattr(model, "_inputs_struct", None), dict) else None
    given = inputs if taken is None else dict.fromkeys(taken, inputs)
    with tensorflow_names(model), computed_in_float32(model):
        return [to_float32(output) for output in keras.tree.flatten(model(given, training=False))]


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
