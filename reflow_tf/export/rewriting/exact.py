"""All exact rewrites, one after the other."""

from collections.abc import Collection

from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.rewriting.averages import average_whole_maps
from reflow_tf.export.rewriting.ballast import add_ballast
from reflow_tf.export.rewriting.constants import widen_constants
from reflow_tf.export.rewriting.convolutions import is_grouped, is_stem
from reflow_tf.export.rewriting.dimensions import keep_dimensions
from reflow_tf.export.rewriting.graph import EditableGraph
from reflow_tf.export.rewriting.head import take_out_head
from reflow_tf.export.rewriting.outcome import Applied, Refused, Rewritten
from reflow_tf.export.rewriting.region import find_region
from reflow_tf.export.rewriting.rotation import rotate

_STEPS = (average_whole_maps, keep_dimensions, widen_constants, take_out_head, rotate)


def rewrite_exact(content: bytes, ballast_for: Collection[str] = ()) -> Rewritten:
    """Changes a file so that XNNPACK can run its 1x1 convolutions sparse; what it computes stays the same.

    The new file takes and gives the same tensors as the old one. Sums may be in another order, so floats agree up to
    their rounding. Nothing is done unless a sparse cluster could begin and gain something: at a 3x3 convolution of 3
    channels with stride 2, with 1x1 convolutions behind it; and nothing where the network cannot be turned, since all
    the rest only helps a network that is.

    Args:
        content: a .tflite file, preferably before its weights are stored sparse: a kernel that is changed is stored
            dense from then on.
        ballast_for: devices on which the file shall be faster than dense with the zeros that it has, by ballast if need
            be (see `export.rewriting.ballast`); none: no ballast.

    Raises:
        InputError: `content` is not a whole .tflite file.
    """
    graph = EditableGraph(content)
    if find_region(graph) is None:
        return Rewritten(content, (), _refuse_beginning(graph))
    outcomes: list[Applied | Refused] = []
    for step in _STEPS:
        outcomes += step(graph)
    applied = tuple(outcome for outcome in outcomes if isinstance(outcome, Applied))
    refused = tuple(outcome for outcome in outcomes if isinstance(outcome, Refused))
    if any(outcome.rewrite == "rotation" for outcome in refused):
        return Rewritten(content, (), refused)
    still_open = [index for index in graph.inputs if graph.is_open(index)]
    if applied and still_open:
        name = graph.tensor_name(still_open[0])
        # Shapes are written into the file, so whoever made it a batch of four would get an error.
        reason = f"The batch of {name} must be fixed for the file to be rewritten: export with a fixed batch."
        return Rewritten(content, (), (Refused("rotation", name, reason), *refused))
    rewritten = Rewritten(graph.serialize() if applied else content, applied, refused)
    if not ballast_for or still_open:
        return rewritten
    ballasted = add_ballast(rewritten.content, ballast_for)
    return Rewritten(ballasted.content, applied + ballasted.applied, refused + ballasted.refused)


def _refuse_beginning(graph: EditableGraph) -> tuple[Refused, ...]:
    """Why no cluster can begin: at the convolution that comes closest, the one that is a stem or else the first."""
    convolutions = [operator for operator in graph.operators if graph.kind(operator) == "CONV_2D"]
    stems = [operator for operator in convolutions if is_stem(graph, operator, floats_only=False)]
    for operator in (*stems, *convolutions)[:1]:
        name = graph.name(operator)
        if not graph.is_float(operator.inputs[0]):
            reason = "XNNPACK runs networks of floats sparse, not of integers: export with --quantize=none or float16."
        elif stems:
            reason = f"No 1x1 convolution with stride 1 and one group follows {name}, so nothing could run sparse."
        else:
            reason = (
                "A sparse cluster begins at a 3x3 convolution of 3 channels with stride 2. The network has none; its "
                f"first convolution, {name}, is {_describe(graph, operator)}."
            )
        return (Refused("rotation", name, reason),)
    return ()


def _describe(graph: EditableGraph, operator: schema.OperatorT) -> str:
    options = operator.builtinOptions
    height, width = graph.shape(operator.inputs[1])[1:3]
    channels = graph.shape(operator.inputs[0])[3]
    stride = options.strideH if options.strideH == options.strideW else (options.strideH, options.strideW)
    grouped = " in groups" if is_grouped(graph, operator) else ""
    return f"{height}x{width} of {channels} channel{'s' if channels > 1 else ''}{grouped} with stride {stride}"
