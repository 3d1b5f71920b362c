"""The Gram of what a layer's kernel multiplies: the mean of x x^T over images and positions.

x is the patch (spatial, input), flattened, that one output of a group multiplies; the outputs are split evenly and in
order over the groups. A depthwise kernel has a group a channel. Positions beyond the image are zeros where the layer
pads with zeros. A mask of time steps is not looked at.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from reflow_tf.errors import InputError
from reflow_tf.models.observation import LayerCall, replaced_calls, run
from reflow_tf.models.walking import walk
from reflow_tf.sparsity.layers import LayerSpec

MOST_POSITIONS = 1024
"""Output positions of an image that are looked at: all up to so many, of more every t-th row and column.

32 x 32 outputs are exact; of 112 x 112, every fourth row and column are taken, 784 positions.
"""
MOST_OF_CHANNEL = 64
"""The same of a depthwise kernel, of which an output has nine weights, as a rule: 8 x 8 are exact.

Least squares, 500 images, with 1,024 and with 64 positions: MobileNet 0.25 at half of its multiply-adds 33 and 19 s,
both 88.7 % on 5,000 others; MobileNetV2 on 64 x 64 at 35 % 91.9 and 92.1 %; on 224 x 224 at 80 % 78.5 and 79.1 % on 650
others.
"""

MOST_READ = 8192
"""Numbers that one output multiplies, for its layer to be solved for: the Gram of so many is half a gigabyte.

A 3x3 kernel over 1,280 channels (11,520 numbers, as of a detector on MobileNetV2) took least squares more than
8 minutes and 11 GB on two cores.
"""

Patches = Callable[[tf.Tensor], tf.Tensor]


def gather(model: keras.Model, specs: Sequence[LayerSpec], batches: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Path of the spec -> (groups, d, d) float64, for the kernels that a batch ran through.

    Raises:
        InputError: kernels whose layers have no rule here; no batches, or batches that do not fit.
    """
    sums = _find_sums(model, specs)
    calls = {of_layer[0].layer: _call_and_add(of_layer) for of_layer in _by_layer(sums)}
    num_batches = 0
    with replaced_calls(calls):
        for _ in run(model, batches):
            num_batches += 1
    if num_batches == 0:
        raise InputError("Statistics need at least one calibration batch. Received: none")
    return {gram.path: gram.mean() for gram in sums if gram.count.numpy() > 0}


