"""What is mirrored when the input of a network is: all operators from there to where height and width are averaged."""

import dataclasses

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.rewriting.convolutions import (
    CONVOLUTIONS,
    HEIGHT,
    POOLINGS,
    WIDTH,
    is_pointwise,
    is_stem,
    read_paddings,
)
from reflow_tf.export.rewriting.graph import EditableGraph

UNARY = frozenset(
    {"ABS", "CEIL", "COS", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGISTIC", "NEG", "RELU"}
    | {"RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "ROUND", "RSQRT", "SIGN", "SIN", "SQRT", "SQUARE", "TANH"}
)
BINARY = frozenset({"ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "POW", "PRELU", "SQUARED_DIFFERENCE", "SUB"})
ELEMENTWISE = UNARY | BINARY
REDUCTIONS = frozenset({"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"})
_CHANNELWISE = frozenset({"SOFTMAX", "LOG_SOFTMAX", "L2_NORMALIZATION"})  # over the last axis, pixel by pixel
# They look at pixels in order, and XNNPACK has them in no sparse cluster: the image is turned back in front of them.
ORDERED = frozenset({"RESHAPE", "FULLY_CONNECTED", "TRANSPOSE", "SQUEEZE", "BATCH_MATMUL", "EXPAND_DIMS"})
_REVERSIBLE = CONVOLUTIONS | POOLINGS | ELEMENTWISE | _CHANNELWISE | {"PAD"}
# What they make of one pixel are pixels that are all alike.
_SPREADING = frozenset({"RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "BROADCAST_TO", "TILE"})


@dataclasses.dataclass(frozen=True)
class Region:
    """Everything behind the stems.

    Attributes:
        entries: the tensors to mirror: the input, or what is computed from it before a stem by anything but
            elementwise operators.
        members: operators that see mirrored images, in the order of the file.
        turned_back: (operator or None, tensor): operators that need their input upright, and with None outputs.
        obstacles: (layer, reason) why the region cannot be mirrored.
        mirrored: the tensors that are mirror images, entries included.
    """

    entries: tuple[int, ...]
    members: tuple[schema.OperatorT, ...]
    turned_back: tuple[tuple[schema.OperatorT | None, int], ...]
    obstacles: tuple[tuple[str, str], ...]
    mirrored: frozenset[int]


def find_region(graph: EditableGraph) -> Region | None:
    """The region of a graph that has a stem and 1x1 convolutions behind it; None for any other graph."""
    order = {index: place for place, operator in enumerate(graph.operators) for index in operator.outputs}
    found = {_find_entry(graph, operator.inputs[0]) for operator in graph.operators if is_stem(graph, operator)}
    region = _follow(graph, ())
    # What is computed from one entry may be where another stem begins: then it is mirrored already.
    for entry in sorted(found, key=lambda index: (order.get(index, -1), index)):
        if entry not in region.mirrored:
            region = _follow(graph, (*region.entries, entry))
    return region if any(is_pointwise(graph, operator) for operator in region.members) else None


def find_behind_stems(graph: EditableGraph) -> list[schema.OperatorT]:
    """Every operator that computes something from what a stem computes."""
    computed: set[int] = set()
    behind = []
    for operator in graph.operators:
        if computed & set(operator.inputs):
            behind.append(operator)
        elif not is_stem(graph, operator):
            continue
        computed |= set(operator.outputs)
    return behind


def has_pixels(graph: EditableGraph, index: int) -> bool:
    """Whether a tensor has several pixels, whose order a mirror would change."""
    return max(pixel_sizes(graph.shape(index))) > 1


def _find_entry(graph: EditableGraph, index: int) -> int:
    """Walks up from a stem while there are only padding and elementwise operators of one tensor."""
    while (operator := graph.producer(index)) is not None:
        data = graph.data_inputs(operator)
        if graph.kind(operator) not in ELEMENTWISE | {"PAD"} or len(data) != 1 or len(graph.shape(data[0])) != 4:
            break
        index = data[0]
    return index


def _follow(graph: EditableGraph, entries: tuple[int, ...]) -> Region:
    mirrored = set(entries)
    members, turned_back, obstacles = [], [], []
    for operator in graph.operators:
        seen = [index for index in graph.data_inputs(operator) if index in mirrored]
        if not seen:
            continue
        if graph.kind(operator) in ORDERED:
            turned_back += [(operator, index) for index in dict.fromkeys(seen) if index not in entries]
            continue
        members.append(operator)
        # One pixel is its own mirror image, unless it is combined with others, or unfolded to them.
        if any(has_pixels(graph, index) for index in (*operator.inputs, *operator.outputs) if index >= 0):
            reason = _find_obstacle(graph, operator, mirrored)
            obstacles += [(graph.name(operator), reason)] if reason else []
        if graph.kind(operator) not in REDUCTIONS:
            mirrored |= set(operator.outputs)
    turned_back += [(None, index) for index in graph.outputs if index in mirrored and index not in entries]
    turned_back = [(operator, index) for operator, index in turned_back if has_pixels(graph, index)]
    return Region(entries, tuple(members), tuple(turned_back), tuple(obstacles), frozenset(mirrored))


def _find_obstacle(graph: EditableGraph, operator: schema.OperatorT, mirrored: set[int]) -> str | None:
    kind = graph.kind(operator)
    if kind == "PAD" and read_paddings(graph, operator) is None:
        return "the paddings of PAD are computed"
    for index in graph.data_inputs(operator):
        if index not in mirrored and has_pixels(graph, index):
            return f"{kind} mixes the mirrored image with one that is not ({graph.tensor_name(index)})"
    for slot in find_pixel_constants(graph, operator):
        if graph.constant(operator.inputs[slot]) is None:
            return f"{kind} reads {graph.tensor_name(operator.inputs[slot])}, which is of a type that cannot be read"
    if kind in _SPREADING and not has_pixels(graph, operator.inputs[0]):
        return None
    return _find_obstacle_of_kind(graph, operator)


def _find_obstacle_of_kind(graph: EditableGraph, operator: schema.OperatorT) -> str | None:
    kind, options = graph.kind(operator), operator.builtinOptions
    match kind:
        case "CONCATENATION":
            spatial = options.axis % 4 in (HEIGHT, WIDTH)
            return "CONCATENATION joins images side by side" if spatial else None
        case "RESIZE_BILINEAR":
            known = options.halfPixelCenters or options.alignCorners
            return None if known else "RESIZE_BILINEAR samples from a corner: it has no mirror image"
    if kind in REDUCTIONS:
        return _find_reduction_obstacle(graph, operator)
    if kind not in _REVERSIBLE:
        return f"no mirror image of {kind} is known"
    (axes,) = {len(graph.shape(index)) for index in operator.outputs}
    return None if axes == 4 else f"{kind} gives {axes} axes"


def _find_reduction_obstacle(graph: EditableGraph, operator: schema.OperatorT) -> str | None:
    axes = graph.constant(operator.inputs[1])
    if axes is not None and {HEIGHT, WIDTH} <= {int(axis) % 4 for axis in axes.reshape(-1)}:
        return None
    return f"{graph.kind(operator)} must take height and width together"


def find_pixel_constants(graph: EditableGraph, operator: schema.OperatorT) -> list[int]:
    """The slots of an operator's constants that lie on pixels: kernels, and what is combined with images."""
    if graph.kind(operator) in CONVOLUTIONS:
        slots = [1]
    elif graph.kind(operator) in ELEMENTWISE | {"CONCATENATION"}:
        slots = [slot for slot, index in enumerate(operator.inputs) if graph.is_constant(index)]
    else:
        slots = []
    return [slot for slot in slots if has_pixels(graph, operator.inputs[slot])]


def pixel_sizes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of what is broadcast to NHWC, its last axes aligned."""
    height, width = (1, 1, 1, *shape)[-3:-1]
    return height, width


def reverse_pixels(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """A constant mirrored along axes of NHWC, as far as it has them."""
    own = [axis - 4 + values.ndim for axis in axes]
    return np.flip(values, tuple(axis for axis in own if axis >= 0))
