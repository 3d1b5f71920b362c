"""An average pooling whose one window covers the whole map is a mean over height and width, at which a cluster can end.

XNNPACK ends its sparse clusters at a MEAN and never at an AVERAGE_POOL_2D (src/subgraph.c,
`xnn_check_nchw_compatibility`). MLPerf Tiny's networks and many of Keras 2 end in such a pooling and a Flatten. The
windows of AVERAGE_POOL_2D divide by the pixels that they see, padding not counted, so padding changes nothing. Pixels
are added in another order.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.rewriting.convolutions import HEIGHT, WIDTH, read_convolution
from reflow_tf.export.rewriting.graph import EditableGraph
from reflow_tf.export.rewriting.outcome import Applied, Refused
from reflow_tf.export.rewriting.region import find_behind_stems

_NAME = "mean"
_FUNCTION = schema.ActivationFunctionType
_ACTIVATIONS = {_FUNCTION.RELU: "RELU", _FUNCTION.RELU6: "RELU6", _FUNCTION.RELU_N1_TO_1: "RELU_N1_TO_1"}


def average_whole_maps(graph: EditableGraph) -> list[Applied | Refused]:
    """Turns AVERAGE_POOL_2D over whole maps into MEAN, and whoever wants its four axes reads a RESHAPE of that."""
    names: list[str] = []
    refused: list[Applied | Refused] = []
    for operator in find_behind_stems(graph):
        if not _covers_map(graph, operator):
            continue
        activation = operator.builtinOptions.fusedActivationFunction
        if activation != _FUNCTION.NONE and activation not in _ACTIVATIONS:
            reason = "Its average pooling over the whole map has an activation fused that no operator computes alone."
            refused.append(Refused(_NAME, graph.name(operator), reason))
            continue
        names.append(graph.name(operator))
        _average(graph, operator)
    if not names:
        return refused
    statement = f"The average pooling {' and '.join(names)} over the whole map is a mean over height and width."
    return [Applied(_NAME, tuple(names), statement), *refused]


def _covers_map(graph: EditableGraph, operator: schema.OperatorT) -> bool:
    """Whether an operator is an average pooling of floats with one window, which sees every pixel."""
    if graph.kind(operator) != "AVERAGE_POOL_2D" or not graph.is_float(operator.inputs[0]):
        return False
    read = read_convolution(graph, operator)
    return all(along.count == 1 and along.after >= 0 for along in (read.rows, read.columns))


def _average(graph: EditableGraph, pooling: schema.OperatorT) -> None:
    output = pooling.outputs[0]
    axes = graph.add_constant("height_and_width", np.array([HEIGHT, WIDTH], np.int32))
    vector = _add_vector(graph, output)
    graph.insert(pooling, "MEAN", [pooling.inputs[0], axes], vector, schema.ReducerOptionsT(keepDims=False))
    if kind := _ACTIVATIONS.get(pooling.builtinOptions.fusedActivationFunction):
        mean, vector = vector, _add_vector(graph, output)
        graph.insert(pooling, kind, [mean], vector)
    for reader in graph.readers(output):
        if not _takes_vector(graph, reader):
            continue
        graph.redirect(output, vector, [reader])
        if graph.shape(reader.outputs[0]) == graph.shape(vector) and reader.outputs[0] not in graph.outputs:
            _skip(graph, reader)
    if graph.readers(output) or output in graph.outputs:
        shape = graph.add_constant("one_pixel", np.array(graph.shape(output), np.int32))
        pooling.inputs = [vector, shape]
        graph.turn_into(pooling, "RESHAPE", schema.ReshapeOptionsT())
    else:
        graph.remove(pooling)


def _add_vector(graph: EditableGraph, pixel: int) -> int:
    """A tensor of shape (batch, channels), named as one of shape (batch, 1, 1, channels)."""
    batch, _, _, channels = graph.shape(pixel)
    vector = graph.copy_value(pixel)
    graph.tensors[vector].shape = [batch, channels]
    return vector


def _takes_vector(graph: EditableGraph, reader: schema.OperatorT) -> bool:
    """Whether an operator does the same with a vector as with an image of one pixel."""
    if graph.kind(reader) == "FULLY_CONNECTED":
        is_data = reader.inputs[0] not in reader.inputs[1:]
        return is_data and not reader.builtinOptions.keepNumDims
    if graph.kind(reader) == "SQUEEZE":
        return len(graph.shape(reader.outputs[0])) == 2 and reader.outputs[0] not in graph.outputs
    return graph.kind(reader) == "RESHAPE"


def _skip(graph: EditableGraph, operator: schema.OperatorT) -> None:
    """Takes out a RESHAPE or SQUEEZE of a vector into the same vector; a FULLY_CONNECTED of that size stays."""
    if graph.kind(operator) not in ("RESHAPE", "SQUEEZE"):
        return
    graph.redirect(operator.outputs[0], operator.inputs[0], graph.readers(operator.outputs[0]))
    graph.remove(operator)
