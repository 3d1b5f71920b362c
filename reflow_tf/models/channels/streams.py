"""Linear streams: channels that are only ever added up and multiplied by kernels, so that any basis serves as well.

The residual streams of MobileNetV2 and its descendants are such: what projections write, with a batch norm and no
activation, is added, and expansions read it. With an invertible matrix T after every writer and its inverse before
every reader the network computes what it did. Slicing language models rests on the same freedom (Ashkboos et al.,
"SliceGPT", arXiv 2401.15024).
"""

import dataclasses
from collections import Counter

import keras
import numpy as np
from keras import layers

from reflow_tf.models.calls import Call
from reflow_tf.models.channels.groups import ChannelReading, collect_groups, read_channels
from reflow_tf.models.observation import find_activation
from reflow_tf.models.precision import read_wide
from reflow_tf.models.surgery import write_values

_KERNELS = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
# Linear, the same for every channel, and 0 where all is 0.
_PASSED = (
    layers.Identity, layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D,
    layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D, layers.Cropping1D, layers.Cropping2D,
    layers.Cropping3D, layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Writer:
    """A layer whose outputs go into a stream as they are, or through a batch norm of their own."""

    layer: keras.Layer
    norm: layers.BatchNormalization | None

    @property
    def end(self) -> keras.Layer:
        """What gives the values that are added to the stream."""
        return self.norm or self.layer


@dataclasses.dataclass(frozen=True)
class Stream:
    """Channels in whatever basis one likes.

    Attributes:
        size: how many.
        writers: Dense layers and convolutions that add to it.
        readers: those that take it.
    """

    size: int
    writers: tuple[Writer, ...]
    readers: tuple[keras.Layer, ...]


def find_streams(model: keras.Model) -> tuple[Stream, ...]:
    """All linear streams of a model; of a subclassed model none are known.

    Args:
        model: a built model.
    """
    reading = read_channels(model)
    groups = collect_groups(reading.numberings)
    found = (_read_stream(root, reading) for root, group in groups.items() if group.frozen is None)
    return tuple(stream for stream in found if stream is not None)


def _read_stream(root: int, reading: ChannelReading) -> Stream | None:
    """The stream of a numbering, or None where something that is done with it is not linear."""
    calls, uses = reading.graph.calls, _count_uses(reading)
    writing, norming, readers = [], [], []
    for call in calls:
        taken, given = _has(root, call.inputs, reading), _has(root, call.outputs, reading)
        if not (taken or given) or call.operation is None:
            continue
        if any(reading.roots(tensor) not in ((root,), None) for tensor in _those(root, call, reading)):
            return None  # beside other channels, or many times
        if any(uses[id(variable)] > 1 for variable in getattr(call.operation, "variables", ())):
            return None
        if type(call.operation) in _KERNELS and getattr(call.operation, "groups", 1) == 1:
            if given:
                writing.append(call)
            if taken:
                readers.append(call.operation)
        elif type(call.operation) is layers.BatchNormalization:
            norming.append(call)
        elif not _is_linear(call, root, reading):
            return None
    writers = [_pair_with_norm(call, norming, reading) for call in writing]
    if not readers or None in writers or sum(w is not None and w.norm is not None for w in writers) < len(norming):
        return None
    size = reading.numberings.size((root,))
    return Stream(size, tuple(w for w in writers if w is not None), tuple(readers))


def _count_uses(reading: ChannelReading) -> Counter[int]:
    """Id of a variable -> in how many calls it is used."""
    return Counter(id(v) for call in reading.graph.calls for v in getattr(call.operation, "variables", ()))


def _has(root: int, tensors: tuple[int, ...], reading: ChannelReading) -> bool:
    return any(root in (reading.roots(tensor) or ()) for tensor in tensors)


def _those(root: int, call: Call, reading: ChannelReading) -> list[int]:
    """The tensors of a call that have channels of the stream."""
    return [tensor for tensor in (*call.inputs, *call.outputs) if root in (reading.roots(tensor) or ())]


def _is_linear(call: Call, root: int, reading: ChannelReading) -> bool:
    """Whether the call adds up tensors of the stream, or treats each of its channels alike and linearly."""
    kind = type(call.operation)
    if kind is layers.Add or (kind.__name__ == "Add" and not call.constants):
        return all(reading.roots(tensor) == (root,) for tensor in call.inputs)
    return kind in _PASSED


def _pair_with_norm(call: Call, norming: list[Call], reading: ChannelReading) -> Writer | None:
    """The writer with the batch norm that takes all it gives, if one does; None where it cannot be written anew."""
    layer = call.operation
    assert isinstance(layer, keras.Layer)
    if find_activation(layer) is not None:
        return None
    (output,) = call.outputs
    behind = [norm for norm in norming if output in norm.inputs]
    if not behind:
        return Writer(layer, None)
    takers = [other for other in reading.graph.calls if output in other.inputs]
    norm = behind[0].operation
    assert isinstance(norm, layers.BatchNormalization)
    if len(takers) > 1 or output in reading.graph.ends or not (norm.scale and norm.center):
        return None
    return Writer(layer, norm)


def change_basis(stream: Stream, basis: np.ndarray) -> None:
    """Writes a stream's layers so that its channels are `basis @ channels`; the network computes what it did.

    A batch norm behind a writer scales channels one by one. That goes into the kernel, whose norm stays what it was,
    so that magnitudes compare with those of other layers as before; the batch norm scales all channels alike. Of its
    moments the mean is exact, and the variance 1, whatever it is: see `write_norm`.

    Args:
        stream: of the model that is written to.
        basis: T, (size, size), orthogonal: then rounding errors stay what they were.
    """
    for writer in stream.writers:
        change = basis
        kernel = read_wide(writer.layer._kernel).astype(np.float64)
        if (norm := writer.norm) is not None:
            change = basis * _find_scales(norm)
            grown = float(np.linalg.norm(kernel @ change.T) / (np.linalg.norm(kernel) or 1.0)) or 1.0
            change = change / grown
            mean = change @ read_wide(norm.moving_mean).astype(np.float64)
            write_values(norm.beta, basis @ read_wide(norm.beta).astype(np.float64))
            write_values(norm.moving_mean, mean)
            write_norm(norm, np.ones(stream.size), grown)
        write_values(writer.layer._kernel, kernel @ change.T)
        if writer.layer.use_bias:
            write_values(writer.layer.bias, change @ read_wide(writer.layer.bias).astype(np.float64))
    for layer in stream.readers:
        kernel = read_wide(layer._kernel).astype(np.float64)
        write_values(layer._kernel, np.moveaxis(np.tensordot(basis, kernel, (1, kernel.ndim - 2)), 0, -2))


def write_norm(norm: layers.BatchNormalization, variance: np.ndarray, scale: float) -> None:
    """Gives a batch norm the variance that is on record, and the gamma with which it multiplies channels by `scale`."""
    write_values(norm.moving_variance, variance)
    write_values(norm.gamma, scale * np.sqrt(variance + norm.epsilon))


def _find_scales(norm: layers.BatchNormalization) -> np.ndarray:
    """What the batch norm multiplies each channel by, (channels,) float64."""
    gamma, variance = (read_wide(variable).astype(np.float64) for variable in (norm.gamma, norm.moving_variance))
    return gamma / np.sqrt(variance + norm.epsilon)
