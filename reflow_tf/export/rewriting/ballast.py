"""Ballast: zeros that change no output and lift a sparse cluster over XNNPACK's two thirds.

XNNPACK counts the zeros of all 1x1 convolutions of a cluster together, a kernel as often as it is read (src/subgraph.c,
`xnn_subgraph_rewrite_for_nchw`). So an image x inside of the cluster is multiplied by a squeeze-and-excitation block
whose factor is 1: its mean goes through 1x1 convolutions of which the kernel is all zeros and the bias is 1. All of
them share one kernel, so the file grows by little more than a vector of ones; and they see one pixel, so they cost next
to nothing even where the file runs dense. Zero convolutions on the map itself that are added to it would cost MobileNet
V2 up to a fifth of its multiplications there. x * 1 is x to the last bit, in float16 as well; only where an image has
no finite mean would more of it be lost than is lost already.
"""

from collections.abc import Collection

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.operators import read_operators
from reflow_tf.export.rewriting.convolutions import HEIGHT, WIDTH
from reflow_tf.export.rewriting.graph import EditableGraph
from reflow_tf.export.rewriting.outcome import Applied, Refused, Rewritten
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.targets.operators import OperatorGraph
from reflow_tf.targets.xnnpack.judgement import judge_version
from reflow_tf.targets.xnnpack.shortfall import BALLAST, Shortfall, find_shortfalls
from reflow_tf.targets.xnnpack.speedups import LEAST_GAIN, PRUNED_SHARE, foresee_speedups, say_speedups
from reflow_tf.targets.xnnpack.target import XNNPack
from reflow_tf.targets.xnnpack.versions import NEWEST
from reflow_tf.targets.xnnpack.workload import count_macs

_NAME = "ballast"
# For choosing the place, in instructions: what an operator takes by itself. A number read or written counts as 1.
_OPERATOR_COST = 2000
# Of a file, measured: at most 1,300 for the first convolution besides its ones, and 190 for each.
_FIRST_BYTES, _KERNEL_BYTES = 1400, 200


def bound_size(graph: OperatorGraph, devices: Collection[str]) -> int:
    """Bytes that `add_ballast` may add to a file that is stored sparse, rather too many than too few.

    Args:
        graph: the file, rewritten in all other ways, with the zeros that it will have.
        devices: as for `add_ballast`.
    """
    shortfalls = find_shortfalls(graph, NEWEST)
    if not shortfalls or _find_losses(graph, devices):
        return 0
    places = [(shortfall, graph.values[_find_place(graph, shortfall)].shape[-1]) for shortfall in shortfalls]
    return sum(
        _FIRST_BYTES + 4 * channels + shortfall.count_kernels(channels**2) * _KERNEL_BYTES
        for shortfall, channels in places
    )


def add_ballast(content: bytes, devices: Collection[str]) -> Rewritten:
    """Gives every cluster that lacks only zeros as many as it needs, if the file then is faster on all these devices.

    Args:
        content: a .tflite file that is rewritten in all other ways already, its batch fixed.
        devices: names of `targets.xnnpack.costs.DEVICES`.

    Raises:
        InputError: `content` is not a whole .tflite file.
    """
    found = read_operators(content)
    shortfalls = find_shortfalls(found, NEWEST)
    if not shortfalls:
        return Rewritten(content, (), ())
    if losses := _find_losses(found, devices):
        pruned = any(shortfall.num_zeros > PRUNED_SHARE * shortfall.num_weights for shortfall in shortfalls)
        name = found.values[shortfalls[0].values[0]].name
        return Rewritten(content, (), (Refused(_NAME, name, losses),) if pruned else ())
    graph = EditableGraph(content)
    applied = tuple(_insert(graph, found, shortfall, number) for number, shortfall in enumerate(shortfalls))
    ballasted = graph.serialize()
    verdict = XNNPack().judge(read_operators(store_sparse(ballasted)))
    if verdict.corrupted_by or not verdict.eligible:
        reason = (
            "Its kernels are too small for sparse storage to make the file smaller, and without, it would run dense."
        )
        if verdict.corrupted_by:
            reason = f"With enough zeros, {' and '.join(verdict.corrupted_by)} would compute wrong outputs or none."
        return Rewritten(content, (), (Refused(_NAME, applied[0].operators[0], reason),))
    return Rewritten(ballasted, applied, ())


def _find_losses(graph: OperatorGraph, devices: Collection[str]) -> str:
    """Why ballast would not pay on all of these devices; '' if it would."""
    speedups = foresee_speedups(graph, judge_version(graph, NEWEST))
    losing = {device: speedups[device] for device in devices if speedups[device] < LEAST_GAIN}
    return f"Run sparse, {say_speedups(losing, would=True)}" if losing else ""


def _insert(graph: EditableGraph, found: OperatorGraph, shortfall: Shortfall, number: int) -> Applied:
    """Multiplies the image at which that costs least by 1."""
    index = _find_place(found, shortfall)
    batch, height, width, channels = graph.shape(index)
    name, readers = f"{BALLAST}{number}/", graph.readers(index)
    factor = index
    if height * width > 1:
        axes = graph.add_constant(f"{name}axes", np.array([HEIGHT, WIDTH], np.int32))
        factor = graph.add_value(f"{name}mean", (batch, 1, 1, channels), like=index)
        graph.insert(readers[0], "MEAN", [index, axes], factor, schema.ReducerOptionsT(keepDims=True))
    zeros = graph.add_constant(f"{name}zeros", np.zeros((channels, 1, 1, channels), np.float32))
    ones = graph.add_constant(f"{name}ones", np.ones(channels, np.float32))
    num_kernels = shortfall.count_kernels(channels**2)
    for step in range(num_kernels):
        source, factor = factor, graph.add_value(f"{name}one_{step}", (batch, 1, 1, channels), like=index)
        options = schema.Conv2DOptionsT(padding=schema.Padding.VALID, strideH=1, strideW=1)
        graph.insert(readers[0], "CONV_2D", [source, zeros, ones], factor, options)
    same = graph.add_value(f"{name}same", (batch, height, width, channels), like=index)
    graph.insert(readers[0], "MUL", [index, factor], same, schema.MulOptionsT())
    graph.redirect(index, same, readers)
    return Applied(_NAME, (graph.tensor_name(index),), _state(found, shortfall, num_kernels, channels))


def _find_place(graph: OperatorGraph, shortfall: Shortfall) -> int:
    return min(shortfall.values, key=lambda value: _measure_cost(graph, value, shortfall))


def _measure_cost(graph: OperatorGraph, index: int, shortfall: Shortfall) -> int:
    """Of ballast on a value: a mean over it and a product with it, if it has pixels, and the convolutions between."""
    value = graph.values[index]
    channels = value.shape[-1]
    return shortfall.count_kernels(channels**2) * (_OPERATOR_COST + channels) + 3 * value.num_elements


def _state(graph: OperatorGraph, shortfall: Shortfall, num_kernels: int, channels: int) -> str:
    added = num_kernels * channels**2
    before = shortfall.num_zeros / shortfall.num_weights
    after = (shortfall.num_zeros + added) / (shortfall.num_weights + added)
    extra = added / sum(count_macs(graph, operator) for operator in graph.operators)
    return (
        f"{added:,} zeros that change no output ({num_kernels} 1x1 convolution{'s' if num_kernels > 1 else ''} of one "
        f"pixel) lift the share of zeros from {before:.1%} to {after:.1%}, over the two thirds that XNNPACK asks for. "
        f"Where a runtime has no sparse kernels, as on x86 or a GPU, they cost {extra:.1%} more multiplications."
    )
