"""What running sparse gains, what a weight costs, and both in words."""

import dataclasses

import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given
from hypothesis import strategies as st

from reflow_tf.export.operators import read_operators
from reflow_tf.export.sparse_storage import store_sparse
from reflow_tf.sparsity.budget import Price
from reflow_tf.targets.operators import Blocks
from reflow_tf.targets.storage import Storage
from reflow_tf.targets.xnnpack import DEVICES, XNNPack, foresee_speedups, judge_version
from reflow_tf.targets.xnnpack.costs import count_work
from reflow_tf.targets.xnnpack.speedups import LEAST_GAIN, assume_sparsity, say_speedups
from reflow_tf.targets.xnnpack.versions import NEWEST
from reflow_tf.targets.xnnpack.workload import is_pointwise

VALID = schema.Padding.VALID


def draw(network, zeros=0.6, shape=(1, 96, 96, 3), store=bytes):
    net = network(shape, zeros=zeros)
    x = net.block(net.stem(), 128)
    x = net.block(net.pad(x), 128, stride=2, padding=VALID)
    return read_operators(store(net.file(net.dense(net.mean(x), 10))))


@pytest.fixture(scope="module")
def pruned(network):
    """Three fifths of the weights zero, and stored dense."""
    return draw(network)


def foresee(graph):
    return foresee_speedups(graph, judge_version(graph, NEWEST))


def with_sparsity(graph, sparsity):
    return assume_sparsity(graph, judge_version(graph, NEWEST).possible, sparsity)


@given(st.floats(0.15, 0.98), st.floats(0.15, 0.98))
def test_more_zeros_never_cost_more(pruned, one, other):
    less, more = (
        foresee_speedups(graph, judge_version(graph, NEWEST))
        for graph in (with_sparsity(pruned, share) for share in sorted((one, other)))
    )
    assert all(less[device] <= more[device] for device in DEVICES)


def test_the_cost_is_the_sum_of_its_parts(pruned):
    judgement = judge_version(pruned, NEWEST)
    for name, device in DEVICES.items():
        dense, sparse = (
            sum(device.coefficients.get(kind, 0) * amount for kind, amount in work.items())
            for work in (
                count_work(pruned, (), device.tiles),
                count_work(pruned, judgement.possible_switches, device.tiles),
            )
        )
        assert foresee_speedups(pruned, judgement)[name] == pytest.approx(dense / sparse)


def test_a_verdict_tells_what_is_and_what_could_be(network, pruned):
    verdict = XNNPack().judge(pruned)
    assert verdict.speedups == dict.fromkeys(DEVICES, 1) and not verdict.eligible
    assert verdict.possible_speedups == foresee_speedups(pruned, judge_version(pruned, NEWEST))
    sparse = XNNPack().judge(draw(network, 0.8, store=store_sparse))
    assert sparse.eligible and sparse.speedups == sparse.possible_speedups
    assert sparse.foreseen_speedups[0.9]["browser"] > sparse.speedups["browser"] > 1


def test_what_cannot_run_sparse_gains_nothing(network):
    net = network()
    verdict = XNNPack().judge(read_operators(net.file(net.conv(net.body(), 24))))
    assert verdict.possible_speedups == dict.fromkeys(DEVICES, 1) and verdict.foreseen_speedups == {}


