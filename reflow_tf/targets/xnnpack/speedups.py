"""What running sparse gains a network, device by device, in numbers and in words; and what each weight costs it."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from reflow_tf.sparsity.budget import Price
from reflow_tf.targets.operators import Operator, OperatorGraph
from reflow_tf.targets.xnnpack.costs import DEVICES, Device, Switch, count_work
from reflow_tf.targets.xnnpack.judgement import Judgement
from reflow_tf.targets.xnnpack.workload import count_blocks, count_dense

# Predicted gains are right to some percent: below this one, nobody can tell whether it is one.
LEAST_GAIN = 1.05
# With fewer zeros, nobody has pruned the network yet, and nobody wants to know what they gain.
PRUNED_SHARE = 0.1


def foresee_speedups(graph: OperatorGraph, judgement: Judgement) -> Mapping[str, float]:
    """Device -> cost of the dense network by its cost if every cluster that could ran sparse, with the zeros it has.

    Over 1 is a gain. An estimate, from other networks on one machine; to know, measure.

    Args:
        graph: the network.
        judgement: of it; whether there are enough zeros, or whether they are stored sparse, does not matter.
    """
    return compare_costs(graph, judgement.possible_switches)


def compare_costs(graph: OperatorGraph, switches: Collection[Switch]) -> Mapping[str, float]:
    """Device -> cost of the network dense by its cost with these clusters sparse."""
    return {
        name: device.cost(count_work(graph, (), device.tiles)) / device.cost(count_work(graph, switches, device.tiles))
        if switches
        else 1.0
        for name, device in DEVICES.items()
    }


def assume_sparsity(graph: OperatorGraph, operators: Collection[int], sparsity: float) -> OperatorGraph:
    """The network with this share of each of these operators' weights zero, one by one and not in blocks."""
    values = list(graph.values)
    for operator in graph.operators:
        if operator.index in operators:
            value = values[operator.inputs[1]]
            zeros = round(sparsity * value.num_elements)
            values[value.index] = dataclasses.replace(value, num_zeros=zeros, blocks=())
    return dataclasses.replace(graph, values=tuple(values))


def say_speedups(speedups: Mapping[str, float], would: bool) -> str:
    """A sentence that begins with a small letter; `would`: of a file that does not run sparse yet."""
    clauses = []
    for name, speedup in speedups.items():
        place = DEVICES[name].place
        if speedup >= 1:
            clauses.append(f"{place} it {'would be' if would else 'is'} about {speedup:.2f} times as fast as dense")
        else:
            clauses.append(f"{place} it {'would take' if would else 'takes'} about {1 / speedup:.2f} times as long")
    return f"{'; '.join(clauses)}."


def price_weights(
    graph: OperatorGraph, operators: Collection[int], devices: Iterable[Device], rows: int
) -> dict[int, Price]:
    """Index of a constant -> what a weight of it costs inside a sparse cluster, in dense inferences of the network.

    Args:
        graph: the network.
        operators: indices of those that would run sparse; one constant may weigh in several.
        devices: whose costs are added up, each as a share of what the dense network costs it.
        rows: output channels that the zeros take together, so that kernels for 2 or 4 are chosen.
    """
    sums: dict[int, np.ndarray] = {}
    for device in devices:
        total = device.cost(count_work(graph, (), device.tiles))
        for operator in graph.operators:
            if operator.index in operators:
                index = operator.inputs[1]
                sums[index] = sums.get(index, np.zeros(3)) + _price_one(graph, operator, device, rows) / total
    return {
        index: Price(kept, full=full, dense=dense)
        for index, (kept, full, dense) in ((index, each.tolist()) for index, each in sums.items())
    }


def _price_one(graph: OperatorGraph, operator: Operator, device: Device, rows: int) -> np.ndarray:
    """A weight that is kept among zeros, one of a kernel without a zero, and one of the dense network."""
    weights = graph.values[operator.inputs[1]]
    pixels, depth = graph.values[operator.outputs[0]].num_elements // weights.shape[0], weights.shape[-1]

    def price_in(width: int) -> float:
        return device.cost(count_blocks(pixels, depth, width, 1, 0, device.tiles)) / width

    dense = device.cost(count_dense(graph, operator, device.tiles)) / weights.num_elements
    # Without a zero, all blocks of 4 are full.
    return np.array([price_in(rows), price_in(4), dense])
