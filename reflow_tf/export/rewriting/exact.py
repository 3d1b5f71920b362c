"""All exact rewrites, one after the other."""

from reflow_tf.export.rewriting.constants import widen_constants
from reflow_tf.export.rewriting.convolutions import is_stem
from reflow_tf.export.rewriting.dimensions import keep_dimensions
from reflow_tf.export.rewriting.graph import EditableGraph
from reflow_tf.export.rewriting.head import take_out_head
from reflow_tf.export.rewriting.outcome import Applied, Refused, Rewritten
from reflow_tf.export.rewriting.region import find_region
from reflow_tf.export.rewriting.rotation import rotate

_STEPS = (keep_dimensions, widen_constants, take_out_head, rotate)


def rewrite_exact(content: bytes) -> Rewritten:
    """Changes a file so that XNNPACK can run its 1x1 convolutions sparse; what it computes stays the same.

    The new file takes and gives the same tensors as the old one. Sums may be in another order, so floats agree up to
    their rounding. Nothing is done unless a sparse cluster could begin and gain something: at a 3x3 convolution of 3
    channels with stride 2, with 1x1 convolutions behind it; and nothing where the network cannot be turned, since all
    the rest only helps a network that is.

    Args:
        content: a .tflite file, preferably before its weights are stored sparse: a kernel that is changed is stored
            dense from then on.

    Raises:
        InputError: `content` is not a whole .tflite file.
    """
    graph = EditableGraph(content)
    if find_region(graph) is None:
        return Rewritten(content, (), _refuse_integers(graph))
    outcomes: list[Applied | Refused] = []
    for step in _STEPS:
        outcomes += step(graph)
    applied = tuple(outcome for outcome in outcomes if isinstance(outcome, Applied))
    refused = tuple(outcome for outcome in outcomes if isinstance(outcome, Refused))
    if not applied or any(outcome.rewrite == "rotation" for outcome in refused):
        return Rewritten(content, (), refused)
    return Rewritten(graph.serialize(), applied, refused)


def _refuse_integers(graph: EditableGraph) -> tuple[Refused, ...]:
    for operator in graph.operators:
        if is_stem(graph, operator, floats_only=False) and not graph.is_float(operator.inputs[0]):
            reason = "XNNPACK runs networks of floats sparse, not of integers: export with --quantize=none or float16."
            return (Refused("rotation", graph.name(operator), reason),)
    return ()
