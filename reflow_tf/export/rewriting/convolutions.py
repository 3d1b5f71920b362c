"""Convolutions and poolings of a file as windows over height and width, their padding in whichever form it is given."""

import dataclasses

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.rewriting import windows
from reflow_tf.export.rewriting.graph import EditableGraph
from reflow_tf.export.rewriting.windows import Windows

HEIGHT, WIDTH = 1, 2  # axes of NHWC
CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})
POOLINGS = frozenset({"AVERAGE_POOL_2D", "MAX_POOL_2D"})


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A CONV_2D, DEPTHWISE_CONV_2D or pooling, with the PAD in front of it.

    Attributes:
        operator: in the file.
        name: of its layer.
        source: the tensor that the windows lie on; with a PAD in front, what that reads.
        pad: that PAD, if it adds zeros to height and width only, and its paddings ((top, bottom), (left, right)).
        is_same: padding SAME, not VALID.
        rows: windows along the height.
        columns: windows along the width.
        wants_symmetric: XNNPACK takes it into a sparse cluster only with explicit padding (k - 1)/2 on every side.
    """

    operator: schema.OperatorT
    name: str
    source: int
    pad: tuple[schema.OperatorT, tuple[tuple[int, int], tuple[int, int]]] | None
    is_same: bool
    rows: Windows
    columns: Windows
    wants_symmetric: bool

    def along(self, axis: int) -> Windows:
        """The windows along HEIGHT or WIDTH."""
        return self.rows if axis == HEIGHT else self.columns

    @property
    def has_symmetric_padding(self) -> bool:
        """Whether the padding is written as a PAD with (k - 1)/2 on every side, or as none where that is 0."""
        wanted = tuple((self.along(axis).symmetric_padding,) * 2 for axis in (HEIGHT, WIDTH))
        return not self.is_same and (self.pad[1] if self.pad else ((0, 0), (0, 0))) == wanted


def is_stem(graph: EditableGraph, operator: schema.OperatorT, floats_only: bool = True) -> bool:
    """Whether a sparse cluster can begin here: at a 3x3 convolution with stride 2 of 3 channels (see `rotation`)."""
    if graph.kind(operator) != "CONV_2D":
        return False
    options = operator.builtinOptions
    is_strided = (options.strideH, options.strideW) == (2, 2)
    is_float = graph.is_float(operator.inputs[0]) or not floats_only
    is_rgb = graph.shape(operator.inputs[1])[1:] == (3, 3, 3) and not is_grouped(graph, operator)
    return is_strided and is_rgb and is_float


def is_grouped(graph: EditableGraph, operator: schema.OperatorT) -> bool:
    """Whether the filters of a CONV_2D read some of the channels each."""
    return graph.shape(operator.inputs[1])[3] != graph.shape(operator.inputs[0])[3]


def is_pointwise(graph: EditableGraph, operator: schema.OperatorT) -> bool:
    """Whether an operator is a 1x1 convolution with stride 1 and one group: what sparse kernels exist for."""
    if graph.kind(operator) != "CONV_2D":
        return False
    options = operator.builtinOptions
    is_small = graph.shape(operator.inputs[1])[1:3] == (1, 1) and (options.strideH, options.strideW) == (1, 1)
    return is_small and not is_grouped(graph, operator)


def read_convolution(graph: EditableGraph, operator: schema.OperatorT) -> Convolution:
    """Reads a convolution or pooling with everything that says where its windows lie."""
    options, kind = operator.builtinOptions, graph.kind(operator)
    strides = options.strideH, options.strideW
    if kind in POOLINGS:
        kernel, dilations = (options.filterHeight, options.filterWidth), (1, 1)
    else:
        _, height, width, _ = graph.shape(operator.inputs[1])
        kernel, dilations = (height, width), (options.dilationHFactor, options.dilationWFactor)
    is_same = options.padding == schema.Padding.SAME
    pad = None if kind in POOLINGS else _read_pad(graph, operator.inputs[0])
    if pad and is_same:  # the windows of SAME lie on the padded image
        pad = None
    source = pad[0].inputs[0] if pad else operator.inputs[0]
    rows, columns = (
        _read_windows(
            graph.shape(source)[axis],
            (kernel[axis - HEIGHT] - 1) * max(dilations[axis - HEIGHT], 1) + 1,
            strides[axis - HEIGHT],
            None if is_same else pad[1][axis - HEIGHT] if pad else (0, 0),
        )
        for axis in (HEIGHT, WIDTH)
    )
    is_depthwise = kind == "DEPTHWISE_CONV_2D" and strides == (2, 2) and all(size % 2 for size in kernel)
    wants_symmetric = is_depthwise or is_stem(graph, operator)
    return Convolution(operator, graph.name(operator), source, pad, is_same, rows, columns, wants_symmetric)


def _read_windows(size: int, kernel: int, stride: int, paddings: tuple[int, int] | None) -> Windows:
    if paddings is None:
        return windows.same(size, kernel, stride)
    return windows.explicit(size, kernel, stride, *paddings)


def write_windows(
    graph: EditableGraph, convolution: Convolution, rows: Windows, columns: Windows, mirrored: bool
) -> bool:
    """Gives a convolution other windows, or writes the same ones as XNNPACK wants them; whether anything changed.

    With `mirrored`, a PAD that stays in front of it is about to be mirrored.

    Symmetric padding is a PAD that nobody else reads and VALID: XNNPACK fuses the two (`xnn_subgraph_fusion`), while it
    keeps a SAME with stride 2 as a flag that its sparse kernels lack.
    """
    operator = convolution.operator
    wanted = [((a.symmetric_padding,) * 2 if convolution.wants_symmetric else _paddings(a)) for a in (rows, columns)]
    if (rows, columns) == (convolution.rows, convolution.columns):
        is_own = convolution.pad is None or len(graph.readers(operator.inputs[0])) == 1
        is_fusible = convolution.has_symmetric_padding and is_own
        pad_stays = convolution.pad is None or not mirrored or all(a == b for a, b in convolution.pad[1])
        if is_fusible or (not convolution.wants_symmetric and pad_stays):
            return False
    operator.builtinOptions.padding = schema.Padding.VALID
    operator.inputs[0] = convolution.source
    if any(before or after for before, after in wanted):
        paddings = np.array([(0, 0), *wanted, (0, 0)], np.int32)
        batch, height, width, channels = graph.shape(convolution.source)
        shape = batch, height + sum(wanted[0]), width + sum(wanted[1]), channels
        padded = graph.add_value(f"{convolution.name}/padded", shape, like=convolution.source)
        constant = graph.add_constant(f"{convolution.name}/paddings", paddings)
        graph.insert(operator, "PAD", [convolution.source, constant], padded, schema.PadOptionsT())
        operator.inputs[0] = padded
    return True


def read_paddings(graph: EditableGraph, pad: schema.OperatorT) -> np.ndarray | None:
    """The constant paddings (rank, 2) of a PAD."""
    return graph.constant(pad.inputs[1])


def _paddings(along: Windows) -> tuple[int, int]:
    return along.before, max(along.after, 0)


def _read_pad(
    graph: EditableGraph, index: int
) -> tuple[schema.OperatorT, tuple[tuple[int, int], tuple[int, int]]] | None:
    operator = graph.producer(index)
    if operator is None or graph.kind(operator) != "PAD" or len(graph.shape(index)) != 4:
        return None
    paddings = read_paddings(graph, operator)
    if paddings is None or paddings[0].any() or paddings[3].any():
        return None
    (top, bottom), (left, right) = paddings[1:3].tolist()
    return operator, ((top, bottom), (left, right))
