"""The delegate: which operators it takes, into which subgraphs, and what XNNPACK gets to see of each.

Source: LiteRT f67457790, tflite/delegates/xnnpack/xnnpack_delegate.cc: `VisitNode` (line 3154) and the functions that
it calls; tflite/graph_info.cc, `PartitionGraphIntoIndependentNodeSubsets`; XNNPACK 75db3c093,
src/subgraph/convolution-2d.c and depthwise-convolution-2d.c (stride 1 SAME becomes explicit padding), src/subgraph.c
line 1571 (`xnn_subgraph_fusion`: PAD into the convolution that alone reads it).
"""

import dataclasses
from collections import Counter

from reflow_tf.targets.operators import ABSENT, Operator, OperatorGraph, Value
from reflow_tf.targets.xnnpack.nodes import Node, NodeType, Sides, Subgraph
from reflow_tf.targets.xnnpack.versions import Version

BINARY = frozenset({"ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "PRELU", "SQUARED_DIFFERENCE"})
_FUSED_ACTIVATIONS = frozenset({"NONE", "RELU", "RELU6", "RELU_N1_TO_1"})
_INTEGERS = frozenset({"int8", "uint8"})
# Taken as they are, and never in a cluster. MAX_POOL_2D, AVERAGE_POOL_2D, CONCATENATION and TRANSPOSE_CONV as well,
# under conditions.
_OTHERS_2023 = frozenset({"RESHAPE", "SOFTMAX", "SPLIT", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "SPACE_TO_DEPTH"})
_OTHERS_2025 = _OTHERS_2023 | {"BATCH_MATMUL", "REDUCE_MAX", "REDUCE_MIN"}


def build_subgraphs(graph: OperatorGraph, version: Version) -> tuple[Subgraph, ...]:
    """What the delegate makes of a network, one subgraph for each part that it takes."""
    taken = [refusal(graph, operator, version) is None for operator in graph.operators]
    return tuple(_build(graph, part, version) for part in _partition(graph, taken))


def refusal(graph: OperatorGraph, operator: Operator, version: Version) -> str | None:
    """Why the delegate leaves an operator to TFLite's own kernels; None if it takes it."""
    kind = operator.kind
    types = {graph.values[index].dtype for index in (operator.inputs[:1] + operator.outputs) if index != ABSENT}
    if not types <= {"float32", "float16"} | _INTEGERS:
        return f"the delegate does not take {kind} of {', '.join(sorted(types))}"
    if operator.attributes.get("activation", "NONE") not in _FUSED_ACTIVATIONS:
        return f"the delegate takes no {kind} with a fused {operator.attributes['activation']}"
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"):
        return _weights_refusal(graph, operator, version)
    if kind in ("MEAN", "SUM"):
        return _reduction_refusal(graph, operator, version)
    if kind == "CONCATENATION" and len(operator.inputs) > version.max_concatenated:
        return f"CONCATENATION of {len(operator.inputs)} inputs; the delegate takes at most {version.max_concatenated}"
    if kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D"):
        return _pooling_refusal(operator)
    known = version.unary | BINARY | (_OTHERS_2025 if version.any_mean else _OTHERS_2023)
    known |= {"PAD", "CONCATENATION", "DEPTH_TO_SPACE", "RESIZE_BILINEAR"}
    return None if kind in known else f"the delegate does not take {kind}, which ends the part that it runs"


def is_unpacked_wrong(graph: OperatorGraph, operator: Operator, version: Version) -> bool:
    """Whether TFLite gives an operator that the delegate refuses garbage for weights: it unpacks no sparse float16."""
    weights = [graph.values[index] for index in operator.inputs if index != ABSENT]
    half = any(value.storage == "sparse" and value.stored_dtype == "float16" for value in weights)
    return half and refusal(graph, operator, version) is not None


def _weights_refusal(graph: OperatorGraph, operator: Operator, version: Version) -> str | None:
    weights = operator.inputs[1] if len(operator.inputs) > 1 else ABSENT
    if weights == ABSENT or not graph.values[weights].constant:
        return f"the delegate takes {operator.kind} with constant weights only"
    has_bias = len(operator.inputs) > 2 and operator.inputs[2] != ABSENT
    if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D") and not has_bias:
        return f"the delegate takes no {operator.kind} without a bias"
    types = [graph.values[index].stored_dtype for index in operator.inputs[1:3] if index != ABSENT]
    if version.needs_equal_types and set(types) == {"float16", "float32"}:
        return f"the delegate takes no {operator.kind} with weights in {types[0]} and a bias in {types[1]}"
    if operator.kind == "FULLY_CONNECTED" and operator.attributes.get("weights_format", 0) != 0:
        return "the delegate takes FULLY_CONNECTED with weights in the default format only"
    return None


def _reduction_refusal(graph: OperatorGraph, operator: Operator, version: Version) -> str | None:
    axes = operator.attributes.get("axes")
    if axes is None:
        return f"the delegate takes {operator.kind} along constant axes only"
    if version.any_mean or axes == (1, 2) or axes == (2,):
        return None
    return f"the delegate takes no {operator.kind} along axes {axes}"


def _pooling_refusal(operator: Operator) -> str | None:
    window, strides = operator.attributes["window"], operator.attributes["strides"]
    if any(stride > size for stride, size in zip(strides, window, strict=True)):
        return f"the delegate takes no {operator.kind} with strides {strides} over its window {window}"
    return None


def _partition(graph: OperatorGraph, taken: list[bool]) -> list[list[Operator]]:
    """Runs of taken operators, as TFLite forms them: as much of one sort as is ready, then as much of the other."""
    unready = {index for operator in graph.operators for index in operator.outputs}
    waiting = list(graph.operators)
    parts = []
    while waiting:
        sort = next(taken[operator.index] for operator in waiting if not unready.intersection(operator.inputs))
        part: list[Operator] = []
        progress = True
        while progress:
            progress = False
            for operator in list(waiting):
                if taken[operator.index] == sort and not unready.intersection(operator.inputs):
                    waiting.remove(operator)
                    part.append(operator)
                    unready.difference_update(operator.outputs)
                    progress = True
        if sort:
            parts.append(part)
    return parts


def _build(graph: OperatorGraph, part: list[Operator], version: Version) -> Subgraph:
    made = {index for operator in part for index in operator.outputs}
    inside = {operator.index for operator in part}
    read_elsewhere = {
        index for operator in graph.operators if operator.index not in inside for index in operator.inputs
    }
    read_outside = frozenset(made & (read_elsewhere | set(graph.outputs)))
    fed = {
        index
        for operator in part
        for index in operator.inputs
        if index != ABSENT and index not in made and not graph.values[index].constant
    }
    values = list(graph.values)
    nodes = [node for operator in part for node in _translate(operator, values, version)]
    weights = {index for operator in part for index in operator.inputs if index != ABSENT}
    return Subgraph(
        nodes=_fuse_padding(nodes, read_outside),
        values=tuple(values),
        external=read_outside | fed,
        returned=read_outside - read_elsewhere,
        hints_sparse=any(graph.values[index].storage == "sparse" for index in weights),
    )


def _translate(operator: Operator, values: list[Value], version: Version) -> list[Node]:
    """The nodes of one operator; appends to `values` what lies between them."""
    kind = operator.kind
    inputs = tuple(index for index in operator.inputs if index != ABSENT)
    node = Node(NodeType.OTHER, operator, inputs, operator.outputs)
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return [_translate_convolution(node, values, version)]
    if kind == "FULLY_CONNECTED":
        return _translate_fully_connected(node, values)
    if kind in version.unary:
        return [dataclasses.replace(node, type=NodeType.UNARY)]
    if kind in BINARY:
        return [_translate_binary(node, values, version)]
    if kind in ("MEAN", "SUM"):
        if version.any_mean:
            return [dataclasses.replace(node, type=NodeType.REDUCTION, inputs=inputs[:1])]
        pools = kind == "MEAN" and operator.attributes["axes"] == (1, 2)
        return [dataclasses.replace(node, type=NodeType.GLOBAL_POOLING if pools else NodeType.OTHER, inputs=inputs[:1])]
    if kind == "AVERAGE_POOL_2D" and operator.attributes["window"] == (1, 1):
        return [dataclasses.replace(node, type=NodeType.UNARY)]
    types = {
        "PAD": NodeType.PAD,
        "DEPTH_TO_SPACE": NodeType.DEPTH_TO_SPACE,
        "RESIZE_BILINEAR": NodeType.RESIZE,
    }
    # What follows the data is a parameter to XNNPACK, not an input, except to a concatenation or a product.
    data = inputs if kind in ("CONCATENATION", "BATCH_MATMUL") else _data_of(operator, values)
    return [dataclasses.replace(node, type=types.get(kind, NodeType.OTHER), inputs=data)]


def _data_of(operator: Operator, values: list[Value]) -> tuple[int, ...]:
    return tuple(index for index in operator.inputs if index != ABSENT and not values[index].constant)


def _translate_convolution(node: Node, values: list[Value], version: Version) -> Node:
    weights = values[node.inputs[1]]
    _, height, width, channels = weights.shape
    strides, dilations = node.operator.attributes["strides"], node.operator.attributes["dilations"]
    padding: Sides | None = (0, 0, 0, 0)
    if node.operator.attributes["padding"] == "SAME":
        padding = _explicit((height, width), dilations) if strides == (1, 1) else None
    depthwise = node.operator.kind == "DEPTHWISE_CONV_2D"
    node = dataclasses.replace(node, type=NodeType.DEPTHWISE if depthwise else NodeType.CONVOLUTION, padding=padding)
    ungrouped = values[node.inputs[0]].shape[3] == channels
    pointwise = not depthwise and ungrouped and (height, width) == strides == (1, 1)
    # One channel to one channel takes another path (convolution-2d.c, "vmulcaddc").
    if version.pointwise_is_fully_connected and pointwise and weights.shape[0] + channels > 2:
        return dataclasses.replace(node, type=NodeType.FULLY_CONNECTED)
    return node


def _explicit(kernel: tuple[int, int], dilations: tuple[int, int]) -> Sides:
    height, width = ((size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True))
    return height // 2, width - width // 2, height - height // 2, width // 2


def _translate_fully_connected(node: Node, values: list[Value]) -> list[Node]:
    """Without keep_num_dims, the delegate reshapes the input to two dimensions first (line 5085)."""
    connected = dataclasses.replace(node, type=NodeType.FULLY_CONNECTED)
    if node.operator.attributes.get("keep_num_dims"):
        return [connected]
    source = values[node.inputs[0]]
    depth = values[node.inputs[1]].shape[-1]
    flat = Value(len(values), source.name, (source.num_elements // max(depth, 1), depth), source.dtype)
    values.append(flat)
    reshape = Node(NodeType.OTHER, node.operator, node.inputs[:1], (flat.index,))
    return [reshape, dataclasses.replace(connected, inputs=(flat.index, *node.inputs[1:]))]


def _translate_binary(node: Node, values: list[Value], version: Version) -> Node:
    kind = node.operator.kind
    first, second = (values[index] for index in node.inputs)
    if version.squares_products and kind == "MUL" and first.index == second.index:
        return dataclasses.replace(node, type=NodeType.UNARY, inputs=node.inputs[:1])
    if version.folds_min_max and kind in ("MAXIMUM", "MINIMUM"):
        if first.constant and first.num_elements == 1:
            first, second = second, first
        if second.constant and second.num_elements == 1 and len(second.shape) <= len(first.shape):
            return dataclasses.replace(node, type=NodeType.UNARY, inputs=(first.index,))
    return dataclasses.replace(node, type=NodeType.BINARY)


def _fuse_padding(nodes: list[Node], read_outside: frozenset[int]) -> tuple[Node, ...]:
    """Zeros that a convolution alone reads become its own padding."""
    readers = Counter(index for node in nodes for index in set(node.inputs))
    fused: list[Node] = []
    makers = {index: node for node in nodes for index in node.outputs}
    gone = set()
    for node in nodes:
        pad = makers.get(node.inputs[0]) if node.inputs else None
        fuses = node.type in (NodeType.CONVOLUTION, NodeType.DEPTHWISE) and node.padding is not None
        if fuses and pad is not None and pad.type is NodeType.PAD and _is_spatial(pad):
            value = pad.outputs[0]
            if readers[value] == 1 and value not in read_outside:
                gone.add(id(pad))
                node = _pad_more(node, pad)
        fused.append(node)
    return tuple(node for node in fused if id(node) not in gone)


def _is_spatial(pad: Node) -> bool:
    paddings = pad.operator.attributes.get("paddings", ())
    return len(paddings) == 4 and paddings[0] == paddings[3] == (0, 0)


def _pad_more(node: Node, pad: Node) -> Node:
    assert node.padding is not None
    (_, (above, below), (left, right), _) = pad.operator.attributes["paddings"]
    top_, right_, bottom_, left_ = node.padding
    padding = (top_ + above, right_ + right, bottom_ + below, left_ + left)
    return dataclasses.replace(node, inputs=(pad.inputs[0], *node.inputs[1:]), padding=padding)
