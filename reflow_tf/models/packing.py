"""Models of several inputs and outputs as ones of one: rows of numbers in, rows of numbers out.

What is pruned and repaired is a model with one float input and one output: criteria, allocations and repairs know no
others. Any other functional model gets layers in front that take its inputs out of a row, and one behind that joins its
outputs, each scaled to a root mean square of 1, so that none counts for more because its numbers are larger. All other
layers, and their variables, are its own. Afterwards those layers are taken off again.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.data.as_stored import spell_batch
from reflow_tf.data.batches import ArrayBatches, ImageStream, StreamBatches, as_batches, as_numbers
from reflow_tf.errors import InputError
from reflow_tf.models.calls import functional_of
from reflow_tf.models.inference import give, infer_all, inputs_of
from reflow_tf.models.joining import JOINED, TAKEN, Join, Take
from reflow_tf.models.observation import check_batch, fits


def count_outputs(model: keras.Model) -> int:
    """How many tensors a built model gives; 1 for a subclassed one, which says so only when it is called."""
    return len(getattr(model, "outputs", None) or [None])


def as_inputs(model: keras.Model, data: Any, *, batch_size: int) -> ImageStream | ArrayBatches | StreamBatches:
    """`as_batches` of what a caller has for a model; several inputs become rows of numbers, (n, numbers).

    Args:
        model: what the data is for.
        data: as `as_batches` takes it; or a dict of arrays (n, ...), one for each of the model's inputs. Of an iterable
            of batches x or (x, y), x may be such a dict too, or a tuple or list in the order of `model.inputs`.
        batch_size: for arrays.

    Raises:
        InputError: an input is missing, is not of numbers, or has another shape or number of samples; and as
            `as_batches` does.
    """
    join = functools.partial(_join_inputs, model)
    return as_batches(join(data) if isinstance(data, dict) else data, batch_size=batch_size, join=join)


def _join_inputs(model: keras.Model, given: Mapping[str, Any] | Sequence[Any]) -> np.ndarray:
    tensors = inputs_of(model)
    if len(tensors) < 2 and not isinstance(given, Mapping):  # rows of numbers
        return as_numbers(given, "a batch")
    if not tensors:
        raise InputError(f"inputs by name are for functional models. Received: {model.name}, {type(model).__name__}")
    named = given if isinstance(given, Mapping) else {t.name: x for t, x in zip(tensors, given, strict=False)}
    arrays: list[np.ndarray] = []
    for tensor in tensors:
        array = None
        if tensor.name in named:
            least_rank = 2 if len(tensors) == 1 else 1
            array = as_numbers(named[tensor.name], f"the input {tensor.name!r}", least_rank)
        shape = tuple(tensor.shape[1:])
        if array is None or not fits(shape, array.shape[1:]) or (arrays and len(array) != len(arrays[0])):
            found = "none" if array is None else f"shape {array.shape}"
            raise InputError(
                f"data must have an array {spell_batch(shape)} for the input {tensor.name!r}, of as "
                f"many samples as the others. Received: {found}"
            )
        arrays.append(array)
    if len(arrays) == 1:
        return arrays[0]
    rows = [array.reshape(len(array), math.prod(array.shape[1:])).astype(np.float32) for array in arrays]
    return np.concatenate(rows, axis=1)


def split_rows(rows: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """What was joined into rows (n, numbers), each in its own shape under its name again.

    Args:
        rows: may have further axes, which are flattened.
        shapes: of one sample of each, in the order in which they were joined.
    """
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]
    parts = np.split(rows.reshape(len(rows), -1), ends, axis=1)
    return {name: part.reshape(len(rows), *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def is_plain(model: keras.Model) -> bool:
    """Whether the model takes one float tensor and gives one, and so is pruned as it is."""
    inputs = inputs_of(model)
    return count_outputs(model) == 1 and (not inputs or (len(inputs) == 1 and _is_float(inputs[0])))


def pack(model: keras.Model, batch: np.ndarray | None) -> keras.Model:
    """The model with one float input and one output; it shares all layers and variables.

    Args:
        model: functional; not plain.
        batch: inputs (n, ...) that say how large outputs are; None: nothing is compared, and they stay as they are.

    Returns:
        What takes (n, numbers), or (n, *shape) of a single input, and gives (n, numbers), or the single output.

    Raises:
        InputError: it is no functional model; an input leaves an axis open; the batch does not fit; an output is not
            finite.
    """
    scales: tuple[float, ...] = (1.0,) * count_outputs(model)
    if batch is not None and len(scales) > 1:
        check_batch(model, batch)
        scales = measure_scales([np.asarray(output) for output in infer_all(model, tf.convert_to_tensor(batch))])
    return pack_scaled(model, scales)


def pack_scaled(model: keras.Model, scales: Sequence[float]) -> keras.Model:
    """`pack`, each output multiplied by what it was in another copy of the model.

    Raises:
        InputError: it is no functional model; an input leaves an axis open.
    """
    if functional_of(model) is None or isinstance(model, keras.Sequential):
        raise InputError(
            f"A model with several inputs or outputs, or with one that is not of floats, must be functional to be "
            f"pruned. Received: {model.name}, of class {type(model).__name__}"
        )
    rows, outputs = _inputs_of(model), list(model.outputs)
    if len(model.inputs) > 1 or not _is_float(model.inputs[0]):
        rows, outputs = _take_inputs(model)
    joined = Join(tuple(scales), name=JOINED)(outputs) if len(scales) > 1 else outputs[0]
    return keras.Model(rows, joined, name=model.name)


def _take_inputs(model: keras.Model) -> tuple[keras.KerasTensor, list[keras.KerasTensor]]:
    """A row of numbers, and the outputs of the model for the inputs in it."""
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if any(None in shape for shape in shapes):
        raise InputError(f"Every dimension of inputs must be fixed where there are several. Received: {shapes}")
    sizes = [int(np.prod(shape)) for shape in shapes]
    row = keras.Input(shapes[0] if len(shapes) == 1 else (sum(sizes),), name="rows")
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [
        Take(int(start), shape, tensor.dtype, name=TAKEN + tensor.name)(row)
        for start, shape, tensor in zip(starts, shapes, model.inputs, strict=True)
    ]
    return row, keras.tree.flatten(model._run_through_graph(give(model, parts), operation_fn=lambda layer: layer))


def unpack(packed: keras.Model, like: keras.Model) -> keras.Model:
    """The model that was packed, with whatever its variables have become.

    Args:
        packed: by `pack`, or a copy of that, or a narrower one.
        like: the model that was packed: its inputs and outputs may be lists or dicts.
    """
    layers = {layer.name: layer for layer in packed.layers}
    outputs = list(packed.outputs)
    if JOINED in layers:
        outputs = list(layers[JOINED]._inbound_nodes[-1].arguments.keras_tensors)
    inputs = _inputs_of(packed)
    if any(isinstance(layer, Take) for layer in packed.layers):
        given = [keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name) for tensor in like.inputs]
        read = [tensor for tensor in given if TAKEN + tensor.name in layers]  # an output need not depend on all inputs
        inner = keras.Model([layers[TAKEN + tensor.name]._inbound_nodes[-1].outputs[0] for tensor in read], outputs)
        outputs = keras.tree.flatten(inner._run_through_graph(read, operation_fn=lambda layer: layer))
        inputs = give(like, given)
    return keras.Model(inputs, keras.tree.pack_sequence_as(like._outputs_struct, outputs), name=like.name)


def as_plain(model: keras.Model) -> keras.Model:
    """The model, or the same packed, outputs as they are, for whoever reads its steps."""
    return model if is_plain(model) else pack(model, None)


def read_scales(packed: keras.Model) -> tuple[float, ...]:
    """What each of several outputs of a model that was packed is multiplied by; () of a single one."""
    joined = next((layer for layer in packed.layers if isinstance(layer, Join)), None)
    return () if joined is None else joined.scales


def measure_scales(outputs: Sequence[np.ndarray]) -> tuple[float, ...]:
    """What each output, (n, ...), is multiplied by, so that its root mean square is 1; 1 where it is zero."""
    powers = [float(np.mean(np.square(output.astype(np.float64)))) for output in outputs]
    if not np.isfinite(powers).all():
        raise InputError("The outputs of the model must be finite. Received: NaN or infinity")
    return tuple(1 / np.sqrt(power) if power else 1.0 for power in powers)


def undo_scales(outputs: np.ndarray, scales: Sequence[float], sizes: Sequence[int]) -> np.ndarray:
    """Joined outputs (n, numbers) as they were before they were scaled.

    Args:
        outputs: of a packed model, or of any other, whose outputs stay as they are.
        scales: of each output; (): nothing was scaled.
        sizes: numbers that each output has for an input.
    """
    return outputs / np.repeat(scales, sizes).astype(np.float32) if scales else outputs


def _inputs_of(model: keras.Model) -> keras.KerasTensor | list[keras.KerasTensor]:
    return model.inputs[0] if len(model.inputs) == 1 else model.inputs


def _is_float(tensor: keras.KerasTensor) -> bool:
    return "float" in keras.backend.standardize_dtype(tensor.dtype)
