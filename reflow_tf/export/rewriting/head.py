"""The classifier that comes as a 1x1 convolution of one pixel becomes a fully connected layer outside of the cluster.

XNNPACK counts every 1x1 convolution that a sparse cluster reaches into its share of zeros, also the last one, which
it then runs dense because nothing behind it works channels first. And a MEAN that keeps four axes in front of it
tells it a wrong number of channels (src/subgraph/static-reduce.c, lines 170 to 200). Behind a RESHAPE, or a MEAN that
drops its axes, a FULLY_CONNECTED with the same weights is outside.
"""

import functools

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.rewriting.convolutions import is_pointwise
from reflow_tf.export.rewriting.graph import EditableGraph
from reflow_tf.export.rewriting.outcome import Applied, Refused
from reflow_tf.export.rewriting.region import find_behind_stems

_NAME = "head"


def take_out_head(graph: EditableGraph) -> list[Applied | Refused]:
    """Turns 1x1 convolutions of one pixel that are reshaped into vectors into fully connected layers."""
    names = []
    for operator in find_behind_stems(graph):
        ends = _find_ends(graph, operator)
        if not ends:
            continue
        names.append(graph.name(operator))
        _flatten_input(graph, operator)
        outputs, _, _, inputs = graph.shape(operator.inputs[1])
        graph.change_constant(operator, 1, functools.partial(np.reshape, shape=(outputs, inputs)), "2 axes")
        activation = operator.builtinOptions.fusedActivationFunction
        graph.turn_into(operator, "FULLY_CONNECTED", schema.FullyConnectedOptionsT(fusedActivationFunction=activation))
        *softmax, reshape = ends
        if softmax:
            vector = graph.tensors[operator.outputs[0]]
            vector.shape, vector.shapeSignature = list(graph.shape(reshape.outputs[0])), None
        graph.remove(reshape)
        (*softmax, operator)[0].outputs = reshape.outputs
    if not names:
        return []
    statement = f"{' and '.join(names)} is a fully connected layer behind the cluster, with the same weights."
    return [Applied(_NAME, tuple(names), statement)]


def _find_ends(graph: EditableGraph, operator: schema.OperatorT) -> list[schema.OperatorT]:
    """The RESHAPE of a convolution's one pixel into a vector, perhaps behind a SOFTMAX, if nobody else reads it."""
    if not is_pointwise(graph, operator):
        return []
    is_plain = graph.constant(operator.inputs[1]) is not None and graph.is_float(operator.inputs[1])
    batch, _, _, channels = graph.shape(operator.outputs[0])
    ends = [end for end in (_only_reader(graph, operator),) if end is not None]
    if ends and graph.kind(ends[0]) == "SOFTMAX":
        ends += [end for end in (_only_reader(graph, ends[0]),) if end is not None]
    if not ends or graph.kind(ends[-1]) not in ("RESHAPE", "SQUEEZE"):
        return []
    return ends if is_plain and graph.shape(ends[-1].outputs[0]) == (batch, channels) else []


def _only_reader(graph: EditableGraph, operator: schema.OperatorT) -> schema.OperatorT | None:
    output, readers = operator.outputs[0], graph.readers(operator.outputs[0])
    return readers[0] if len(readers) == 1 and output not in graph.outputs else None


def _flatten_input(graph: EditableGraph, operator: schema.OperatorT) -> None:
    source = operator.inputs[0]
    batch, _, _, channels = graph.shape(source)
    producer = graph.producer(source)
    is_own = len(graph.readers(source)) == 1 and source not in graph.outputs
    if producer is not None and graph.kind(producer) == "MEAN" and producer.builtinOptions.keepDims and is_own:
        producer.builtinOptions.keepDims = False
        graph.tensors[source].shape, graph.tensors[source].shapeSignature = [batch, channels], None
        return
    vector = graph.add_value(f"{graph.name(operator)}/flat", (batch, channels), like=source)
    shape = graph.add_constant(f"{graph.name(operator)}/shape", np.array([batch, channels], np.int32))
    graph.insert(operator, "RESHAPE", [source, shape], vector, schema.ReshapeOptionsT())
    operator.inputs[0] = vector
