"""Layers without weights become calls, with the integers that TFLite's reference computes for them."""

import math

from reflow_tf.errors import InputError
from reflow_tf.export.c_kernels.calls import Call
from reflow_tf.export.c_kernels.network import Addition, Layer, Logistic, Mean, Padding, Placing, Pooling, Relu, Softmax
from reflow_tf.export.c_kernels.rescaling import quantize_multiplier
from reflow_tf.export.c_kernels.tables import tabulate_logistic

_ADDITION_SHIFT = 20  # of the inputs to the left
_MOST_ADDITION_SHIFT = 22  # so that the zero point beneath the shift has 31 bits, as have factors of 2^-23
_LEAST_LOGISTIC_SCALE = 2.0**-27
_SOFTMAX_BITS = 5  # before the point of what is exponentiated


def call_addition(layer: Layer, operation: Addition) -> Call:
    """ADD; see kernels/add.cc. A sum does not care for the order, and the factor of the greater scale is 1/2."""
    first, second = sorted(layer.inputs, key=lambda tensor: tensor.scale)
    greater = 2 * second.scale
    factors = _factor(first.scale / greater), _factor(greater / ((1 << _ADDITION_SHIFT) * layer.output.scale))
    if not all(0 <= factor["shift"] <= _MOST_ADDITION_SHIFT for factor in factors):
        scales = [tensor.scale for tensor in (first, second, layer.output)]
        raise InputError(
            f"C is generated for ADD only with scales within a factor of 8 million of each other: change layer "
            f"'{layer.name}'. Received: {scales}"
        )
    return Call(
        layer=layer,
        function="reflow_add",
        structure="reflow_add",
        fields={
            "first": factors[0],
            "output": factors[1],
            "first_zero_point": first.zero_point,
            "second_zero_point": second.zero_point,
            "zero_point": layer.output.zero_point,
            **_limit_fields(layer),
            "size": layer.output.size,
        },
        inputs=(first, second),
        output=layer.output,
        in_place=(first, second),
    )


def call_pooling(layer: Layer, operation: Pooling) -> Call:
    """MAX_POOL_2D and AVERAGE_POOL_2D."""
    window = operation.window
    return Call(
        layer=layer,
        function=f"reflow_{operation.kind}_pool",
        structure="reflow_pool",
        fields={
            "input_height": window.input_size[0],
            "input_width": window.input_size[1],
            "output_height": window.output_size[0],
            "output_width": window.output_size[1],
            "channels": layer.output.shape[3],
            "kernel_height": window.kernel[0],
            "kernel_width": window.kernel[1],
            "stride_height": window.strides[0],
            "stride_width": window.strides[1],
            "padding_top": window.padding[0],
            "padding_left": window.padding[1],
            **_limit_fields(layer),
        },
        inputs=layer.inputs,
        output=layer.output,
    )


def call_mean(layer: Layer, operation: Mean) -> Call:
    """MEAN between batch and channels; the division is in the multiplier: QuantizedMeanOrSum in reference/reduce.h."""
    source = layer.inputs[0]
    pixels = math.prod(source.shape[1:-1])
    multiplier, shift = quantize_multiplier(source.scale / layer.output.scale)
    raised = min(pixels.bit_length() - 1, 32, 31 + shift)
    return Call(
        layer=layer,
        function="reflow_mean",
        structure="reflow_mean",
        fields={
            "multiplier": (multiplier << raised) // pixels,
            "shift": shift - raised,
            "pixels": pixels,
            "channels": source.shape[-1],
            "input_zero_point": source.zero_point,
            "zero_point": layer.output.zero_point,
        },
        inputs=layer.inputs,
        output=layer.output,
    )


def call_relu(layer: Layer, operation: Relu) -> Call:
    """RELU and its kin as operators."""
    source = layer.inputs[0]
    multiplier, shift = quantize_multiplier(source.scale / layer.output.scale)
    return Call(
        layer=layer,
        function="reflow_relu",
        structure="reflow_relu",
        fields={
            "multiplier": multiplier,
            "shift": shift,
            "size": source.size,
            "input_zero_point": source.zero_point,
            "zero_point": layer.output.zero_point,
            **_limit_fields(layer),
        },
        inputs=layer.inputs,
        output=layer.output,
        in_place=layer.inputs,
    )


def call_softmax(layer: Layer, operation: Softmax) -> Call:
    """SOFTMAX; PreprocessSoftmaxScaling and CalculateInputRadius of kernels/internal/quantization_util.cc."""
    source = layer.inputs[0]
    bits = 31 - _SOFTMAX_BITS
    scale = min(operation.beta * source.scale * (1 << bits), (1 << 31) - 1.0)
    if scale <= 1:
        raise InputError(
            f"C is generated for SOFTMAX only with a scale of the input above 2^-{bits}: change layer "
            f"'{layer.name}'. Received: {operation.beta * source.scale}"
        )
    multiplier, shift = quantize_multiplier(scale)
    radius = ((1 << _SOFTMAX_BITS) - 1) * (1 << bits) / (1 << shift)
    classes = source.shape[-1]
    return Call(
        layer=layer,
        function="reflow_softmax",
        structure="reflow_softmax",
        fields={
            "multiplier": multiplier,
            "shift": shift,
            "rows": source.size // classes,
            "classes": classes,
            "least_difference": -math.floor(radius),
        },
        inputs=layer.inputs,
        output=layer.output,
        in_place=layer.inputs,
    )


def call_logistic(layer: Layer, operation: Logistic) -> Call:
    """LOGISTIC."""
    source = layer.inputs[0]
    if source.scale <= _LEAST_LOGISTIC_SCALE:
        raise InputError(
            f"C is generated for LOGISTIC only with a scale of the input above 2^-27: change layer '{layer.name}'. "
            f"Received: {source.scale}"
        )
    return Call(
        layer=layer,
        function="reflow_lookup",
        structure="reflow_lookup",
        fields={"size": source.size},
        arrays={"table": tabulate_logistic(source.scale, source.zero_point)},
        inputs=layer.inputs,
        output=layer.output,
        in_place=layer.inputs,
    )


def call_padding(layer: Layer, operation: Padding) -> Call:
    """PAD of height and width, or of channels: then each position is a row, and a channel a pixel of one channel."""
    source = layer.inputs[0]
    _, height, width, channels = source.shape
    if operation.channels != (0, 0):
        operation = Padding((0, 0), operation.channels)
        height, width, channels = height * width, channels, 1
    return Call(
        layer=layer,
        function="reflow_pad",
        structure="reflow_pad",
        fields={
            "input_height": height,
            "input_width": width,
            "channels": channels,
            "top": operation.height[0],
            "bottom": operation.height[1],
            "left": operation.width[0],
            "right": operation.width[1],
            "zero_point": layer.output.zero_point,
        },
        inputs=layer.inputs,
        output=layer.output,
    )


def call_placing(layer: Layer, operation: Placing) -> Call:
    """CONCATENATION, of one input."""
    return Call(
        layer=layer,
        function="reflow_concatenation",
        structure="reflow_concatenation",
        fields={
            "rows": operation.rows,
            "start": operation.start,
            "length": operation.length,
            "pitch": operation.pitch,
        },
        inputs=layer.inputs,
        output=layer.output,
    )


def _factor(scale: float) -> dict[str, int]:
    multiplier, shift = quantize_multiplier(scale)
    return {"multiplier": multiplier, "shift": -shift}


def _limit_fields(layer: Layer) -> dict[str, int]:
    return {"lowest": layer.limits[0], "highest": layer.limits[1]}
