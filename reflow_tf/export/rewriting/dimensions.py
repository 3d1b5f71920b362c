"""Averages over height and width keep their four axes as long as what follows is multiplied with an image.

A squeeze-and-excitation made of GlobalAveragePooling2D, Dense layers and a Reshape to (1, 1, channels) leaves the
four axes in between, and XNNPACK's sparse clusters take only operators on four (src/subgraph.c,
`xnn_check_nchw_compatibility`). With kept axes, a FULLY_CONNECTED is a 1x1 convolution with the same weights. The
head of a classifier, where nothing comes back to an image, stays as it is.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.rewriting.convolutions import HEIGHT, WIDTH
from reflow_tf.export.rewriting.graph import EditableGraph
from reflow_tf.export.rewriting.outcome import Applied, Refused
from reflow_tf.export.rewriting.region import BINARY, ELEMENTWISE, REDUCTIONS, find_behind_stems

_NAME = "kept dimensions"


@dataclasses.dataclass
class _Chain:
    """Operators on vectors (batch, channels), from a reduction to those that take them for images of one pixel."""

    values: list[int]
    operators: list[schema.OperatorT]
    ends: list[schema.OperatorT]


def keep_dimensions(graph: EditableGraph) -> list[Applied | Refused]:
    """Computes vectors that are combined with images with four axes from the beginning."""
    outcomes: list[Applied | Refused] = []
    names: list[str] = []
    for end in find_behind_stems(graph):
        vector = _find_widened(graph, end) if end in graph.operators else None
        if vector is None:
            continue
        chain = _Chain([], [], [end])
        reason = _collect(graph, vector, chain) or _find_leak(graph, chain)
        if reason:
            outcomes.append(Refused(_NAME, graph.name(end), reason))
            continue
        names += [graph.name(operator) for operator in chain.operators]
        _widen(graph, chain)
    names += _convert_maps(graph)
    if names:
        statement = f"{len(names)} operators keep four axes, Dense layers as 1x1 convolutions with the same weights."
        outcomes.insert(0, Applied(_NAME, tuple(dict.fromkeys(names)), statement))
    return outcomes


def _find_widened(graph: EditableGraph, operator: schema.OperatorT) -> int | None:
    """The vector that an operator takes for an image of one pixel: by a RESHAPE, or by broadcasting a batch of 1."""
    shape = graph.shape(operator.outputs[0])
    vectors = [index for index in graph.data_inputs(operator) if len(graph.shape(index)) == 2]
    if len(vectors) != 1 or len(shape) != 4:
        return None
    batch, channels = graph.shape(vectors[0])
    if graph.kind(operator) == "RESHAPE":
        is_widened = shape == (batch, 1, 1, channels) and operator.outputs[0] not in graph.outputs
    else:
        is_widened = graph.kind(operator) in BINARY and (batch, channels) == (1, shape[3])
    return vectors[0] if is_widened else None


def _collect(graph: EditableGraph, index: int, chain: _Chain) -> str | None:
    """Adds a vector and everything that it is computed from; the reason where that cannot have four axes."""
    if index in chain.values:
        return None
    if len(graph.shape(index)) != 2:
        return f"{graph.tensor_name(index)} has {len(graph.shape(index))} axes"
    chain.values.append(index)
    operator = graph.producer(index)
    if operator is None:
        return "the vector is an input of the network"
    if operator not in chain.operators:
        chain.operators.append(operator)
    kind = graph.kind(operator)
    if kind in REDUCTIONS:
        axes = graph.constant(operator.inputs[1])
        is_global = axes is not None and sorted(int(axis) % 4 for axis in axes.reshape(-1)) == [HEIGHT, WIDTH]
        return (
            None if is_global and len(graph.shape(operator.inputs[0])) == 4 else f"{kind} is not over height and width"
        )
    if kind == "RESHAPE":
        batch, channels = graph.shape(index)
        return None if graph.shape(operator.inputs[0]) == (batch, 1, 1, channels) else "RESHAPE makes it from an image"
    if kind == "FULLY_CONNECTED":
        source = operator.inputs[0]
        # One pixel as the converter leaves it when it drops a Flatten: it has its four axes already.
        is_pixel = len(graph.shape(source)) == 4 and graph.shape(source)[1:3] == (1, 1)
        return _find_weights_objection(graph, operator) or (None if is_pixel else _collect(graph, source, chain))
    if kind in ELEMENTWISE:
        vectors = graph.data_inputs(operator)
        if not _broadcasts_alike(graph, operator):
            return "it is combined with other shapes"
        return _first(_collect(graph, each, chain) for each in vectors)
    return f"no form of {kind} with four axes is known"


def _broadcasts_alike(graph: EditableGraph, operator: schema.OperatorT) -> bool:
    """Whether two and four axes broadcast alike: vectors that are computed, and constants not one for each image."""
    shapes = {index: graph.shape(index) for index in operator.inputs if index >= 0}
    return all(
        all(size == 1 for size in shape[:-1]) if graph.is_constant(index) else len(shape) == 2
        for index, shape in shapes.items()
    )


def _first(reasons: Iterable[str | None]) -> str | None:
    return next((reason for reason in reasons if reason), None)


def _find_weights_objection(graph: EditableGraph, operator: schema.OperatorT) -> str | None:
    weights = graph.constant(operator.inputs[1])
    options = operator.builtinOptions
    default = schema.FullyConnectedOptionsWeightsFormat.DEFAULT
    if weights is None or not graph.is_float(operator.inputs[1]) or options.weightsFormat != default:
        return "the weights of FULLY_CONNECTED are computed or quantized"
    if graph.shape(operator.inputs[0])[-1:] != graph.shape(operator.inputs[1])[1:]:
        return "FULLY_CONNECTED reads more than one pixel at once"
    return None


def _find_leak(graph: EditableGraph, chain: _Chain) -> str | None:
    """Whoever else reads a vector gets it as it was, unless it widens it, too."""
    for index in chain.values:
        if index in graph.outputs:
            return f"{graph.tensor_name(index)} is an output of the network"
        for reader in graph.readers(index):
            if reader in chain.operators or reader in chain.ends:
                continue
            if _find_widened(graph, reader) is None:
                return f"{graph.tensor_name(index)} is read by {graph.name(reader)} as a vector, too"
            chain.ends.append(reader)
    return None


def _widen(graph: EditableGraph, chain: _Chain) -> None:
    for index in chain.values:
        batch, channels = graph.shape(index)
        graph.tensors[index].shape = [batch, 1, 1, channels]
        graph.tensors[index].shapeSignature = None
    for operator in chain.operators:
        kind = graph.kind(operator)
        if kind in REDUCTIONS:
            operator.builtinOptions.keepDims = True
        elif kind == "FULLY_CONNECTED":
            _make_convolution(graph, operator)
        elif kind == "RESHAPE":
            _skip(graph, operator)
    for end in chain.ends:
        if graph.kind(end) == "RESHAPE":
            _skip(graph, end)


def _skip(graph: EditableGraph, operator: schema.OperatorT) -> None:
    graph.redirect(operator.outputs[0], operator.inputs[0], graph.readers(operator.outputs[0]))
    graph.remove(operator)


def _convert_maps(graph: EditableGraph) -> list[str]:
    """Makes 1x1 convolutions of Dense layers on images."""
    names = []
    for operator in find_behind_stems(graph):
        if graph.kind(operator) != "FULLY_CONNECTED":
            continue
        shapes = graph.shape(operator.inputs[0]), graph.shape(operator.outputs[0])
        is_image = all(len(shape) == 4 for shape in shapes) and shapes[0][:3] == shapes[1][:3]
        if is_image and _find_weights_objection(graph, operator) is None:
            names.append(graph.name(operator))
            _make_convolution(graph, operator)
    return names


def _make_convolution(graph: EditableGraph, operator: schema.OperatorT) -> None:
    outputs, inputs = graph.shape(operator.inputs[1])
    graph.change_constant(operator, 1, lambda old: old.reshape(outputs, 1, 1, inputs), "1x1")
    if len(operator.inputs) < 3 or operator.inputs[2] < 0:
        bias = graph.add_constant(f"{graph.name(operator)}/bias", np.zeros(outputs, np.float32))
        operator.inputs = [*operator.inputs[:2], bias]
    activation = operator.builtinOptions.fusedActivationFunction
    options = schema.Conv2DOptionsT(
        padding=schema.Padding.VALID, strideW=1, strideH=1, fusedActivationFunction=activation
    )
    graph.turn_into(operator, "CONV_2D", options)