def test_blocks_cost_less_on_arm_and_more_in_a_browser(pruned):
    values = list(pruned.values)
    for operator in pruned.operators:
        if is_pointwise(pruned, operator):
            value = values[operator.inputs[1]]
            kept = value.num_elements - value.num_zeros
            values[value.index] = dataclasses.replace(value, blocks=(Blocks(2, kept // 2, kept), Blocks(4, kept, kept)))
    blocked = dataclasses.replace(pruned, values=tuple(values))
    single, double = (foresee_speedups(graph, judge_version(graph, NEWEST)) for graph in (pruned, blocked))
    assert double["arm"] > single["arm"] and double["browser"] < single["browser"]


@pytest.mark.parametrize(
    ("speedups", "would", "said"),
    [
        (
            {"browser": 1.36, "arm": 1 / 1.1},
            True,
            "in a browser it would be about 1.36 times as fast as dense; "
            "on ARM it would take about 1.10 times as long.",
        ),
        ({"arm": 1.2}, False, "on ARM it is about 1.20 times as fast as dense."),
        ({"browser": 0.5}, False, "in a browser it takes about 2.00 times as long."),
    ],
)
def test_gains_and_losses_in_words(speedups, would, said):
    assert say_speedups(speedups, would) == said


def test_the_statement_says_what_the_numbers_say(network, pruned):
    verdict = XNNPack().judge(pruned)
    assert verdict.statement.endswith(f"Run sparse all the same, {say_speedups(verdict.possible_speedups, True)}")
    for zeros in (0, 0.05):
        assert XNNPack().judge(draw(network, zeros)).statement.endswith("its weights are not yet.")
    sparse = XNNPack().judge(draw(network, 0.8, store=store_sparse))
    assert sparse.statement.lower().endswith(say_speedups(sparse.speedups, False).lower())


def price(graph, **settings):
    return XNNPack(**settings).price(graph)


def test_a_weight_costs_its_output_positions(network):
    """Of an image of 224: a map of 112x112 has 256 times the pixels of one of 7x7, whose last one is a tile."""
    net = network((1, 224, 224, 3))
    x = net.block(net.stem(), 16)
    for _ in range(4):
        x = net.block(net.pad(x), 16, stride=2, padding=VALID)
    graph = read_operators(net.file(net.mean(x)))
    for device in DEVICES:
        prices = price(graph, device=device).prices
        first, *_, last = (prices[op.inputs[1]].kept for op in graph.operators if is_pointwise(graph, op))
        assert 100 < first / last < 350


def test_prices_are_shares_of_the_dense_network(pruned):
    for device in DEVICES:
        prices = price(pruned, device=device).prices
        dense = sum(pruned.values[index].num_elements * each.dense for index, each in prices.items())
        assert 0.3 < dense < 1
        for each in prices.values():
            assert each.full > each.dense, "dense kernels are better at dense weights"
            assert each.kept > each.dense, "and each weight by itself costs more"
    both = price(pruned).prices
    for index, each in both.items():
        parts = [price(pruned, device=device).prices[index] for device in DEVICES]
        assert each.kept == pytest.approx(sum(part.kept for part in parts))


def test_blocks_have_prices_of_their_own(pruned):
    single, double = (price(pruned, device="arm", rows=rows).prices for rows in (1, 2))
    assert all(double[index].kept < single[index].kept for index in single)


def test_without_ballast_two_thirds_must_be_zero(pruned):
    assert price(pruned).least_zeros == 0
    num_weights = sum(pruned.values[op.inputs[1]].num_elements for op in pruned.operators if is_pointwise(pruned, op))
    assert price(pruned, ballast=False).least_zeros == num_weights * 2 // 3 + 1


def test_the_estimate_is_that_of_the_device_or_of_the_worse_one(pruned):
    for sparsity in (0.3, 0.5, 0.6, 0.65):
        graph = with_sparsity(pruned, sparsity)
        possible = {device: gain if gain >= LEAST_GAIN else 1 for device, gain in foresee(graph).items()}
        for device in DEVICES:
            assert XNNPack(device=device).estimate_speedup(graph) == possible[device]
        assert XNNPack().estimate_speedup(graph) == min(possible.values())
    assert XNNPack(ballast=False).estimate_speedup(pruned) == 1, "too few zeros, so it runs dense"
    assert XNNPack(ballast=True).estimate_speedup(with_sparsity(pruned, 0)) == 1, "nobody gives it ballast"


def test_so_many_zeros_make_a_cluster_switch_and_one_less_does_not(network):
    def judge(num_zeros, num_weights):
        net = network(zeros=num_zeros / num_weights)
        graph = read_operators(store_sparse(net.file(net.mean(net.conv(net.stem(), 24)))))
        return price(graph, ballast=False).least_zeros, XNNPack().judge(graph).eligible

    least, eligible = judge(700, 768)
    assert least == 513 and eligible
    assert judge(513, 768)[1] and not judge(512, 768)[1]


def test_what_cannot_run_sparse_has_no_price(network):
    net = network()
    graph = read_operators(net.file(net.conv(net.body(), 24)))
    assert price(graph).prices == {} and price(graph, ballast=False).least_zeros == 0


def test_one_constant_of_two_operators_costs_what_both_multiply(network):
    net = network()
    graph = read_operators(net.file(net.mean(net.conv(net.conv(net.stem(), 32), 32))))
    first, second = (operator for operator in graph.operators if is_pointwise(graph, operator))
    shared = dataclasses.replace(second, inputs=(second.inputs[0], *first.inputs[1:]))
    operators = tuple(shared if operator is second else operator for operator in graph.operators)
    (alone,) = {each.kept for each in price(graph).prices.values()}
    prices = price(dataclasses.replace(graph, operators=operators)).prices
    assert list(prices) == [first.inputs[1]] and prices[first.inputs[1]].kept == pytest.approx(2 * alone)


def test_storage_counts_bytes_with_an_index_beside_each_value(network):
    net = network((1, 8, 8, 300), half=True)
    graph = read_operators(net.file(net.conv(net.conv(net.image, 400), 200)))
    prices = {graph.values[i].shape: price for i, price in Storage().price(graph).prices.items()}
    assert prices == {(400, 1, 1, 300): Price(4, 2), (200, 1, 1, 400): Price(3, 2)}
    assert Storage().price(graph).least_zeros == 0
