"""REFLOW: batch norms get the moments that the pruned network's activations really have; no weight moves.

Saikumar & Varghese, "Signal Collapse in One-Shot Pruning", arXiv 2502.15790. Every other layer runs as at inference:
Dropout, StochasticDepth and noise stay off. While the pass runs, each batch norm normalizes with the moments of the
batch at hand, so that the layers behind it see a restored signal; what it keeps are the moments of the whole set.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.crew import ALONE, Crew, State
from reflow_tf.data.portions import Portion
from reflow_tf.errors import InputError
from reflow_tf.models.carrying import Carried
from reflow_tf.models.moments import Merged, MergedMoments, MovingAverage, PartialMoments, PooledMoments
from reflow_tf.models.observation import LayerCall, OneByOne, replaced_calls, run
from reflow_tf.models.surgery import read_bits, write_values
from reflow_tf.models.walking import PlacedLayer, find_batch_norms
from reflow_tf.repair.contract import Progress, RepairOutcome, show_nothing
from reflow_tf.repair.passing import pass_over

Mode = Literal["pooled", "moving_average"]


def recalibrate(
    model: keras.Model,
    batches: Iterable[np.ndarray],
    *,
    mode: Mode = "pooled",
    momentum: float = 0.99,
    progress: Progress = show_nothing,
    crew: Crew = ALONE,
) -> RepairOutcome:
    """Re-estimates the moving mean and variance of every batch norm, in place, in one pass.

    Args:
        model: a built model; on any error, and on Ctrl-C, its moments are what they were before.
        batches: float arrays (n, ...), of any sizes; a batch norm without spatial axes needs n > 1 to have a variance,
            and refuses a set in which every n is 1.
        mode: 'pooled', the exact moments of the whole set; 'moving_average', as training keeps them, to compare with.
        momentum: weight of the old value in a moving average, in [0, 1). Unused by 'pooled'.
        progress: wraps the pass.
        crew: who runs the batches.

    Raises:
        InputError: no batches, a batch of the wrong shape, activations that are not finite, an unknown mode.
    """
    norms = find_batch_norms(model)
    if not norms:
        return RepairOutcome("reflow", (), (), (), "REFLOW has nothing to restore: the model has no batch norm.")
    moving = {id(v) for norm in norms for v in (norm.layer.moving_mean, norm.layer.moving_variance)}
    others = [variable for variable in model.variables if id(variable) not in moving]
    bits = read_bits(others)
    merged = {norm.path: _open_merged(norm.layer, mode, momentum) for norm in norms}
    with crew.begin(Recalibrating(Carried(model, crew.address), batches)) as site:
        _merge(merged, pass_over(site, batches, progress, "Recalibrating"))
    reached = tuple(norm for norm in norms if merged[norm.path].moments().count > 0)
    unreached = tuple(norm for norm in norms if norm not in reached)
    _write_moments(reached, merged)
    if read_bits(others) != bits:
        raise AssertionError("recalibration changed a variable that is not a moving moment")
    plural = "" if len(reached) == 1 else "s"
    statement = f"REFLOW re-estimated the moments of {len(reached)} batch norm{plural}; every weight is bit-identical."
    paths = tuple(norm.path for norm in reached), tuple(norm.path for norm in unreached)
    return RepairOutcome("reflow", *paths, ("moving_mean", "moving_variance"), statement)


def _open_merged(layer: keras.layers.BatchNormalization, mode: Mode, momentum: float) -> MergedMoments:
    match mode:
        case "pooled":
            return Merged(layer.moving_mean.shape[0])
        case "moving_average" if 0 <= momentum < 1:
            return MovingAverage(*_read_moments(layer), momentum)
        case "moving_average":
            raise InputError(f"momentum must be in [0, 1). Received: {momentum}")
        case _:
            raise InputError(f"mode must be 'pooled' or 'moving_average'. Received: {mode!r}")


def _merge(merged: Mapping[str, MergedMoments], found: Iterable[Sequence[PartialMoments]]) -> None:
    """Puts together what each batch had, in their order."""
    num_batches = 0
    for partials in found:
        num_batches += 1
        for moments, partial in zip(merged.values(), partials, strict=True):
            moments.add(partial)
    if num_batches == 0:
        raise InputError("Recalibration needs at least one calibration batch. Received: none")
    for path, moments in merged.items():
        if 0 < moments.moments().count <= num_batches:
            raise InputError(
                f"A batch norm needs two values a channel in a batch to have a variance; {path} has no spatial "
                "axes to take them from, so it needs batches of at least two inputs. Received: batches of one"
            )


@dataclasses.dataclass(frozen=True)
class Recalibrating:
    """The pass as a `crew.Work`: for each `Portion`, the moments that each batch norm met, in their order."""

    carried: Carried
    batches: Iterable[np.ndarray]

    def prepare(self) -> State:
        return _Pass(self.carried.model, self.batches)


class _Pass(State):
    def __init__(self, model: keras.Model, batches: Iterable[np.ndarray]):
        self._batches = batches
        self._moments = [
            (norm.layer, PooledMoments(norm.layer.moving_mean.shape[0])) for norm in find_batch_norms(model)
        ]
        self._calls = {layer: _call_with_batch_moments(layer, moments) for layer, moments in self._moments}
        self._run = OneByOne(functools.partial(run, model))

    def __call__(self, items: Iterable[Portion]) -> Iterator[list[PartialMoments]]:
        for portion in items:
            with replaced_calls(self._calls):
                self._run(portion.read(self._batches))
            yield [moments.take() for _, moments in self._moments]


def _call_with_batch_moments(layer: keras.layers.BatchNormalization, accumulator: PooledMoments) -> LayerCall:
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


def _write_moments(norms: tuple[PlacedLayer, ...], merged: Mapping[str, MergedMoments]) -> None:
    moments = {norm.path: merged[norm.path].moments() for norm in norms}
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
