"""In which precision a network is computed here: in float32, whatever its layers' policies say, as its file will be.

TFLite has float16 weights, but no float16 convolutions. What is measured and fitted would be about another network
than the exported one if it were computed in 16 bits, whose sums overflow and whose gradients vanish besides. Variables
keep their dtype: they are read as float32, and what is written to them is rounded once (`surgery.write_values`).
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend import AutocastScope

from reflow_tf.models.walking import walk

DTYPE = "float32"


@contextlib.contextmanager
def computed_in_float32(operation: Any) -> Iterator[None]:
    """For the time of the block a layer or model, and all in it, computes in float32 and reads variables as float32.

    Their policies are what they were afterwards, whatever happens. Anything that is no layer computes what it is given.
    """
    layers = [operation, *(placed.layer for placed in walk(operation))] if isinstance(operation, keras.Layer) else []
    changed = [
        (layer, layer.dtype_policy)
        for layer in layers
        if "float" in (layer.compute_dtype or "") and layer.compute_dtype != DTYPE
    ]
    try:
        for layer, policy in changed:
            _set_policy(layer, _in_float32(policy))
        # Keras casts variables only where a policy says that they differ; a policy of float16 has just become float32.
        with AutocastScope(DTYPE) if changed else contextlib.nullcontext():
            yield
    finally:
        for layer, policy in changed:
            _set_policy(layer, policy)


def _in_float32(policy: keras.DTypePolicy) -> keras.DTypePolicy:
    quantization, is_quantized, _ = policy.name.partition("_from_")
    return keras.dtype_policies.get(f"{quantization}_from_{DTYPE}" if is_quantized else DTYPE)


def _set_policy(layer: keras.Layer, policy: keras.DTypePolicy) -> None:
    # Around Keras's setter, which writes into a map that layers may share, and quantizes.
    layer.__dict__["_dtype_policy"] = policy


@contextlib.contextmanager
def built_with(policy: keras.DTypePolicy | str) -> Iterator[None]:
    """For the time of the block, layers that are told no policy get this one, and not that of the user's process."""
    before, floats = keras.config.dtype_policy(), keras.config.floatx()
    policy = keras.dtype_policies.get(policy)
    try:
        keras.config.set_floatx(policy.variable_dtype)
        keras.config.set_dtype_policy(policy)
        yield
    finally:
        keras.config.set_floatx(floats)
        keras.config.set_dtype_policy(before)


def to_float32(tensors: Any) -> Any:
    """A tensor, or a structure of them, floating ones and those of true and false in float32, others as they are."""
    return tf.nest.map_structure(lambda t: tf.cast(t, DTYPE) if t.dtype.is_floating or t.dtype.is_bool else t, tensors)


def read_wide(variable: keras.Variable) -> np.ndarray:
    """A copy of the variable's value to compute with: of 16 bits as float32, others as they are."""
    value = np.array(keras.ops.convert_to_numpy(variable))
    return value.astype(np.promote_types(value.dtype, np.float32))


@contextlib.contextmanager
def reading(values: Iterable[tuple[keras.Variable, tf.Tensor]]) -> Iterator[None]:
    """For the time of the block these tensors are what is read in place of the variables, whatever their dtype.

    So that a gradient with respect to them is float32, also where the variable has 16 bits, in which it would vanish.
    """
    with keras.StatelessScope() as scope:
        # Given to the scope itself, they would be cast to the variables' dtype.
        scope.state_mapping.update((id(variable), value) for variable, value in values)
        yield
