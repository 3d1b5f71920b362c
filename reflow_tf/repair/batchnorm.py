"""REFLOW: batch norms get the moments that the pruned network's activations really have; no weight moves.

Saikumar & Varghese, "Signal Collapse in One-Shot Pruning", arXiv 2502.15790. Every other layer runs as at inference:
Dropout, StochasticDepth and noise stay off. While the pass runs, each batch norm normalizes with the moments of the
batch at hand, so that the layers behind it see a restored signal; what it keeps are the moments of the whole set.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.errors import InputError
from reflow_tf.models.moments import MomentAccumulator, MovingAverage, PooledMoments
from reflow_tf.models.observation import LayerCall, replaced_calls, run
from reflow_tf.models.surgery import read_bits, write_values
from reflow_tf.models.walking import PlacedLayer, find_batch_norms
from reflow_tf.repair.contract import RepairOutcome

Mode = Literal["pooled", "moving_average"]


def recalibrate(
    model: keras.Model, batches: Iterable[np.ndarray], *, mode: Mode = "pooled", momentum: float = 0.99
) -> RepairOutcome:
    """Re-estimates the moving mean and variance of every batch norm, in place, in one pass.

    Args:
        model: a built model; on any error, and on Ctrl-C, its moments are what they were before.
        batches: float arrays (n, ...), of any sizes; a batch norm without spatial axes needs n > 1 to have a variance,
            and refuses a set in which every n is 1.
        mode: 'pooled', the exact moments of the whole set; 'moving_average', as training keeps them, to compare with.
        momentum: weight of the old value in a moving average, in [0, 1). Unused by 'pooled'.

    Raises:
        InputError: no batches, a batch of the wrong shape, activations that are not finite, an unknown mode.
    """
    norms = find_batch_norms(model)
    if not norms:
        return RepairOutcome("reflow", (), (), (), "REFLOW has nothing to restore: the model has no batch norm.")
    moving = {id(v) for norm in norms for v in (norm.layer.moving_mean, norm.layer.moving_variance)}
    others = [variable for variable in model.variables if id(variable) not in moving]
    bits = read_bits(others)
    accumulators = {norm.path: _accumulator(norm.layer, mode, momentum) for norm in norms}
    _pass_batches(model, norms, accumulators, batches)
    reached = tuple(norm for norm in norms if accumulators[norm.path].moments().count > 0)
    unreached = tuple(norm for norm in norms if norm not in reached)
    _write_moments(reached, accumulators)
    if read_bits(others) != bits:
        raise AssertionError("recalibration changed a variable that is not a moving moment")
    plural = "" if len(reached) == 1 else "s"
    statement = f"REFLOW re-estimated the moments of {len(reached)} batch norm{plural}; every weight is bit-identical."
    paths = tuple(norm.path for norm in reached), tuple(norm.path for norm in unreached)
    return RepairOutcome("reflow", *paths, ("moving_mean", "moving_variance"), statement)


def _accumulator(layer: keras.layers.BatchNormalization, mode: Mode, momentum: float) -> MomentAccumulator:
    match mode:
        case "pooled":
            return PooledMoments(layer.moving_mean.shape[0])
        case "moving_average" if 0 <= momentum < 1:
            return MovingAverage(*_read_moments(layer), momentum)
        case "moving_average":
            raise InputError(f"momentum must be in [0, 1). Received: {momentum}")
        case _:
            raise InputError(f"mode must be 'pooled' or 'moving_average'. Received: {mode!r}")


def _pass_batches(
    model: keras.Model,
    norms: tuple[PlacedLayer, ...],
    accumulators: Mapping[str, MomentAccumulator],
    batches: Iterable[np.ndarray],
) -> None:
    calls = {norm.layer: _call_with_batch_moments(norm.layer, accumulators[norm.path]) for norm in norms}
    num_batches = 0
    with replaced_calls(calls):
        for _ in run(model, batches):
            num_batches += 1
    if num_batches == 0:
        raise InputError("Recalibration needs at least one calibration batch. Received: none")
    for norm in norms:
        if 0 < accumulators[norm.path].moments().count <= num_batches:
            raise InputError(
                f"A batch norm needs two values a channel in a batch to have a variance; {norm.path} has no spatial "
                "axes to take them from, so it needs batches of at least two inputs. Received: batches of one"
            )


def _call_with_batch_moments(layer: keras.layers.BatchNormalization, accumulator: MomentAccumulator) -> LayerCall:
    inference_call = layer.call

    def call(inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        del training
        # Batch statistics are inference with the batch's moments in place of the moving ones: written so, whatever
        # else the layer does (no gamma, another axis, a subclass's own arithmetic) stays Keras's business.
        mean, variance = accumulator.update(inputs, layer.axis, mask)
        with _standing_in(layer, moving_mean=mean, moving_variance=variance):
            return inference_call(inputs, training=False)

    return call


@contextlib.contextmanager
def _standing_in(layer: keras.Layer, **tensors: tf.Tensor) -> Iterator[None]:
    """For the time of the block, the layer's attributes are these tensors; the variables are not touched."""
    # Around Keras's `__setattr__`, which would track them as variables that come and go.
    variables = {name: layer.__dict__[name] for name in tensors}
    layer.__dict__.update(tensors)
    try:
        yield
    finally:
        layer.__dict__.update(variables)


def _write_moments(norms: tuple[PlacedLayer, ...], accumulators: Mapping[str, MomentAccumulator]) -> None:
    moments = {norm.path: accumulators[norm.path].moments() for norm in norms}
    for path, found in moments.items():
        if not (np.isfinite(found.mean).all() and np.isfinite(found.variance).all()):
            raise InputError(f"Activations must be finite. Received: NaN or infinity at the input of {path}")
    before = {norm.path: _read_moments(norm.layer) for norm in norms}
    try:
        for norm in norms:
            write_values(norm.layer.moving_mean, moments[norm.path].mean)
            write_values(norm.layer.moving_variance, moments[norm.path].variance)
    except BaseException:  # Ctrl-C between two layers
        for norm in norms:
            norm.layer.moving_mean.assign(before[norm.path][0])
            norm.layer.moving_variance.assign(before[norm.path][1])
        raise


def _read_moments(layer: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    return keras.ops.convert_to_numpy(layer.moving_mean), keras.ops.convert_to_numpy(layer.moving_variance)
