"""The layers that join a model's outputs and part its inputs; apart, so that whoever reads graphs may know them."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

JOINED = "joined_outputs"
TAKEN = "taken_"
"""Before the name of an input, what the layer is called that takes it out of a row."""


@keras.saving.register_keras_serializable("reflow_tf")
class Join(keras.layers.Layer):
    """Tensors (n, ...) as one (n, numbers), float32, each multiplied by its scale.

    Args:
        scales: one a tensor.
    """

    def __init__(self, scales: Sequence[float], **options: Any):
        super().__init__(**{"dtype": "float32", "autocast": False} | options)
        self.scales = tuple(scales)

    def call(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        """The row of each input."""
        rows = []
        for tensor, scale in zip(tensors, self.scales, strict=True):
            width = tensor.shape[1:].num_elements()
            shape = [tf.shape(tensor)[0], tf.size(tensor[0]) if width is None else width]
            rows.append(scale * tf.cast(tf.reshape(tensor, shape), tf.float32))
        return tf.concat(rows, axis=1)

    def compute_output_shape(self, shapes: Sequence[tuple[int | None, ...]]) -> tuple[int | None, ...]:
        """(n, numbers); None where an output leaves an axis open."""
        widths = [tf.TensorShape(shape[1:]).num_elements() for shape in shapes]
        return shapes[0][0], None if None in widths else sum(widths)

    def get_config(self) -> dict[str, Any]:
        """With the scales."""
        return super().get_config() | {"scales": list(self.scales)}


@keras.saving.register_keras_serializable("reflow_tf")
class Take(keras.layers.Layer):
    """One input, (n, *shape), out of rows of numbers (n, ...) float32.

    Args:
        start: where it begins in a row.
        shape: of the input.
        kind: its dtype.
    """

    def __init__(self, start: int, shape: Sequence[int], kind: str, **options: Any):
        super().__init__(**{"dtype": "float32", "autocast": False} | options)
        self.start, self.shape, self.kind = start, tuple(shape), kind

    def call(self, rows: tf.Tensor) -> tf.Tensor:
        """The input."""
        size = int(np.prod(self.shape))
        flat = tf.reshape(rows, [tf.shape(rows)[0], int(np.prod(rows.shape[1:]))])
        return tf.cast(tf.reshape(flat[:, self.start : self.start + size], [-1, *self.shape]), self.kind)

    def compute_output_spec(self, rows: keras.KerasTensor) -> keras.KerasTensor:
        """Of the input's shape and type."""
        return keras.KerasTensor((rows.shape[0], *self.shape), dtype=self.kind)

    def get_config(self) -> dict[str, Any]:
        """With what it takes."""
        return super().get_config() | {"start": self.start, "shape": list(self.shape), "kind": self.kind}
