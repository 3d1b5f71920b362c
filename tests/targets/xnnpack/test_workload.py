"""What a weight costs XNNPACK, and what a bound came to where it was measured."""

import dataclasses

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from reflow_tf.export.operators import read_operators
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.sparsity.budget import Price
from reflow_tf.targets.storage import Storage
from reflow_tf.targets.xnnpack import XNNPack
from reflow_tf.targets.xnnpack.workload import SHRINKING_SHARE, count_macs, estimate_speedup, is_pointwise

# README.md, "Does it run faster?": network, bound from the multiplications, dense / ours in LiteRT.js.
MEASURED = [
    *[("MobileNetV2, torchvision", bound, speedup) for bound, speedup in ((1.95, 1.69), (2.32, 1.99), (3.01, 2.50))],
    *[("MobileNetV2, torchvision", bound, speedup) for bound, speedup in ((2.66, 2.06), (3.48, 2.57), (5.04, 3.25))],
    *[("EfficientNet-Lite0", bound, speedup) for bound, speedup in ((2.02, 1.79), (2.42, 2.12), (3.11, 2.59))],
    *[("EfficientNet-Lite0", bound, speedup) for bound, speedup in ((2.60, 2.08), (3.37, 2.54), (4.78, 3.12))],
    ("MobileNet", 4.15, 2.58),
    ("MobileNetV2", 3.48, 2.45),
    ("MobileNetV3Large", 3.42, 2.17),
    ("EfficientNetB0", 3.37, 1.84),
]


def test_the_estimate_is_the_least_squares_line_of_what_was_measured():
    bounds, speedups = (np.array(column) for column in zip(*((b, s) for _, b, s in MEASURED), strict=True))
    removed, saved = 1 - 1 / bounds, 1 - 1 / speedups
    assert pytest.approx(removed @ saved / (removed @ removed), abs=0.005) == SHRINKING_SHARE


def test_the_estimate_is_as_far_off_as_it_is_said_to_be():
    ratios = {(name, bound): estimate_speedup(bound) / speedup for name, bound, speedup in MEASURED}
    assert max(ratios, key=ratios.get)[0] == "EfficientNetB0" and 1.31 < max(ratios.values()) < 1.33
    others = [ratio for (name, _), ratio in ratios.items() if name != "EfficientNetB0"]
    assert 0.885 < min(others) < 0.9 and 1.12 < max(others) < 1.14


def test_what_does_not_run_sparse_is_as_fast_as_dense():
    assert estimate_speedup(1.0) == 1.0
    assert 1 < estimate_speedup(2.0) < estimate_speedup(3.0) < 3


def test_a_weight_costs_its_output_positions(network):
    """Of an image of 224: a layer on 112x112 costs 256 times as much a weight as one on 7x7."""
    net = network((1, 224, 224, 3))
    x = net.block(net.stem(), 16)
    for _ in range(4):
        x = net.block(net.pad(x), 16, stride=2, padding=schema.Padding.VALID)
    graph = read_operators(net.file(net.mean(x)))
    prices = XNNPack().price(graph).prices
    products = [op for op in graph.operators if op.kind == "CONV_2D" and op.inputs[1] in prices]
    costs = [prices[op.inputs[1]].kept for op in products]
    assert costs[0] == 112 * 112 and costs[0] / costs[-1] == 256
    weights = [graph.values[op.inputs[1]].num_elements for op in products]
    assert [c * w for c, w in zip(costs, weights, strict=True)] == [count_macs(graph, op) for op in products]


def test_so_many_zeros_make_a_cluster_switch_and_one_less_does_not(network):
    def judge(num_zeros, num_weights):
        net = network(zeros=num_zeros / num_weights)
        graph = read_operators(store_sparse(net.file(net.mean(net.conv(net.stem(), 24)))))
        return XNNPack().price(graph).least_zeros, XNNPack().judge(graph).eligible

    least, eligible = judge(700, 768)
    assert least == 513 and eligible
    assert judge(513, 768)[1] and not judge(512, 768)[1]


def test_what_cannot_run_sparse_has_no_price(network):
    net = network()
    graph = read_operators(net.file(net.conv(net.body(), 24)))
    assert XNNPack().price(graph).prices == {} and XNNPack().price(graph).least_zeros == 0


def test_one_constant_of_two_operators_costs_what_both_multiply(network):
    net = network()
    graph = read_operators(net.file(net.mean(net.conv(net.conv(net.stem(), 32), 32))))
    first, second = (operator for operator in graph.operators if is_pointwise(graph, operator))
    shared = dataclasses.replace(second, inputs=(second.inputs[0], *first.inputs[1:]))
    operators = tuple(shared if operator is second else operator for operator in graph.operators)
    prices = XNNPack().price(dataclasses.replace(graph, operators=operators)).prices
    assert prices == {first.inputs[1]: Price(2 * 16 * 16)}


def test_storage_counts_bytes_with_an_index_beside_each_value(network):
    net = network((1, 8, 8, 300), half=True)
    graph = read_operators(net.file(net.conv(net.conv(net.image, 400), 200)))
    prices = {graph.values[i].shape: price for i, price in Storage().price(graph).prices.items()}
    assert prices == {(400, 1, 1, 300): Price(4, 2), (200, 1, 1, 400): Price(3, 2)}
    assert Storage().price(graph).least_zeros == 0
