"""A Keras model in, a pruned and repaired one out: scores, plan, masks, surgery, repair, and the signal at each."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from reflow_tf.config import TARGETS, PruneConfig
from reflow_tf.data.batches import as_batches
from reflow_tf.errors import InputError
from reflow_tf.models.graph import find_kernels
from reflow_tf.models.loading import check_finite
from reflow_tf.models.surgery import copy_model, write_masks
from reflow_tf.repair import batchnorm
from reflow_tf.repair.batchnorm import Mode, RepairOutcome
from reflow_tf.signal import Signal
from reflow_tf.signal import measure_signal as _measure_signal
from reflow_tf.sparsity.allocation import ALLOCATIONS
from reflow_tf.sparsity.criteria import CRITERIA
from reflow_tf.sparsity.layers import LayerSpec, Skipped
from reflow_tf.sparsity.masks import build_masks
from reflow_tf.sparsity.plan import PruningPlan, make_plan
from reflow_tf.stopwatch import Stopwatch
from reflow_tf.targets.selection import select_kernels

Progress = Callable[[Iterable[np.ndarray], str], Iterable[np.ndarray]]
"""Wraps batches so that somebody sees how far a pass has come: (batches, what is being done) -> the same batches."""


def show_nothing(batches: Iterable[np.ndarray], description: str) -> Iterable[np.ndarray]:
    """The progress that a library shows."""
    del description
    return batches


@dataclasses.dataclass(frozen=True)
class PruneReport:
    """What happened to the model.

    Attributes:
        specs: the kernels that were pruned.
        skipped: everything else that holds a weight matrix, and why.
        repair: what restored the signal.
        signals: 'dense', 'pruned', 'repaired' -> what that model did with the evaluation inputs; empty without any.
        seconds: stage -> how long it took.
    """

    specs: tuple[LayerSpec, ...]
    skipped: tuple[Skipped, ...]
    repair: RepairOutcome
    signals: Mapping[str, Signal]
    seconds: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class PruneResult:
    """What `prune` returns.

    Attributes:
        model: pruned and repaired.
        plan: what each kernel got.
        masks: path -> boolean mask in canonical layout (output, *spatial, input), True = kept.
        report: what happened.
    """

    model: keras.Model
    plan: PruningPlan
    masks: Mapping[str, np.ndarray]
    report: PruneReport


def prune(
    model: keras.Model,
    config: PruneConfig | None = None,
    calibration: Any = None,
    *,
    evaluation: Any = None,
    batch_size: int = 64,
    inplace: bool = False,
    progress: Progress = show_nothing,
) -> PruneResult:
    """Prunes a model in one shot and restores its signal; the model itself stays as it is unless `inplace`.

    Args:
        model: a built Keras model with one input and one output.
        config: what to do; None: the defaults of `PruneConfig`.
        calibration: inputs, as the network takes them, that the repair estimates statistics on: an array (N, ...), a
            batched tf.data.Dataset, or an iterable of batches; labels in it are not looked at.
        evaluation: other inputs of the same kind: where given, the signal of the dense, the pruned and the repaired
            model is measured on them. Never the calibration images.
        batch_size: for arrays, the most inputs at a time.
        inplace: write into `model`, for models that Keras cannot rebuild from their configuration.
        progress: wraps each pass over batches.

    Raises:
        InputError: the model, the configuration or the data cannot be used. A model that was pruned `inplace` keeps its
            zeros when a later stage fails.
    """
    config = config or PruneConfig()
    if config.repair == "reflow" and calibration is None:
        raise InputError("The repair 'reflow' needs calibration inputs; repair='none' needs none. Received: None")
    check_finite(model)
    calibration = None if calibration is None else as_batches(calibration, batch_size=batch_size)
    evaluation = None if evaluation is None else as_batches(evaluation, batch_size=batch_size)
    signals: dict[str, Signal] = {}
    stopwatch = Stopwatch()

    def measure(stage: str, measured: keras.Model) -> None:
        if evaluation is not None:
            with stopwatch.timed(f"evaluate {stage}"):
                signals[stage] = _measure_signal(measured, progress(evaluation, f"Evaluating the {stage} model"))

    kernels = find_kernels(model)
    target = TARGETS[config.target]
    selection = select_kernels(kernels.specs, prunable=config.prunable, target=target, pattern=config.pattern)
    with stopwatch.timed("masks"):
        weights, criterion = kernels.read(), CRITERIA[config.criterion]
        scores = {spec.path: criterion(weights[spec.path], {}) for spec in selection.chosen}
        allocation = ALLOCATIONS[config.allocation]
        plan = make_plan(selection.chosen, scores, config.pattern, allocation, config.requested_sparsity)
        masks = build_masks(plan, scores)
    measure("dense", model)
    pruned = model if inplace else copy_model(model)
    write_masks(kernels if inplace else find_kernels(pruned), masks)
    measure("pruned", pruned)
    with stopwatch.timed("repair"):
        repair = _repair(pruned, config.repair, calibration, progress)
    measure("repaired", pruned)
    skipped = kernels.skipped + selection.skipped
    return PruneResult(pruned, plan, masks, PruneReport(selection.chosen, skipped, repair, signals, stopwatch.seconds))


def _repair(
    model: keras.Model, name: str, calibration: Iterable[np.ndarray] | None, progress: Progress
) -> RepairOutcome:
    if name == "none":
        return RepairOutcome("none", (), (), (), "No repair was asked for: the pruned model is exported as it is.")
    assert calibration is not None
    return batchnorm.recalibrate(model, progress(calibration, "Recalibrating"))


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
        InputError: the model has no batch norm, so that there is nothing to restore; or bad data.
    """
    recalibrated = model if inplace else copy_model(model)
    inputs = as_batches(batches, batch_size=batch_size)
    outcome = batchnorm.recalibrate(recalibrated, inputs, mode=mode, momentum=momentum)
    if not outcome.repaired:
        raise InputError(f"Recalibration needs a model with batch norms. Received: {model.name}: {outcome.statement}")
    return recalibrated


def measure_signal(model: keras.Model, batches: Any, *, batch_size: int = 64) -> Signal:
    """What the model does with these inputs, variance per batch norm and predictions; see `reflow_tf.signal`."""
    return _measure_signal(model, as_batches(batches, batch_size=batch_size))
