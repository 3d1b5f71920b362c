"""The layer that joins a model's outputs; by itself, so that whoever reads graphs can know it."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

JOINED = "joined_outputs"


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
