"""REFLOW: batch norms get the moments that the pruned network's activations really have; no weight moves.

Saikumar & Varghese, "Signal Collapse in One-Shot Pruning", arXiv 2502.15790. Every other layer runs as at inference:
Dropout, StochasticDepth and noise stay off. While the pass runs, each batch norm normalizes with the moments of the
batch at hand, so that the layers behind it see a restored signal; what it keeps are the moments of the whole set.

The paper takes these as they are. But what a network was trained on, cropped and padded, has other moments than
calibration images, also where nothing was pruned: ResNet-20 with 30 % zeros loses nothing, and 4 points by
recalibration; EfficientNet-Lite0 10. So where the dense network is there, its batch norms say how moments on these
images differ from those of the training, and the pruned ones get moments that differ as much (`Reference`). At sparsity
0 nothing changes. 500 images of ResNet-20's training set calibrate, top-1 on 1,500 others; 200 of 400 photographs for
the other (`global`, 1x1 convolutions), agreement with the dense network on the rest:

    | | ResNet-20 30 % | 70 % | 80 % | 90 % | Lite0 30 % | 60 % |
    | magnitude | 99.4 | 75.8 | 41.1 | 11.0 | 92.5 | 14.0 |
    | moments as they are | 95.4 | 87.2 | 73.1 | 43.7 | 82.5 | 68.0 |
    | beside the dense network's | 99.5 | 93.4 | 82.7 | 52.6 | 94.0 | 77.0 |
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from reflow_tf.crew import ALONE, Crew, State
from reflow_tf.data.portions import Portion
from reflow_tf.errors import InputError
from reflow_tf.models.carrying import Carried
from reflow_tf.models.moments import Merged, MergedMoments, Moments, MovingAverage, PartialMoments, PooledMoments
from reflow_tf.models.observation import LayerCall, OneByOne, replaced_calls, run
from reflow_tf.models.surgery import read_bits, restored_on_error, write_values
from reflow_tf.models.walking import PlacedLayer, find_batch_norms
from reflow_tf.repair.contract import Progress, RepairOutcome, show_nothing
from reflow_tf.repair.passing import pass_over

Mode = Literal["pooled", "moving_average"]
LEAST_EPSILON = 1e-12
"""Beside variances; of channels that never vary, in either network, all that is known is that nothing changed."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """A batch norm of the dense network: its own moments, and those of what it takes on calibration inputs.

    Attributes:
        mean, variance: its own, (channels,) float32.
        taken_mean, taken_variance: of what it takes at inference, (channels,) float32.
        epsilon: that it adds to variances.
    """

    mean: np.ndarray
    variance: np.ndarray
    taken_mean: np.ndarray
    taken_variance: np.ndarray
    epsilon: float

    def follow(self, mean: Any, variance: Any) -> tuple[Any, Any]:
        """The moments that make outputs what the dense norm's are, where inputs have these: mean, variance (channels,).

        A dense output is (taken_mean - mean) / sqrt(variance) + sqrt(taken_variance / variance) u with u of mean 0 and
        variance 1; with u = (x - m) / sqrt(v) of the pruned network's x in its place, that is what comes of x and

            V = v variance / taken_variance,  M = m - sqrt(V / variance) (taken_mean - mean),

        epsilon added to each variance. Takes and gives tensors as well as arrays.
        """
        epsilon = max(self.epsilon, LEAST_EPSILON)
        ratio = (self.variance + epsilon) / (self.taken_variance + epsilon)
        wanted = (variance + epsilon) * ratio - epsilon
        wanted = wanted * (wanted > 0) if isinstance(wanted, np.ndarray) else tf.maximum(wanted, 0)
        root = ((wanted + epsilon) / (self.variance + epsilon)) ** 0.5
        return mean - root * (self.taken_mean - self.mean), wanted


References = Mapping[str, Reference]
"""Path of a batch norm -> it."""


def recalibrate(
    model: keras.Model,
    batches: Iterable[np.ndarray],
    *,
    mode: Mode = "pooled",
    momentum: float = 0.99,
    references: References | None = None,
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
        references: of the dense network, see `observe_dense`; a batch norm without one gets the moments as they are.
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
    references = references or {}
    with crew.begin(Recalibrating(Carried(model, crew.address), batches, _by_position(norms, references))) as site:
        _merge(merged, pass_over(site, batches, progress, "Recalibrating"))
    reached = tuple(norm for norm in norms if merged[norm.path].moments().count > 0)
    unreached = tuple(norm for norm in norms if norm not in reached)
    _write_moments(reached, merged, references)
    if read_bits(others) != bits:
        raise AssertionError("recalibration changed a variable that is not a moving moment")
    plural = "" if len(reached) == 1 else "s"
    beside = ", beside those of the dense network," if references else ""
    statement = (
        f"REFLOW re-estimated the moments of {len(reached)} batch norm{plural}{beside or ';'} "
        f"{'and ' if beside else ''}every weight is bit-identical."
    )
    paths = tuple(norm.path for norm in reached), tuple(norm.path for norm in unreached)
    return RepairOutcome("reflow", *paths, ("moving_mean", "moving_variance"), statement)


def observe_dense(
    model: keras.Model, batches: Iterable[np.ndarray], *, progress: Progress = show_nothing, crew: Crew = ALONE
) -> References:
    """What every batch norm of a dense network takes at inference, in one pass; those that nothing reached are missing.

    Args:
        model: a built model, dense; it stays as it is.
        batches: those that `recalibrate` gets.
        progress: wraps the pass.
        crew: who runs the batches.

    Raises:
        InputError: no batches, a batch of the wrong shape, or activations that are not finite.
    """
    norms = find_batch_norms(model)
    if not norms:
        return {}
    found = {norm.path: Merged(norm.layer.moving_mean.shape[0]) for norm in norms}
    with crew.begin(Recalibrating(Carried(model, crew.address), batches, None)) as site:
        for partials in pass_over(site, batches, progress, "Watching the dense batch norms"):
            for merged, partial in zip(found.values(), partials, strict=True):
                merged.add(partial)
    taken = {norm: found[norm.path].moments() for norm in norms}
    _require_finite({norm.path: moments for norm, moments in taken.items()})
    return {
        norm.path: Reference(*_read_moments(norm.layer), *_narrow(moments), norm.layer.epsilon)
        for norm, moments in taken.items()
        if moments.count
    }


def _narrow(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    return moments.mean.astype(np.float32), moments.variance.astype(np.float32)


def _by_position(norms: Sequence[PlacedLayer], references: References) -> tuple[Reference | None, ...]:
    """Layers may have other names where the model is loaded."""
    return tuple(references.get(norm.path) for norm in norms)


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
    """The pass as a `crew.Work`: for each `Portion`, the moments that each batch norm met, in their order.

    Attributes:
        carried: the model.
        batches: to lead through it.
        references: of its batch norms, in their order, which normalize with the moments of the batch at hand; None:
            they normalize as at inference.
    """

    carried: Carried
    batches: Iterable[np.ndarray]
    references: tuple[Reference | None, ...] | None

    def prepare(self) -> State:
        return _Pass(self.carried.model, self.batches, self.references)


class _Pass(State):
    def __init__(
        self, model: keras.Model, batches: Iterable[np.ndarray], references: tuple[Reference | None, ...] | None
    ):
        self._batches = batches
        self._moments = [
            (norm.layer, PooledMoments(norm.layer.moving_mean.shape[0])) for norm in find_batch_norms(model)
        ]
        if references is None:
            self._calls = {layer: _call_at_inference(layer, moments) for layer, moments in self._moments}
        else:
            self._calls = {
                layer: _call_with_batch_moments(layer, moments, reference)
                for (layer, moments), reference in zip(self._moments, references, strict=True)
            }
        self._run = OneByOne(functools.partial(run, model))

    def __call__(self, items: Iterable[Portion]) -> Iterator[list[PartialMoments]]:
        for portion in items:
            with replaced_calls(self._calls):
                self._run(portion.read(self._batches))
            yield [moments.take() for _, moments in self._moments]


def _call_at_inference(layer: keras.layers.BatchNormalization, accumulator: PooledMoments) -> LayerCall:
    inference_call = layer.call

    def call(inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        del training
        accumulator.update(inputs, layer.axis, mask)
        return inference_call(inputs, training=False)

    return call


def _call_with_batch_moments(
    layer: keras.layers.BatchNormalization, accumulator: PooledMoments, reference: Reference | None
) -> LayerCall:
    inference_call = layer.call

    def call(inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        del training
        # Batch statistics are inference with the batch's moments in place of the moving ones: written so, whatever
        # else the layer does (no gamma, another axis, a subclass's own arithmetic) stays Keras's business.
        mean, variance = accumulator.update(inputs, layer.axis, mask)
        if reference is not None:
            mean, variance = reference.follow(mean, variance)
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


def _write_moments(norms: tuple[PlacedLayer, ...], merged: Mapping[str, MergedMoments], references: References) -> None:
    moments = {norm.path: merged[norm.path].moments() for norm in norms}
    _require_finite(moments)
    for path, reference in references.items():
        if path in moments:
            mean, variance = reference.follow(moments[path].mean, moments[path].variance)
            moments[path] = dataclasses.replace(moments[path], mean=mean, variance=variance)
    with restored_on_error([v for norm in norms for v in (norm.layer.moving_mean, norm.layer.moving_variance)]):
        for norm in norms:
            write_values(norm.layer.moving_mean, moments[norm.path].mean)
            write_values(norm.layer.moving_variance, moments[norm.path].variance)


def _require_finite(moments: Mapping[str, Moments]) -> None:
    for path, found in moments.items():
        if not (np.isfinite(found.mean).all() and np.isfinite(found.variance).all()):
            raise InputError(f"Activations must be finite. Received: NaN or infinity at the input of {path}")


def _read_moments(layer: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    return keras.ops.convert_to_numpy(layer.moving_mean), keras.ops.convert_to_numpy(layer.moving_variance)
