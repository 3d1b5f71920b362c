"""How much of a network's work can become sparse: the bound on what sparsity can gain."""

import math
from collections import Counter
from collections.abc import Collection

from reflow_tf.sparsity.budget import Price
from reflow_tf.targets.operators import ABSENT, Operator, OperatorGraph

# Of the dense time, the share that shrinks as the multiply-accumulates do: least squares over the 16 files of six
# networks at 224x224 that README.md lists, LiteRT.js 2.5.3, one thread. Predicted by measured there: 0.89 to 1.13, and
# 1.32 for EfficientNetB0, whose activations take long. Networks for smaller images gain less.
SHRINKING_SHARE = 0.84


def is_pointwise(graph: OperatorGraph, operator: Operator) -> bool:
    """Whether an operator is a 1x1 convolution with stride 1 and one group: what sparse kernels exist for."""
    if operator.kind != "CONV_2D" or operator.attributes["strides"] != (1, 1):
        return False
    weights = graph.values[operator.inputs[1]].shape
    return weights[1:3] == (1, 1) and weights[3] == graph.values[operator.inputs[0]].shape[3]


def count_macs(graph: OperatorGraph, operator: Operator) -> int:
    """Multiply-accumulates of one inference; 0 for what has no weights, which is small beside the rest."""
    if operator.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"):
        return 0
    weights = graph.values[operator.inputs[1]].shape
    if operator.kind == "TRANSPOSE_CONV":  # inputs: output shape, weights, data
        source = graph.values[operator.inputs[2]]
        return source.num_elements * math.prod(weights[:3])
    results = graph.values[operator.outputs[0]].num_elements
    depth = weights[1] * weights[2] if operator.kind == "DEPTHWISE_CONV_2D" else math.prod(weights[1:])
    return results * depth


def bound_speedup(graph: OperatorGraph, sparse: Collection[int]) -> float:
    """All multiply-accumulates over those that are left when no zero of a sparse operator is multiplied.

    A bound, not a promise: sparse kernels do less per second than dense ones, and what is no product takes time, too.

    Args:
        graph: the network.
        sparse: indices of the operators that run sparse.
    """
    total = left = 0.0
    for operator in graph.operators:
        macs = float(count_macs(graph, operator))
        total += macs
        weights = operator.inputs[1] if len(operator.inputs) > 1 else ABSENT
        if operator.index in sparse and weights != ABSENT:
            value = graph.values[weights]
            macs *= 1 - value.num_zeros / value.num_elements
        left += macs
    return total / left if left else 1.0


def estimate_speedup(bound: float) -> float:
    """What a bound of `bound_speedup` comes to in practice: Amdahl's law with `SHRINKING_SHARE`.

    An estimate from other networks in one runtime on one machine; to know, measure.
    """
    return 1 / (1 - SHRINKING_SHARE * (1 - 1 / bound))


def price_macs(graph: OperatorGraph, operators: Collection[int]) -> dict[int, Price]:
    """Index of a constant -> multiply-accumulates of one kept weight of it: how many outputs its kernel has a row for.

    Args:
        graph: the network.
        operators: indices of those whose zeros save anything; one constant may weigh in several.
    """
    macs: Counter[int] = Counter()
    for operator in graph.operators:
        if operator.index in operators:
            macs[operator.inputs[1]] += count_macs(graph, operator)
    return {index: Price(count / graph.values[index].num_elements) for index, count in macs.items()}


def share_macs(graph: OperatorGraph, operators: Collection[int]) -> float:
    """The share of all multiply-accumulates that these operators do."""
    macs = [count_macs(graph, operator) for operator in graph.operators]
    own = sum(count for operator, count in zip(graph.operators, macs, strict=True) if operator.index in operators)
    return own / sum(macs) if own else 0.0
