"""Training on: `fit` with the zeros of a pruned model kept."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.sparsity.layers import LayerSpec


class KeepZeros(keras.callbacks.Callback):
    """Sets masked weights back to zero before training, after every batch and at the end.

    Whatever the optimizer remembers of them, they are zero whenever a batch is computed; with `steps_per_execution`
    over 1, after so many batches.

    Args:
        pruned: (variable, boolean array of its shape, True = kept).
    """

    def __init__(self, pruned: list[tuple[keras.Variable, np.ndarray]]):
        super().__init__()
        self._pruned = [(variable, tf.constant(kept)) for variable, kept in pruned]

    def on_train_begin(self, logs: Any = None) -> None:
        self._write()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._write()

    def on_train_end(self, logs: Any = None) -> None:
        self._write()

    def _write(self) -> None:
        for variable, kept in self._pruned:
            # A product would leave -0.0 and NaN.
            variable.assign(tf.where(kept, variable.value, tf.zeros_like(variable.value)))


def keep_zeros(model: keras.Model, masks: Mapping[str, np.ndarray] | None = None) -> keras.callbacks.Callback:
    """A callback for `model.fit(..., callbacks=[...])` with which pruned weights stay exactly zero.

    A narrower model has no zeros to keep: it is trained like any other.

    Args:
        model: the one that is trained.
        masks: path -> boolean mask in canonical layout, True = kept, as in `PruneResult.masks`, and not in `removed`;
            None: every weight of a kernel that is zero now stays so.

    Raises:
        InputError: a mask is of no kernel of the model, not boolean, or of another shape.
    """
    kernels = find_kernels(model)
    if masks is None:
        masks = {path: kernel != 0 for path, kernel in kernels.read().items()}
    specs = {spec.path: spec for spec in kernels.specs}
    pruned = []
    for path, given in masks.items():
        if path not in specs:
            raise InputError(f"A mask must be of a kernel of the model. Received: {path}, which {model.name} has not")
        if (mask := np.asarray(given)).dtype != bool:
            raise InputError(f"The mask of {path} must be boolean, True = kept. Received: {mask.dtype}")
        if mask.shape != specs[path].canonical_shape:
            raise InputError(
                f"The mask of {path} must have the kernel's shape {specs[path].canonical_shape} (output, *spatial, "
                f"input).{_say_whose(mask, specs[path])} Received: {mask.shape}"
            )
        if not mask.all():
            pruned.append((kernels.variables[path], specs[path].from_canonical(mask)))
    return KeepZeros(pruned)


def _say_whose(mask: np.ndarray, spec: LayerSpec) -> str:
    """Of a mask of another shape with a kernel's number of axes: what it may be."""
    if len(mask.shape) != len(spec.shape):
        return ""
    return (
        " Those of PruneResult.removed, channels/ in masks.npz, are in Keras's layout, and of the network before it "
        "was narrowed, whose channels are gone: a narrower model has no zeros of theirs to keep."
    )