def count_numbers(model: keras.Model, specs: Sequence[LayerSpec]) -> int:
    """How many numbers the Grams of these kernels hold: (groups, d, d) each."""
    placed = {place.path: place.layer for place in walk(model)}
    total = 0
    for spec in specs:
        place, _, name = spec.path.rpartition("/")
        total += _count_groups(placed[place], name) * (spec.num_weights // spec.canonical_shape[0]) ** 2
    return total


def is_too_wide(spec: LayerSpec) -> bool:
    """Whether one output of the kernel multiplies more numbers than a Gram is solved for."""
    return spec.num_weights // spec.canonical_shape[0] > MOST_READ


def is_solvable(layer: keras.Layer, spec: LayerSpec) -> bool:
    """Whether a kernel can be fitted to what its layer gives.

    There has to be a rule for what it multiplies, and that may not be too much; and the layer has to give what the
    kernel makes of it, as a separable convolution does with its second kernel alone.
    """
    name = spec.path.rpartition("/")[2]
    is_inside = isinstance(layer, layers.SeparableConv1D | layers.SeparableConv2D) and name != "pointwise_kernel"
    return not is_inside and not is_too_wide(spec) and find_patches(layer, name) is not None


@dataclasses.dataclass(frozen=True)
class _GramSum:
    """The running sum for one kernel.

    Attributes:
        path: of the kernel.
        layer: whose call is observed.
        patches: input of the layer -> (groups, samples, d) of what the kernel multiplies.
        count: (), samples so far.
        total: (groups, d, d), the sum of x x^T so far.
    """

    path: str
    layer: keras.Layer
    patches: Patches
    count: tf.Variable
    total: tf.Variable

    def add(self, inputs: tf.Tensor) -> None:
        values = tf.cast(self.patches(inputs), tf.float32)
        # Sums of a batch in float32, as a layer computes them; across batches in float64.
        self.total.assign_add(tf.cast(tf.matmul(values, values, transpose_a=True), tf.float64))
        self.count.assign_add(tf.cast(tf.shape(values)[1], tf.float64))

    def mean(self) -> np.ndarray:
        return self.total.numpy() / self.count.numpy()


def _find_sums(model: keras.Model, specs: Sequence[LayerSpec]) -> list[_GramSum]:
    placed = {place.path: place.layer for place in walk(model)}
    sums, refused = [], []
    for spec in specs:
        place, _, name = spec.path.rpartition("/")
        patches = find_patches(placed[place], name)
        if patches is None:
            refused.append(f"{spec.path} ({type(placed[place]).__name__})")
            continue
        groups = _count_groups(placed[place], name)
        size = spec.num_weights // spec.canonical_shape[0]
        variables = (tf.Variable(tf.zeros(shape, tf.float64), trainable=False) for shape in ((), (groups, size, size)))
        sums.append(_GramSum(spec.path, placed[place], patches, *variables))
    if refused:
        raise InputError(
            "The Gram of a layer's inputs is known for Dense, for an EinsumDense that does the same, and for "
            "convolutions; of transposed ones for one or two spatial axes, without dilation and output_padding. Leave "
            "the others out with --prunable=REGEX. "
            f"Received: {', '.join(refused)}"
        )
    return sums


def _by_layer(sums: Sequence[_GramSum]) -> list[list[_GramSum]]:
    groups: dict[int, list[_GramSum]] = {}
    for gram in sums:
        groups.setdefault(id(gram.layer), []).append(gram)
    return list(groups.values())


def _call_and_add(sums: Sequence[_GramSum]) -> LayerCall:
    inference_call = sums[0].layer.call

    def call(inputs: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        for gram in sums:
            gram.add(inputs)
        return inference_call(inputs, *args, **kwargs)

    return call


def _count_groups(layer: keras.Layer, name: str) -> int:
    """Into how many groups the outputs of the layer's kernel fall, each with inputs of its own."""
    if _is_depthwise(layer, name):
        return int((layer.depthwise_kernel if name == "depthwise_kernel" else layer.kernel).shape[-2])
    return int(getattr(layer, "groups", 1))


def _is_depthwise(layer: keras.Layer, name: str) -> bool:
    return name == "depthwise_kernel" or isinstance(layer, layers.DepthwiseConv1D | layers.DepthwiseConv2D)


def find_patches(layer: keras.Layer, name: str) -> Patches | None:
    """How the input of the layer becomes what its kernel multiplies, or None where there is no rule."""
    if not isinstance(getattr(layer, "padding", "valid"), str):
        return None  # Keras lets lists pass and documents none
    match layer:
        case layers.Dense():
            return lambda inputs: tf.reshape(inputs, [1, -1, inputs.shape[-1]])
        case layers.EinsumDense() if is_like_dense(layer):
            return lambda inputs: tf.reshape(inputs, [1, -1, math.prod(layer._kernel.shape[:-1])])
        case layers.SeparableConv1D() | layers.SeparableConv2D() if name == "pointwise_kernel":
            return lambda inputs: _flatten(_channels_last(layer, _run_depthwise(layer, inputs)))
        case layers.Conv1DTranspose() | layers.Conv2DTranspose():
            if layer.output_padding is not None or math.prod(layer.dilation_rate) > 1:
                return None
            return lambda inputs: _split(_extract_transposed(layer, name, _channels_last(layer, inputs)), 1)
        case (
            layers.Conv1D()
            | layers.Conv2D()
            | layers.Conv3D()
            | layers.DepthwiseConv1D()
            | layers.DepthwiseConv2D()
            | layers.SeparableConv1D()
            | layers.SeparableConv2D()
        ):
            groups = _count_groups(layer, name)
            return lambda inputs: _split(_extract_patches(layer, name, _channels_last(layer, inputs)), groups)
        case _:
            return None


def find_thinning(layer: keras.Layer, name: str, counts: Sequence[int]) -> int:
    """Every so many rows and columns of a layer's outputs are looked at.

    Args:
        layer: one that has patches.
        name: of its kernel.
        counts: of its outputs, (*spatial); other axes of a Dense.
    """
    is_inside = isinstance(layer, layers.SeparableConv1D | layers.SeparableConv2D) and name == "pointwise_kernel"
    if is_inside or isinstance(layer, layers.Dense | layers.EinsumDense):
        return 1
    most = MOST_OF_CHANNEL if _is_depthwise(layer, name) else MOST_POSITIONS
    thinning = math.ceil((math.prod(counts) / most) ** (1 / len(counts)))
    strides = layer.strides if isinstance(layer, layers.Conv1DTranspose | layers.Conv2DTranspose) else ()
    while any(math.gcd(thinning, stride) > 1 for stride in strides):  # no kind of position is left out
        thinning += 1
    return thinning


def is_like_dense(layer: layers.EinsumDense) -> bool:
    """Whether it sums over the last axes of its input alone and gives its outputs on a last axis, as Dense does."""
    operands, result = layer.equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    summed, given = kernel[:-1], kernel[-1:]
    return bool(summed) and inputs.endswith(summed) and result.endswith(given) and not set(result) & set(summed)


def _run_depthwise(layer: keras.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """The depthwise half of a separable convolution; without it the pointwise half has no input to observe."""
    kernel = tf.cast(layer.depthwise_kernel, inputs.dtype)
    return keras.ops.depthwise_conv(
        inputs, kernel, layer.strides, layer.padding, layer.data_format, layer.dilation_rate
    )


def _channels_last(layer: keras.Layer, inputs: tf.Tensor) -> tf.Tensor:
    return inputs if layer.data_format == "channels_last" else keras.ops.moveaxis(inputs, 1, -1)


def _extract_patches(layer: keras.Layer, name: str, inputs: tf.Tensor) -> tf.Tensor:
    """What each output position multiplies, thinned out.

    Args:
        layer: a convolution.
        name: of its kernel.
        inputs: (n, *spatial, channels).

    Returns:
        (n, height, width, kernel height, kernel width, channels); of a one-dimensional layer, height is 1; of a
        three-dimensional one, height is depth times height, of positions and of the kernel.
    """
    strides, sizes, rates = layer.strides, layer.kernel_size, layer.dilation_rate
    spans = [(size - 1) * rate + 1 for size, rate in zip(sizes, rates, strict=True)]
    lengths = inputs.shape[1:-1]
    pads = [_pad(layer.padding, *axis) for axis in zip(lengths, spans, strides, strict=True)]
    counts = [
        (n + sum(pad) - span) // stride + 1 for n, pad, span, stride in zip(lengths, pads, spans, strides, strict=True)
    ]
    thinning = find_thinning(layer, name, counts)
    return _cut(tf.pad(inputs, [[0, 0], *pads, [0, 0]]), sizes, [stride * thinning for stride in strides], rates)


def _extract_transposed(layer: keras.Layer, name: str, inputs: tf.Tensor) -> tf.Tensor:
    """`_extract_patches` of a transposed convolution, which is a plain one over inputs with zeros between them.

    With stride s an output meets every s-th tap, and zeros at the others: which ones depends on where it lies, so
    positions of all kinds are looked at.
    """
    strides, sizes = layer.strides, layer.kernel_size
    spread, pads, counts = inputs, [], []
    for axis, (stride, size) in enumerate(zip(strides, sizes, strict=True), start=1):
        shape = tf.shape(spread)
        spread = tf.expand_dims(spread, axis + 1)
        spread = tf.pad(spread, [[0, stride - 1 if at == axis + 1 else 0] for at in range(len(spread.shape))])
        spread = tf.reshape(spread, tf.concat([shape[:axis], [-1], shape[axis + 1 :]], axis=0))
        length, surplus = inputs.shape[axis] * stride, max(size - stride, 0)
        counts.append(length + (surplus if layer.padding == "valid" else 0))
        before = size - 1 - (surplus // 2 if layer.padding == "same" else 0)
        pads.append([before, counts[-1] + size - 1 - before - length])
    thinning = find_thinning(layer, name, counts)
    padded = tf.pad(spread, [[0, 0], *pads, [0, 0]])
    padded = tf.ensure_shape(padded, [None, *(n + size - 1 for n, size in zip(counts, sizes, strict=True)), None])
    cut = _cut(padded, sizes, [thinning] * len(sizes), (1,) * len(sizes))
    return tf.reverse(cut, [3, 4])  # the first tap meets the last of the inputs before it


def _cut(padded: tf.Tensor, sizes: Sequence[int], strides: Sequence[int], rates: Sequence[int]) -> tf.Tensor:
    """Patches (n, height, width, kernel height, kernel width, channels) of (n, *spatial, channels)."""
    if len(sizes) == 1:
        padded, strides, sizes, rates = padded[:, None], (1, *strides), (1, *sizes), (1, *rates)
    if len(sizes) == 3:
        return _cut_volumes(padded, sizes, strides, rates)
    if math.prod(sizes) == 1:  # a plain slice then, with no patches to gather
        return padded[:, :: strides[0], :: strides[1], None, None, :]
    patches = tf.image.extract_patches(padded, [1, *sizes, 1], [1, *strides, 1], [1, *rates, 1], "VALID")
    return tf.reshape(patches, [-1, *patches.shape[1:3], *sizes, padded.shape[-1]])


def _cut_volumes(padded: tf.Tensor, sizes: Sequence[int], strides: Sequence[int], rates: Sequence[int]) -> tf.Tensor:
    """`_cut` of (n, depth, height, width, channels); TensorFlow's own has no dilation."""
    axes = list(zip(padded.shape[1:-1], sizes, strides, rates, strict=True))
    depth, height, width = ((length - (size - 1) * rate - 1) // stride + 1 for length, size, stride, rate in axes)
    taps = []
    for tap in itertools.product(*map(range, sizes)):
        starts = [rate * place for rate, place in zip(rates, tap, strict=True)]
        ends = [s + stride * (n - 1) + 1 for s, stride, n in zip(starts, strides, (depth, height, width), strict=True)]
        d, h, w = (slice(*given) for given in zip(starts, ends, strides, strict=True))
        taps.append(padded[:, d, h, w])
    patches = tf.stack(taps, axis=4)
    return tf.reshape(patches, [-1, depth * height, width, sizes[0] * sizes[1], sizes[2], padded.shape[-1]])


def _pad(padding: str, length: int, span: int, stride: int) -> tuple[int, int]:
    """Zeros before and after one axis, as TensorFlow pads."""
    if padding == "causal":
        return span - 1, 0
    total = max((math.ceil(length / stride) - 1) * stride + span - length, 0) if padding == "same" else 0
    return total // 2, total - total // 2


def _split(patches: tf.Tensor, groups: int) -> tf.Tensor:
    """(n, height, width, kernel height, kernel width, channels) -> (groups, n * positions, d)."""
    height, width, channels = patches.shape[3:]
    by_group = tf.reshape(patches, [-1, height * width, groups, channels // groups])
    return tf.reshape(tf.transpose(by_group, [2, 0, 1, 3]), [groups, -1, height * width * channels // groups])


def _flatten(values: tf.Tensor) -> tf.Tensor:
    return tf.reshape(values, [1, -1, values.shape[-1]])
