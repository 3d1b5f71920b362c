"""Groups of channels: which axes of which variables number the same channels and so stand, fall and move together.

The hidden channels of a block are one: the expansion's outputs, its batch norm, the depthwise convolution, its batch
norm, and the projection's inputs. A residual stream is one: all that is added to it and all that reads it. Read from
the graph of functional and sequential models; of a subclassed model nothing is known, and there are no groups.
"""

import dataclasses

import keras

from reflow_tf.models.calls import Call, CallGraph
from reflow_tf.models.channels.numbering import Layout, Numberings
from reflow_tf.models.channels.rules import apply


@dataclasses.dataclass(frozen=True)
class ChannelSpan:
    """Where a variable has the channels of a group: `variable[..., start : start + size, ...]` along the axis."""

    variable: keras.Variable
    axis: int
    start: int


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Channels that are numbered alike in several variables.

    Attributes:
        size: how many channels.
        spans: everywhere they are. A variable can have them several times, as a Dense layer behind flattened maps does.
        frozen: why they must stay as they are: they are the network's inputs or outputs, or something touches them
            that is not known; None: order and number of these channels are nobody else's business.
    """

    size: int
    spans: tuple[ChannelSpan, ...]
    frozen: str | None


@dataclasses.dataclass(frozen=True)
class ChannelReading:
    """A model's graph with the channels of every tensor.

    Attributes:
        graph: the calls.
        layouts: tensor -> the numberings on its last axis; tensors that were not reached are missing.
        numberings: all of them, with the axes of variables.
    """

    graph: CallGraph
    layouts: dict[int, Layout]
    numberings: Numberings

    def roots(self, tensor: int) -> Layout | None:
        """The tensor's layout as numberings that are the same wherever they are equal; None where it has none."""
        layout = self.layouts.get(tensor)
        return None if layout is None else tuple(self.numberings.root(numbering) for numbering in layout)


def find_channel_groups(model: keras.Model) -> tuple[ChannelGroup, ...]:
    """All groups of a model, in the order in which their first variable is met.

    Args:
        model: a built model.
    """
    return tuple(collect_groups(read_channels(model).numberings).values())


def read_channels(model: keras.Model) -> ChannelReading:
    """Goes through a model's calls in an order in which they can be done, and applies the rules."""
    graph, numberings = CallGraph(model), Numberings()
    layouts: dict[int, Layout] = {}
    for tensor in graph.starts:
        layouts[tensor] = _new_layout(graph.shapes[tensor], numberings)
        numberings.freeze(layouts[tensor], "is an input of the network")
    waiting = list(graph.calls)
    while ready := [call for call in waiting if all(tensor in layouts for tensor in call.inputs)]:
        for call in ready:
            _take(call, graph, layouts, numberings)
        done = set(map(id, ready))
        waiting = [call for call in waiting if id(call) not in done]
    for call in waiting:
        _give_up(call, [layouts[tensor] for tensor in call.inputs if tensor in layouts], numberings)
    for tensor in graph.ends & layouts.keys():
        numberings.freeze(layouts[tensor], "is an output of the network")
    return ChannelReading(graph, layouts, numberings)


def _take(call: Call, graph: CallGraph, layouts: dict[int, Layout], numberings: Numberings) -> None:
    """Enters what one call says about its inputs, its variables and its outputs."""
    inputs = [layouts[tensor] for tensor in call.inputs]
    shapes = [graph.shapes[tensor] for tensor in (*call.inputs, *call.outputs)]
    is_numbered = all(len(shape) > 1 and shape[-1] is not None for shape in shapes)
    found = None
    if inputs and is_numbered and len(call.outputs) == 1:
        found = apply(call, inputs, shapes[-1], numberings)
    if found is None or numberings.size(found) != shapes[-1][-1]:
        _give_up(call, inputs, numberings)
        found = None
    for tensor in call.outputs:
        layout = found
        if layout is None:
            layout = _new_layout(graph.shapes[tensor], numberings)
            numberings.freeze(layout, f"comes from {_name(call)}, of which it is not known what it does with channels")
        # Models that are called several times give a tensor once for all calls.
        numberings.join(layouts.setdefault(tensor, layout), layout)


def _give_up(call: Call, inputs: list[Layout], numberings: Numberings) -> None:
    for layout in inputs:
        numberings.freeze(layout, f"goes into {_name(call)}, of which it is not known what it does with channels")
    for variable in getattr(call.operation, "variables", ()):
        numberings.hold(variable, f"is used by {_name(call)} in a way that is not known")


def _new_layout(shape: tuple[int | None, ...], numberings: Numberings) -> Layout:
    return numberings.new(shape[-1]) if len(shape) > 1 and shape[-1] is not None else ()


def _name(call: Call) -> str:
    return f"{call.operation.name} ({type(call.operation).__name__})" if call.operation is not None else "a model"


def collect_groups(numberings: Numberings) -> dict[int, ChannelGroup]:
    """Root -> its group, in the order in which their first variable was met."""
    spans: dict[int, list[ChannelSpan]] = {}
    for variable, axis, layout in numberings.axes():
        start = 0
        for numbering in layout:
            spans.setdefault(numbering, []).append(ChannelSpan(variable, axis, start))
            start += numberings.size((numbering,))
    reasons = numberings.reasons()
    return {
        numbering: ChannelGroup(numberings.size((numbering,)), tuple(found), reasons.get(numbering))
        for numbering, found in spans.items()
    }
