"""Which nodes can work channels first, as the sparse kernels need it; and for every other one, the rule that it breaks.

Source: XNNPACK 75db3c093, src/subgraph.c line 404, `xnn_check_nchw_compatibility`.
"""

import dataclasses
import enum

from reflow_tf.targets.operators import Value
from reflow_tf.targets.xnnpack.nodes import Node, NodeType, Subgraph
from reflow_tf.targets.xnnpack.versions import Version

_FLOATS = frozenset({"float32", "float16"})
_KERNEL_PADDING = {3: 1, 5: 2}


class Layout(enum.Flag):
    """What a node can be to a cluster."""

    NONE = 0
    INSIDE = enum.auto()  # XNN_LAYOUT_FLAG_COMPATIBLE_NCHW
    BEGIN = enum.auto()  # XNN_LAYOUT_FLAG_COMPATIBLE_NHWC2NCHW
    END = enum.auto()  # XNN_LAYOUT_FLAG_COMPATIBLE_NCHW2NHWC


class Rule(enum.Enum):
    """The rules that a node can break."""

    FLOAT = "float"
    KERNEL = "kernel"
    GROUPS = "groups"
    DILATION = "dilation"
    PADDING = "padding"
    STRIDES = "strides"
    CHANNELS = "channels"
    MULTIPLIER = "multiplier"
    RANK = "rank"
    CONSTANT = "constant"
    SIZE = "size"
    KIND = "kind"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a node can be, or the rule that it breaks."""

    layout: Layout
    broken: Rule | None = None


def check_layout(node: Node, subgraph: Subgraph, version: Version) -> Finding:
    """Judges one node by itself."""
    values = subgraph.values
    if not all(values[index].dtype in _FLOATS for index in (*node.inputs, *node.outputs)):
        return Finding(Layout.NONE, Rule.FLOAT)
    match node.type:
        case NodeType.FULLY_CONNECTED if version.pointwise_is_fully_connected:
            return Finding(Layout.INSIDE)
        case NodeType.CONVOLUTION:
            return _check_convolution(node, values)
        case NodeType.DEPTHWISE:
            return _check_depthwise(node, values)
        case NodeType.DEPTH_TO_SPACE:
            return Finding(Layout.END)
        case NodeType.GLOBAL_POOLING:
            return Finding(Layout.INSIDE | Layout.END)
        case NodeType.REDUCTION:
            return _need_rank_4(node, values, Layout.INSIDE | Layout.END)
        case NodeType.UNARY if _stays_channels_first(node, version):
            return _need_rank_4(node, values, Layout.INSIDE)
        case NodeType.BINARY if node.operator.kind in ("ADD", "MUL"):
            return _check_binary(node, values)
        case NodeType.RESIZE:
            large = all(size > 1 for size in values[node.inputs[0]].shape[1:3])
            return Finding(Layout.INSIDE) if large else Finding(Layout.NONE, Rule.SIZE)
    return Finding(Layout.NONE, Rule.KIND)


def _stays_channels_first(node: Node, version: Version) -> bool:
    return node.operator.kind in version.unary_channels_first or node.operator.kind not in version.unary


def _need_rank_4(node: Node, values: tuple[Value, ...], layout: Layout) -> Finding:
    if len(values[node.inputs[0]].shape) == 4:
        return Finding(layout)
    return Finding(Layout.NONE, Rule.RANK)


def _check_convolution(node: Node, values: tuple[Value, ...]) -> Finding:
    _, height, width, channels = values[node.inputs[1]].shape
    attributes = node.operator.attributes
    if values[node.inputs[0]].shape[3] != channels:
        return Finding(Layout.NONE, Rule.GROUPS)
    if attributes["dilations"] != (1, 1):
        return Finding(Layout.NONE, Rule.DILATION)
    if (height, width) == (1, 1):
        if node.padding is not None and any(node.padding):
            return Finding(Layout.NONE, Rule.PADDING)
        if attributes["strides"] != (1, 1):
            return Finding(Layout.NONE, Rule.STRIDES)
        return Finding(Layout.INSIDE)
    if (height, width) != (3, 3):
        return Finding(Layout.NONE, Rule.KERNEL)
    if attributes["strides"] != (2, 2):
        return Finding(Layout.NONE, Rule.STRIDES)
    if channels != 3:
        return Finding(Layout.NONE, Rule.CHANNELS)
    if node.padding != (1, 1, 1, 1):
        return Finding(Layout.NONE, Rule.PADDING)
    return Finding(Layout.BEGIN)


def _check_depthwise(node: Node, values: tuple[Value, ...]) -> Finding:
    _, height, width, _ = values[node.inputs[1]].shape
    attributes = node.operator.attributes
    if attributes["dilations"] != (1, 1):
        return Finding(Layout.NONE, Rule.DILATION)
    if attributes["depth_multiplier"] != 1:
        return Finding(Layout.NONE, Rule.MULTIPLIER)
    if attributes["strides"] not in ((1, 1), (2, 2)):
        return Finding(Layout.NONE, Rule.STRIDES)
    if height != width or height not in _KERNEL_PADDING:
        return Finding(Layout.NONE, Rule.KERNEL)
    if node.padding != (_KERNEL_PADDING[height],) * 4:
        return Finding(Layout.NONE, Rule.PADDING)
    return Finding(Layout.INSIDE)


def _check_binary(node: Node, values: tuple[Value, ...]) -> Finding:
    first, second = (values[index] for index in node.inputs)
    if len(first.shape) != 4 or len(second.shape) != 4:
        return Finding(Layout.NONE, Rule.RANK)
    # For a constant second input the source measures the first one's shape (src/subgraph.c lines 640 to 650): it must
    # be a vector, too, so that a constant is only ever welcome as the first input.
    for constant in (first, second):
        if constant.constant and sum(size != 1 for size in first.shape) > 1:
            return Finding(Layout.NONE, Rule.CONSTANT)
    return Finding(Layout.INSIDE)
