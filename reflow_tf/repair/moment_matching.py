"""Moment matching: what recalibration is to batch norms, for layers behind which none stands.

A pruned kernel w with bias b gives channel c the pre-activation mean m and standard deviation s where the dense one
gave M and S. With

    w_c <- w_c * S_c / s_c,    b_c <- b_c * S_c / s_c + M_c - m_c * S_c / s_c

both are the dense network's again: the correction that a batch norm behind the layer would make, in closed form. It is
the mean-and-variance half of bias correction (Nagel et al., "Data-Free Quantization", ICCV 2019, arXiv 1906.04721,
section 4.2), taken from data.

Layers are corrected in the order of execution, one pass each, so that every layer is measured behind corrected ones. To
correct all in one pass and to repeat that until the moments agree does not do: in networks with shortcuts the
corrections of one pass undo each other, and on a pruned ConvNeXt they grew from pass to pass.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.consumers import NormCover, find_norm_cover
from reflow_tf.models.inference import infer
from reflow_tf.models.moments import Moments, PooledMoments
from reflow_tf.models.observation import LayerCall, find_activation, replaced_calls, run, without_activation
from reflow_tf.models.precision import read_wide
from reflow_tf.models.surgery import write_values
from reflow_tf.models.walking import walk
from reflow_tf.repair.contract import Progress, PrunedModel, RepairOutcome, show_nothing

NAME = "moments"
# A channel that keeps less of its variance, or none, is dead: what is left of it is no image of what it was.
LEAST_KEPT_VARIANCE = 0.01


@dataclasses.dataclass(frozen=True)
class _Site:
    """One layer to correct.

    Attributes:
        path: of the layer.
        layer: what computes activation(kernel * inputs + bias).
        kernel: the variable that is scaled: of a separable convolution, the pointwise one.
        output_axes: the axes of the kernel that number the channels.
        channel_axis: of the layer's output.
    """

    path: str
    layer: keras.Layer
    kernel: keras.Variable
    output_axes: tuple[int, ...]
    channel_axis: int

    @property
    def num_channels(self) -> int:
        return int(np.prod([self.kernel.shape[axis] for axis in self.output_axes]))


def match_moments(
    pruned: PrunedModel, batches: Iterable[np.ndarray], progress: Progress = show_nothing
) -> RepairOutcome:
    """Gives every pruned layer without batch norm the dense network's mean and variance per channel, in place.

    A layer without bias has its scale corrected only. Channels that the dense network or the pruned one leaves constant
    get their mean only.

    Args:
        pruned: on any error, and on Ctrl-C, it is what it was before.
        batches: float arrays (n, ...), re-iterable: the dense network runs over them once, the pruned one once for each
            layer, as far as that layer.
        progress: wraps each pass.

    Raises:
        InputError: no batches, a batch of the wrong shape, activations that are not finite.
    """
    cover = find_norm_cover(pruned.model, pruned.masks)
    sites, unsupported = _find_sites(pruned.model, cover.bare)
    if not sites:
        return RepairOutcome(NAME, (), (), (), _say_why_not(cover, unsupported))
    order: dict[str, None] = {}
    with pruned.as_dense():
        dense = _measure(pruned.model, sites, progress(batches, "Measuring the dense layers"), order)
    by_path = {site.path: site for site in sites}
    reached = tuple(path for path in order if dense[path].count > 0)
    with pruned.restored_on_error():
        for number, path in enumerate(reached, start=1):
            watched = progress(batches, f"Matching moments, layer {number} of {len(reached)}")
            found = _measure(pruned.model, (by_path[path],), watched, {})
            _correct(by_path[path], found[path], dense[path])
    unreached = tuple(path for path in by_path if path not in reached)
    statement = _say_what_moved([by_path[path] for path in reached]) + _say_what_did_not(cover, unsupported)
    return RepairOutcome(NAME, reached, unreached, ("kernel", "bias"), statement)


def _find_sites(model: keras.Model, bare: tuple[str, ...]) -> tuple[tuple[_Site, ...], tuple[str, ...]]:
    """The layers of these kernels, each once; and the kernels whose layer hides what comes before its activation."""
    owners = {placed.path: placed.layer for placed in walk(model)}
    sites, unsupported = {}, []
    for path in bare:
        layer_path = path.rpartition("/")[0]
        site = _describe(layer_path, owners[layer_path])
        if site is None:
            unsupported.append(path)
        else:
            sites[layer_path] = site
    return tuple(sites.values()), tuple(unsupported)


def _describe(path: str, layer: keras.Layer) -> _Site | None:
    match layer:
        case layers.SeparableConv1D() | layers.SeparableConv2D():
            return _Site(path, layer, layer.pointwise_kernel, (layer.rank + 1,), _channel_axis(layer))
        case layers.DepthwiseConv1D() | layers.DepthwiseConv2D():
            return _Site(path, layer, layer.kernel, (layer.rank, layer.rank + 1), _channel_axis(layer))
        case layers.Conv1DTranspose() | layers.Conv2DTranspose() | layers.Conv3DTranspose():
            return _Site(path, layer, layer.kernel, (layer.rank,), _channel_axis(layer))
        case layers.Conv1D() | layers.Conv2D() | layers.Conv3D():
            return _Site(path, layer, layer._kernel, (layer.rank + 1,), _channel_axis(layer))
        case layers.Dense():
            return _Site(path, layer, layer._kernel, (1,), -1)
    return None


def _channel_axis(layer: keras.Layer) -> int:
    return 1 if layer.data_format == "channels_first" else -1


def _call_for_nothing(model: keras.Model, inputs: tf.Tensor) -> tf.Tensor:
    """Nothing: where no output is asked for, TensorFlow computes of the graph what the observed layers need."""
    infer(model, inputs)
    return tf.zeros(())


def _measure(
    model: keras.Model, sites: tuple[_Site, ...], batches: Iterable[np.ndarray], order: dict[str, None]
) -> dict[str, Moments]:
    """One pass: the moments of each layer before its activation. `order` gets the layers as they are called."""
    accumulators = {site.path: PooledMoments(site.num_channels) for site in sites}
    calls = {site.layer: _observed_call(site, accumulators[site.path], order) for site in sites}
    num_batches = 0
    with replaced_calls(calls):
        for _ in run(model, batches, _call_for_nothing):
            num_batches += 1
    if num_batches == 0:
        raise InputError("Moment matching needs at least one calibration batch. Received: none")
    moments = {path: accumulator.moments() for path, accumulator in accumulators.items()}
    for path, found in moments.items():
        if not (np.isfinite(found.mean).all() and np.isfinite(found.variance).all()):
            raise InputError(f"Activations must be finite. Received: NaN or infinity in {path}")
    return moments


def _observed_call(site: _Site, accumulator: PooledMoments, order: dict[str, None]) -> LayerCall:
    layer, activation, inference_call = site.layer, find_activation(site.layer), site.layer.call

    def call(inputs: tf.Tensor, **options: object) -> tf.Tensor:
        order[site.path] = None
        with without_activation(layer):
            values = inference_call(inputs, **options)
        accumulator.update(values, site.channel_axis)
        return values if activation is None else activation(values)

    return call


def _correct(site: _Site, found: Moments, target: Moments) -> None:
    """Folds what turns the one moments into the other into the layer's variables."""
    alive = found.variance > LEAST_KEPT_VARIANCE * target.variance
    scale = np.sqrt(np.divide(target.variance, found.variance, out=np.ones_like(found.variance), where=alive))
    per_channel = [size if axis in site.output_axes else 1 for axis, size in enumerate(site.kernel.shape)]
    write_values(site.kernel, read_wide(site.kernel) * scale.reshape(per_channel))
    if site.layer.bias is not None:
        shift = target.mean - found.mean * scale
        write_values(site.layer.bias, read_wide(site.layer.bias) * scale + shift)


def _say_what_moved(sites: Sequence[_Site]) -> str:
    plural = "" if len(sites) == 1 else "s"
    statement = f"Moment matching gave {len(sites)} layer{plural} without batch norm the dense mean and variance"
    if scaled := sum(site.layer.bias is None for site in sites):
        statement += f" ({scaled} without bias: the variance only)"
    return statement + "."


def _say_what_did_not(cover: NormCover, unsupported: tuple[str, ...]) -> str:
    statement = ""
    if unsupported:
        statement += f" No rule for {', '.join(unsupported)}."
    if cover.unknown:
        statement += (
            f" For {len(cover.unknown)} kernels inside subclassed models or layers it is not known whether a batch "
            "norm follows; they were left alone."
        )
    return statement


def _say_why_not(cover: NormCover, unsupported: tuple[str, ...]) -> str:
    statement = "Moment matching had nothing to do: "
    if not (unsupported or cover.unknown):
        return statement + "a batch norm stands behind every pruned kernel."
    return statement + "no pruned kernel is known to lack a batch norm." + _say_what_did_not(cover, unsupported)
