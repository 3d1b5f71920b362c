"""Several outputs as one: a row of numbers an input, each output scaled to a root mean square of 1.

What is pruned and repaired is a model with one output: criteria, allocations and repairs know no others. A model with
several is extended by one layer that joins them, so that none counts for more because its numbers are larger; all other
layers, and their variables, are its own. Afterwards that layer is taken off again.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.calls import functional_of
from reflow_tf.models.inference import infer_all
from reflow_tf.models.joining import JOINED, Join
from reflow_tf.models.observation import check_batch


def count_outputs(model: keras.Model) -> int:
    """How many tensors a built model gives; 1 for a subclassed one, which says so only when it is called."""
    return len(getattr(model, "outputs", None) or [None])


def join_outputs(model: keras.Model, batch: np.ndarray | None) -> keras.Model:
    """The model with one output (n, numbers), made of its several; it shares all layers and variables.

    Args:
        model: functional, of several outputs.
        batch: inputs (n, ...) that say how large outputs are; None: nothing is compared, and they stay as they are.

    Raises:
        InputError: it is no functional model; the batch does not fit; an output is not finite.
    """
    if functional_of(model) is None:
        raise InputError(
            f"A model with several outputs must be functional to be pruned. "
            f"Received: {model.name}, of class {type(model).__name__}"
        )
    scales: tuple[float, ...] = (1.0,) * count_outputs(model)
    if batch is not None:
        check_batch(model, batch)
        scales = measure_scales([np.asarray(output) for output in infer_all(model, tf.convert_to_tensor(batch))])
    return keras.Model(_inputs_of(model), Join(scales, name=JOINED)(list(model.outputs)), name=model.name)


def read_scales(joined: keras.Model) -> tuple[float, ...]:
    """What each output of a model that was joined is multiplied by."""
    scales: tuple[float, ...] = joined.get_layer(JOINED).scales
    return scales


def separate_outputs(joined: keras.Model, like: keras.Model) -> keras.Model:
    """The model of several outputs that was joined, with whatever its variables have become.

    Args:
        joined: by `join_outputs`, or a copy of that, or a narrower one.
        like: the model that was joined: its outputs may be a list or a dict.
    """
    node = joined.get_layer(JOINED)._inbound_nodes[-1]
    outputs = keras.tree.pack_sequence_as(like._outputs_struct, list(node.arguments.keras_tensors))
    return keras.Model(_inputs_of(joined), outputs, name=like.name)


def as_one_output(model: keras.Model) -> keras.Model:
    """The model, or the same with its outputs joined as they are, for whoever reads its steps."""
    return model if count_outputs(model) == 1 else join_outputs(model, None)


def _inputs_of(model: keras.Model) -> keras.KerasTensor | list[keras.KerasTensor]:
    return model.inputs[0] if len(model.inputs) == 1 else model.inputs


def measure_scales(outputs: Sequence[np.ndarray]) -> tuple[float, ...]:
    """What each output, (n, ...), is multiplied by, so that its root mean square is 1; 1 where it is zero."""
    powers = [float(np.mean(np.square(output.astype(np.float64)))) for output in outputs]
    if not np.isfinite(powers).all():
        raise InputError("The outputs of the model must be finite. Received: NaN or infinity")
    return tuple(1 / np.sqrt(power) if power else 1.0 for power in powers)


def undo_scales(outputs: np.ndarray, scales: Sequence[float], sizes: Sequence[int]) -> np.ndarray:
    """Joined outputs (n, numbers) as they were before they were scaled.

    Args:
        outputs: of a joined model, or of any other, whose outputs stay as they are.
        scales: of each output; (): nothing was scaled.
        sizes: numbers that each output has for an input.
    """
    return outputs / np.repeat(scales, sizes).astype(np.float32) if scales else outputs
