"""Single steps of pruning, for callers who do the rest themselves: recalibrating a model, and looking into it."""

from typing import Any

import keras

from reflow_tf.choices import AUTO, TASKS, check_choice
from reflow_tf.errors import InputError
from reflow_tf.models.packing import as_inputs, as_plain, count_outputs, pack
from reflow_tf.models.predictions import require_numbers, settle_task
from reflow_tf.models.surgery import copy_model
from reflow_tf.models.walking import find_batch_norms
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
    dense: keras.Model | None = None,
    mode: Mode = "pooled",
    momentum: float = 0.99,
    batch_size: int = 64,
    inplace: bool = False,
) -> keras.Model:
    """REFLOW by itself: returns a model whose batch norms have the moments of `batches`; see `repair.batchnorm`.

    Args:
        model: a built one, pruned by whomever.
        batches: as for `prune`.
        dense: the network before it was pruned, if it is there: batch norms then get moments beside its own, which is
            what `prune` does, and what these inputs have by chance changes nothing.
        mode: see `repair.batchnorm.recalibrate`.
        momentum: see there.
        batch_size: for arrays.
        inplace: write into `model`.

    Raises:
        InputError: the model has no batch norm, so that there is nothing to restore, or merged ones; `dense` has other
            batch norms; or bad data.
    """
    require_unmerged(model)
    recalibrated = model if inplace else copy_model(model)
    inputs = as_inputs(model, batches, batch_size=batch_size)
    plain, references = as_plain(recalibrated), None
    if dense is not None:
        references = batchnorm.observe_dense(as_plain(dense), inputs)
        _require_same_norms(plain, references)
    outcome = batchnorm.recalibrate(plain, inputs, mode=mode, momentum=momentum, references=references)
    if not outcome.repaired:
        raise InputError(f"Recalibration needs a model with batch norms. Received: {model.name}: {outcome.statement}")
    return recalibrated


def _require_same_norms(model: keras.Model, references: batchnorm.References) -> None:
    own = {norm.path: tuple(norm.layer.moving_mean.shape) for norm in find_batch_norms(model)}
    others = {path: reference.mean.shape for path, reference in references.items()}
    if own != others:
        differing = sorted(path for path in own.keys() | others.keys() if own.get(path) != others.get(path))
        raise InputError(
            f"dense must be the network before it was pruned, with the same batch norms. "
            f"Received: {differing[0]}, which is {own.get(differing[0], 'not there')} in the pruned one and "
            f"{others.get(differing[0], 'not there')} in the dense one"
        )


def measure_signal(model: keras.Model, batches: Any, *, batch_size: int = 64, task: str = AUTO) -> Signal:
    """What the model does with these inputs, variance per batch norm and predictions; see `reflow_tf.signal`.

    Args:
        model: a built Keras model; several outputs are looked at as one row of numbers an input.
        batches: as for `prune`.
        batch_size: for arrays.
        task: as in `PruneConfig`.

    Raises:
        InputError: no such task, or none for several outputs; or bad data.
    """
    check_choice("task", task, TASKS)
    require_numbers(task, model.name, count_outputs(model))
    inputs = as_inputs(model, batches, batch_size=batch_size)
    if count_outputs(model) > 1:
        return _measure_signal(pack(model, next(iter(inputs))), inputs, Task.FIDELITY)
    return _measure_signal(model, inputs, settle_task(model, task, inputs))
