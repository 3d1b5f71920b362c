"""What each layer and operation does to channels: which axes of its variables, and of its output, number those of its
input.

Channels are on the last axis. A rule either knows the operation fully or says so: then all that the operation touches
is frozen. That holds for classes that others derive from Keras's, too: their `call` may do anything.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import layers

from reflow_tf.models.calls import Call
from reflow_tf.models.channels.numbering import Layout, Numberings
from reflow_tf.models.gram import is_like_dense

Shape = tuple[int | None, ...]
Rule = Callable[[Call, Sequence[Layout], Shape, Numberings], Layout | None]
"""(call, layouts of its inputs, shape of its output, all numberings) -> layout of the output; None: not known."""

_ACTIVATIONS = (
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "gelu", "hard_silu", "hard_sigmoid"),
    *("sigmoid", "tanh", "softplus", "softsign", "exponential", "mish", "hard_tanh", "hard_swish", "swish"),
)
_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
# One input; each channel is computed from itself alone, and all in the same way.
_CHANNEL_WISE = (
    layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D,
    layers.SpatialDropout3D, layers.GaussianNoise, layers.GaussianDropout, layers.AlphaDropout, layers.Identity,
    layers.ActivityRegularization, layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D, layers.Cropping1D,
    layers.Cropping2D, layers.Cropping3D, layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D,
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D, layers.AveragePooling1D, layers.AveragePooling2D,
    layers.AveragePooling3D, layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D, layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D,
)  # fmt: skip
_CHANNEL_WISE_OPS = {
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Celu", "Silu", "Gelu", "HardSilu", "HardSigmoid", "HardTanh"),
    *("Sigmoid", "Tanh", "Softplus", "Softsign", "Mish", "Negative", "Abs", "Absolute", "Exp", "Sqrt", "Rsqrt"),
    *("Square", "Cast", "MaxPool", "AveragePool"),
}
# Several inputs, or one and a number, value by value.
_MERGES = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
_MERGE_OPS = {"Add", "Subtract", "Multiply", "TrueDivide", "Divide", "Maximum", "Minimum", "Power"}
_RESHAPES = (layers.Flatten, layers.Reshape)
_RESHAPE_OPS = {"Reshape", "Squeeze", "ExpandDims"}
_REDUCTIONS = {"Mean", "Max", "Min", "Sum"}


def apply(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    """The layout of what a call gives, once all that it says about channels is entered; None where it has no rule."""
    operation = call.operation
    if operation is None:
        return inputs[0]
    if not type(operation).__module__.startswith("keras.src.") or not _is_channels_last(operation):
        return None
    is_layer = isinstance(operation, layers.Layer)
    if is_layer and any(not isinstance(value, bool) for value in call.constants):
        return None  # masks and states
    rule = _find_layer_rule(operation) if is_layer else _find_operation_rule(type(operation).__name__)
    return None if rule is None else rule(call, inputs, shape, numberings)


def _is_channels_last(operation: keras.Operation) -> bool:
    return getattr(operation, "data_format", None) in (None, "channels_last")


def _find_layer_rule(layer: keras.Operation) -> Rule | None:
    if getattr(layer, "quantization_mode", None) is not None or getattr(layer, "lora_enabled", False):
        return None
    rules: tuple[tuple[tuple[type, ...], Rule], ...] = (
        ((*_CONVOLUTIONS, *_TRANSPOSED, layers.Dense), _convolve),
        ((layers.EinsumDense,), _contract),
        (_DEPTHWISE, _convolve_depthwise),
        (_SEPARABLE, _convolve_separably),
        ((layers.BatchNormalization,), _normalize),
        ((layers.PReLU,), _apply_slopes),
        ((layers.Activation,), _activate),
        ((layers.Rescaling,), _rescale),
        ((layers.Concatenate,), _concatenate),
        (_MERGES, _merge),
        (_RESHAPES, _reshape),
        (_CHANNEL_WISE, _pass_on),
    )
    # Convolutions of Keras derive from one another (a transposed one is no Conv2D, a depthwise one neither).
    return next((rule for kinds, rule in rules if type(layer) in kinds), None)


def _find_operation_rule(name: str) -> Rule | None:
    rules: tuple[tuple[set[str], Rule], ...] = (
        (_CHANNEL_WISE_OPS, _pass_on),
        (_MERGE_OPS, _merge),
        (_RESHAPE_OPS, _reshape),
        (_REDUCTIONS, _reduce),
        ({"Concatenate"}, _concatenate),
        ({"Clip"}, _clip),
    )
    return next((rule for names, rule in rules if name in names), None)


def _convolve(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    layer = call.operation
    assert layer is not None
    kernel = layer._kernel if hasattr(layer, "_kernel") else layer.kernel
    rank = len(kernel.shape)
    output_axis, input_axis = (rank - 2, rank - 1) if isinstance(layer, _TRANSPOSED) else (rank - 1, rank - 2)
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        numberings.bind(kernel, input_axis, inputs[0])
        outputs = numberings.new(kernel.shape[output_axis])
    elif groups == kernel.shape[output_axis] and kernel.shape[input_axis] == 1:
        outputs = inputs[0]  # a depthwise convolution by another name
    else:
        return None
    return _finish(layer, [(kernel, output_axis)], outputs, numberings)


def _contract(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    layer = call.operation
    assert isinstance(layer, layers.EinsumDense)
    has_own_biases = layer.bias is not None and len(layer.bias.shape) > 1  # at each position
    if not is_like_dense(layer) or len(layer._kernel.shape) != 2 or has_own_biases:
        return None
    numberings.bind(layer._kernel, 0, inputs[0])
    return _finish(layer, [(layer._kernel, 1)], numberings.new(layer._kernel.shape[1]), numberings)


def _convolve_depthwise(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    layer = call.operation
    if layer is None or layer.depth_multiplier != 1:
        return None
    return _finish(layer, [(layer.kernel, layer.rank)], inputs[0], numberings)


def _convolve_separably(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    layer = call.operation
    if layer is None or layer.depth_multiplier != 1:
        return None
    numberings.bind(layer.depthwise_kernel, layer.rank, inputs[0])
    numberings.bind(layer.pointwise_kernel, layer.rank, inputs[0])
    outputs = numberings.new(layer.filters)
    return _finish(layer, [(layer.pointwise_kernel, layer.rank + 1)], outputs, numberings)


def _finish(
    layer: keras.Operation, kernels: Sequence[tuple[keras.Variable, int]], outputs: Layout, numberings: Numberings
) -> Layout:
    """Binds what numbers a layer's outputs; they are frozen where its activation is not value by value."""
    for kernel, axis in kernels:
        numberings.bind(kernel, axis, outputs)
    if layer.bias is not None:
        numberings.bind(layer.bias, 0, outputs)
    if not _is_elementwise(layer.activation):
        numberings.freeze(outputs, f"goes through the activation of {layer.name}, which may mix channels")
    return outputs


