"""Each layer takes the storage that serves the objective best, by bytes and by estimated instructions."""

from collections.abc import Callable
from typing import Any

from reflow_tf.errors import InputError
from reflow_tf.export.c_kernels.calls import Call
from reflow_tf.export.c_kernels.convolutions import call_convolution, call_dense, call_depthwise
from reflow_tf.export.c_kernels.cost import estimate_instructions
from reflow_tf.export.c_kernels.network import (
    Addition,
    Convolution,
    Dense,
    DepthwiseConvolution,
    Layer,
    Logistic,
    Mean,
    Padding,
    Placing,
    Pooling,
    Relu,
    Softmax,
)
from reflow_tf.export.c_kernels.plain_layers import (
    call_addition,
    call_logistic,
    call_mean,
    call_padding,
    call_placing,
    call_pooling,
    call_relu,
    call_softmax,
)

STORAGES = ("auto", "speed", "size", "dense")
_WITH_CHOICE: dict[type, Callable[[Layer, Any, str], Call]] = {Convolution: call_convolution, Dense: call_dense}
_WITHOUT_CHOICE: dict[type, Callable[[Layer, Any], Call]] = {
    DepthwiseConvolution: call_depthwise,
    Addition: call_addition,
    Pooling: call_pooling,
    Mean: call_mean,
    Relu: call_relu,
    Softmax: call_softmax,
    Logistic: call_logistic,
    Padding: call_padding,
    Placing: call_placing,
}


def check_storage(storage: str) -> None:
    """Raises InputError unless `storage` is one of `STORAGES`."""
    if storage not in STORAGES:
        raise InputError(f"The storage must be one of {', '.join(STORAGES)}. Received: {storage}")


def call_layer(layer: Layer, storage: str) -> Call:
    """The call that computes a layer.

    Args:
        layer: any but a reshape.
        storage: of weights, one of `STORAGES`: 'dense'; 'speed': with the fewest estimated instructions; 'size': with
            the fewest bytes; 'auto': sparse where that costs neither bytes nor instructions.
    """
    operation = layer.operation
    if type(operation) in _WITHOUT_CHOICE:
        return _WITHOUT_CHOICE[type(operation)](layer, operation)
    dense, sparse = (_WITH_CHOICE[type(operation)](layer, operation, kind) for kind in ("dense", "sparse"))
    costs = [(estimate_instructions(call), call.size_bytes) for call in (dense, sparse)]
    (dense_instructions, dense_bytes), (sparse_instructions, sparse_bytes) = costs
    chosen = {
        "dense": False,
        "speed": (sparse_instructions, sparse_bytes) < (dense_instructions, dense_bytes),
        "size": (sparse_bytes, sparse_instructions) < (dense_bytes, dense_instructions),
        "auto": sparse_instructions <= dense_instructions and sparse_bytes <= dense_bytes and costs[0] != costs[1],
    }
    return sparse if chosen[storage] else dense
