"""The part of a network that would be one cluster if nothing stood in the way: from the stem to where pixels end."""

import dataclasses
from collections.abc import Callable, Collection

from reflow_tf.targets.operators import ABSENT, Operator, OperatorGraph
from reflow_tf.targets.xnnpack.workload import is_pointwise

_REDUCTIONS = frozenset({"MEAN", "SUM"})
_CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"})


@dataclasses.dataclass(frozen=True)
class Region:
    """Operators by index, in the order of execution.

    Attributes:
        operators: all of them, stems and ends among them.
        stems: convolutions that no other convolution comes before; they may be in another cluster already.
        ends: where height and width are averaged away, or a DEPTH_TO_SPACE; the same holds for them.
        products: its 1x1 convolutions.
    """

    operators: tuple[int, ...]
    stems: tuple[int, ...]
    ends: tuple[int, ...]
    products: tuple[int, ...]


class Wiring:
    """Who makes and who reads each value of a graph."""

    def __init__(self, graph: OperatorGraph):
        self.graph = graph
        self.makers = {index: operator for operator in graph.operators for index in operator.outputs}
        self.readers: dict[int, list[Operator]] = {value.index: [] for value in graph.values}
        for operator in graph.operators:
            for index in dict.fromkeys(operator.inputs):
                if index != ABSENT:
                    self.readers[index].append(operator)

    def before(self, operator: Operator) -> list[Operator]:
        """The operators whose outputs it reads."""
        return [self.makers[index] for index in operator.inputs if index in self.makers]

    def after(self, operator: Operator) -> list[Operator]:
        """The operators that read its outputs."""
        return [reader for index in operator.outputs for reader in self.readers[index]]

    def spread(self, start: Collection[int], step: Callable[[Operator], list[Operator]]) -> set[int]:
        """Everything that can be reached from some operators, they themselves included."""
        seen = set(start)
        waiting = [self.graph.operators[index] for index in start]
        while waiting:
            for operator in step(waiting.pop()):
                if operator.index not in seen:
                    seen.add(operator.index)
                    waiting.append(operator)
        return seen


def find_region(wiring: Wiring, settled: Collection[int]) -> Region | None:
    """The would-be cluster of the 1x1 convolutions of images that are in no cluster yet; None where there are none.

    Args:
        wiring: of the graph.
        settled: operators that are in clusters already.
    """
    graph = wiring.graph
    idle = [
        operator.index
        for operator in graph.operators
        if is_pointwise(graph, operator) and has_pixels(graph, operator.inputs[0]) and operator.index not in settled
    ]
    if not idle:
        return None
    near = wiring.spread(idle, wiring.before) | wiring.spread(idle, wiring.after)
    stems = tuple(index for index in sorted(near) if _is_first_convolution(wiring, graph.operators[index]))
    behind = wiring.spread(stems or idle, wiring.after) & near
    ends = tuple(index for index in sorted(behind) if is_end(graph, graph.operators[index]))
    # Without an end, what has no pixels any more is behind the region.
    inside = wiring.spread(ends, wiring.before) & behind if ends else behind
    kept = sorted(
        index
        for index in (inside | set(idle)) - set(settled)
        if ends or any(has_pixels(graph, value) for value in graph.operators[index].outputs)
    )
    products = tuple(index for index in kept if is_pointwise(graph, graph.operators[index]))
    return Region(tuple(kept), stems, ends, products)


def has_pixels(graph: OperatorGraph, index: int) -> bool:
    """Whether a value is an image of more than one pixel."""
    shape = graph.values[index].shape
    return len(shape) == 4 and shape[1] * shape[2] > 1


def is_end(graph: OperatorGraph, operator: Operator) -> bool:
    """Whether a cluster can end here by the kind of the operator."""
    if operator.kind == "DEPTH_TO_SPACE":
        return True
    return operator.kind in _REDUCTIONS and len(graph.values[operator.inputs[0]].shape) == 4


def _is_first_convolution(wiring: Wiring, operator: Operator) -> bool:
    if operator.kind not in _CONVOLUTIONS:
        return False
    earlier = wiring.spread([operator.index], wiring.before) - {operator.index}
    return all(wiring.graph.operators[index].kind not in _CONVOLUTIONS for index in earlier)