def _is_elementwise(activation: object) -> bool:
    """Whether a function is one of Keras's that treat every value alike; softmax is not."""
    if activation is None:
        return True
    known = [getattr(place, name, None) for place in (keras.activations, keras.ops) for name in _ACTIVATIONS]
    return any(activation is function for function in known)


def _normalize(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    norm = call.operation
    if norm is None or norm.axis not in (-1, len(shape) - 1):
        return None
    for variable in norm.variables:
        if len(variable.shape) == 1:  # neither seeds nor counters have channels
            numberings.bind(variable, 0, inputs[0])
    return inputs[0]


def _apply_slopes(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    alpha = call.operation.alpha  # type: ignore[union-attr]
    if alpha.shape[-1] != 1:
        numberings.bind(alpha, len(alpha.shape) - 1, inputs[0])
    return inputs[0]


def _activate(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    return inputs[0] if call.operation is not None and _is_elementwise(call.operation.activation) else None


def _rescale(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    layer = call.operation
    return inputs[0] if layer is not None and np.size(layer.scale) == np.size(layer.offset) == 1 else None


def _clip(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    clip = call.operation
    return inputs[0] if clip is not None and np.size(clip.x_min) == np.size(clip.x_max) == 1 else None


def _pass_on(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    return inputs[0] if len(inputs) == 1 else None


def _merge(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    if any(np.size(value) != 1 for value in call.constants):
        return None
    full = [layout for layout in inputs if numberings.size(layout) == shape[-1]]
    if not full or any(numberings.size(layout) not in (1, shape[-1]) for layout in inputs):
        return None
    for layout in full[1:]:
        numberings.join(full[0], layout)
    return full[0]


def _concatenate(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    axis = call.operation.axis if call.operation is not None else None
    if axis is None:
        return None
    if axis % len(shape) == len(shape) - 1:
        return tuple(numbering for layout in inputs for numbering in layout)
    for layout in inputs[1:]:
        numberings.join(inputs[0], layout)
    return inputs[0]


def _reshape(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    """Values keep their order, so that a last axis that is m times as long has the same channels m times."""
    length, wanted = numberings.size(inputs[0]), shape[-1]
    if not length or wanted is None:
        return None
    if wanted % length == 0:
        return inputs[0] * (wanted // length)
    for end in range(1, len(inputs[0])):
        period = inputs[0][:end]
        if numberings.size(period) == wanted:
            return period if period * (len(inputs[0]) // end) == inputs[0] else None
    return None


def _reduce(call: Call, inputs: Sequence[Layout], shape: Shape, numberings: Numberings) -> Layout | None:
    """Over other axes than the channels': then the last axis is as long as before, and not by chance."""
    axes = call.operation.axis if call.operation is not None else None
    if axes is None or len(inputs) != 1:
        return None
    rank = len(shape) if call.operation is not None and call.operation.keepdims else len(shape) + np.size(axes)
    return None if any(axis % rank == rank - 1 for axis in np.atleast_1d(axes)) else inputs[0]
