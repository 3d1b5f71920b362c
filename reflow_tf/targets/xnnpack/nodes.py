"""XNNPACK's own view of a network: nodes, and what the delegate tells it of the values between them."""

import dataclasses
import enum

from reflow_tf.targets.operators import Operator, Value

Sides = tuple[int, int, int, int]  # top, right, bottom, left


class NodeType(enum.Enum):
    """The types that the sparse rewrite tells apart."""

    CONVOLUTION = "convolution_2d"
    DEPTHWISE = "depthwise_convolution_2d"
    FULLY_CONNECTED = "fully_connected"
    GLOBAL_POOLING = "global_average_pooling_2d"
    REDUCTION = "static_reduce"
    DEPTH_TO_SPACE = "depth_to_space_2d"
    RESIZE = "static_resize_bilinear_2d"
    UNARY = "unary_elementwise"
    BINARY = "binary_elementwise"
    PAD = "static_constant_pad"
    OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Node:
    """One step, after the delegate's translation and XNNPACK's fusion.

    Attributes:
        type: what XNNPACK calls it.
        operator: the TFLite operator that it was made of.
        inputs: values, constants among them.
        outputs: values.
        padding: explicit zeros around the input; None where TensorFlow's SAME padding is left to the runtime, which
            happens where a stride is over 1.
    """

    type: NodeType
    operator: Operator
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    padding: Sides | None = (0, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Subgraph:
    """A part of the network that the delegate took as one.

    Attributes:
        nodes: in the order of execution.
        values: by index; the delegate's own ones after those of the file.
        external: values that come from outside or are read there.
        returned: those of them that are outputs of the file and nothing else.
        hints_sparse: one of its operators reads a weight that the file stores sparse: only then does the delegate ask
            for sparse kernels (xnnpack_delegate.cc lines 1082 and 1472).
    """

    nodes: tuple[Node, ...]
    values: tuple[Value, ...]
    external: frozenset[int]
    returned: frozenset[int]
    hints_sparse: bool
