"""Single steps of pruning, for callers who do the rest themselves: recalibrating a model, and looking into it."""

from typing import Any

import keras

from reflow_tf.choices import AUTO
from reflow_tf.data.batches import as_batches
from reflow_tf.errors import InputError
from reflow_tf.models.packing import as_plain, as_rows, count_outputs, pack
from reflow_tf.models.predictions import settle_task
from reflow_tf.models.surgery import copy_model
from reflow_tf.repair import batchnorm
from reflow_tf.repair.batchnorm import Mode
from reflow_tf.repair.unmerging import require_unmerged
from reflow_tf.signal import Signal
from reflow_tf.signal import measure_signal as _measure_signal
from reflow_tf.task import Task


def recalibrate(
    model: keras.Model,
    batches: Any,
    *,
    mode: Mode = "pooled",
    momentum: float = 0.99,
    batch_size: int = 64,
    inplace: bool = False,
) -> keras.Model:
    """REFLOW by itself: returns a model whose batch norms have the moments of `batches`; see `repair.batchnorm`.

    Raises:
        InputError: the model has no batch norm, so that there is nothing to restore, or merged ones; or bad data.
    """
    require_unmerged(model)
    recalibrated = model if inplace else copy_model(model)
    inputs = as_batches(as_rows(model, batches), batch_size=batch_size)
    outcome = batchnorm.recalibrate(as_plain(recalibrated), inputs, mode=mode, momentum=momentum)
    if not outcome.repaired:
        raise InputError(f"Recalibration needs a model with batch norms. Received: {model.name}: {outcome.statement}")
    return recalibrated


def measure_signal(model: keras.Model, batches: Any, *, batch_size: int = 64, task: str = AUTO) -> Signal:
    """What the model does with these inputs, variance per batch norm and predictions; see `reflow_tf.signal`.

    Args:
        model: a built Keras model; several outputs are looked at as one row of numbers an input.
        batches: as for `prune`.
        batch_size: for arrays.
        task: as in `PruneConfig`.
    """
    inputs = as_batches(as_rows(model, batches), batch_size=batch_size)
    if count_outputs(model) > 1:
        return _measure_signal(pack(model, next(iter(inputs))), inputs, Task.FIDELITY)
    return _measure_signal(model, inputs, settle_task(model, task, inputs))
