"""A full-int8 .tflite file becomes C sources that compute the same bits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from reflow_tf.errors import InputError
from reflow_tf.export.c_kernels.c_text import write_header, write_source
from reflow_tf.export.c_kernels.calls import Call
from reflow_tf.export.c_kernels.cost import count_products, estimate_instructions
from reflow_tf.export.c_kernels.kernel_sources import read_sources
from reflow_tf.export.c_kernels.memory import plan_memory
from reflow_tf.export.c_kernels.network import Convolution, Dense, DepthwiseConvolution, Reshape
from reflow_tf.export.c_kernels.reading import read_network
from reflow_tf.export.c_kernels.storage import call_layer, check_storage


@dataclass(frozen=True)
class LayerFacts:
    """What became of one layer.

    Attributes:
        name: the layer, as `read_operators` says it.
        kind: TFLite's name of the operator.
        function: the kernel.
        storage: of the weights: 'dense', 'sparse', or '' without weights.
        num_weights: in the file.
        num_nonzeros: of them.
        num_macs: multiply-accumulates, those with zeros included.
        size_bytes: of the constants in C, all but the few numbers of the layer's structure.
        estimated_instructions: on a Cortex-M4; see `cost`.
    """

    name: str
    kind: str
    function: str
    storage: str
    num_weights: int
    num_nonzeros: int
    num_macs: int
    size_bytes: int
    estimated_instructions: int


@dataclass(frozen=True)
class CSources:
    """A network in C.

    Attributes:
        files: name -> text: the network's own header and source, and the kernels that it needs.
        arena_bytes: static memory for activations and scratch; input and output are the caller's.
        weight_bytes: of all layers' constants.
        layers: in the order in which they run; those that cost nothing, reshapes and paddings that a convolution took
            over, are left out.
    """

    files: Mapping[str, str]
    arena_bytes: int
    weight_bytes: int
    layers: tuple[LayerFacts, ...]


def generate_c(content: bytes, *, storage: str = "auto", name: str = "model") -> CSources:
    """Generates C99 whose outputs equal those of TFLite's reference kernels bit for bit.

    Args:
        content: a .tflite file, int8 from input to output, with a batch of 1 and dense storage.
        storage: how each layer keeps its weights: 'auto': sparse where that costs neither bytes nor instructions;
            'speed': whatever takes the fewest estimated instructions; 'size': the fewest bytes; 'dense'.
        name: of the network's two files; part of the header's guard.

    Raises:
        InputError: the file cannot be computed with these kernels, or an argument is wrong; the message says why.
    """
    check_storage(storage)
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise InputError(f"The name of C sources must be a C identifier. Received: {name}")
    network = read_network(content)
    calls = [call_layer(layer, storage) for layer in network.layers if not isinstance(layer.operation, Reshape)]
    memory = plan_memory(network, calls)
    weight_bytes = sum(call.size_bytes for call in calls)
    files = {
        f"{name}.h": write_header(network, memory, weight_bytes, name),
        f"{name}.c": write_source(network, calls, memory, name),
    }
    kernels = read_sources({call.function for call in calls})
    if taken := set(files) & set(kernels):
        raise InputError(f"The name of C sources must not be a kernel's. Received: {name}, and {', '.join(taken)}")
    return CSources(files | dict(kernels), memory.size_bytes, weight_bytes, tuple(map(_describe, calls)))


def _describe(call: Call) -> LayerFacts:
    operation = call.layer.operation
    values = np.zeros(0, np.int8)
    if isinstance(operation, Convolution | DepthwiseConvolution | Dense):
        values = operation.weights.values
    return LayerFacts(
        name=call.layer.name,
        kind=call.layer.kind,
        function=call.function,
        storage=call.storage,
        num_weights=values.size,
        num_nonzeros=int(np.count_nonzero(values)),
        num_macs=count_products(call),
        size_bytes=call.size_bytes,
        estimated_instructions=estimate_instructions(call),
    )
