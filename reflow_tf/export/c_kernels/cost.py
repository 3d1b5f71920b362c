"""Instructions that a Cortex-M4 executes for a layer, estimated.

The numbers are fitted to counts under QEMU of MobileNetV2, MobileNetV1, DS-CNN and ResNet-8, compiled by GCC 12.2 with
-O3. They compare storages of one layer; `reflow_tf.runtimes.cortex_m` counts what a network really takes.
"""

import numpy as np

from reflow_tf.export.c_kernels.calls import Call
from reflow_tf.export.c_kernels.network import (
    Addition,
    Convolution,
    Dense,
    DepthwiseConvolution,
    Logistic,
    Mean,
    Placing,
    Pooling,
    Softmax,
)
from reflow_tf.export.c_kernels.tiles import count_tiles

# For each entry of a row of weights, and for each row, of large and of small tiles.
_TILE_ENTRY = {"dense": (13, 9), "sparse": (12, 9)}
_TILE_ROW = {"dense": (100, 55), "sparse": (112, 61)}
_GATHER_ELEMENT, _GATHER_PIECE = 3.9, 25
_DENSE_ENTRY, _DENSE_ROW = {"dense": 4, "sparse": 7}, 30
_DEPTHWISE_OUTPUT, _DEPTHWISE_INPUT, _DEPTHWISE_ROW, _DEPTHWISE_CHANNEL = 23, 3, 24, 150
_REFERENCE_PRODUCT = 8  # of the kernels called exact
_ADDITION, _POOLING, _MEAN, _SOFTMAX, _COPY, _LOOKUP, _OTHER = 23, 8, 5, 250, 0.6, 6, 15


def count_products(call: Call) -> int:
    """Multiply-accumulates of a layer, those with zeros included; 0 for layers without weights."""
    operation = call.layer.operation
    if isinstance(operation, Convolution | DepthwiseConvolution):
        return operation.weights.values.size * operation.window.num_pixels
    return operation.weights.values.size if isinstance(operation, Dense) else 0


def estimate_instructions(call: Call) -> int:
    """Instructions of one call on a Cortex-M4."""
    operation = call.layer.operation
    if call.function.endswith("_exact"):
        return _REFERENCE_PRODUCT * count_products(call)
    if isinstance(operation, Convolution):
        return round(_estimate_convolution(call, operation))
    if isinstance(operation, DepthwiseConvolution):
        return _estimate_depthwise(call, operation)
    if isinstance(operation, Dense):
        rows = len(operation.weights.values)
        entries = call.arrays["weights"].size - (rows if call.storage == "sparse" else 0)
        return rows * _DENSE_ROW + entries * _DENSE_ENTRY[call.storage]
    if isinstance(operation, Pooling):
        return _POOLING * call.output.size * int(np.prod(operation.window.kernel))
    if isinstance(operation, Softmax):
        return _SOFTMAX * call.output.size
    if isinstance(operation, Placing):
        return round(_COPY * call.inputs[0].size)
    if isinstance(operation, Logistic):
        return _LOOKUP * call.output.size
    if isinstance(operation, Mean):
        return _MEAN * call.inputs[0].size
    return (_ADDITION if isinstance(operation, Addition) else _OTHER) * call.output.size


def _estimate_convolution(call: Call, operation: Convolution) -> float:
    rows, taps = len(operation.weights.values), int(np.prod(operation.window.kernel))
    entries = call.arrays["weights"].size - (rows if call.storage == "sparse" else 0)
    total = 0.0
    tiles = count_tiles(operation.window.num_pixels)
    for kind, (count, pixels) in enumerate(zip(tiles, (8, 4), strict=True)):
        matrix = rows * _TILE_ROW[call.storage][kind] + entries * _TILE_ENTRY[call.storage][kind]
        elements = pixels * taps * call.inputs[0].shape[3]
        total += count * (matrix + elements * _GATHER_ELEMENT + taps * pixels / 2 * _GATHER_PIECE)
    return total


def _estimate_depthwise(call: Call, operation: DepthwiseConvolution) -> int:
    channels, window = call.output.shape[3], operation.window
    row = window.output_size[1] * _DEPTHWISE_OUTPUT + _DEPTHWISE_ROW
    plane = window.input_size[0] * window.input_size[1] * _DEPTHWISE_INPUT + window.output_size[0] * row
    return channels * (plane + _DEPTHWISE_CHANNEL)
